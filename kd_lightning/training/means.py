"""The epoch's mean of each loss, summed up once a window of steps, so that no step waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor


class EpochMeans:
    """Means over samples of the total loss and of each of its terms."""

    def __init__(self, sums: Tensor | None = None) -> None:
        self._window: list[tuple[Tensor | float, list[Tensor]]] = []
        self._sums = sums

    def __len__(self) -> int:
        """Steps of the open window."""
        return len(self._window)

    def add(self, samples: Tensor | float, total: Tensor, terms: list[Tensor]) -> None:
        """Keep references to a step's values, which are means over its samples."""
        self._window.append((samples, [total.detach(), *(term.detach() for term in terms)]))

    def close(self) -> float | None:
        """Add the window to the sums; returns the first total in it that is not finite."""
        if not self._window:
            return None
        samples = torch.tensor([float(size) for size, _ in self._window], dtype=torch.float64)
        values = torch.stack([torch.stack(values) for _, values in self._window]).double().cpu()
        self._window = []
        wrong = values[~values[:, 0].isfinite(), 0]
        if len(wrong):
            return float(wrong[0])
        sums = torch.cat([samples @ values, samples.sum()[None]])
        self._sums = sums if self._sums is None else self._sums + sums
        return None

    def share(self, device: torch.device, world_size: int) -> Tensor | None:
        """An equal share of all processes' closed sums, from which each of them goes on; None where there was no step."""
        if self._sums is None or world_size == 1:
            return self._sums
        sums = self._sums.to(device, copy=True)
        torch.distributed.all_reduce(sums)
        return sums.cpu() / world_size

    def compute(self, device: torch.device, joined: bool) -> Tensor | None:
        """The means of total and terms, `(1 + terms,)`, over all processes where `joined`; None where there was no step."""
        if self._sums is None:
            return None
        sums = self._sums.to(device, torch.float32)
        if joined:
            torch.distributed.all_reduce(sums)
        return sums[:-1] / sums[-1]

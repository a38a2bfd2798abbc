"""The mean of each loss over an epoch, without waiting for the device in any step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class NotFinite(NamedTuple):
    """The first step of a window whose total is not finite.

    Attributes:
        position: of the step in the window, from 0.
        total: the weighted sum of the losses.
        terms: each loss.
    """

    position: int
    total: float
    terms: list[float]


class EpochMeans:
    """Means over samples of the total loss and of each of its terms.

    Steps are collected in a window, which `close` adds to the epoch's sums: the only moment at
    which the device must finish its work.

    Args:
        sums: of the steps that a resumed run has done already, see `share`.
    """

    def __init__(self, sums: Tensor | None = None) -> None:
        self._window: list[tuple[Tensor | float, list[Tensor]]] = []
        self._sums = sums

    def __len__(self) -> int:
        """The number of steps in the open window."""
        return len(self._window)

    def add(self, samples: Tensor | float, total: Tensor, terms: list[Tensor]) -> None:
        """Hold references to the values of a step, which are means over its samples."""
        # Without their graphs, which would keep the step's activations in memory.
        values = [total.detach()]
        for term in terms:
            values.append(term.detach())
        self._window.append((samples, values))

    def close(self) -> NotFinite | None:
        """Add the window to the sums; returns the first step that is not finite, if any."""
        if not self._window:
            return None
        sizes = []
        steps = []
        for size, step in self._window:
            sizes.append(float(size))
            steps.append(torch.stack(step))
        samples = torch.tensor(sizes, dtype=torch.float64)
        # One copy from the device for the whole window. Shape: steps x (1 + terms).
        values = torch.stack(steps).double().cpu()
        self._window = []
        finite = values[:, 0].isfinite()
        if not bool(finite.all()):
            broken = (~finite).nonzero()
            position = int(broken[0])
            total, *terms = values[position].tolist()
            return NotFinite(position, total, terms)
        # Sums rather than means, as batches differ in size; the last entry counts the samples.
        weighted = samples @ values
        count = samples.sum()[None]
        sums = torch.cat([weighted, count])
        if self._sums is not None:
            sums = self._sums + sums
        self._sums = sums
        return None

    def share(self, device: torch.device, world_size: int) -> Tensor | None:
        """An equal share of all processes' sums, for a checkpoint; `None` before the first window.

        Each process of a resumed run continues from one share.
        """
        if self._sums is None or world_size == 1:
            return self._sums
        sums = self._sums.to(device, copy=True)
        torch.distributed.all_reduce(sums)
        return sums.cpu() / world_size

    def compute(self, device: torch.device, joined: bool) -> Tensor | None:
        """The means of total and terms, `(1 + terms,)`; `None` before the first window.

        Args:
            device: of the training.
            joined: whether to take the means over all processes.
        """
        if self._sums is None:
            return None
        sums = self._sums.to(device, torch.float32)
        if joined:
            torch.distributed.all_reduce(sums)
        return sums[:-1] / sums[-1]

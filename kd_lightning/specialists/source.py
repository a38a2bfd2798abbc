"""The samples of a specialist: some classes of a source, and all others as one class.

Hinton et al. 2015, section 5.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from kd_lightning.data.source import Source
from kd_lightning.randomness import permutation
from kd_lightning.types import CLEAN, Batch


def _relabelled(target: Tensor, new_class: Tensor) -> Tensor:
    """Targets among the specialist's classes; unlabelled ones stay unlabelled."""
    # Class 0 stands in for unlabelled targets, which would be out of range as an index.
    labels = target.clamp(min=0)
    mapped = new_class.to(target.device)[labels]
    return torch.where(target < 0, target, mapped)


class SpecialistSource(Source):
    """A source whose classes are a specialist's.

    In training, each epoch serves all samples of the specialist's own classes and as many samples
    of all other classes, drawn as a function of (seed, epoch).

    Args:
        inner: the source with all classes.
        new_class: int64 `(K,)`, the specialist's class for each class.
        own, others: positions in `inner` of the samples of its own classes and of all others;
            `None`: all samples, in order.
        seed: of the draws among the others.
    """

    def __init__(
        self,
        inner: Source,
        new_class: Tensor,
        own: Tensor | None = None,
        others: Tensor | None = None,
        seed: int = 0,
    ) -> None:
        self.inner = inner
        self.new_class = new_class
        self.own = own
        self.others = others
        self.seed = seed
        self.split = inner.split
        self.target = _relabelled(inner.target, new_class)
        self._epoch: int | None = None
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Draw this epoch's samples of the other classes; see `Source.begin_epoch`."""
        self.inner.begin_epoch(epoch)
        # The loader calls this for every iteration, also for a second one of the same epoch.
        if epoch == self._epoch:
            return
        self._epoch = epoch
        self.positions = self._positions(epoch)
        """This epoch's samples as positions in `inner`."""
        inner_rows = self.inner.rows
        self.rows = inner_rows[self.positions.to(inner_rows.device)]

    def _positions(self, epoch: int) -> Tensor:
        """The positions in `inner` of an epoch's samples, int64 `(n,)`."""
        if self.own is None or self.others is None:
            return torch.arange(len(self.inner))
        order = permutation(len(self.others), self.seed, epoch, "others")
        # Without replacement; if there are fewer others than own samples, the order repeats.
        place = torch.arange(len(self.own)) % len(order)
        drawn = self.others[order[place]]
        return torch.cat([self.own, drawn])

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample's inputs, as in `inner`; 0 if samples differ in size."""
        return self.inner.sample_bytes

    @property
    def resident_bytes(self) -> int | None:
        """Bytes that `to` copies to a device; `None` if `inner` cannot move."""
        return self.inner.resident_bytes

    def to(self, device: torch.device) -> SpecialistSource:
        """The same source with the samples of `inner` resident on `device`."""
        moved = self.inner.to(device)
        return SpecialistSource(moved, self.new_class, self.own, self.others, self.seed)

    def lengths(self, view: int = CLEAN) -> Tensor | None:
        """The length of each of this epoch's samples, int64 `(n,)`; `None` if all are equal."""
        lengths = self.inner.lengths(view)
        if lengths is None:
            return None
        return lengths[self.positions]

    def batch(self, rows: Tensor, view: int) -> Batch:
        """Samples of `inner` with the specialist's classes as targets.

        Args:
            rows: int64 `(B,)`, positions in this epoch.
            view: which draw of the augmentation; `CLEAN` for none.
        """
        positions = self.positions[rows.cpu()]
        batch = self.inner.batch(positions, view)
        target = _relabelled(batch.target, self.new_class)
        partner = batch.partner
        if partner is not None:
            partner = _relabelled(partner, self.new_class)
        return replace(batch, target=target, partner=partner)

"""A student in training as the teacher of its peers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from kd_lightning.teachers.base import Teacher
from kd_lightning.training.learner import Learner
from kd_lightning.types import Batch, Output

TRACKING = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Layers that move their running statistics in training mode."""


class Peer(Teacher):
    """A student in training as the teacher of another one.

    It predicts without gradients and in the mode it trains in, so with dropout and with the
    statistics of the batch; the running statistics of BatchNorm do not move.

    Args:
        learner: the student.
    """

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        # In a tuple: as a submodule, the student would be frozen.
        self._learners = (learner,)
        self._roles: set[str] = set()
        # Nothing to load: the weights are those of the training.
        self.ready = True

    @property
    def learner(self) -> Learner:
        """The student."""
        return self._learners[0]

    def tap(self, roles: set[str]) -> dict[str, nn.Module]:
        # Several students may read layers of this one, and its own losses do.
        self._roles |= roles
        return self.learner.tap(self._roles)

    def probe(self, batch: Batch) -> Output:
        return self.learner.probe(batch)

    def outputs(self, batch: Batch) -> Output:
        with _running_statistics_kept(self.learner.network):
            output: Output = self.learner(batch)
        return output


@contextmanager
def _running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Let normalization layers in training mode use the batch without tracking it."""
    norms = []
    for layer in network.modules():
        # In eval mode the layer reads its running statistics, and moves none.
        if isinstance(layer, TRACKING) and layer.training and layer.track_running_stats:
            norms.append(layer)
    for layer in norms:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in norms:
            layer.track_running_stats = True

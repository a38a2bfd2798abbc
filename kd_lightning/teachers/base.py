"""The base of all teachers: frozen by construction, from a Batch to an Output."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.types import Batch, Output


class Teacher(nn.Module):
    """A frozen source of outputs to learn from.

    Always in eval mode, never requiring gradients, run without a graph; moved and cast with the module that holds it, and
    absent from that module's checkpoint. A subclass writes `prepare` and `outputs`.
    """

    ready: bool = False
    """Whether `prepare` has been called: a student can be loaded, tested and used without its teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.train(False)

    def prepare(self, datamodule: Any) -> None:
        """Load whatever the outputs come from, and check it against the data.

        Args:
            datamodule: offers `spec` and, for caches, `fingerprint()`.

        Raises:
            UserError: one line, where the teacher cannot be had or does not fit.
        """
        self.requires_grad_(False)
        self.train(False)
        self.ready = True

    def tap(self, roles: set[str]) -> dict[str, nn.Module]:
        """Capture these roles' features from now on; returns the tapped modules by role."""
        if roles:
            raise UserError(
                f"{type(self).__name__} has no features for {', '.join(sorted(roles))}; use a single ModelTeacher"
            )
        return {}

    @property
    def exact_logits(self) -> bool:
        """Whether every class's logit is the network's own, not an approximation."""
        return True

    def probe(self, batch: Batch) -> Output:
        """An output of the right shapes for a batch of blank samples."""
        return self.forward(batch)

    def outputs(self, batch: Batch) -> Output:
        raise NotImplementedError

    def forward(self, batch: Batch) -> Output:
        if not self.ready:
            raise UserError(
                f"{type(self).__name__} is not prepared; call prepare(datamodule) first"
            )
        with torch.no_grad():
            return self.outputs(batch)

    def sources(self) -> list[dict[str, Any]]:
        """Where the knowledge comes from, in builtins: path and sha256 of each file."""
        return []

    def train(self, mode: bool = True) -> Self:
        """A teacher stays in eval mode, whatever mode its owner is set to."""
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """A teacher stays frozen, whatever its owner asks for."""
        return super().requires_grad_(False)

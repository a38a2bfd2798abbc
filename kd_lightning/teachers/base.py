"""The base of all teachers: frozen by construction, from a Batch to an Output."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.outputs import PLAIN_READING, Reading
from kd_lightning.types import Batch, Inputs, Output


class Teacher(nn.Module, ABC):
    """A frozen source of outputs to learn from.

    Always in eval mode and never requiring gradients; moved and cast with the module that holds
    it, and absent from that module's checkpoint. A subclass implements `prepare` and `outputs`.

    Attributes:
        ready: whether `prepare` has been called. A student can be loaded, tested and used without
            its teacher.
        predicts: whether the teacher is meant to predict the data's classes; not if losses read its
            features alone.

    Class attributes:
        learns: whether the teacher changes during training. The module's checkpoint then holds its
            weights, and every evaluation measures it.
    """

    learns: ClassVar[bool] = False
    ready: bool = False
    predicts: bool = True

    def __init__(self) -> None:
        super().__init__()
        # Modules begin in training mode.
        self.train(False)

    def prepare(self, datamodule: DataModule) -> None:
        """Load what the outputs come from, and check it against the data.

        Args:
            datamodule: the data.

        Raises:
            UserError: one line, if the teacher is not available or does not fit.
        """
        self.requires_grad_(False)
        self.train(False)
        self.ready = True

    def follow(
        self,
        student: nn.Module,
        layers: Mapping[str, str],
        reading: Reading = PLAIN_READING,
    ) -> None:
        """Hook: this student will learn from this teacher; it has its initial weights.

        Args:
            student: the network.
            layers: module name for each role, of the student's layers.
            reading: which entry of the student's output holds the logits.
        """

    def after_step(self) -> None:
        """Hook: the optimizer has just updated the student's weights."""

    def use_row_chunk(self, row_chunk: int) -> None:
        """Hook: losses will read the logits of a few rows at a time, if the teacher has such.

        Args:
            row_chunk: rows whose logits are in memory together.
        """

    def tap(self, roles: set[str]) -> dict[str, nn.Module]:
        """Capture the features of these roles from now on; returns the tapped modules by role.

        Args:
            roles: that losses read.

        Raises:
            UserError: if this teacher has no features.
        """
        if roles:
            raise UserError(
                f"{type(self).__name__} has no features for {', '.join(sorted(roles))}; "
                "use a single ModelTeacher"
            )
        return {}

    @property
    def exact_logits(self) -> bool:
        """Whether every class's logit is the network's own, not an approximation."""
        return True

    def require_temperatures(self, temperatures: tuple[float, ...]) -> None:
        """Check that this teacher has distributions at these temperatures; most have all of them.

        Raises:
            UserError: if a top-k cache does not store one of them.
        """

    @property
    def joins(self) -> bool:
        """Whether outputs come with the data: the loader calls `join` for each batch."""
        return False

    def join(self, batch: Batch, index: Tensor) -> Batch:
        """Add this teacher's output to a batch, on the CPU, before the batch moves to the device.

        Args:
            batch: on the CPU or, if its samples are resident, on the device.
            index: `batch.index` on the CPU, int64 `(B,)`.
        """
        return batch

    def probe(self, batch: Batch) -> Output:
        """An output of the right shapes for a blank batch.

        Args:
            batch: of the data's shapes.

        Raises:
            UserError: if the teacher cannot read such inputs.
        """
        try:
            return self.forward(batch)
        except UserError:
            raise
        except Exception as error:
            # The network's own code can raise anything; the shape is the likely cause.
            tensor = _tensors(batch.inputs)[0]
            shape = list(tensor.shape[1:])
            raise UserError(
                f"the teacher cannot read inputs of shape {shape}: {error}"
            ) from error

    @abstractmethod
    def outputs(self, batch: Batch) -> Output:
        """The outputs for a batch; called without gradients unless the inputs require them.

        Args:
            batch: of B samples with N positions.
        """

    def forward(self, batch: Batch) -> Output:
        """The outputs for a batch, `(N, K)` logits.

        Gradients flow to inputs that require them (from a generator), never to the weights.

        Args:
            batch: of B samples with N positions.

        Raises:
            UserError: if `prepare` was not called.
        """
        if not self.ready:
            raise UserError(
                f"{type(self).__name__} is not prepared; call prepare(datamodule) first"
            )
        # A generator learns through the teacher; nobody else pays for a graph.
        if torch.is_grad_enabled() and _require_grad(batch.inputs):
            return self.outputs(batch)
        with torch.no_grad():
            return self.outputs(batch)

    def sources(self) -> list[dict[str, object]]:
        """Where the knowledge comes from, in plain values: path and sha256 of each file."""
        return []

    @property
    def notes(self) -> list[str]:
        """What a user should know about the prepared teacher, one line each."""
        return []

    def train(self, mode: bool = True) -> Self:
        """A teacher stays in eval mode, whatever mode its owner is set to."""
        return super().train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """A teacher stays frozen, whatever its owner requests."""
        return super().requires_grad_(False)


def _tensors(inputs: Inputs) -> list[Tensor]:
    """The tensors of inputs of either form."""
    if isinstance(inputs, Mapping):
        return list(inputs.values())
    return [inputs]


def _require_grad(inputs: Inputs) -> bool:
    """Whether someone wants gradients for the inputs."""
    return any(tensor.requires_grad for tensor in _tensors(inputs))

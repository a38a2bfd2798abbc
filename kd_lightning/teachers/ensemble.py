"""Several teachers as one."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.model import ModelTeacher
from kd_lightning.types import Batch, EnsembleOutput, Output, full, mean_log_probs


class EnsembleTeacher(Teacher):
    """The mean of several teachers' predictions (Hinton et al. 2015, section 5.1).

    Args:
        teachers: the members.
        checkpoints: paths of `kd` checkpoints, each one more member.
        mean: "arithmetic", of the members' distributions at the temperature in use; or
            "geometric", of their logits, which is the geometric mean of the distributions up to a
            constant.
        weights: one positive number per member, scaled to sum to one; equal if left out.

    Raises:
        UserError: if there is no member, or weights do not fit them.
    """

    weights: Tensor

    def __init__(
        self,
        teachers: list[Teacher] | None = None,
        checkpoints: list[str] | None = None,
        mean: Literal["arithmetic", "geometric"] = "arithmetic",
        weights: list[float] | None = None,
    ) -> None:
        super().__init__()
        members = list(teachers or [])
        members += [ModelTeacher(checkpoint=path) for path in checkpoints or []]
        if not members:
            raise UserError(
                "EnsembleTeacher has no members; give teachers or checkpoints"
            )
        for member in members:
            if member.learns:
                raise UserError(
                    f"EnsembleTeacher: {type(member).__name__} changes during training and "
                    "cannot be a member; use it as the only teacher"
                )
        values = weights or [1.0] * len(members)
        positive = all(weight > 0 and math.isfinite(weight) for weight in values)
        if len(values) != len(members) or not positive:
            raise UserError(
                f"EnsembleTeacher: weights must be {len(members)} positive numbers, one per "
                f"member, got {values}"
            )
        self.members = nn.ModuleList(members)
        self._teachers = tuple(members)  # the same, with their type
        self.mean = mean
        # Double precision until they are used, and no buffer: weights are arguments, not state.
        self.weights = torch.tensor(values, dtype=torch.float64) / math.fsum(values)

    def prepare(self, datamodule: DataModule) -> None:
        for member in self._teachers:
            member.prepare(datamodule)
            if not member.exact_logits:
                raise UserError(
                    "EnsembleTeacher: a member is a top-k cache, and a mean needs every logit; "
                    "cache the member without --top-k, or cache the ensemble"
                )
        super().prepare(datamodule)

    def outputs(self, batch: Batch) -> Output:
        members = torch.stack(
            [member(batch).logits for member in self._teachers], dim=1
        )
        weights = self.weights.to(members.device, full(members).dtype)
        if self.mean == "geometric":
            return Output(torch.einsum("bmk,m->bk", full(members), weights))
        mean = mean_log_probs(members, weights)
        return EnsembleOutput(mean, members=members, weights=weights)

    def sources(self) -> list[dict[str, object]]:
        return [source for member in self._teachers for source in member.sources()]

    @property
    def notes(self) -> list[str]:
        notes = [note for member in self._teachers for note in member.notes]
        # Members of one kind say the same.
        return list(dict.fromkeys(notes))

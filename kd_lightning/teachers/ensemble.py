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

    A loss that reads the features of each member names them by number: `0.map` is the layer `map`
    of the first one.

    Args:
        teachers: the members.
        checkpoints: paths of `kd` checkpoints, each one more member.
        layers: module name for each role that a loss may ask for, of each member that
            `checkpoints` names.
        mean: "arithmetic", of the members' distributions at the temperature in use; or
            "geometric", of their logits, which is the geometric mean of the distributions up to a
            constant.
        weights: one positive number per member, scaled to sum to one; equal if left out.

    Raises:
        UserError: if there is no member, weights do not fit them, or `layers` has no checkpoints.
    """

    weights: Tensor

    def __init__(
        self,
        teachers: list[Teacher] | None = None,
        checkpoints: list[str] | None = None,
        mean: Literal["arithmetic", "geometric"] = "arithmetic",
        weights: list[float] | None = None,
        layers: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        if layers and not checkpoints:
            raise UserError(
                "EnsembleTeacher: layers is for members that checkpoints names; name the layers "
                "of other members in teachers"
            )
        members = list(teachers or [])
        for path in checkpoints or []:
            members.append(ModelTeacher(checkpoint=path, layers=layers))
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
        # The same modules, with their type.
        self._teachers = tuple(members)
        self.mean = mean
        # Double precision until they are used, and no buffer: weights are arguments, not state.
        exact = torch.tensor(values, dtype=torch.float64)
        self.weights = exact / math.fsum(values)

    def prepare(self, datamodule: DataModule) -> None:
        """Prepare each member.

        Args:
            datamodule: the data.

        Raises:
            UserError: if a member is not available, does not fit, or holds no exact logits.
        """
        for member in self._teachers:
            member.prepare(datamodule)
            if not member.exact_logits:
                raise UserError(
                    "EnsembleTeacher: a member is a top-k cache, and a mean needs every logit; "
                    "cache the member without --top-k, or cache the ensemble"
                )
        super().prepare(datamodule)

    def tap(self, roles: set[str]) -> dict[str, nn.Module]:
        by_member: list[set[str]] = [set() for _ in self._teachers]
        unknown = set()
        for role in roles:
            prefix, _, own_role = role.partition(".")
            if prefix.isdecimal() and int(prefix) < len(by_member) and own_role:
                by_member[int(prefix)].add(own_role)
            else:
                unknown.add(role)
        modules = super().tap(unknown)
        for number, member in enumerate(self._teachers):
            for role, module in member.tap(by_member[number]).items():
                modules[f"{number}.{role}"] = module
        return modules

    def outputs(self, batch: Batch) -> Output:
        """The mean of the members' predictions, `(N, K)`, and all members' features.

        Args:
            batch: of B samples with N positions.
        """
        outputs = [member(batch) for member in self._teachers]
        # Two members may have the same roles, so the member's number precedes the role.
        features = {}
        for number, output in enumerate(outputs):
            for role, feature in output.features.items():
                features[f"{number}.{role}"] = feature
        members = torch.stack([output.logits for output in outputs], dim=1)
        dtype = full(members).dtype
        weights = self.weights.to(members.device, dtype)
        # A mean of logits is a plain output, exact at every temperature.
        if self.mean == "geometric":
            logits = torch.einsum("bmk,m->bk", full(members), weights)
            return Output(logits, features)
        # The mean differs at every temperature, so the output keeps the members' logits.
        mean = mean_log_probs(members, weights)
        return EnsembleOutput(mean, features, members=members, weights=weights)

    def sources(self) -> list[dict[str, object]]:
        """The sources of all members, in order."""
        sources = []
        for member in self._teachers:
            sources.extend(member.sources())
        return sources

    @property
    def notes(self) -> list[str]:
        """What the members say, each line once."""
        notes = []
        for member in self._teachers:
            notes.extend(member.notes)
        # Members of one kind say the same.
        return list(dict.fromkeys(notes))

"""Confidence-aware multi-teacher distillation: Zhang, Chen and Wang 2022."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    FrozenHead,
    adapted,
    check_one_label,
    check_role,
    check_width,
    connector,
    feature_of,
    linear_head,
    not_built,
    pooled,
    same_size,
    shapes_of,
)
from kd_lightning.losses._members import confidence, members_of, soft_target_kls
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    not_negative,
    positive,
    teacher_of,
)
from kd_lightning.types import Batch, Output, full


class CAMKD(DistillLoss):
    r"""A teacher counts as much as it is right, sample by sample, in its logits and its last map.

    $\sum_m w_{im} T^2 \mathrm{KL}(p_{im} \| q_i) + b \sum_m v_{im} \|F_{im} - r_m(G_i)\|^2$, mean
    over samples i; the square is a mean over elements. A connector $r_m$ per teacher maps the
    student's map G to that of teacher m. The weights w follow from the cross-entropy of each
    teacher with the label, and v from that of each teacher's frozen classifier on $r_m(G_i)$; see
    `confidence`. Both sum to one. As in the authors' code, the gradient passes through v, and the
    second term begins with the second epoch.

    The authors' code divides both sums by the number of teachers once more, which is a smaller
    `weight` here.

    The teachers are the members of an `EnsembleTeacher`, whose layers have the roles `0.map`,
    `1.map` and so on. With one teacher, any teacher will do.

    Args:
        teachers: how many teachers there are.
        layer: role of the last map before global pooling, of the student and of each teacher.
        head: role of each teacher's classifier.
        features: b, at least 0.
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if the teachers are not as many, a
            layer does not return a map, a head is no linear classifier of its channels, or samples
            have more than one label.
    """

    paper: ClassVar[str] = "Zhang et al. 2022, arXiv 2201.00007"
    year: ClassVar[int] = 2022
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = (
        "all teacher logits",
        "teacher features",
        "teacher classifier",
        "labels",
        "several teachers",
    )
    exact_logits: ClassVar[bool] = True
    compares_classes: ClassVar[bool] = True
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        teachers: int = 1,
        layer: str = "map",
        head: str = "head",
        features: float = 50.0,
        temperature: float = 4.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        if isinstance(teachers, bool) or not isinstance(teachers, int) or teachers < 1:
            raise UserError(
                f"CAMKD: teachers must be a whole number of at least 1, got {teachers}"
            )
        self.teachers = teachers
        self.layer = check_role("CAMKD", "layer", layer)
        self.head = check_role("CAMKD", "head", head)
        self.features = not_negative("CAMKD", "features", features)
        self.temperature = positive("CAMKD", "temperature", temperature)
        self.connectors = nn.ModuleList()
        self.classifiers = nn.ModuleList()
        self._share_of_features = 1.0

    def _roles_of(self, role: str) -> list[str]:
        """The role of a layer for each teacher."""
        if self.teachers == 1:
            return [role]
        return [f"{number}.{role}" for number in range(self.teachers)]

    @property
    def student_roles(self) -> set[str]:
        """The last map."""
        return {self.layer}

    @property
    def teacher_roles(self) -> set[str]:
        """The last map and the classifier of each teacher."""
        return {*self._roles_of(self.layer), *self._roles_of(self.head)}

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the connectors, and copy the teachers' classifiers."""
        check_one_label("CAMKD", student)
        # The roles of the layers depend on this number, so it cannot follow the
        # teacher.
        if teacher is not None:
            found = members_of(teacher.output).shape[1]
            if found != self.teachers:
                raise UserError(
                    f"CAMKD: teachers is {self.teachers}, but model.teacher has {found}; set it to "
                    "the number of members of the EnsembleTeacher"
                )
        layers = self._roles_of(self.layer)
        heads = self._roles_of(self.head)
        for layer, head in zip(layers, heads, strict=True):
            own, target = shapes_of(
                "CAMKD", student, teacher, (self.layer, layer), ranks=(4,)
            )
            assert teacher is not None
            classifier = linear_head("CAMKD", "teacher", teacher, head)
            check_width("CAMKD", "teacher", classifier, target[1])
            self.connectors.append(
                nn.Sequential(connector(own[1], target[1]), nn.ReLU())
            )
            self.classifiers.append(FrozenHead(classifier))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The sum of both terms, a scalar.

        Raises:
            UserError: before `build`.
        """
        target = teacher_of(self, teacher)
        if len(self.connectors) == 0:
            raise not_built("CAMKD")
        members = members_of(target)
        weights = confidence(torch.log_softmax(members, dim=-1), batch)
        costs = soft_target_kls(full(student.logits), members, self.temperature)
        soft = (weights * costs).sum(1).mean()
        # Times zero in the first epoch, so that every parameter has a gradient in every process.
        share = self._share_of_features * self.features
        return soft + share * self._on_features(student, target, batch)

    def _on_features(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """The weighted squared differences of the maps, mean over samples: a scalar."""
        own = feature_of("CAMKD", student, self.layer)
        log_probs = []
        costs = []
        for number, role in enumerate(self._roles_of(self.layer)):
            target = feature_of("CAMKD", teacher, role)
            connected = adapted(self.connectors[number], own)
            own_map, target = same_size(connected, target)
            squares = (own_map - target).square()
            costs.append(squares.flatten(1).mean(1))
            # What the teacher's classifier sees in the student's map decides its weight.
            logits = self.classifiers[number](pooled(own_map))
            log_probs.append(torch.log_softmax(logits, dim=-1))
        weights = confidence(torch.stack(log_probs, dim=1), batch)
        weighted_costs = weights * torch.stack(costs, dim=1)
        return weighted_costs.sum(1).mean()

    def on_epoch_start(self, epoch: int) -> None:
        """The features count from the second epoch of the loss on."""
        self._share_of_features = 1.0 if epoch > self.start else 0.0

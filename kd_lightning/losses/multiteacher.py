"""Several teachers, each with a weight per row: You et al. 2017, Kwon et al. 2020, Zhang et al. 2022."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._members import (
    complements,
    confidence,
    members_of,
    soft_target_kls,
)
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    Probe,
    is_labelled,
    positive,
    teacher_of,
)
from kd_lightning.types import Batch, Output, finite_log_probs, full


class TeacherWeights(nn.Module):
    """Base class: the weight of each teacher in each row.

    A subclass implements `forward`, and `build` if it depends on the number of teachers. Its
    parameters train with the student; all other state is in buffers.
    """

    def build(self, members: int, student: Probe) -> None:
        """Create what depends on the number of teachers; called once, before the optimizer exists.

        Raises:
            UserError: if the weights do not fit the teachers or the data.
        """

    def forward(self, members: Tensor, batch: Batch) -> Tensor:
        """The weights.

        Args:
            members: logits of all teachers, `(N, M, K)`.
            batch: `labels` `(N,)` belong to the rows, `index` `(B,)` identifies the samples.

        Returns:
            `(N, M)`, at least 0, rows that sum to one.
        """
        raise NotImplementedError


class UniformWeights(TeacherWeights):
    """All teachers count alike (You et al. 2017)."""

    def forward(self, members: Tensor, batch: Batch) -> Tensor:
        return _expanded(members, members.new_ones(members.shape[1]))


class FixedWeights(TeacherWeights):
    """One weight per teacher, the same for all rows.

    Args:
        weights: positive, one per teacher; scaled to sum to one.

    Raises:
        UserError: if a weight is not positive; from `build`, if their number differs from that of
            the teachers.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = [positive("FixedWeights", "each weight", w) for w in weights]

    def build(self, members: int, student: Probe) -> None:
        if len(self.weights) != members:
            raise UserError(
                f"FixedWeights: weights must have one number for each of the {members} teachers, "
                f"got {len(self.weights)}"
            )

    def forward(self, members: Tensor, batch: Batch) -> Tensor:
        return _expanded(members, members.new_tensor(self.weights))


class EntropyWeights(TeacherWeights):
    r"""A teacher that is sure counts more: $(1 - H_m / \sum_l H_l) / (M - 1)$ per row.

    $H_m$ is the entropy of teacher m's distribution (Kwon et al. 2020). The code of Zhang et al.
    2022 leaves out M - 1, so that its weights sum to M - 1.

    Args:
        temperature: of the distributions, greater than 0.

    Raises:
        UserError: for a temperature that is not a finite number greater than 0.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = positive("EntropyWeights", "temperature", temperature)

    def forward(self, members: Tensor, batch: Batch) -> Tensor:
        log_probs = torch.log_softmax(members / self.temperature, dim=-1)
        log_probs = finite_log_probs(log_probs)
        # An entropy that rounding makes negative would give a weight above one.
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        return complements(entropy.clamp(min=0))


class ConfidenceWeights(TeacherWeights):
    """A teacher that is closer to the label counts more, row by row; see `confidence`."""

    def forward(self, members: Tensor, batch: Batch) -> Tensor:
        return confidence(torch.log_softmax(members, dim=-1), batch)


class LearnedWeights(TeacherWeights):
    """One weight per teacher, the softmax of numbers that train with the student.

    The numbers start equal. The gradient favors the teacher whose distribution is nearest to the
    student's.
    """

    def build(self, members: int, student: Probe) -> None:
        # Created here and not in the constructor, because the teachers are known here.
        self.logits = nn.Parameter(torch.zeros(members))

    def forward(self, members: Tensor, batch: Batch) -> Tensor:
        weights = torch.softmax(full(self.logits).to(members.dtype), dim=0)
        return weights.expand(members.shape[:2])


class ClassRouting(TeacherWeights):
    """Each class has one teacher; a row without a label has all of them alike.

    Mixed samples (`Mixup`) have the teachers of both classes by their shares.

    Args:
        teachers: for each class, the number of its teacher, from 0.

    Raises:
        UserError: from `build`, if the numbers do not fit the classes and the teachers.
    """

    def __init__(self, teachers: Sequence[int]) -> None:
        super().__init__()
        self.teachers = list(teachers)

    def build(self, members: int, student: Probe) -> None:
        classes = student.output.logits.shape[1]
        if len(self.teachers) != classes:
            raise UserError(
                f"ClassRouting: teachers must have one number for each of the {classes} classes, "
                f"got {len(self.teachers)}"
            )
        routes = _routes("ClassRouting: teachers", self.teachers, members)
        self.register_buffer("routes", routes, persistent=False)

    def forward(self, members: Tensor, batch: Batch) -> Tensor:
        own = self._weights_of(batch.labels, members)
        partner = batch.partner_labels
        share = batch.row_share
        if partner is None or share is None:
            return own
        # A mixed sample is taught by the teachers of both classes.
        of_partner = self._weights_of(partner, members)
        share_of_row = share.to(own.dtype)[:, None]
        return torch.lerp(of_partner, own, share_of_row)

    def _weights_of(self, labels: Tensor, members: Tensor) -> Tensor:
        count = members.shape[1]
        # Class 0 stands in for an unknown label, whose weights are equal below.
        teacher = self.get_buffer("routes")[labels.clamp(min=0)]
        chosen = F.one_hot(teacher, count).to(members.dtype)
        return torch.where(is_labelled(labels)[:, None], chosen, 1 / count)


class ColumnRouting(TeacherWeights):
    """A column of a CSV file names the teacher of each training sample, such as its language.

    Args:
        path: of a CSV file with a header and one line per row of the source split "train", in its
            order.
        column: its name.
        values: the values of the column, in the order of the teachers.

    Raises:
        UserError: from `build`, if the file cannot be read, or does not fit the data, the values
            or the teachers.
    """

    def __init__(self, path: str, column: str, values: Sequence[str]) -> None:
        super().__init__()
        self.path = Path(path).expanduser()
        self.column = column
        self.values = [str(value) for value in values]

    def build(self, members: int, student: Probe) -> None:
        # One value per teacher, so that every teacher has its own rows.
        if len(self.values) != members or len(set(self.values)) < members:
            raise UserError(
                f"ColumnRouting: values must be {members} different values of the column, one per "
                f"teacher, got {self.values}"
            )
        names = self._read()
        expected = student.spec.source_samples
        if expected and len(names) != expected:
            raise UserError(
                f"ColumnRouting: {self.path} has {len(names)} lines below its header, but the "
                f"training data has {expected} rows"
            )
        # A sample of another value would have no teacher.
        unknown = sorted(set(names) - set(self.values))
        if unknown:
            raise UserError(
                f"ColumnRouting: the column {self.column!r} of {self.path} holds {unknown[0]!r}; "
                f"values names the teachers of {self.values}"
            )
        numbers = [self.values.index(name) for name in names]
        routes = _routes("ColumnRouting: values", numbers, members)
        self.register_buffer("routes", routes, persistent=False)

    def _read(self) -> list[str]:
        """The column's value of each line."""
        try:
            with self.path.open(newline="", encoding="utf-8") as lines:
                reader = csv.DictReader(lines)
                if self.column not in (reader.fieldnames or ()):
                    raise UserError(
                        f"ColumnRouting: {self.path} has no column {self.column!r}; its columns "
                        f"are {', '.join(reader.fieldnames or ())}"
                    )
                return [line[self.column] or "" for line in reader]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(
                f"ColumnRouting: {self.path} cannot be read as a CSV file: {error}"
            ) from error

    def forward(self, members: Tensor, batch: Batch) -> Tensor:
        rows, count = members.shape[:2]
        if rows != len(batch):
            raise UserError(
                "ColumnRouting needs one prediction per sample, not one per position"
            )
        teacher = self.get_buffer("routes")[batch.index]
        return F.one_hot(teacher, count).to(members.dtype)


def _expanded(members: Tensor, weights: Tensor) -> Tensor:
    """Weights `(M,)`, scaled to sum to one, for each row of members `(N, M, K)`: `(N, M)`."""
    return (weights / weights.sum()).expand(members.shape[:2])


def _routes(owner: str, numbers: Sequence[int], members: int) -> Tensor:
    """The numbers as int64; UserError if one of them is the number of no teacher."""
    for number in numbers:
        if not isinstance(number, int) or not 0 <= number < members:
            raise UserError(
                f"{owner} must be numbers of teachers from 0 to {members - 1}, got {number}"
            )
    return torch.tensor(list(numbers), dtype=torch.int64)


class MultiTeacher(DistillLoss):
    r"""Soft targets of several teachers: $T^2 \sum_m w_{im}\,\mathrm{KL}(p_{im} \| q_i)$.

    The mean over rows i, where the weights $w_{im}$ of the M teachers sum to one. With constant
    weights the gradient is that of `KD` towards the weighted mean of the teachers' distributions;
    learned weights make a difference.

    The teachers are the members of an `EnsembleTeacher` with `mean: arithmetic`, or of its full
    cache; its own weights are not read. Any other teacher is a single one, for which the loss is
    `KD`.

    Args:
        weighting: how the teachers are weighted; `UniformWeights` if left out.
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature that is not a finite number greater than 0; from `build`, if
            the weighting does not fit.
    """

    paper: ClassVar[str] = "You et al. 2017, doi 10.1145/3097983.3098135"
    year: ClassVar[int] = 2017
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits", "several teachers")
    exact_logits: ClassVar[bool] = True
    compares_classes: ClassVar[bool] = True

    def __init__(
        self,
        weighting: TeacherWeights | None = None,
        temperature: float = 4.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.weighting = UniformWeights() if weighting is None else weighting
        self.temperature = positive("MultiTeacher", "temperature", temperature)

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Fit the weighting to the number of teachers."""
        if teacher is None:
            raise UserError(
                "MultiTeacher needs a teacher; use DistillationModule with model.teacher"
            )
        members = members_of(teacher.output).shape[1]
        self.weighting.build(members, student)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The weighted divergences, mean over rows: a scalar in nats."""
        members = members_of(teacher_of(self, teacher))
        weights: Tensor = self.weighting(members, batch)
        costs = soft_target_kls(full(student.logits), members, self.temperature)
        return (weights * costs).sum(1).mean()

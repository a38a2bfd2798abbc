"""What is measured before training: the teacher on held-out samples, the losses on a real batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kd_lightning.data.datamodule import DataModule
from kd_lightning.losses.base import DistillLoss, is_labelled
from kd_lightning.metrics import TaskMetrics
from kd_lightning.randomness import permutation
from kd_lightning.training.module import TrainingModule
from kd_lightning.training.objective import Teachers
from kd_lightning.types import CLEAN, Batch, Output, finite_log_probs, full

MOST_SAMPLES = 1000
"""Samples on which a teacher is measured, at most."""

MOST_SECONDS = 3.0
"""A teacher is measured on no further batch after this time."""

MOST_ROWS = 100_000
"""Predicted and true classes that are kept for a comparison; a map has many per sample."""

SMALLEST_VALUE = 1e-6
"""A loss below this is zero up to rounding."""

ToDevice = Callable[[Batch], Batch]


@runtime_checkable
class HasTemperature(Protocol):
    """A loss between distributions at a temperature."""

    temperature: float


@dataclass
class TeacherReport:
    """A teacher's outputs on samples that have labels.

    Attributes:
        split: "validation", or "train" if nothing is held out.
        metric: name of the task's monitored metric.
        value: of that metric for the teacher; NaN without labels.
        student: of that metric for the student, if it starts from trained weights.
        samples, rows: how many were measured.
        broken_rows: rows with NaN, an infinite value, or no possible class.
        constant: whether all rows are the same.
        num_classes: K of outputs that are distributions over classes; 0 for others.
        predicted, labels: int64 `(n,)`, classes of the labelled rows.
        entropy, top: by temperature, the mean entropy in nats and the mean largest probability.
    """

    split: str
    metric: str
    value: float = float("nan")
    student: float | None = None
    samples: int = 0
    rows: int = 0
    broken_rows: int = 0
    constant: bool = False
    num_classes: int = 0
    predicted: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    entropy: dict[float, float] = field(default_factory=dict)
    top: dict[float, float] = field(default_factory=dict)

    @property
    def agreement(self) -> float | None:
        """The fraction of labelled rows whose predicted class is the label."""
        if len(self.labels) == 0:
            return None
        return float((self.predicted == self.labels).double().mean())


@dataclass
class LossReport:
    """One loss on the first training batch.

    Attributes:
        value: unweighted.
        weight: in the first epoch.
        gradient: norm of the weighted loss's gradient for what is trained; `None` if not measured.
        share: that norm divided by the sum of all losses' norms.
        exact: the value in double precision, for losses at a temperature.
        at_minimum: whether the loss is at its minimum already, where it has no gradient: a student
            that starts as a copy of its teacher.
    """

    value: float
    weight: float
    gradient: float | None = None
    share: float | None = None
    exact: float | None = None
    at_minimum: bool = False

    @property
    def weighted(self) -> float:
        """Its part of the total."""
        return self.weight * self.value


# -- the teacher -----------------------------------------------------------------------------------


def measure_teacher(
    module: TrainingModule, datamodule: DataModule, to_device: ToDevice
) -> TeacherReport:
    """Measure the teacher on the validation split, or on training samples if there is none.

    Args:
        module: with a prepared teacher.
        datamodule: of the run.
        to_device: moves a batch to the teacher.

    Raises:
        UserError: if a cached teacher holds none of these samples.
    """
    assert module.task is not None
    assert module.spec is not None
    teacher = module.active_teacher
    assert teacher is not None
    has_validation = len(datamodule.source("validation")) > 0
    split = "validation" if has_validation else "train"
    report = TeacherReport(split, module.task.monitor)
    running = _RunningTeacher(report, _temperatures(module.objective.named_losses()))
    metrics = module.task.metrics(module.spec).to(module.device)
    student_metrics = None
    if module.init_from is not None:
        student_metrics = module.task.metrics(module.spec).to(module.device)
        module.learner.eval()
    stop_at = time.monotonic() + MOST_SECONDS
    with torch.no_grad():
        for batch in _held_out(module, datamodule, split):
            moved = to_device(batch)
            output = teacher(moved)
            metrics.update(output, None, moved)
            running.add(output, moved)
            if student_metrics is not None:
                student = module.objective.predict(module.learner(moved), moved)
                student_metrics.update(student, None, moved)
            if time.monotonic() > stop_at:
                break
    running.finish()
    report.value = _value_of(metrics, report.metric)
    if student_metrics is not None:
        report.student = _value_of(student_metrics, report.metric)
    return report


def _held_out(
    module: TrainingModule, datamodule: DataModule, split: str
) -> Iterator[Batch]:
    """Random samples of a split, at most `MOST_SAMPLES`, in batches."""
    teacher = module.active_teacher
    source = datamodule.source(split)
    chosen = permutation(len(source), "first report")[:MOST_SAMPLES].sort().values
    # A cache may hold the augmented training samples alone.
    cached_views = teacher is not None and teacher.joins and datamodule.augmented
    view = 0 if split == "train" and cached_views else CLEAN
    for rows in chosen.split(datamodule.batch_size):
        batch = source.batch(rows, view)
        if teacher is not None and teacher.joins:
            batch = teacher.join(batch, source.rows.cpu()[rows])
        yield batch


def _temperatures(losses: list[tuple[str, DistillLoss]]) -> list[float]:
    """The temperatures at which losses read the teacher's distribution; 1 if none does."""
    temperatures = set()
    for _, loss in losses:
        if (
            loss.uses_teacher
            and loss.compares_classes
            and isinstance(loss, HasTemperature)
        ):
            temperatures.add(float(loss.temperature))
    return sorted(temperatures) or [1.0]


def _value_of(metrics: TaskMetrics, name: str) -> float:
    return float(metrics.compute().get(name, torch.tensor(torch.nan)))


class _RunningTeacher:
    """Adds up a teacher's outputs batch by batch; they would not fit into memory together."""

    def __init__(self, report: TeacherReport, temperatures: list[float]) -> None:
        self.report = report
        self.temperatures = temperatures
        self._predicted: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._entropy = dict.fromkeys(temperatures, 0.0)
        self._top = dict.fromkeys(temperatures, 0.0)
        self._smallest: Tensor | None = None
        self._largest: Tensor | None = None

    def add(self, output: Output, batch: Batch) -> None:
        report = self.report
        logits = full(output.logits)
        report.samples += len(batch)
        report.rows += len(logits)
        # -inf rules out a class, which is no fault as long as one class remains.
        broken = logits.isnan().any(-1) | (logits == torch.inf).any(-1)
        broken |= (logits == -torch.inf).all(-1)
        report.broken_rows += int(broken.sum())
        self._add_range(logits.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
        labels = batch.labels
        if logits.shape[-1] == 1 or labels.is_floating_point():
            return
        report.num_classes = logits.shape[-1]
        for temperature in self.temperatures:
            log_probs = finite_log_probs(output.log_probs(temperature))
            probs = log_probs.exp()
            self._entropy[temperature] -= float((probs * log_probs).sum())
            self._top[temperature] += float(probs.amax(-1).sum())
        if sum(map(len, self._labels)) < MOST_ROWS:
            labelled = is_labelled(labels)
            self._predicted.append(logits.argmax(-1)[labelled].cpu())
            self._labels.append(labels[labelled].cpu())

    def _add_range(self, logits: Tensor) -> None:
        if len(logits) == 0:
            return
        smallest = logits.amin(0)
        largest = logits.amax(0)
        if self._smallest is not None and self._largest is not None:
            smallest = torch.minimum(smallest, self._smallest)
            largest = torch.maximum(largest, self._largest)
        self._smallest = smallest
        self._largest = largest

    def finish(self) -> None:
        report = self.report
        if self._smallest is not None and self._largest is not None:
            size = self._largest.abs().amax().clamp(min=1e-6)
            spread = (self._largest - self._smallest).amax()
            # Kernels may give equal samples outputs that differ in the last bits.
            report.constant = report.rows > 1 and bool(spread <= 1e-5 * size)
        if self._labels:
            report.predicted = torch.cat(self._predicted)
            report.labels = torch.cat(self._labels)
        if report.num_classes > 0 and report.rows > 0:
            for temperature in self.temperatures:
                report.entropy[temperature] = self._entropy[temperature] / report.rows
                report.top[temperature] = self._top[temperature] / report.rows


# -- the losses ------------------------------------------------------------------------------------


def measure_losses(
    module: TrainingModule, batch: Batch, gradients: bool = True
) -> dict[str, LossReport]:
    """Each loss on one training batch, as the first step will compute it.

    Args:
        module: with built losses.
        batch: on the module's device.
        gradients: whether to compute each loss's gradient, one backward pass per loss.
    """
    module.objective.begin_epoch(module.current_epoch)
    target = module.targets(batch)
    student = module.learner(batch)
    _, terms, _ = module.objective(student, target, batch)
    named = module.objective.named_losses()
    reports = {}
    for (name, loss), term in zip(named, terms, strict=True):
        report = LossReport(float(term.detach()), loss.weight_at(module.current_epoch))
        report.at_minimum = (
            loss.minimum_at_teacher and abs(report.value) < SMALLEST_VALUE
        )
        reports[name] = report
    if gradients:
        parameters = _trained_parameters(module)
        for report, term in zip(reports.values(), terms, strict=True):
            acts = report.weight > 0
            report.gradient = (
                _gradient_norm(report.weight * term, parameters) if acts else 0.0
            )
        total = sum(report.gradient or 0.0 for report in reports.values())
        for report in reports.values():
            report.share = (report.gradient or 0.0) / total if total > 0 else 0.0
    for name, loss in named:
        # After the gradients: a loss may change its own buffers in each call.
        reports[name].exact = _in_double_precision(loss, student, target, batch)
    return reports


def _trained_parameters(module: TrainingModule) -> list[nn.Parameter]:
    """The student's parameters; those of the losses if only they are trained."""
    trained = module.losses if module.trains == "losses" else module.net
    return [parameter for parameter in trained.parameters() if parameter.requires_grad]


def _gradient_norm(value: Tensor, parameters: list[nn.Parameter]) -> float:
    if not value.requires_grad or not parameters:
        return 0.0
    gradients = torch.autograd.grad(
        value, parameters, retain_graph=True, allow_unused=True
    )
    norms = [gradient.double().norm() for gradient in gradients if gradient is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def _in_double_precision(
    loss: DistillLoss, student: Output, teacher: Teachers, batch: Batch
) -> float | None:
    """The loss for the same outputs in double precision; `None` if it has no temperature."""
    has_weights = any(True for _ in loss.parameters())
    if (
        not isinstance(teacher, Output)
        or has_weights
        or not isinstance(loss, HasTemperature)
    ):
        return None
    if not loss.compares_classes or batch.target.device.type == "mps":
        return None
    with torch.no_grad():
        return float(
            loss(
                student.map(lambda tensor: tensor.double()),
                teacher.map(lambda tensor: tensor.double()),
                batch,
            )
        )

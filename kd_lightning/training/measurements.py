"""What is measured before training: the teacher on held-out samples."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from kd_lightning.data.datamodule import DataModule
from kd_lightning.losses.base import DistillLoss, is_labelled
from kd_lightning.metrics import TaskMetrics
from kd_lightning.randomness import permutation
from kd_lightning.row_chunks import row_parts
from kd_lightning.training.module import TrainingModule
from kd_lightning.types import CLEAN, Batch, Output, finite_log_probs, full

MOST_SAMPLES = 1000
"""Samples on which a teacher is measured, at most."""

MOST_SECONDS = 3.0
"""A teacher is measured on no further batch after this time."""

MOST_ROWS = 100_000
"""Predicted and true classes that are kept for a comparison; a map has many per sample."""

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
        probabilities: whether the rows are probabilities, where losses read logits.
        num_classes: K of outputs that are distributions over classes; 0 for others.
        explained: of real-valued targets, the fraction of their variance that the teacher explains
            (R^2): 1 is perfect, and predicting their mean gives 0; `None` for classes.
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
    probabilities: bool = False
    num_classes: int = 0
    explained: float | None = None
    predicted: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    entropy: dict[float, float] = field(default_factory=dict)
    top: dict[float, float] = field(default_factory=dict)

    @property
    def agreement(self) -> float | None:
        """The fraction of labelled rows whose predicted class is the label."""
        if len(self.labels) == 0:
            return None
        agrees = self.predicted == self.labels
        return float(agrees.double().mean())


def measure_teacher(
    module: TrainingModule,
    datamodule: DataModule,
    to_device: ToDevice,
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
    # The accuracy of a random student is of no interest.
    if module.init_from is not None:
        student_metrics = module.task.metrics(module.spec).to(module.device)
        module.learner.eval()
    # On a slow device, a rough value now is worth more than an exact one in minutes.
    stop_at = time.monotonic() + MOST_SECONDS
    with torch.no_grad():
        for batch in _held_out(module, datamodule, split):
            moved = to_device(batch)
            if split == "train":
                moved = module.networks_batch(moved)
            row_chunk = module.learner.row_chunk
            output = teacher(moved)
            report.samples += len(moved)
            for part in row_parts(output, None, moved, row_chunk):
                metrics.update(part.student, None, part.batch)
                running.add(part.student, part.batch)
            if student_metrics is not None:
                student = module.objective.predict(module.learner(moved), moved)
                for part in row_parts(student, None, moved, row_chunk):
                    student_metrics.update(part.student, None, part.batch)
            if time.monotonic() > stop_at:
                break
    running.finish()
    report.value = _value_of(metrics, report.metric)
    if student_metrics is not None:
        report.student = _value_of(student_metrics, report.metric)
    return report


def are_probabilities(logits: Tensor) -> bool:
    """Whether outputs `(N, K)` are probabilities: not negative, and each row sums to 1.

    Logits have no reason to. A loss would apply its softmax to what was one already.
    """
    if len(logits) == 0:
        return True
    if logits.shape[-1] < 2:
        return False
    sums = logits.double().sum(-1)
    return bool((logits >= 0).all() and (sums - 1).abs().amax() < 1e-3)


def _held_out(
    module: TrainingModule,
    datamodule: DataModule,
    split: str,
) -> Iterator[Batch]:
    """Random samples of a split, at most `MOST_SAMPLES`, in batches."""
    teacher = module.active_teacher
    source = datamodule.source(split)
    order = permutation(len(source), "first report")
    # Sorted, because files are read faster in their own order.
    chosen = order[:MOST_SAMPLES].sort().values
    # A cache may hold the augmented training samples alone.
    cached_views = teacher is not None and teacher.joins and datamodule.augmented
    view = 0 if split == "train" and cached_views else CLEAN
    for rows in chosen.split(datamodule.batch_size):
        batch = source.batch(rows, view)
        if teacher is not None and teacher.joins:
            index = source.rows.cpu()[rows]
            batch = teacher.join(batch, index)
        yield batch


def _temperatures(losses: list[tuple[str, DistillLoss]]) -> list[float]:
    """The temperatures at which losses read the teacher's distribution; 1 if none does."""
    temperatures = set()
    for _, loss in losses:
        reads_distribution = loss.uses_teacher and loss.compares_classes
        if reads_distribution and isinstance(loss, HasTemperature):
            temperatures.add(float(loss.temperature))
    return sorted(temperatures) or [1.0]


def _value_of(metrics: TaskMetrics, name: str) -> float:
    """A metric's value; NaN if the samples have no labels."""
    unknown = torch.tensor(torch.nan)
    value = metrics.compute().get(name, unknown)
    return float(value)


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
        self._probabilities = True
        # The number of targets, their sum, the sum of their squares, and that of all errors.
        self._moments = torch.zeros(4, dtype=torch.float64)

    def add(self, output: Output, batch: Batch) -> None:
        """Count the rows of a batch, and sum their entropies in nats.

        Args:
            output: the teacher's, with logits `(N, K)`.
            batch: that it was computed for.
        """
        report = self.report
        logits = full(output.logits)
        report.rows += len(logits)
        # -inf rules out a class, which is no fault as long as one class remains.
        has_nan = logits.isnan().any(-1)
        has_infinity = (logits == torch.inf).any(-1)
        allows_no_class = (logits == -torch.inf).all(-1)
        broken = has_nan | has_infinity | allows_no_class
        report.broken_rows += int(broken.sum())
        self._probabilities = self._probabilities and are_probabilities(logits)
        self._add_range(logits.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
        labels = batch.labels
        if logits.shape[-1] == 1 and labels.is_floating_point():
            self._add_moments(logits[:, 0], labels)
        # Without classes there are no entropies.
        if logits.shape[-1] == 1 or labels.is_floating_point():
            return
        report.num_classes = logits.shape[-1]
        for temperature in self.temperatures:
            log_probs = finite_log_probs(output.log_probs(temperature))
            probs = log_probs.exp()
            negative_entropy = (probs * log_probs).sum()
            self._entropy[temperature] -= float(negative_entropy)
            largest = probs.amax(-1)
            self._top[temperature] += float(largest.sum())
        rows = sum(map(len, self._labels))
        # A map has a row per pixel, and so many are enough to show a renaming.
        if rows < MOST_ROWS:
            labelled = is_labelled(labels)
            predicted = logits.argmax(-1)
            self._predicted.append(predicted[labelled].cpu())
            self._labels.append(labels[labelled].cpu())

    def _add_moments(self, predicted: Tensor, targets: Tensor) -> None:
        """Add what it takes to compare predictions `(N,)` of real values with the mean target."""
        known = is_labelled(targets)
        values = targets[known].double()
        errors = predicted[known].double() - values
        sums = [values.new_tensor(float(len(values))), values.sum()]
        sums += [values.square().sum(), errors.square().sum()]
        self._moments += torch.stack(sums).cpu()

    def _add_range(self, logits: Tensor) -> None:
        """Widen the range of each column of `(N, K)` logits; a constant teacher has none."""
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
        """Complete the report once all batches are added."""
        report = self.report
        if self._smallest is not None and self._largest is not None:
            size = self._largest.abs().amax().clamp(min=1e-6)
            spread = (self._largest - self._smallest).amax()
            # Kernels may give equal samples outputs that differ in the last bits.
            is_flat = bool(spread <= 1e-5 * size)
            report.constant = is_flat and report.rows > 1
        report.probabilities = self._probabilities and report.rows > 1
        count, total, squares, errors = self._moments.tolist()
        if count > 1:
            variation = squares - total**2 / count
            # Targets that are all equal have no variance to explain.
            if variation > 1e-9 * squares:
                report.explained = 1 - errors / variation
        if self._labels:
            report.predicted = torch.cat(self._predicted)
            report.labels = torch.cat(self._labels)
        if report.num_classes > 0 and report.rows > 0:
            for temperature in self.temperatures:
                report.entropy[temperature] = self._entropy[temperature] / report.rows
                report.top[temperature] = self._top[temperature] / report.rows

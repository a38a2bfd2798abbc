"""What is measured before training: each loss on a real batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kd_lightning.losses.base import DistillLoss
from kd_lightning.row_chunks import ChunkedOutput
from kd_lightning.training.measurements import HasTemperature, are_probabilities
from kd_lightning.training.module import TrainingModule
from kd_lightning.training.objective import Teachers
from kd_lightning.types import Batch, Inputs, Output, map_tensors

SMALLEST_VALUE = 1e-6
"""A loss below this is zero up to rounding."""


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


class FirstStep(NamedTuple):
    """What the first step will compute.

    Attributes:
        losses: by name.
        probabilities: whether the student gives probabilities, where losses read logits.
        overwrites_inputs: which network changes its inputs in place, so that the other one reads
            something else: "teacher", "student" or both.
    """

    losses: dict[str, LossReport]
    probabilities: bool
    overwrites_inputs: list[str]


def measure_losses(
    module: TrainingModule, batch: Batch, gradients: bool = True
) -> FirstStep:
    """Each loss on one training batch, as the first step will compute it.

    Args:
        module: with built losses.
        batch: on the module's device.
        gradients: whether to compute each loss's gradient, one backward pass per loss.
    """
    module.objective.begin_epoch(module.current_epoch)
    batch = module.networks_batch(batch)
    overwrites_inputs = []
    before = map_tensors(batch.inputs, Tensor.clone)
    target = module.targets(batch)
    if not _same(before, batch.inputs):
        overwrites_inputs.append("teacher")
        before = map_tensors(batch.inputs, Tensor.clone)
    student = module.learner(batch)
    if not _same(before, batch.inputs):
        overwrites_inputs.append("student")
    _, terms, _ = module.objective(student, target, batch)
    named = module.objective.named_losses()
    reports = {}
    for (name, loss), term in zip(named, terms, strict=True):
        value = float(term.detach())
        weight = loss.weight_at(module.current_epoch)
        report = LossReport(value, weight)
        is_zero = abs(report.value) < SMALLEST_VALUE
        report.at_minimum = loss.minimum_at_teacher and is_zero
        reports[name] = report
    if gradients:
        _add_gradients(list(reports.values()), terms, _trained_parameters(module))
    for name, loss in named:
        # After the gradients: a loss may change its own buffers in each call.
        reports[name].exact = _in_double_precision(loss, student, target, batch)
    logits = student.logits.detach()
    probabilities = len(logits) > 0 and are_probabilities(logits)
    return FirstStep(reports, probabilities, overwrites_inputs)


def _same(first: Inputs, second: Inputs) -> bool:
    """Whether inputs still have the values that they had."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        unchanged = first == second
        # NaN stays NaN, although it differs from itself.
        if first.is_floating_point():
            unchanged = unchanged | (first.isnan() & second.isnan())
        return bool(unchanged.all())
    if isinstance(first, Tensor) or isinstance(second, Tensor):
        return False
    return all(_same(first[name], second[name]) for name in first)


def _add_gradients(
    reports: list[LossReport],
    terms: list[Tensor],
    parameters: list[nn.Parameter],
) -> None:
    """Measure each loss's gradient for the parameters, and its share of all gradients."""
    total = 0.0
    for report, term in zip(reports, terms, strict=True):
        report.gradient = 0.0
        if report.weight > 0:
            report.gradient = _gradient_norm(report.weight * term, parameters)
        total += report.gradient
    for report in reports:
        report.share = 0.0
        if total > 0:
            report.share = (report.gradient or 0.0) / total


def _trained_parameters(module: TrainingModule) -> list[nn.Parameter]:
    """The student's parameters; those of the losses if only they are trained."""
    # Adapters alone are trained in a stage that prepares a loss, such as FT's paraphraser.
    trained = module.losses if module.trains == "losses" else module.net
    return [parameter for parameter in trained.parameters() if parameter.requires_grad]


def _gradient_norm(value: Tensor, parameters: list[nn.Parameter]) -> float:
    if not value.requires_grad or not parameters:
        return 0.0
    gradients = torch.autograd.grad(
        value, parameters, retain_graph=True, allow_unused=True
    )
    norms = []
    for gradient in gradients:
        if gradient is not None:
            norms.append(gradient.double().norm())
    # The norm of the norms is the norm of all entries.
    if not norms:
        return 0.0
    return float(torch.stack(norms).norm())


def _in_double_precision(
    loss: DistillLoss,
    student: Output,
    teacher: Teachers,
    batch: Batch,
) -> float | None:
    """The loss for the same outputs in double precision; `None` if it has no temperature.

    Also `None` if the logits are too large to be in memory together.
    """
    if isinstance(student, ChunkedOutput):
        return None
    has_weights = any(True for _ in loss.parameters())
    if not isinstance(teacher, Output) or has_weights:
        return None
    if not isinstance(loss, HasTemperature):
        return None
    if not loss.compares_classes or batch.target.device.type == "mps":
        return None
    exact_student = student.map(lambda tensor: tensor.double())
    exact_teacher = teacher.map(lambda tensor: tensor.double())
    with torch.no_grad():
        value = loss(exact_student, exact_teacher, batch)
    return float(value)

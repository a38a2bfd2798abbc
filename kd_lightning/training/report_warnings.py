"""What looks wrong before training, each with a remedy in one line."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_lightning.losses.base import DistillLoss
from kd_lightning.tasks.base import Task
from kd_lightning.training.loss_measurements import LossReport
from kd_lightning.training.measurements import HasTemperature, TeacherReport
from kd_lightning.training.optimizers import OptimizerFactory

PERMUTED_GAIN = 0.15
"""Accuracy that other names for the classes must gain before the labels count as permuted."""

OUTWEIGHED = 100
"""How many times as large as all others a loss's gradient must be to be named."""

ROUNDING = 0.01
"""The largest tolerated relative error of a loss."""


# -- the teacher -----------------------------------------------------------------------------------


def about_teacher(report: TeacherReport, task: Task) -> list[str]:
    """Warnings about a teacher that will not help.

    Args:
        report: what was measured.
        task: of the data; decides which value of its metric is better.
    """
    if report.broken_rows > 0:
        return [
            f"the teacher's output is not finite for {report.broken_rows} of {report.rows} rows of "
            f"the {report.split} split; check its weights and the normalization of its inputs"
        ]
    if report.constant:
        return [
            f"the teacher gives all {report.rows} rows of the {report.split} split the same output; "
            "its weights are not trained, or its inputs are not what it was trained on"
        ]
    warnings = []
    if report.probabilities:
        warnings.append(about_probabilities("teacher"))
    permuted = _accuracy_if_renamed(report)
    chance = _accuracy_by_chance(report)
    agreement = report.agreement
    if permuted is not None:
        before, after = permuted
        warnings.append(
            f"the teacher's classes are in another order than the data's: renaming them raises its "
            f"accuracy on the {report.split} split from {before:.1%} to {after:.1%}; load it from "
            "its kd checkpoint, or bring its classes into the data's order"
        )
    elif agreement is not None and chance is not None and agreement <= chance:
        warnings.append(
            f"the teacher agrees with {agreement:.1%} of the labels of the {report.split} split, "
            f"not clearly more than chance ({1 / report.num_classes:.1%}); check its weights, "
            "classes and input normalization"
        )
    explained = report.explained
    if explained is not None and explained <= 0:
        warnings.append(
            f"the teacher explains none of the variance of the targets of the {report.split} split "
            f"(R^2 = {explained:.2g}), where predicting their mean gives 0; check its weights, "
            "the scale of its targets and its input normalization"
        )
    warnings += _below_student(report, task)
    return warnings


def about_probabilities(owner: str) -> str:
    """The warning about a network that ends with a softmax.

    Args:
        owner: the network, for the message.
    """
    return (
        f"the {owner} gives probabilities (each row sums to 1), but losses read logits and would "
        "apply a second softmax; remove the softmax from the network, or return the logarithms"
    )


def about_inputs(owner: str) -> str:
    """The warning about a network that changes its inputs in place.

    Args:
        owner: "teacher" or "student".
    """
    return (
        f"the {owner} changes its inputs in place, so that the other network reads changed inputs; "
        "copy them first (x = x.clone()), or use no inplace=True before the first layer"
    )


def _accuracy_by_chance(report: TeacherReport) -> float | None:
    """The accuracy that guessing exceeds with probability 0.001; `None` without classes."""
    rows = len(report.labels)
    if report.num_classes < 2 or rows == 0:
        return None
    chance = 1 / report.num_classes
    # Three standard errors of a binomial share.
    error = math.sqrt(chance * (1 - chance) / rows)
    return chance + 3 * error


def _below_student(report: TeacherReport, task: Task) -> list[str]:
    """A warning if the student is better than its teacher before it trains."""
    if report.student is None or not math.isfinite(report.value):
        return []
    if task.mode == "max":
        is_below = report.value < report.student
    else:
        is_below = report.value > report.student
    if not is_below:
        return []
    return [
        f"the student starts with {report.metric} {report.student:.4g} on the {report.split} split, "
        f"better than its teacher's {report.value:.4g}; use a better teacher, or train without one"
    ]


def _accuracy_if_renamed(report: TeacherReport) -> tuple[float, float] | None:
    """Accuracy before and after the best renaming of the teacher's classes, if it is far better.

    The renaming is chosen on half of the rows and judged on the other half: with many classes and
    few rows, some renaming fits the rows it was chosen on by chance.
    """
    classes = report.num_classes
    if classes < 2 or len(report.labels) < 4:
        return None
    from scipy.optimize import linear_sum_assignment

    chosen_on = torch.arange(len(report.labels)) % 2 == 0
    predicted_half = report.predicted[chosen_on]
    labels_half = report.labels[chosen_on]
    counts = _confusion(predicted_half, labels_half, classes)
    # Where the counts do not decide, a class keeps its name.
    counts = counts + 0.5 * torch.eye(classes, dtype=torch.float64)
    # The permutation of the classes that maximizes the number of agreements.
    predicted, labeled = linear_sum_assignment(counts.numpy(), maximize=True)
    renamed = torch.empty(classes, dtype=torch.int64)
    renamed[torch.from_numpy(predicted)] = torch.from_numpy(labeled)
    guesses = report.predicted[~chosen_on]
    labels = report.labels[~chosen_on]
    right_before = guesses == labels
    before = float(right_before.double().mean())
    right_after = renamed[guesses] == labels
    after = float(right_after.double().mean())
    # A gain within four standard errors may be chance.
    error = math.sqrt(after * (1 - after) / len(labels))
    needed = max(PERMUTED_GAIN, 4 * error)
    if after - before <= needed:
        return None
    return before, after


def _confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How often each class was predicted `(K, ...)` for each label `(..., K)`, float64."""
    cells = predicted * classes + labels
    counts = torch.bincount(cells, minlength=classes**2)
    return counts.view(classes, classes).double()


# -- the losses ------------------------------------------------------------------------------------


def about_losses(
    reports: Mapping[str, LossReport],
    losses: Mapping[str, DistillLoss],
    epochs: float,
) -> list[str]:
    """Warnings about losses that cannot act, or that hide all others.

    Args:
        reports: what was measured, by name.
        losses: by name.
        epochs: how many epochs the run trains; infinite if that is not known.
    """
    warnings = []
    for name, loss in losses.items():
        report = reports[name]
        if loss.weight == 0:
            warnings.append(
                f"the loss {name!r} has the weight 0 and never acts; set "
                f"--model.losses.{name}.weight, or remove the loss"
            )
        elif loss.start >= epochs:
            warnings.append(
                f"the loss {name!r} starts in epoch {loss.start}, but the run has {epochs:g} "
                f"epochs; lower --model.losses.{name}.start, or train longer"
            )
        elif not math.isfinite(report.value):
            warnings.append(
                f"the loss {name!r} is {report.value} on the first training batch; check the "
                "inputs of that batch, the teacher's output and the student's initial weights"
            )
        elif report.weight > 0 and report.gradient == 0 and not report.at_minimum:
            warnings.append(
                f"the loss {name!r} sends no gradient to what is trained; check its layers and "
                "model.train, or remove the loss"
            )
        warnings += _about_rounding(name, loss, report)
    return warnings + _about_dominance(reports)


def _about_dominance(reports: Mapping[str, LossReport]) -> list[str]:
    """A warning if one loss's gradient hides those of all others."""
    gradients = {}
    for name, report in reports.items():
        if report.gradient and not report.at_minimum:
            gradients[name] = report.gradient
    by_size = sorted(gradients, key=lambda name: -gradients[name])
    if len(by_size) < 2:
        return []
    largest = by_size[0]
    ratio = gradients[largest] / gradients[by_size[1]]
    if ratio < OUTWEIGHED:
        return []
    return [
        f"the gradient of the loss {largest!r} is {ratio:,.0f} times as large as that of any other; "
        f"lower --model.losses.{largest}.weight (now {reports[largest].weight:g}), or raise the "
        "others'"
    ]


def _about_rounding(name: str, loss: DistillLoss, report: LossReport) -> list[str]:
    """A warning if T^2 times the rounding error of the logarithms is as large as the loss."""
    exact = report.exact
    if exact is None or not isinstance(loss, HasTemperature):
        return []
    if not math.isfinite(report.value):
        return []
    error = abs(report.value - exact)
    if error <= max(ROUNDING * abs(exact), 1e-3):
        return []
    # The error grows with the square of the temperature, the loss hardly.
    factor = math.sqrt(ROUNDING * abs(exact) / error)
    bound = _rounded_down(loss.temperature * factor)
    return [
        f"the loss {name!r} is {report.value:.4g} in single precision and {exact:.4g} in double at "
        f"the temperature {loss.temperature:g}: its soft targets differ by less than the rounding "
        f"error; use --model.losses.{name}.temperature={bound:g} or lower"
    ]


def _rounded_down(value: float) -> float:
    """The largest number with one digit that is not above a positive value."""
    digits = math.floor(math.log10(max(value, 1e-3)))
    unit = 10.0**digits
    return math.floor(value / unit) * unit


# -- the learning rate -----------------------------------------------------------------------------


def about_learning_rate(optimizer: Optimizer) -> list[str]:
    """A warning if no step can change a weight.

    Args:
        optimizer: in use, with its scheduler.
    """
    highest = 0.0
    for group in optimizer.param_groups:
        for key in ("lr", "initial_lr", "max_lr"):
            highest = max(highest, float(group.get(key, 0.0)))
    if highest > 0:
        return []
    return [
        "the learning rate is 0, so nothing is trained; set --model.optimizer.lr (or max_lr)"
    ]


def note_on_learning_rate(factory: OptimizerFactory, optimizer: Optimizer) -> list[str]:
    """A note if the optimizer's own learning rate has no effect, because the scheduler sets one.

    Args:
        factory: makes the optimizer.
        optimizer: in use, with its scheduler.
    """
    max_lr = optimizer.param_groups[0].get("max_lr")
    if max_lr is None:
        return []
    alone = factory([nn.Parameter(torch.zeros(1))])
    lr = alone.param_groups[0]["lr"]
    # A rate that nobody set is the optimizer's default.
    parameter = inspect.signature(type(alone)).parameters.get("lr")
    default = None if parameter is None else parameter.default
    if lr in (max_lr, default):
        return []
    return [
        f"the scheduler sets the learning rate, at most {max_lr:g} (max_lr); "
        f"the optimizer's lr {float(lr):g} has no effect"
    ]

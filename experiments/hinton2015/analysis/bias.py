"""Corrects the biases of classes that the transfer set lacks (Hinton et al. 2015, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished, Row, Runs

SHIFTS = np.round(np.arange(-20, 20.05, 0.1), 1)
"""The amounts that are tried, added to the biases of the chosen classes."""

CHOSEN_ON = {"test": "the test set", "validation": "validation data"}
"""The samples on which a shift is chosen, and their name in the results."""


def errors_by_shift(
    logits: Tensor, target: Tensor, classes: list[int]
) -> NDArray[np.int64]:
    """Count the errors after each of `SHIFTS` is added to the logits of some classes.

    Args:
        logits: `(N, K)`.
        target: `(N,)`.
        classes: the classes whose biases are shifted together.

    Returns:
        Error counts of shape `(len(SHIFTS),)`.

    Raises:
        UserError: if `classes` names all classes or none.
    """
    chosen = torch.zeros(logits.shape[1], dtype=torch.bool)
    chosen[classes] = True
    if chosen.all() or not chosen.any():
        raise UserError(
            "bias correction: some classes must be shifted and some not, "
            f"got {classes} of {len(chosen)}"
        )
    columns = torch.arange(logits.shape[1])
    shifted_classes = columns[chosen]
    other_classes = columns[~chosen]
    # A common shift keeps the order within both groups, so only the best class of either group can
    # win: each prediction changes once, at the shift that makes these two logits equal.
    best_shifted = logits[:, shifted_classes].max(1)
    best_other = logits[:, other_classes].max(1)
    gap = (best_other.values - best_shifted.values).double()
    # From here on, one row per shift and one column per sample.
    shifts = torch.from_numpy(SHIFTS)
    shifted_wins = shifts[:, None] > gap[None]
    best_shifted_class = shifted_classes[best_shifted.indices]
    best_other_class = other_classes[best_other.indices]
    predicted = torch.where(
        shifted_wins, best_shifted_class[None], best_other_class[None]
    )
    wrong = predicted != target[None]
    errors: NDArray[np.int64] = wrong.sum(1).numpy()
    return errors


def best_shift(errors: NDArray[np.int64]) -> float:
    """Return the shift with the fewest errors; the middle one if several are equal.

    Args:
        errors: error counts of shape `(len(SHIFTS),)`.
    """
    # Several shifts often tie; the middle one is the farthest from any worse one.
    best = np.flatnonzero(errors == errors.min())
    middle = best[len(best) // 2]
    return float(SHIFTS[middle])


@dataclass
class Student:
    """The test predictions of one seed, and its errors after each shift.

    Attributes:
        logits: of the test set, `(N, K)`.
        target: of the test set, `(N,)`.
        curves: errors on the "test" and "validation" samples after each of `SHIFTS`.
    """

    logits: Tensor
    target: Tensor
    curves: dict[str, NDArray[np.int64]]

    @classmethod
    def of(cls, run: Finished, classes: list[int]) -> Student:
        """Read and compute the predictions of a run.

        Args:
            run: the student's finished run.
            classes: the classes whose biases are shifted.
        """
        test = run.predictions("test")
        validation = run.predictions("validation")
        curves = {
            "test": errors_by_shift(test["logits"], test["target"], classes),
            "validation": errors_by_shift(
                validation["logits"], validation["target"], classes
            ),
        }
        return cls(test["logits"], test["target"], curves)

    def wrong(self, classes: list[int], shift: float) -> Tensor:
        """Whether each test sample is misclassified after a shift, bool `(N,)`."""
        shifted = self.logits.clone()
        shifted[:, classes] += shift
        return shifted.argmax(1) != self.target


def correct(
    runs: Runs,
    output: Path,
    run: str,
    classes: list[int],
    report: list[int] | None = None,
) -> list[Row]:
    """Count test errors before and after the biases of some classes are shifted.

    The shift is chosen twice: on the test set, as in the paper, and on validation data, which is
    the honest way. Writes bias.png.

    Args:
        runs: the finished runs.
        output: folder of the results.
        run: the student's run.
        classes: the classes whose biases are shifted together.
        report: the classes whose errors are also counted separately; `classes` by default.

    Returns:
        Rows of `run` itself and of `run, bias chosen on ...`: `test_errors`,
        `errors_on_these_classes` and `shift`.
    """
    reported = torch.tensor(classes if report is None else report)
    # Each seed has its own student, and a shift of its own.
    students = [Student.of(one, classes) for one in runs[run]]

    uncorrected = Row(run, "errors_on_these_classes", [])
    for student in students:
        wrong = student.wrong(classes, 0.0)
        uncorrected.values.append(_errors_on(wrong, student.target, reported))

    rows = [uncorrected]
    shifts = {}
    for stage, samples in CHOSEN_ON.items():
        name = f"{run}, bias chosen on {samples}"
        errors = Row(name, "test_errors", [])
        errors_on_classes = Row(name, "errors_on_these_classes", [])
        amounts = [best_shift(student.curves[stage]) for student in students]
        shift = Row(name, "shift", amounts)
        for student, amount in zip(students, shift.values, strict=True):
            wrong = student.wrong(classes, amount)
            errors.values.append(float(wrong.sum()))
            errors_on_classes.values.append(_errors_on(wrong, student.target, reported))
        rows += [errors, errors_on_classes, shift]
        shifts[stage] = shift.values
    curves = [student.curves["test"] for student in students]
    _plot(curves, shifts, output / "bias.png")
    return rows


def _errors_on(wrong: Tensor, target: Tensor, classes: Tensor) -> float:
    """The number of misclassified samples of some classes."""
    in_classes = torch.isin(target, classes)
    return float((wrong & in_classes).sum())


def _plot(
    curves: list[NDArray[np.int64]], shifts: dict[str, list[float]], path: Path
) -> None:
    """Test errors against the shift: one line per seed, and the chosen shifts as vertical lines."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for curve in curves:
        axes.plot(SHIFTS, curve, color="C0", alpha=0.6)
    styles = {"test": ("C3", "dashed"), "validation": ("C2", "dotted")}
    for stage, (color, style) in styles.items():
        # Only the first line of each kind enters the legend.
        label: str | None = f"chosen on {CHOSEN_ON[stage]}"
        for shift in shifts[stage]:
            axes.axvline(shift, color=color, alpha=0.5, linestyle=style, label=label)
            label = None
    # Without its examples, a class is nearly always missed: errors span orders of magnitude.
    axes.set_yscale("log")
    axes.set_xlabel("added to the biases")
    axes.set_ylabel("test errors")
    axes.legend()
    figure.savefig(path, dpi=150)

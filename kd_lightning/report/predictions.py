"""What a test's predictions look like: confusions and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

from kd_lightning.errors import printable
from kd_lightning.report.blocks import Block, Figure, Table, missing
from kd_lightning.report.figures import COLORS, draw
from kd_lightning.report.reading import ReportedRun, class_names
from kd_lightning.types import full

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

MOST_CLASSES = 20
"""A matrix of more classes could not be read."""

MOST_CONFUSIONS = 12
"""Lines in the table of confusions."""

BINS = 15
"""Of confidence; the metric `calibration_error` has as many."""


def confusions(reported: ReportedRun) -> list[Block]:
    """The confusion matrix of a run, and its most frequent confusions.

    Args:
        reported: the run.
    """
    if reported.stored is None:
        return [missing(reported.notes["stored"])]
    pair = None
    if reported.task is not None:
        pair = reported.task.confusion(reported.stored) or _pixels(reported)
    if pair is None or len(pair[0]) == 0:
        return [missing("The task of this run has no confusion matrix.")]
    names = class_names(reported.spec)
    target, predicted = pair
    counts = multiclass_confusion_matrix(
        predicted, target, num_classes=len(names), validate_args=False
    )
    blocks: list[Block] = []
    # The table of confusions has room for any number of classes.
    if len(names) <= MOST_CLASSES:
        blocks.append(_matrix(reported.label, counts, names))
    blocks.append(_top_confusions(counts, names))
    return blocks


def _pixels(reported: ReportedRun) -> tuple[Tensor, Tensor] | None:
    """Labels and predicted classes `(N,)` of pixels; None for one label per sample."""
    classes = (reported.stored or {}).get("classes")
    if classes is None or reported.student is None:
        return None
    assert reported.stored is not None
    target = reported.student.datamodule.source("test").target
    labels = target[reported.stored["index"]].long()
    if labels.shape != classes.shape:
        return None
    # Void pixels have neither label nor prediction.
    known = (labels >= 0) & (classes >= 0)
    return labels[known], classes[known].long()


def _matrix(label: str, counts: Tensor, names: Sequence[str]) -> Figure:
    """The confusion matrix as a figure.

    Args:
        label: of the run.
        counts: `(K, K)`, rows are labels.
        names: of the K classes.
    """
    right = int(counts.diagonal().sum())
    total = int(counts.sum())
    alternative = (
        f"Confusion matrix of {label}: {right:,} of {total:,} predictions are on the "
        "diagonal. The table below lists the most frequent confusions."
    )

    def plot(drawing: Drawing) -> None:
        _plot_matrix(drawing.subplots(), counts, names)

    return draw(4.8, alternative, plot)


def _plot_matrix(axes: Axes, counts: Tensor, names: Sequence[str]) -> None:
    """Color and number the cells that have predictions.

    Args:
        axes: to draw on.
        counts: `(K, K)`, rows are labels.
        names: of the K classes.
    """
    from matplotlib.patches import Rectangle

    # The lines of a grid would cross the cells.
    axes.grid(False)
    samples_of_label = counts.sum(1, keepdim=True)
    shares = counts / samples_of_label.clamp(min=1)
    for row, column in counts.nonzero().tolist():
        # Transparent where there is little, so that the page's own color shows.
        opacity = 0.12 + 0.75 * float(shares[row, column])
        color = COLORS[0] if row == column else COLORS[3]
        corner = (column - 0.5, row - 0.5)
        cell = Rectangle(corner, 1, 1, facecolor=color, alpha=opacity, linewidth=0)
        axes.add_patch(cell)
        text = _short(int(counts[row, column]))
        axes.text(column, row, text, ha="center", va="center", fontsize=7)
    shown = [printable(name) for name in names]
    places = range(len(names))
    axes.set_xticks(places, shown, rotation=90)
    axes.set_yticks(places, shown)
    # Cells are centered on whole numbers; rows are read from top to bottom.
    first_edge = -0.5
    last_edge = len(names) - 0.5
    axes.set_xlim(first_edge, last_edge)
    axes.set_ylim(last_edge, first_edge)
    axes.set_aspect("equal")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("label")


def _short(count: int) -> str:
    """A count in at most four characters, because a cell has no room for more."""
    if count >= 1_000_000:
        return f"{count / 1_000_000:.1f}M"
    if count >= 10_000:
        return f"{count // 1_000}k"
    return str(count)


def _top_confusions(counts: Tensor, names: Sequence[str]) -> Table:
    """The most frequent confusions.

    Args:
        counts: `(K, K)`, rows are labels.
        names: of the K classes.
    """
    # Right predictions would be the most frequent ones.
    wrong = counts.clone()
    wrong.fill_diagonal_(0)
    order = wrong.flatten().argsort(descending=True, stable=True)
    support = counts.sum(1)
    lines = []
    for at in order[:MOST_CONFUSIONS].tolist():
        label, predicted = divmod(at, len(names))
        count = int(wrong[label, predicted])
        if count == 0:
            break
        share = count / int(support[label])
        lines.append([names[label], names[predicted], f"{count:,}", f"{share:.1%}"])
    caption = f"The most frequent confusions; {int(wrong.sum()):,} in all."
    return Table(["label", "predicted as", "count", "of the label"], lines, caption)


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy in bins of confidence.

    Attributes:
        confidence: the mean confidence of each bin that has samples.
        accuracy: the share of right predictions in it.
        counts: its samples.
        error: the expected calibration error, in [0, 1].
    """

    confidence: Sequence[float]
    accuracy: Sequence[float]
    counts: Sequence[int]
    error: float


def reliability(logits: Tensor, target: Tensor) -> Reliability:
    """Bin the predictions of labelled samples by their confidence (Guo et al. 2017).

    Args:
        logits: `(N, K)`.
        target: class ids `(N,)`.
    """
    probs = full(logits).softmax(-1)
    top, predicted = probs.max(-1)
    right = (predicted == target).double()
    # Bins are (a, b]: a confidence of exactly 1 belongs to the last one.
    edges = torch.linspace(0, 1, BINS + 1)[1:-1]
    bins = torch.bucketize(top.float(), edges)
    confidence = []
    accuracy = []
    counts = []
    for number in range(BINS):
        inside = bins == number
        count = int(inside.sum())
        if count:
            confidence.append(float(top[inside].double().mean()))
            accuracy.append(float(right[inside].mean()))
            counts.append(count)
    error = multiclass_calibration_error(
        probs, target, num_classes=logits.shape[-1], n_bins=BINS, validate_args=False
    )
    return Reliability(confidence, accuracy, counts, float(error))


def calibration(reported: ReportedRun) -> list[Block]:
    """The reliability diagram of a run, with that of its teacher if it is available.

    Args:
        reported: the run.
    """
    if reported.stored is None:
        return [missing(reported.notes["stored"])]
    student = _reliability_of(reported.stored)
    if student is None:
        return [missing("Calibration needs one label and K logits for each sample.")]
    by_network = {"student" if reported.teacher else reported.label: student}
    if reported.teacher is not None:
        teacher = _reliability_of(reported.teacher.stored)
        if teacher is not None:
            by_network["teacher"] = teacher
    return [_reliability_figure(reported.label, by_network)]


def _reliability_of(stored: Mapping[str, Tensor]) -> Reliability | None:
    """The calibration of stored logits; None without one label per sample."""
    logits = stored.get("logits")
    target = stored.get("target")
    if logits is None or target is None or target.ndim != 1 or logits.ndim != 2:
        return None
    # Real-valued targets and single logits have no class that a confidence could be of.
    if target.is_floating_point() or logits.shape[1] < 2:
        return None
    labelled = target >= 0
    if not labelled.any():
        return None
    return reliability(logits[labelled], target[labelled])


def _reliability_figure(label: str, networks: Mapping[str, Reliability]) -> Figure:
    errors = []
    for name, measured in networks.items():
        errors.append(f"{name}: ECE {measured.error:.2%}")
    listed = ", ".join(errors)

    def plot(drawing: Drawing) -> None:
        diagram, histogram = drawing.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        diagram.plot([0, 1], [0, 1], "--", color=COLORS[7], linewidth=1)
        for number, (name, measured) in enumerate(networks.items()):
            color = COLORS[number]
            text = printable(f"{name}, ECE {measured.error:.2%}")
            points = (measured.confidence, measured.accuracy)
            diagram.plot(*points, "o-", color=color, label=text, markersize=4)
            total = sum(measured.counts)
            heights = [count / total for count in measured.counts]
            histogram.plot(
                measured.confidence, heights, "o-", color=color, markersize=3
            )
        diagram.set_ylabel("accuracy")
        diagram.legend(fontsize=8)
        histogram.set_ylabel("share")
        histogram.set_xlabel("confidence")

    caption = (
        f"Reliability in {BINS} bins of confidence; ECE is the expected calibration "
        "error. Points below the diagonal are too confident."
    )
    return draw(4.0, f"Reliability diagram of {label}. {listed}.", plot, caption)

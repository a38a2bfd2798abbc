"""How often student and teacher predict the same class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kd_lightning.errors import printable
from kd_lightning.report.blocks import Block, Figure, Paragraph, Table, missing
from kd_lightning.report.figures import COLORS, draw
from kd_lightning.report.predictions import MOST_CLASSES
from kd_lightning.report.reading import ReportedRun, class_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True)
class ClassAgreement:
    """The agreement on what the teacher calls one class.

    Attributes:
        name: of the class.
        predictions: how often the teacher predicts it.
        share: the part of these that the student predicts, too.
    """

    name: str
    predictions: int
    share: float


def predicted_classes(stored: Mapping[str, Tensor]) -> Tensor | None:
    """The predicted class of each sample `(N,)` or pixel `(N, H, W)`.

    Args:
        stored: what a task stores of a test.

    Returns:
        None if the predictions are not classes; -100 where a pixel has none.
    """
    # One label per pixel: a test stores the classes instead of all logits.
    if "classes" in stored:
        return stored["classes"].long()
    logits = stored.get("logits")
    target = stored.get("target")
    if logits is None or logits.ndim != 2 or logits.shape[1] < 2:
        return None
    # Several labels per sample and real values have a target for each column.
    if target is not None and target.ndim != 1:
        return None
    return logits.argmax(-1)


def agreement(reported: ReportedRun) -> list[Block]:
    """The agreement of a run with its teacher, overall and by class.

    Args:
        reported: the run.
    """
    blocks = _recorded(reported)
    teacher = reported.teacher
    if teacher is None:
        return [*blocks, missing(reported.notes["teacher"])]
    if reported.stored is None:
        return [*blocks, missing(reported.notes["stored"])]
    student_classes = predicted_classes(reported.stored)
    teacher_classes = predicted_classes(teacher.stored)
    if (
        student_classes is None
        or teacher_classes is None
        or student_classes.shape != teacher_classes.shape
    ):
        text = "The predictions are not one class per sample or pixel."
        return [*blocks, missing(text)]
    # By the teacher's classes, which need no labels.
    of_classes = by_class(student_classes, teacher_classes, class_names(reported.spec))
    if not blocks:
        blocks.append(
            Paragraph(f"Overall: {_overall(student_classes, teacher_classes):.2%}.")
        )
    blocks += _outcomes(reported.stored, student_classes, teacher_classes)
    blocks.append(_class_block(reported.label, of_classes))
    return blocks


def _recorded(reported: ReportedRun) -> list[Block]:
    """What the run itself measured on the test set."""
    metrics = reported.run.metrics
    if "test_teacher_agreement" not in metrics:
        return []
    text = (
        f"Student and teacher predict the same class in "
        f"{metrics['test_teacher_agreement']:.2%} of the test predictions"
    )
    if "test_teacher_kl" in metrics:
        text += f"; the KL from the teacher is {metrics['test_teacher_kl']:.4g} nats"
    return [Paragraph(f"{text}.")]


def _overall(student_classes: Tensor, teacher_classes: Tensor) -> float:
    # Void pixels have no class.
    exists = teacher_classes >= 0
    return float((student_classes == teacher_classes)[exists].double().mean())


def by_class(
    student: Tensor,
    teacher: Tensor,
    names: Sequence[str],
) -> list[ClassAgreement]:
    """The agreement on each class that the teacher predicts.

    Args:
        student: predicted classes, of any shape.
        teacher: predicted classes, of the same shape; below 0 where there is none.
        names: of the classes.
    """
    exists = teacher >= 0
    predictions = torch.bincount(teacher[exists], minlength=len(names))
    agreed = exists & (student == teacher)
    shared = torch.bincount(teacher[agreed], minlength=len(names))
    classes = []
    for number, name in enumerate(names):
        count = int(predictions[number])
        if count:
            classes.append(ClassAgreement(name, count, int(shared[number]) / count))
    return classes


def _outcomes(
    stored: Mapping[str, Tensor],
    student: Tensor,
    teacher: Tensor,
) -> list[Block]:
    """How often both, one or none of them are right."""
    target = stored.get("target")
    if target is None or target.shape != student.shape:
        return []
    labelled = target >= 0
    student_right = (student == target)[labelled]
    teacher_right = (teacher == target)[labelled]
    counts = {
        "both": student_right & teacher_right,
        "the student alone": student_right & ~teacher_right,
        "the teacher alone": ~student_right & teacher_right,
        "neither": ~student_right & ~teacher_right,
    }
    lines = []
    for name, mask in counts.items():
        share = float(mask.double().mean()) if len(mask) else 0.0
        lines.append([name, str(int(mask.sum())), f"{share:.1%}"])
    # A student can take over the very mistakes of its teacher.
    both_wrong = counts["neither"]
    same = (student == teacher)[labelled] & both_wrong
    caption = (
        f"Of the {int(both_wrong.sum())} samples that both get wrong, "
        f"{int(same.sum())} have the same wrong class."
    )
    return [Table(["right", "samples", "share"], lines, caption)]


def _class_block(label: str, classes: Sequence[ClassAgreement]) -> Block:
    """The agreement by class: a figure, or a table of the worst of many classes."""
    # The classes that a reader looks for are those with little agreement.
    worst_first = sorted(classes, key=lambda each: each.share)
    if len(classes) <= MOST_CLASSES:
        return _figure(label, classes, worst_first)
    lines = []
    for each in worst_first[:MOST_CLASSES]:
        lines.append([each.name, str(each.predictions), f"{each.share:.1%}"])
    caption = (
        f"The {len(lines)} classes with the lowest agreement, out of {len(classes)} "
        "that the teacher predicts."
    )
    return Table(["the teacher's class", "predictions", "agreement"], lines, caption)


def _figure(
    label: str,
    classes: Sequence[ClassAgreement],
    worst_first: Sequence[ClassAgreement],
) -> Figure:
    described = []
    for each in worst_first[:3]:
        described.append(f"{each.name} {each.share:.1%}")
    alternative = (
        f"Agreement of {label} with its teacher by the teacher's class; "
        f"least for {', '.join(described)}."
    )

    def plot(drawing: Drawing) -> None:
        axes = drawing.subplots()
        positions = range(len(classes))
        shares = [100 * each.share for each in classes]
        names = [printable(each.name) for each in classes]
        axes.barh(positions, shares, color=COLORS[0], height=0.7)
        axes.set_yticks(positions, names)
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("agreement, percent of the teacher's predictions")

    return draw(0.8 + 0.24 * len(classes), alternative, plot)

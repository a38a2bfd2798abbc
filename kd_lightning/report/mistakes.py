"""The worst mistakes of a run, with the sample shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kd_lightning.report.blocks import (
    Block,
    Paragraph,
    Sample,
    Samples,
    Share,
    missing,
)
from kd_lightning.report.display import legend, show
from kd_lightning.report.reading import ReportedRun, class_names
from kd_lightning.report.soft_targets import top_shares
from kd_lightning.tasks.base import Mistake, Task

MISTAKES = 12
"""How many mistakes are shown."""


def worst_mistakes(reported: ReportedRun) -> list[Block]:
    """The most confident mistakes of a run, or the samples that cost it most.

    Args:
        reported: the run.
    """
    stored = reported.stored
    if stored is None:
        return [missing(reported.notes["stored"])]
    if reported.task is None:
        return [missing("The task of this run is unknown without its data.")]
    mistakes, caption = find_mistakes(reported.task, stored, reported)
    if not mistakes:
        return [Paragraph("The test has no mistakes to show.")]
    rows = [mistake.index for mistake in mistakes]
    index = torch.tensor(rows, dtype=torch.int64)
    shown = []
    blocks: list[Block] = []
    if reported.student is None:
        blocks.append(missing(reported.notes["student"]))
    else:
        shown = show(reported.student.datamodule, index, stored)
    items = []
    for number, mistake in enumerate(mistakes):
        shares = _teacher_shares(reported, mistake.index)
        if shown:
            view = shown[number]
            items.append(Sample(mistake.caption, view.pictures, view.text, shares))
        else:
            text = f"test sample {mistake.index}: {mistake.caption}"
            items.append(Sample(text, shares=shares))
    if reported.teacher is not None and reported.teacher.soft_targets is not None:
        caption += " Below each sample is the teacher's soft target."
    if "classes" in stored and shown:
        caption += " From top to bottom: the image, the prediction, and the labels."
        blocks.append(legend(class_names(reported.spec)))
    return [*blocks, Samples(items, caption)]


def find_mistakes(
    task: Task,
    stored: Mapping[str, Tensor],
    reported: ReportedRun,
) -> tuple[Sequence[Mistake], str]:
    """The mistakes to show, and how they were chosen.

    Args:
        task: of the run.
        stored: the `test_outputs` of all samples.
        reported: the run.
    """
    # Several pictures of each sample make the page large.
    most = MISTAKES // 2 if "classes" in stored else MISTAKES
    # A task names the classes of a mistake, and some data has no names for them.
    if reported.spec.classes:
        own = task.mistakes(dict(stored), reported.spec, most)
        if own:
            return own, "The wrong predictions with the highest confidence."
    # NaN stands for a sample without a label, which cannot be wrong.
    counts = task.sample_counts(dict(stored)).nan_to_num()
    order = counts.argsort(descending=True, stable=True)[:most]
    mistakes = []
    for position in order.tolist():
        count = float(counts[position])
        if count > 0:
            row = int(stored["index"][position])
            mistakes.append(Mistake(row, f"{task.count}: {_format(count)}"))
    return mistakes, f"The samples with the largest contributions to {task.count}."


def _format(count: float) -> str:
    """A count without a fraction, or a real value in four digits."""
    if count == int(count):
        return f"{count:,.0f}"
    return f"{count:.4g}"


def _teacher_shares(reported: ReportedRun, row: int) -> list[Share]:
    """The teacher's soft target for a test sample; empty if it is not known."""
    teacher = reported.teacher
    if teacher is None or teacher.soft_targets is None:
        return []
    # The teacher's samples are in the order of the loader, which may lack some.
    position = torch.nonzero(teacher.stored["index"] == row).flatten()
    if len(position) == 0:
        return []
    probs = teacher.soft_targets[int(position[0])]
    return top_shares(probs, class_names(reported.spec))

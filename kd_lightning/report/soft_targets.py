"""What the teacher's soft targets say about classes and about single samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_lightning.report.blocks import (
    Block,
    Paragraph,
    Sample,
    Samples,
    Share,
    Table,
    missing,
)
from kd_lightning.report.display import show
from kd_lightning.report.predictions import MOST_CLASSES
from kd_lightning.report.reading import ReportedRun, class_names
from kd_lightning.types import UNLABELLED

SAMPLES = 8
"""How many samples are shown."""

ALTERNATIVES = 4
"""How many classes of a distribution are shown."""


def soft_targets(reported: ReportedRun) -> list[Block]:
    """The teacher's distributions at the temperature in use.

    Args:
        reported: the run.
    """
    teacher = reported.teacher
    if teacher is None:
        return [missing(reported.notes["teacher"])]
    probs = teacher.soft_targets
    if probs is None or reported.student is None:
        text = "Soft targets are shown for data with one label per sample."
        return [missing(text)]
    names = class_names(reported.spec)
    entropy = _entropy(probs)
    top = probs.max(-1).values
    text = (
        f"At T = {teacher.temperature:g} the teacher's distributions have a mean "
        f"entropy of {float(entropy.mean()):.3g} nats "
        f"(uniform: {_uniform_entropy(names):.3g}). Their most probable class has "
        f"{float(top.mean()):.1%} on average."
    )
    chosen = spread_by_entropy(entropy, SAMPLES)
    return [
        Paragraph(text),
        _samples(reported, probs, chosen, names),
        _alternatives_of_labels(probs, teacher.stored["target"], names),
    ]


def _entropy(probs: Tensor) -> Tensor:
    """The entropy of distributions `(N, K)` in nats, `(N,)`."""
    entropy: Tensor = torch.special.entr(probs.double()).sum(-1)
    return entropy


def _uniform_entropy(names: Sequence[str]) -> float:
    return float(torch.tensor(float(len(names))).log())


def spread_by_entropy(entropy: Tensor, count: int) -> list[int]:
    """Samples at equal steps from the smallest to the largest entropy.

    Args:
        entropy: of each sample, `(N,)`.
        count: how many to choose.
    """
    # Steps of the rank: most teachers are sure of most samples.
    order = entropy.argsort(stable=True)
    steps = torch.linspace(0, len(order) - 1, min(count, len(order)))
    chosen: list[int] = order[steps.round().long()].tolist()
    return chosen


def _samples(
    reported: ReportedRun,
    probs: Tensor,
    chosen: Sequence[int],
    names: Sequence[str],
) -> Samples:
    """Samples with the classes that the teacher prefers."""
    assert reported.student is not None
    assert reported.teacher is not None
    stored = reported.teacher.stored
    index = stored["index"][list(chosen)]
    shown = show(reported.student.datamodule, index, stored)
    items = []
    for number, position in enumerate(chosen):
        target = int(stored["target"][position])
        # A sample of unlabeled data is shown with the teacher's classes alone.
        caption = "no label"
        if target != UNLABELLED:
            caption = f"label: {names[target]}"
        shares = top_shares(probs[position], names)
        if shown:
            view = shown[number]
            items.append(Sample(caption, view.pictures, view.text, shares))
        else:
            row = int(index[number])
            items.append(Sample(f"test sample {row}, {caption}", shares=shares))
    caption = (
        "Test samples at equal steps from the lowest to the highest entropy of the "
        "teacher's distribution, with its most probable classes."
    )
    return Samples(items, caption)


def top_shares(probs: Tensor, names: Sequence[str]) -> list[Share]:
    """The most probable classes.

    Args:
        probs: a distribution `(K,)`.
        names: of the K classes.
    """
    top = probs.topk(min(ALTERNATIVES, len(names)))
    shares = []
    for value, at in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        shares.append(Share(names[at], value))
    return shares


def _alternatives_of_labels(
    probs: Tensor,
    target: Tensor,
    names: Sequence[str],
) -> Table:
    """For each label, the other classes to which the teacher gives most."""
    lines: list[list[str]] = []
    # Samples without a label are in no row.
    support = torch.bincount(target[target >= 0], minlength=len(names))
    for number, name in enumerate(names):
        if int(support[number]) == 0 or len(lines) == MOST_CLASSES:
            continue
        mean = probs[target == number].double().mean(0)
        # Its own class would come first in the list of others.
        own = float(mean[number])
        mean[number] = 0
        others = []
        for share in top_shares(mean, names)[: ALTERNATIVES - 1]:
            others.append(f"{share.name} {share.share:.1%}")
        lines.append([name, f"{own:.1%}", ", ".join(others)])
    caption = "The mean soft target of the test samples with each label."
    if len(lines) < int((support > 0).sum()):
        caption += f" The first {len(lines)} labels are shown."
    return Table(["label", "own class", "next classes"], lines, caption)

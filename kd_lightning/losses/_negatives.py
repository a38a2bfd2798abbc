"""The negatives of contrastive losses with memory banks, drawn as a function of named numbers."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from kd_lightning.randomness import hashed, run_seed
from kd_lightning.types import UNLABELLED

Negatives = Literal["class", "instance"]
"""The negatives of a sample: samples of other classes, or all other samples."""

UNSEEN = UNLABELLED - 1
"""The label of a row that no batch has contained yet.

It sorts first; unlabelled rows come next, then the classes.
"""


def draw_negatives(
    labels: Tensor,
    index: Tensor,
    count: int,
    step: Tensor,
    negatives: Negatives = "class",
    trained: int = 0,
) -> Tensor:
    """Draw negatives with replacement, as a function of (run's seed, step, the sample's row).

    The draw is uniform over all rows except the sample's own and, for "class", the rows known to be
    of its class. A row with an unknown label is treated as another class. Once `trained` rows have
    been seen, unseen rows are no longer drawn. If that leaves no row for a sample (all are of one
    class), all other rows are candidates.

    Args:
        labels: int64 `(M,)`, M at least 2, of all rows: a class, `UNLABELLED` or `UNSEEN`; never
            `UNSEEN` where `index` points.
        index: int64 `(B,)`, the samples' rows.
        count: negatives per sample.
        step: int64 scalar.
        negatives: "class" or "instance".
        trained: the number of rows that training will see.

    Returns:
        int64 `(B, count)`.
    """
    rows = len(labels)
    # Sorting makes every class one contiguous span, so that excluding a class takes two numbers
    # per sample instead of a mask over all rows. A stable sort gives every device the same order.
    ordered, order = labels.sort(stable=True)
    place = _inverse(order)[index]
    # In sorted order a sample excludes two spans: the places before `skipped` (unseen rows), and
    # those from `first` to before `last` (its own row or class).
    first = place
    last = place + 1
    if negatives == "class":
        first, last = _class_span(ordered, labels[index], place)
    # Rows that training never visits keep random embeddings. Skip them when all others are known.
    unseen = (labels == UNSEEN).sum()
    skipped = torch.where(rows - unseen >= trained, unseen, 0)
    # Fall back to all other rows if no candidate is left.
    alone = rows - skipped - (last - first) < 1
    first = torch.where(alone, place, first)
    last = torch.where(alone, place + 1, last)
    skipped = torch.where(alone, 0, skipped)
    candidates = rows - skipped - (last - first)
    number = _numbers(index, step, rows, candidates, count)
    # The first span is stepped over by adding its length, the second one only by the draws behind
    # its start.
    drawn = skipped[:, None] + number
    excluded = (last - first)[:, None]
    span = torch.where(drawn >= first[:, None], excluded, 0)
    return order[drawn + span]


def _numbers(
    index: Tensor,
    step: Tensor,
    rows: int,
    candidates: Tensor,
    count: int,
) -> Tensor:
    """Draw `count` numbers below each sample's `candidates` `(B,)`: int64 `(B, count)`."""
    # Every draw has a counter of its own: (step, row, number of the negative).
    draws = torch.arange(count, device=index.device)
    sample_counter = step * rows + index
    counter = sample_counter[:, None] * count + draws
    # The remainder favors small numbers by a share of candidates / 2^63, which is negligible.
    return hashed(counter, run_seed(), "crd", "negatives") % candidates[:, None]


def _inverse(order: Tensor) -> Tensor:
    """The inverse of a permutation, int64 `(M,)`: from rows to places, given places to rows."""
    places = torch.arange(len(order), device=order.device)
    return torch.empty_like(order).scatter_(0, order, places)


def _class_span(ordered: Tensor, label: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """The places that hold a sample's class; its own place if its class is unknown.

    Args:
        ordered: the labels of all rows in ascending order, `(M,)`.
        label: the samples' labels, `(B,)`.
        place: the samples' places in the order, `(B,)`.

    Returns:
        The first place and the place after the last one, each int64 `(B,)`.
    """
    is_known = label >= 0
    class_start = torch.searchsorted(ordered, label)
    class_end = torch.searchsorted(ordered, label, right=True)
    first = torch.where(is_known, class_start, place)
    last = torch.where(is_known, class_end, place + 1)
    return first, last

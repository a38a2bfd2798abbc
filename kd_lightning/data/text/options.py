"""Checks the arguments of the text datamodule."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.data.subsets import check_fraction
from kd_lightning.data.text.files import canonical_label
from kd_lightning.data.text.synthetic import SyntheticSentences
from kd_lightning.errors import UserError


def check_fractions(fraction: float, label_fraction: float, validation: float) -> None:
    """Raise a UserError for a fraction outside its range."""
    check_fraction("data.fraction", fraction)
    check_fraction("data.label_fraction", label_fraction, zero=True)
    if not 0 <= validation < 1:
        raise UserError(
            f"data.validation must be a fraction in [0, 1), got {validation}; "
            "0 trains without validation"
        )


def check_labels(labels: Sequence[str]) -> None:
    """Raise a UserError if two labels are equal, or are spellings of one number."""
    seen: dict[str, str] = {}
    for label in labels:
        canonical = canonical_label(label)
        if canonical in seen:
            raise UserError(
                f"data.labels lists {seen[canonical]!r} and {label!r}, which are equal"
            )
        seen[canonical] = label


def check_sizes(batch_size: int, eval_batch_size: int, pool: int) -> None:
    """Raise a UserError for a size below 1."""
    if min(batch_size, eval_batch_size, pool) < 1:
        raise UserError(
            "data.batch_size, data.eval_batch_size and data.pool must be at least 1"
        )


def checked_views(views: int | None, augment: SyntheticSentences | None) -> int | None:
    """The number of views, by default one per variant of a sentence."""
    variants = augment.variants if augment is not None else 1
    if views is None:
        if augment is None:
            return None
        return variants
    if not 1 <= views <= variants:
        raise UserError(
            f"data.views must be 1 to {variants}, the number of variants of a sentence, got {views}"
        )
    return views

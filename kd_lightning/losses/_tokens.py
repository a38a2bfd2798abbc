"""Tools for losses between transformers: states and scores of tokens, without the padding."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.base import Probe
from kd_lightning.types import Batch

_KINDS = {3: "states (B, L, H)", 4: "scores (B, heads, L, L)"}
_AXES = {
    3: {1: "tokens", 2: "numbers per token"},
    4: {1: "heads", 2: "tokens", 3: "tokens"},
}


def token_mask(batch: Batch, states: Tensor) -> Tensor:
    """Which tokens count, float `(B, L)`: the batch's attention mask; ones if it has none.

    Args:
        batch: its inputs may be a mapping with an "attention_mask" `(B, L)`.
        states: `(B, L, H)` or `(B, heads, L, L)`; gives the shape, type and device.
    """
    mask = None
    if isinstance(batch.inputs, Mapping):
        mask = batch.inputs.get("attention_mask")
    if mask is None:
        # The token axis is the last but one, of states and of scores.
        return states.new_ones(states.shape[0], states.shape[-2])
    return mask.to(states.dtype)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each sample's values where its mask is one, then mean over the batch.

    Every sample has the same weight, however many of its values count.

    Args:
        values: `(B, ...)`.
        mask: 0 or 1, of a shape that broadcasts to that of `values`; not all zeros in any sample.
    """
    # Expand before counting: a mask of one column stands for all numbers of a token.
    mask = mask.expand_as(values).flatten(1)
    masked = values.flatten(1) * mask
    per_sample = masked.sum(1) / mask.sum(1)
    return per_sample.mean()


def check_tokens(
    owner: str,
    student: Probe,
    teacher: Probe | None,
    role: str,
    rank: int,
    same: tuple[int, ...],
) -> None:
    """Refuse layers that the loss cannot compare.

    Args:
        owner: name of the loss.
        student, teacher: their probes.
        role: of the layer.
        rank: 3 for states `(B, L, H)`, 4 for scores `(B, heads, L, L)`.
        same: the dimensions in which both sides must agree.

    Raises:
        UserError: if there is no teacher, a layer does not return a tensor of that rank, or the
            sizes differ.
    """
    if teacher is None:
        raise UserError(
            f"{owner} needs a teacher; use DistillationModule with model.teacher"
        )
    student_shape = _token_shape(owner, "student", student, role, rank)
    teacher_shape = _token_shape(owner, "teacher", teacher, role, rank)
    for axis in same:
        if student_shape[axis] != teacher_shape[axis]:
            raise UserError(
                f"{owner}: the student's layer {role!r} has {student_shape[axis]} "
                f"{_AXES[rank][axis]}, the teacher's {teacher_shape[axis]}; they must agree"
            )


def _token_shape(
    owner: str,
    network: str,
    probe: Probe,
    role: str,
    rank: int,
) -> torch.Size:
    # A hook captures whatever the layer returns: transformers often return tuples.
    feature: object = probe.output.features.get(role)
    if isinstance(feature, Tensor) and feature.ndim == rank:
        return feature.shape
    if isinstance(feature, Tensor):
        actual = f"{list(feature.shape[1:])} per sample"
    else:
        actual = f"a {type(feature).__name__}"
    raise UserError(
        f"{owner} reads {_KINDS[rank]} of a transformer; "
        f"the {network}'s layer {role!r} gives {actual}"
    )


def check_one_tokenizer(owner: str, student: Probe) -> None:
    """Refuse a teacher that reads different tokens: token by token there is nothing to compare.

    Raises:
        UserError: if student and teacher have different vocabularies.
    """
    spec = student.spec
    if (
        spec.teacher_vocabulary is not None
        and spec.teacher_vocabulary != spec.vocabulary
    ):
        raise UserError(
            f"{owner} compares tokens one by one: student and teacher must read the same tokens; "
            "remove data.teacher_tokenizer"
        )

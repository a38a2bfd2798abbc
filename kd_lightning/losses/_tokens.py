"""What the losses between transformers share: states and scores of tokens, padding left out."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses.base import Probe
from kd_lightning.types import Batch


def token_mask(batch: Batch, states: Tensor) -> Tensor:
    """Which tokens count, float `(B, L)`: those that the batch's attention mask names; all, where it has none."""
    mask = batch.inputs.get("attention_mask") if isinstance(batch.inputs, Mapping) else None
    if mask is None:
        return torch.ones(
            states.shape[0], states.shape[-2], dtype=states.dtype, device=states.device
        )
    return mask.to(states.dtype)


def mean_over(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of each sample's values where its mask is one, then over the batch: every sample counts alike.

    Args:
        values: `(B, ...)`.
        mask: 0 or 1, the same shape or broadcast to it; at least one place of each sample counts.
    """
    mask = mask.expand_as(values).flatten(1)
    return ((values.flatten(1) * mask).sum(1) / mask.sum(1)).mean()


def check_tokens(
    owner: str, student: Probe, teacher: Probe | None, role: str, ranks: int, same: tuple[int, ...]
) -> None:
    """UserError where a layer does not give tensors of that rank, or both sides differ in the sizes that must agree.

    Args:
        owner: name of the loss.
        student, teacher: their probes.
        role: of the layer.
        ranks: 3 for states `(B, L, H)`, 4 for scores `(B, heads, L, L)`.
        same: the dimensions that must agree.
    """
    if teacher is None:
        raise UserError(f"{owner} needs a teacher; use DistillationModule with model.teacher")
    shapes = []
    for whose, probe in (("student", student), ("teacher", teacher)):
        feature = probe.output.features.get(role)
        if not isinstance(feature, Tensor) or feature.ndim != ranks:
            what = {3: "states (B, L, H)", 4: "scores (B, heads, L, L)"}[ranks]
            given = (
                list(feature.shape[1:]) if isinstance(feature, Tensor) else type(feature).__name__
            )
            raise UserError(
                f"{owner} reads {what} of a transformer; the {whose}'s layer {role!r} gives {given} a sample"
            )
        shapes.append(feature.shape)
    names = {
        1: "tokens" if ranks == 3 else "heads",
        2: "numbers a token" if ranks == 3 else "tokens",
    }
    for axis in same:
        if shapes[0][axis] != shapes[1][axis]:
            raise UserError(
                f"{owner}: the student's layer {role!r} has {shapes[0][axis]} {names.get(axis, 'tokens')}, the teacher's "
                f"{shapes[1][axis]}; they must agree"
            )


def check_one_tokenizer(owner: str, student: Probe) -> None:
    """UserError where the teacher reads other tokens than the student: token by token there is nothing to compare."""
    if "teacher_vocabulary" in student.spec and student.spec[
        "teacher_vocabulary"
    ] != student.spec.get("vocabulary"):
        raise UserError(
            f"{owner} compares tokens one by one: let both read the same (leave out data.teacher_tokenizer)"
        )

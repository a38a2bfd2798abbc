"""Whose numbers are not finite: the data's, the teacher's, the student's or a loss's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_lightning.types import Batch, Inputs, Output

MOST_NAMED = 5
"""The most samples that a message lists."""

LOWER_RATE = (
    "lower the learning rate, or clip gradients with --trainer.gradient_clip_val=1"
)


@dataclass
class Fault:
    """Whose numbers are not finite.

    Attributes:
        who: "inputs", "teacher", "student" or "loss": the first of them that is not finite.
        detail: a clause for the message.
    """

    who: str
    detail: str

    @property
    def remedy(self) -> str:
        """What to do about it."""
        if self.who == "inputs":
            return "remove or repair these samples"
        if self.who == "teacher":
            return (
                "check the teacher's weights and the normalization of its inputs; losses on "
                "probabilities, such as KD and DKD, accept logits of -inf for some classes, other "
                "losses do not"
            )
        if self.who == "student":
            return LOWER_RATE
        return f"check the arguments of the losses, or {LOWER_RATE}"


def find_fault(student: Output | None, teacher: Output | None, batch: Batch) -> Fault:
    """Find whose numbers are not finite first: the data's, the teacher's, the student's or a loss's.

    Args:
        student: `None` if its weights have changed since.
        teacher: `None` if there is none.
        batch: both were computed for.
    """
    # In the order in which they are computed: what comes later is broken by what came before.
    rows = _broken_samples(batch)
    if rows:
        shown = ", ".join(str(row) for row in rows[:MOST_NAMED])
        more = " and others" if len(rows) > MOST_NAMED else ""
        return Fault(
            "inputs", f"the inputs of rows {shown}{more} of the {batch.split} split are"
        )
    if teacher is not None:
        part = _broken_part(teacher)
        if part is not None:
            return Fault("teacher", f"the teacher's {part} are")
    if student is None:
        return Fault("student", "the student's weights or outputs are")
    part = _broken_part(student)
    if part is not None:
        return Fault("student", f"the student's {part} are")
    return Fault("loss", "")


def _broken_samples(batch: Batch) -> list[int]:
    """Rows of the source split whose inputs are not finite."""
    broken = torch.zeros(len(batch), dtype=torch.bool, device=batch.index.device)
    tensors = _tensors(batch.inputs) + _tensors(batch.teacher_inputs)
    for tensor in tensors:
        # Token ids are always finite.
        if tensor.is_floating_point():
            finite = tensor.isfinite().reshape(len(batch), -1)
            broken |= ~finite.all(1)
    rows: list[int] = batch.index[broken].tolist()
    return rows


def _tensors(inputs: Inputs | None) -> list[Tensor]:
    """The tensors of inputs of either form; none without inputs."""
    if inputs is None:
        return []
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values())


def _broken_part(output: Output) -> str | None:
    """The first part of an output that is not finite, such as "features 'stage1'"."""
    if not bool(output.logits.isfinite().all()):
        return "logits"
    for role, feature in output.features.items():
        if not bool(feature.isfinite().all()):
            return f"features {role!r}"
    return None

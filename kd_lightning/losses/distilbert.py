"""The direction of the last hidden states: Sanh et al. 2019."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses._adapters import check_role, feature_pairs
from kd_lightning.losses._tokens import (
    check_one_tokenizer,
    check_tokens,
    masked_mean,
    token_mask,
)
from kd_lightning.losses.base import BaseOptions, DistillLoss, MeanOver, Probe
from kd_lightning.types import Batch, Output


def cosine_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""$1 - \cos(h^S, h^T)$, mean over a sentence's tokens, then over sentences.

    Sanh et al. 2019, section 3.

    Args:
        student: `(B, L, H)`.
        teacher: `(B, L, H)`.
        mask: `(B, L)`, 1 on tokens and 0 on padding.

    Returns:
        A scalar in [0, 2]; zero if the directions agree on all tokens. A state of zeros is at a
        right angle to all others.
    """
    own = F.normalize(student, dim=-1)
    target = F.normalize(teacher, dim=-1)
    # Both have length one, so their inner product is the cosine.
    cosines = (own * target).sum(-1)
    return masked_mean(1 - cosines, mask)


class DistilBERT(DistillLoss):
    """The student's last hidden states point where the teacher's do.

    This is the cosine term of DistilBERT's triple loss. The other two terms are separate entries:
    soft targets at T = 2 (`KD`) and the hard loss. Padding is ignored. Every sentence has the same
    weight; the authors' code averages over all tokens of a batch instead. There are no trainable
    parts.

    Args:
        layer: role of the hidden states, the same for student and teacher.
        base: weight, start, end, warmup; see `DistillLoss`.

    Shapes:
        states `(B, L, H)`, the same on both sides.

    Raises:
        UserError: from `build`, if the layer does not return states, the widths differ, or the
            teacher reads other tokens.
    """

    paper: ClassVar[str] = "Sanh et al. 2019, arXiv 1910.01108"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    minimum_at_teacher: ClassVar[bool] = True
    mean_over: MeanOver = "samples"

    def __init__(self, layer: str = "states2", **base: Unpack[BaseOptions]) -> None:
        super().__init__(**base)
        self.roles = [check_role("DistilBERT", "layer", layer)]

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Refuse layers that do not fit, before training; there is nothing to create."""
        check_one_tokenizer("DistilBERT", student)
        check_tokens("DistilBERT", student, teacher, self.roles[0], rank=3, same=(1, 2))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`cosine_loss` of the layer's states, over all tokens but the padding; a scalar."""
        [(own, target)] = feature_pairs(self, student, teacher)
        return cosine_loss(own, target, token_mask(batch, target))

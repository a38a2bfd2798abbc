"""The direction of the last hidden states: Sanh et al. 2019."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses._adapters import check_role, feature_pairs
from kd_lightning.losses._tokens import check_one_tokenizer, check_tokens, mean_over, token_mask
from kd_lightning.losses.base import DistillLoss, Probe
from kd_lightning.types import Batch, Output


def cosine_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""$1 - \cos(h^S, h^T)$, mean over a sentence's tokens, then over the batch (Sanh et al. 2019, section 3).

    Args:
        student: `(B, L, H)`.
        teacher: the same.
        mask: `(B, L)`, 1 on tokens and 0 on padding.

    Returns:
        A scalar in [0, 2]; zero where the directions agree on all tokens. A state of zeros is at a right angle to all.
    """
    return mean_over(
        1 - (F.normalize(student, dim=-1) * F.normalize(teacher, dim=-1)).sum(-1), mask
    )


class DistilBERT(DistillLoss):
    """The student's last hidden states are to point where the teacher's do: the cosine term of DistilBERT's triple loss.

    Its other two terms are entries of their own: soft targets at T = 2 (`KD`), and the hard loss. Padding is left out; every
    sentence counts alike, where the authors' code takes the mean over all tokens of a batch. There is nothing to train.

    Args:
        layer: role of the hidden states, the same for student and teacher.
        base: weight, start, end, warmup; see DistillLoss.

    Shapes:
        states `(B, L, H)`, the same on both sides.

    Raises:
        UserError: from `build`, where the layer gives no states, both sides differ in width, or the teacher reads other tokens.
    """

    paper: ClassVar[str] = "Sanh et al. 2019, arXiv 1910.01108"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)

    def __init__(self, layer: str = "states2", **base: Any) -> None:
        super().__init__(**base)
        self.roles = [check_role("DistilBERT", "layer", layer)]

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Nothing to make; layers that do not fit are refused before training."""
        check_one_tokenizer("DistilBERT", student)
        check_tokens("DistilBERT", student, teacher, self.roles[0], 3, (1, 2))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        ours, theirs = feature_pairs(self, student, teacher)[0]
        return cosine_loss(ours, theirs, token_mask(batch, theirs))

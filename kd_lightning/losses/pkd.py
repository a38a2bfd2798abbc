"""Patient knowledge distillation: the first token's states of several layers, Sun et al. 2019."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses._adapters import check_layers, feature_pairs
from kd_lightning.losses._tokens import check_tokens
from kd_lightning.losses.base import BaseOptions, DistillLoss, MeanOver, Probe
from kd_lightning.types import Batch, Output


def patient_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""$\left\| \frac{h^S}{\|h^S\|_2} - \frac{h^T}{\|h^T\|_2} \right\|_2^2$, mean over samples.

    Sun et al. 2019.

    Args:
        student: states of the first token, `(B, H)`.
        teacher: the same, `(B, H)`.

    Returns:
        A scalar in [0, 4]; zero if the directions agree.
    """
    own = F.normalize(student)
    target = F.normalize(teacher)
    difference = own - target
    # The paper sums over the hidden units; F.mse_loss would divide by their number.
    return difference.square().sum(1).mean()


class PKD(DistillLoss):
    """The first token's state, scaled to unit length, matches the teacher's in several layers.

    The terms of the layers are summed. The mapping of roles decides which layers are compared: the
    paper's PKD-Skip takes every k-th layer of the teacher, PKD-Last its last ones. Neither uses the
    student's last layer, which learns from the soft targets. The weight is the paper's beta,
    between 10 and 1,000. There are no trainable parts.

    Args:
        layers: roles of hidden states, the same for student and teacher.
        base: weight, start, end, warmup; see `DistillLoss`.

    Shapes:
        states `(B, L, H)`, H the same on both sides; L may differ.

    Raises:
        UserError: from `build`, if a layer does not return states, or the widths differ.
    """

    paper: ClassVar[str] = "Sun et al. 2019, arXiv 1908.09355"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    minimum_at_teacher: ClassVar[bool] = True
    mean_over: MeanOver = "samples"

    def __init__(
        self, layers: Sequence[str] = ("states1",), **base: Unpack[BaseOptions]
    ) -> None:
        super().__init__(**base)
        self.roles = check_layers("PKD", layers)

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Refuse layers that do not fit, before training; there is nothing to create."""
        for role in self.roles:
            check_tokens("PKD", student, teacher, role, rank=3, same=(2,))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The sum over the layers of `patient_loss` of the first token's states, a scalar."""
        terms = []
        for own, target in feature_pairs(self, student, teacher):
            # The first token ([CLS] in BERT) stands for the sentence, and is never padding.
            own_first = own[:, 0]
            target_first = target[:, 0]
            terms.append(patient_loss(own_first, target_first))
        return torch.stack(terms).sum()

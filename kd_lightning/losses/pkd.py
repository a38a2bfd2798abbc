"""Patient knowledge distillation: the first token's states of several layers, Sun et al. 2019."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses._adapters import check_layers, feature_pairs
from kd_lightning.losses._tokens import check_tokens
from kd_lightning.losses.base import DistillLoss, Probe
from kd_lightning.types import Batch, Output


def patient_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""$\left\| \frac{h^S}{\|h^S\|_2} - \frac{h^T}{\|h^T\|_2} \right\|_2^2$, mean over the batch (Sun et al. 2019).

    Args:
        student: states of the first token, `(B, H)`.
        teacher: the same.

    Returns:
        A scalar in [0, 4]; zero where the directions agree.
    """
    return (F.normalize(student) - F.normalize(teacher)).square().sum(1).mean()


class PKD(DistillLoss):
    """The first token's state, of unit length, is to be the teacher's in several layers, summed over them.

    Which layers are compared is what the roles name: the paper's PKD-Skip takes every k-th layer of the teacher, PKD-Last its
    last ones; neither takes the student's last layer, which the soft targets teach. The weight is the paper's beta, of 10 to
    1,000. There is nothing to train.

    Args:
        layers: roles of hidden states, the same for student and teacher.
        base: weight, start, end, warmup; see DistillLoss.

    Shapes:
        states `(B, L, H)`, H the same on both sides; L may differ.

    Raises:
        UserError: from `build`, where a layer gives no states, or both sides differ in width.
    """

    paper: ClassVar[str] = "Sun et al. 2019, arXiv 1908.09355"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)

    def __init__(self, layers: Sequence[str] = ("states1",), **base: Any) -> None:
        super().__init__(**base)
        self.roles = check_layers("PKD", layers)

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Nothing to make; layers that do not fit are refused before training."""
        for role in self.roles:
            check_tokens("PKD", student, teacher, role, 3, (2,))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        pairs = feature_pairs(self, student, teacher)
        return torch.stack([patient_loss(own[:, 0], known[:, 0]) for own, known in pairs]).sum()

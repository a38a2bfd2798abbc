"""The generator's objective of data-free learning (DAFL): Chen et al. 2019."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses._gather import JoinedBatch
from kd_lightning.losses.base import BaseOptions, MeanOver, not_negative
from kd_lightning.losses.generator.base import GeneratorLoss, output_of
from kd_lightning.types import Batch, Output, full


def one_hot_loss(logits: Tensor) -> Tensor:
    r"""Cross-entropy with the teacher's own decision: $\frac{1}{B}\sum_i H(\arg\max t_i, p_i)$.

    Chen et al. 2019, equation 2. Small if the teacher is sure of each image.

    Args:
        logits: of the teacher, `(B, K)`.
    """
    return F.cross_entropy(logits, logits.argmax(1))


def negative_entropy(logits: Tensor) -> Tensor:
    r"""$\sum_k m_k \log m_k$ of the batch's mean distribution m, in nats.

    Chen et al. 2019, equation 4, without its factor 1 / K. Small if all classes are equally
    frequent.

    Args:
        logits: of the teacher, `(B, K)`.
    """
    mean = logits.softmax(1).mean(0)
    # A class without probability counts 0, and has a finite gradient.
    smallest = torch.finfo(mean.dtype).tiny
    return (mean * mean.clamp(min=smallest).log()).sum()


class DAFL(GeneratorLoss):
    r"""Images of which the teacher is sure, that excite it, of all classes equally often.

    $w_{oh} L_{oh} - w_a \overline{|f_t|} + w_{ie} \sum_k m_k \log m_k$ over the joint batch of all
    processes (Chen et al. 2019, arXiv 1904.01186, equation 5), where $f_t$ is a layer's feature,
    usually the one in front of the classifier. The student takes no part.

    Args:
        one_hot: weight $w_{oh}$; 1 in the paper.
        activation: weight $w_a$; 0.1 in the paper. With 0 no layer is read.
        entropy: weight $w_{ie}$; 5 in the paper.
        layer: role of the teacher's layer.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a negative weight.
    """

    paper: ClassVar[str] = "Chen et al. 2019, arXiv 1904.01186"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "generator"
    needs: ClassVar[tuple[str, ...]] = ("teacher logits", "teacher features")
    compares_classes: ClassVar[bool] = True
    mean_over: MeanOver = "joint"

    def __init__(
        self,
        one_hot: float = 1.0,
        activation: float = 0.1,
        entropy: float = 5.0,
        layer: str = "penultimate",
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.one_hot = not_negative("DAFL", "one_hot", one_hot)
        self.activation = not_negative("DAFL", "activation", activation)
        self.entropy = not_negative("DAFL", "entropy", entropy)
        self.layer = layer

    @property
    def student_roles(self) -> set[str]:
        return set()

    @property
    def teacher_roles(self) -> set[str]:
        if self.activation > 0:
            return {self.layer}
        return set()

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The weighted sum of the three terms, a scalar."""
        teacher = output_of(self, teacher)
        joined = JoinedBatch(batch)
        logits = joined(full(teacher.logits))
        total = self.one_hot * one_hot_loss(logits)
        total = total + self.entropy * negative_entropy(logits)
        if self.activation > 0:
            feature = joined(full(teacher.features[self.layer]))
            total = total - self.activation * feature.abs().mean()
        return total

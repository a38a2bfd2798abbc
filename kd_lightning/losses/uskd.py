"""Universal self-distillation: Yang et al. 2023."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import check_role, feature_of
from kd_lightning.losses._gather import JoinedBatch
from kd_lightning.losses._labels import (
    costs_of_labels,
    mean_over_labels,
    own_class,
    split_target,
)
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    is_labelled,
    not_negative,
)
from kd_lightning.types import Batch, Output, full

SMOOTHING = 0.1
"""Label smoothing of the weak head, as in the paper."""


def zipf_targets(scores: Tensor) -> Tensor:
    r"""Zipf's law by rank: the r-th largest score of a row gets $(1/r) / \sum_j (1/j)$.

    Args:
        scores: `(N, C)`; of equal scores, the first is ranked first.

    Returns:
        `(N, C)`, rows summing to one.
    """
    order = scores.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(1, scores.shape[-1] + 1, device=scores.device).to(scores.dtype)
    law = 1 / ranks
    # Probabilities by rank, the same for every row, go to the class of that rank.
    by_rank = (law / law.sum()).expand_as(scores)
    return torch.zeros_like(scores).scatter(-1, order, by_rank)


class USKD(DistillLoss):
    r"""NKD without a teacher: targets made from the student's own outputs.

    $\alpha L_t + \beta L_n + L_w$, mean over labelled rows, in nats:

    - $L_t = -r \ln q_t$, the hard loss weighted by $r = q_t^2 + 1 - \overline{q_t^2}$. The mean is
      over the joint batch of all processes, and $r$ is a constant.
    - $L_n = -\sum_{k \ne t} z_k \ln \hat q_k$, where $\hat q$ is normalized over the classes
      besides the label, and $z$ is Zipf's law. The rank of a class is that of the sum of its
      normalized probabilities by the student and by a weak head.
    - $L_w$ is $\mu$ times the cross-entropy of the weak head, a linear layer on the pooled features
      of an earlier layer, with label smoothing 0.1. Its gradient reaches the student too.

    The defaults are the paper's for ImageNet; it uses 0.1, 0.1 and 0.1 on CIFAR-100. The hard loss
    stays at weight 1. Mixed samples count both labels by their shares. One label per sample only.

    The weight $r$ depends on the other samples of the batch, so that the value is no mean over
    samples: two halves of a batch do not cost the mean of what they cost alone.

    Args:
        layer: role of the student's layer for the weak head, the second-last stage in the paper.
        alpha: weight of the target's term, at least 0.
        beta: weight of the other classes, at least 0.
        mu: weight of the weak head, at least 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a weight out of range.
    """

    paper: ClassVar[str] = "Yang et al. 2023, arXiv 2303.13005"
    year: ClassVar[int] = 2023
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("labels", "student features")
    uses_teacher: ClassVar[bool] = False
    mean_over: MeanOver = "labelled"

    def __init__(
        self,
        layer: str = "stage2",
        alpha: float = 1.0,
        beta: float = 0.1,
        mu: float = 0.005,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layer = check_role("USKD", "layer", layer)
        self.roles = [self.layer]
        self.alpha = not_negative("USKD", "alpha", alpha)
        self.beta = not_negative("USKD", "beta", beta)
        self.mu = not_negative("USKD", "mu", mu)
        self.weak: nn.Linear | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the weak head.

        Raises:
            UserError: if the layer returns neither maps nor vectors, or the data has several labels
                per sample.
        """
        feature = feature_of("USKD", student.output, self.layer)
        if feature.ndim not in (2, 4):
            raise UserError(
                f"USKD reads vectors (B, C) or maps (B, C, H, W); the student's layer "
                f"{self.layer!r} gives {list(feature.shape[1:])} per sample"
            )
        rows, num_classes = student.output.logits.shape
        if rows != len(feature):
            raise UserError(
                "USKD is for one label per sample; this data has several positions"
            )
        self.weak = nn.Linear(feature.shape[1], num_classes)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The sum of the three terms, mean over labelled rows; a scalar in nats."""
        q = Output(full(student.logits)).log_probs()
        weak_logits = self._weak_logits(student)
        weak = torch.log_softmax(weak_logits.detach(), dim=-1)
        mean_square = self._joint_mean_square(q.detach(), batch)

        def cost(labels: Tensor) -> Tensor:
            # The label's soft target: its squared probability, shifted to mean 1.
            log_own = own_class(q, labels)
            r = log_own.detach().exp().square() + 1 - mean_square
            # The other classes, `(N, K - 1)`: both heads together decide their ranks.
            _, rest = split_target(q, labels)
            _, weak_rest = split_target(weak, labels)
            ranking = rest.detach().exp() + weak_rest.exp()
            others = -(zipf_targets(ranking) * rest).sum(-1)
            # The weak head itself learns from smoothed labels.
            weak_cost = F.cross_entropy(
                weak_logits, labels, label_smoothing=SMOOTHING, reduction="none"
            )
            return -self.alpha * r * log_own + self.beta * others + self.mu * weak_cost

        return mean_over_labels(cost, batch)

    def _weak_logits(self, student: Output) -> Tensor:
        """The weak head's logits `(B, K)`, in at least single precision."""
        assert self.weak is not None, "call build before forward"
        feature = feature_of("USKD", student, self.layer)
        pooled = feature.flatten(2).mean(2) if feature.ndim > 2 else feature
        return full(self.weak(pooled))

    def _joint_mean_square(self, q: Tensor, batch: Batch) -> Tensor:
        """The mean of the label's squared probability over the labelled rows of all processes."""
        squares = costs_of_labels(
            lambda labels: own_class(q, labels).exp().square(), batch
        )
        known = is_labelled(batch.labels)
        if batch.partner_labels is not None:
            known = known | is_labelled(batch.partner_labels)
        # Every process takes part in the gather, even without a sample.
        joined = JoinedBatch(batch)
        total = joined(squares).sum()
        return total / joined(known.to(squares.dtype)).sum().clamp(min=1)

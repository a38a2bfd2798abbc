"""Relational knowledge distillation: Park et al. 2019."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    Convention,
    check_convention,
    check_role,
    feature_pairs,
)
from kd_lightning.losses._gather import JoinedBatch, unit
from kd_lightning.losses.base import BaseOptions, DistillLoss, MeanOver, is_number
from kd_lightning.types import Batch, Output, full

BLOCK = 2**22
"""The most elements, about, of a tensor in the computation of angles (16 MB)."""


def distance_potential(x: Tensor) -> Tensor:
    r"""Distances of all pairs over their mean, $\psi_D = \|x_i - x_j\|_2 / \mu$.

    Park et al. 2019, section 3.2.1. The mean $\mu$ is over the distances above zero, as in the
    authors' code. The distance of samples that coincide gets no gradient. If all samples coincide,
    all distances are zero.

    Args:
        x: `(B, D)`.

    Returns:
        `(B (B - 1) / 2,)`.
    """
    # `pdist` computes each pair once, and its gradient at distance 0 is 0 rather than NaN.
    distances = F.pdist(x)
    apart = (distances > 0).sum()
    mean = distances.sum() / apart.clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1)


def distance_loss(
    student: Tensor,
    teacher: Tensor,
    convention: Convention = "paper",
) -> Tensor:
    r"""Huber loss between distance potentials, RKD-D (Park et al. 2019, section 3.2.1).

    Args:
        student: `(B, D)`.
        teacher: `(B, D')`.
        convention: "paper": mean over the pairs of different samples; "benchmark": mean over all
            B^2 entries of the matrix of distances, whose diagonal is zero: smaller by (B - 1) / B.

    Returns:
        A scalar; zero if distances agree up to one factor, and for B < 2, where there are none.
    """
    rows = len(student)
    entries = rows**2 if convention == "benchmark" else rows * (rows - 1)
    with torch.autocast(student.device.type, enabled=False):
        own = distance_potential(full(student))
        target = distance_potential(full(teacher))
        cost = F.smooth_l1_loss(own, target, reduction="sum")
        # Each pair stands for two entries of the matrix.
        return 2 * cost / max(entries, 1)


def _cosines(x: Tensor, first: int, last: int) -> Tensor:
    """Cosines of all angles at the vertices `first` to `last`: `(B, D)` to `(vertices, B, B)`."""
    # Edge i of vertex j is x_i - x_j.
    edges = unit(x - x[first:last, None])
    return edges @ edges.mT


def _angle_cost(student: Tensor, teacher: Tensor, first: int, last: int) -> Tensor:
    """Sum of the Huber losses of all angles at the vertices `first` to `last`, a scalar."""
    own = _cosines(student, first, last)
    target = _cosines(teacher, first, last)
    cost = F.smooth_l1_loss(own, target, reduction="none")
    # The angle (i, k) is the angle (k, i), and an edge makes no angle with itself.
    return 2 * cost.triu(1).sum()


def angle_loss(
    student: Tensor,
    teacher: Tensor,
    convention: Convention = "paper",
) -> Tensor:
    r"""Huber loss between the cosines of all angles, RKD-A (Park et al. 2019, section 3.2.2).

    The cosine at vertex j is between $x_i - x_j$ and $x_k - x_j$; if two of the three samples
    coincide, it is 0 and gets no gradient. Time is O(B^3 D). Memory is O(B^2): vertices are
    processed in blocks, and more than one block is recomputed in the backward pass.

    Args:
        student: `(B, D)`.
        teacher: `(B, D')`.
        convention: "paper": mean over ordered triples of different samples; "benchmark": mean over
            all B^3 entries, of which those that are no angle are zero: smaller by
            (B - 1) (B - 2) / B^2.

    Returns:
        A scalar; zero if the angles agree, and for B < 3, where there are none.
    """
    rows = len(student)
    entries = rows**3 if convention == "benchmark" else rows * (rows - 1) * (rows - 2)
    # Per vertex, the edges are `(B, D)` and the cosines `(B, B)`; the larger one decides.
    widest = max(rows, student.shape[1], teacher.shape[1])
    block = max(1, BLOCK // (rows * widest))
    # Under autocast the products of edges would be computed in half precision.
    with torch.autocast(student.device.type, enabled=False):
        x = full(student)
        y = full(teacher)
        # Recompute only if one block cannot hold all vertices: small batches need no second forward
        # pass.
        if block < rows:
            return _blockwise_angle_cost(x, y, block) / max(entries, 1)
        return _angle_cost(x, y, 0, rows) / max(entries, 1)


def _blockwise_angle_cost(student: Tensor, teacher: Tensor, block: int) -> Tensor:
    """`_angle_cost` of all vertices, `block` at a time, recomputed in the backward pass."""
    rows = len(student)
    costs = []
    for first in range(0, rows, block):
        last = min(first + block, rows)
        # The computation has no dropout, so saving the state of the generators is wasted time.
        cost = checkpoint(
            _angle_cost,
            student,
            teacher,
            first,
            last,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        costs.append(cost)
    return torch.stack(costs).sum()


class RKD(DistillLoss):
    r"""Distances between samples, and angles among three, match those of the teacher.

    `distance_weight` times RKD-D plus `angle_weight` times RKD-A, over the joint batch of all
    processes. There are no trainable parts. The paper writes sums over pairs and triples; its
    weights 25 and 50 belong to the means in its authors' code:

    - "paper": distances are averaged over pairs of different samples, angles over triples of
      different samples.
    - "benchmark" (the authors' code and the CIFAR-100 benchmark's): distances are averaged over B^2
      entries, a factor of (B - 1) / B, and angles over B^3 entries, a factor of
      (B - 1) (B - 2) / B^2.

    That code also uses 1e-6 as the distance of different samples that coincide, and includes it in
    the mean distance; here it is 0 and excluded, in both conventions. Scaling, shifting or rotating
    either side changes nothing. With fewer than three samples there is no angle, and with fewer
    than two no distance: that part is zero, with a graph.

    Args:
        distance_weight: of RKD-D; 0 leaves it out.
        angle_weight: of RKD-A, which takes O(B^3) time; 0 leaves it out.
        layer: role of the layer, the same for student and teacher; its features are flattened.
        convention: "paper" or "benchmark".
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a negative or non-finite weight, both weights 0, or an unknown convention.
    """

    paper: ClassVar[str] = "Park et al. 2019, arXiv 1904.05068"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "relation"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    minimum_at_teacher: ClassVar[bool] = True
    mean_over: MeanOver = "joint"

    def __init__(
        self,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        layer: str = "penultimate",
        convention: Convention = "paper",
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        weights = (distance_weight, angle_weight)
        if not all(is_number(weight) and weight >= 0 for weight in weights):
            raise UserError(
                f"RKD: distance_weight and angle_weight must be finite numbers of at least 0, "
                f"got {distance_weight} and {angle_weight}"
            )
        if not any(weights):
            raise UserError(
                "RKD: distance_weight and angle_weight are both 0; leave out the loss instead"
            )
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight
        self.roles = [check_role("RKD", "layer", layer)]
        self.convention = check_convention("RKD", convention)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The weighted sum of `distance_loss` and `angle_loss` over the joint batch, a scalar."""
        joined = JoinedBatch(batch)
        [(own, target)] = feature_pairs(self, student, teacher)
        own = joined(own.flatten(1))
        target = joined(target.flatten(1))
        terms = []
        if self.distance_weight:
            terms.append(
                self.distance_weight * distance_loss(own, target, self.convention)
            )
        if self.angle_weight:
            terms.append(self.angle_weight * angle_loss(own, target, self.convention))
        return torch.stack(terms).sum()

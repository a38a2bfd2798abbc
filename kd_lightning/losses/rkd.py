"""Relational knowledge distillation: Park et al. 2019."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import Convention, check_convention, check_role, feature_pairs
from kd_lightning.losses._gather import JoinedBatch, unit
from kd_lightning.losses.base import DistillLoss, is_number
from kd_lightning.types import Batch, Output, full

BLOCK = 2**22
"""Angles are computed for so many vertices at once that no tensor has more than about this many elements (16 MB)."""


def distance_potential(x: Tensor) -> Tensor:
    r"""Distances of all pairs over their mean, $\psi_D = \|x_i - x_j\|_2 / \mu$, `(B, D)` to `(B (B - 1) / 2,)`.

    Park et al. 2019, section 3.2.1. The mean $\mu$ is over the distances above zero, as in the authors' code: samples that
    coincide do not enter it. Their distance gets no gradient; all distances are zero where all samples coincide.
    """
    distances = F.pdist(x)
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1)


def distance_loss(student: Tensor, teacher: Tensor, convention: Convention = "paper") -> Tensor:
    r"""Huber loss between distance potentials, RKD-D (Park et al. 2019, section 3.2.1).

    Args:
        student: `(B, D)`.
        teacher: `(B, D')`.
        convention: the mean over the pairs of different samples ("paper") or over all B^2 entries of the matrix of
            distances, whose diagonal is zero ("benchmark"): smaller by (B - 1) / B.

    Returns:
        A scalar; zero where distances agree up to one factor, and for B < 2, where there are none.
    """
    rows = len(student)
    entries = rows**2 if convention == "benchmark" else rows * (rows - 1)
    with torch.autocast(student.device.type, enabled=False):
        cost = F.smooth_l1_loss(
            distance_potential(full(student)), distance_potential(full(teacher)), reduction="sum"
        )
        return 2 * cost / max(entries, 1)  # each pair is two entries


def _angle_cost(student: Tensor, teacher: Tensor, first: int, last: int) -> Tensor:
    """Sum of the Huber losses of all angles at the vertices `first` to `last`."""

    def cosines(x: Tensor) -> Tensor:
        edges = unit(x - x[first:last, None])
        return edges @ edges.mT

    cost = F.smooth_l1_loss(cosines(student), cosines(teacher), reduction="none")
    return 2 * cost.triu(1).sum()  # (i, k) is (k, i); an edge makes no angle with itself


def angle_loss(student: Tensor, teacher: Tensor, convention: Convention = "paper") -> Tensor:
    r"""Huber loss between the cosines of all angles, RKD-A (Park et al. 2019, section 3.2.2).

    The cosine at vertex j is that between $x_i - x_j$ and $x_k - x_j$; where two of the three coincide it is taken to be 0,
    without a gradient. Time is in O(B^3 D); memory in O(B^2): vertices are taken a block at a time, and where there is more
    than one block, each is computed again in the backward pass.

    Args:
        student: `(B, D)`.
        teacher: `(B, D')`.
        convention: the mean over ordered triples of different samples ("paper") or over all B^3 entries, those that are no
            angle being zero ("benchmark"): smaller by (B - 1) (B - 2) / B^2.

    Returns:
        A scalar; zero where the angles agree, and for B < 3, where there are none.
    """
    rows = len(student)
    entries = rows**3 if convention == "benchmark" else rows * (rows - 1) * (rows - 2)
    block = max(1, BLOCK // (rows * max(rows, student.shape[1], teacher.shape[1])))
    with torch.autocast(student.device.type, enabled=False):
        x, y = full(student), full(teacher)
        if block >= rows:
            cost = _angle_cost(x, y, 0, rows)
        else:
            spans = [(first, min(first + block, rows)) for first in range(0, rows, block)]
            costs = [
                checkpoint(_angle_cost, x, y, *s, use_reentrant=False, preserve_rng_state=False)
                for s in spans
            ]
            cost = torch.stack(costs).sum()
        return cost / max(entries, 1)


class RKD(DistillLoss):
    r"""Distances between samples, and angles among three, are to be those that the teacher sees: nothing to train.

    `distance_weight` times RKD-D plus `angle_weight` times RKD-A, over the batch of all processes. The paper writes sums
    over pairs and triples; its weights 25 and 50 belong to the means that its authors' code takes:

    | convention | distances: mean over | angles: mean over |
    | --- | --- | --- |
    | "paper" | pairs of different samples | triples of different samples |
    | "benchmark" (the authors' code and the CIFAR-100 benchmark's) | B^2 entries: times (B - 1) / B | B^3 entries: times (B - 1) (B - 2) / B^2 |

    That code also takes 1e-6 for the distance of different samples that coincide, and counts it in the mean distance;
    here it is 0 and left out, in both conventions. Scaling, shifting or rotating either side changes nothing.
    With fewer than three samples there is no angle, and with fewer than two no distance: the part is zero, with a graph.

    Args:
        distance_weight: of RKD-D; 0 leaves it out.
        angle_weight: of RKD-A, which takes O(B^3) time; 0 leaves it out.
        layer: role of the layer, the same for student and teacher; its features are flattened.
        convention: "paper" or "benchmark".
        base: weight, start, end, warmup; see DistillLoss.

    Raises:
        UserError: for a negative or non-finite weight, both weights 0, or an unknown convention.
    """

    paper: ClassVar[str] = "Park et al. 2019, arXiv 1904.05068"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "relation"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)

    def __init__(
        self,
        distance_weight: float = 25.0,
        angle_weight: float = 50.0,
        layer: str = "penultimate",
        convention: Convention = "paper",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if (
            not (is_number(distance_weight) and is_number(angle_weight))
            or min(distance_weight, angle_weight) < 0
        ):
            raise UserError(
                f"RKD: distance_weight and angle_weight must be finite numbers of at least 0, "
                f"got {distance_weight} and {angle_weight}"
            )
        if not distance_weight and not angle_weight:
            raise UserError(
                "RKD: distance_weight and angle_weight are both 0; leave out the loss instead"
            )
        self.distance_weight, self.angle_weight = distance_weight, angle_weight
        self.roles, self.convention = (
            [check_role("RKD", "layer", layer)],
            check_convention("RKD", convention),
        )

    def counted(self, batch: Batch) -> Tensor:
        """One: every process returns the joined batch's loss."""
        return batch.target.new_tensor(1)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        joined = JoinedBatch(batch)
        x, y = (joined(feature.flatten(1)) for feature in feature_pairs(self, student, teacher)[0])
        parts = [(self.distance_weight, distance_loss), (self.angle_weight, angle_loss)]
        return torch.stack(
            [weight * part(x, y, self.convention) for weight, part in parts if weight]
        ).sum()

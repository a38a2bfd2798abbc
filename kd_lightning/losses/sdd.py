"""Scale decoupled distillation: Wei et al. 2024."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar, Literal, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    FrozenHead,
    check_one_label,
    check_role,
    check_width,
    feature_of,
    linear_head,
    not_built,
    shapes_of,
)
from kd_lightning.losses._labels import mean_over_labels
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    not_negative,
    positive,
    teacher_of,
)
from kd_lightning.losses.catkd import class_maps
from kd_lightning.losses.dkd import decoupled_kl
from kd_lightning.types import Batch, Output, finite_log_probs

Divergence = Literal["kd", "dkd"]
"""What is compared in each cell; see `SDD`."""


def cell_logits(
    feature: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grids: Sequence[int],
) -> Tensor:
    """The classifier's logits for the mean feature of each cell of several grids.

    Wei et al. 2024, section 3.2. A grid of 1 is global pooling.

    Args:
        feature: the last map, `(B, C, H, W)`.
        weight: of the classifier, `(K, C)`.
        bias: of the classifier, `(K,)`.
        grids: numbers of cells per side.

    Returns:
        `(B, P, K)`, where P is the sum of the squares of the grids.
    """
    cells = []
    for grid in grids:
        means = F.adaptive_avg_pool2d(feature, (grid, grid))
        cells.append(class_maps(means, weight, bias).flatten(2))
    return torch.cat(cells, 2).transpose(1, 2)


def cell_weights(logits: Tensor, labels: Tensor) -> Tensor:
    """2 for cells in which the teacher is right and globally wrong, or the reverse; 1 for others.

    Args:
        logits: the teacher's, `(B, P, K)`; the first cell is the global one.
        labels: int64 `(B,)`, never `UNLABELLED`.

    Returns:
        `(B, P)`.
    """
    # The first cell is the whole image.
    right = logits.argmax(-1) == labels[:, None]
    differs = right != right[:, :1]
    return 1 + differs.to(logits.dtype)


class SDD(DistillLoss):
    r"""Logits of every part of the image, from the classifier on averaged cells of the last map.

    $\frac{1}{P} \sum_c w_c \, D(p_c, q_c)$: both networks' last maps are cut into grids of
    1, 2 x 2 and 4 x 4 cells, P = 21 in all. The mean feature of a cell goes through the network's
    own classifier. Cells in which the teacher is right although it is wrong about the whole image,
    or the reverse, count twice: they are the knowledge that the global logits mix up.

    $D$ is the paper's SD-KD, $T^2\,\mathrm{KL}$, or SD-DKD, $T^2 (\alpha\,\mathrm{TCKD} +
    \beta\,\mathrm{NCKD})$, which the paper warms up for 20 epochs as DKD does (`warmup`). The
    gradient reaches the student's classifier; the teacher's is copied and frozen.

    A grid that is finer than the smaller of both maps is left out, since its cells would repeat
    those of a coarser one. The mean is over labelled samples, because the weights need labels;
    mixed samples count both labels by their shares.

    Args:
        layer: role of the last map before global pooling, after its ReLU, of student and teacher.
        head: role of the classifier, of student and teacher.
        grids: cells per side, the first one 1, the global grid.
        divergence: "kd" or "dkd".
        temperature: T, greater than 0.
        alpha: weight of TCKD, at least 0; for "dkd" alone.
        beta: weight of NCKD, at least 0; for "dkd" alone.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if a layer does not return a map, a
            head is no linear classifier of its channels, or samples have more than one label.
    """

    paper: ClassVar[str] = "Wei et al. 2024, arXiv 2403.13512"
    year: ClassVar[int] = 2024
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = (
        "teacher features",
        "teacher classifier",
        "labels",
    )
    mean_over: MeanOver = "labelled"

    def __init__(
        self,
        layer: str = "map",
        head: str = "head",
        grids: Sequence[int] = (1, 2, 4),
        divergence: Divergence = "kd",
        temperature: float = 4.0,
        alpha: float = 1.0,
        beta: float = 8.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layer = check_role("SDD", "layer", layer)
        self.head = check_role("SDD", "head", head)
        self.roles = [self.layer, self.head]
        if not _are_grids(grids):
            raise UserError(
                "SDD: grids must be whole numbers of cells per side that begin with 1 and "
                f"increase, such as [1, 2, 4], got {grids!r}"
            )
        if divergence not in get_args(Divergence):
            raise UserError(
                f"SDD: divergence must be 'kd' or 'dkd', got {divergence!r}"
            )
        self.grids = list(grids)
        self.divergence = divergence
        self.temperature = positive("SDD", "temperature", temperature)
        self.alpha = not_negative("SDD", "alpha", alpha)
        self.beta = not_negative("SDD", "beta", beta)
        # In a list, because it belongs to the student: a submodule would be saved a second time.
        self._student_head: list[nn.Linear] = []
        self.classifier: FrozenHead | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Find the student's classifier, and copy the teacher's."""
        own, target = shapes_of(
            "SDD", student, teacher, (self.layer, self.layer), ranks=(4,)
        )
        assert teacher is not None
        check_one_label("SDD", student)
        student_head = linear_head("SDD", "student", student, self.head)
        teacher_head = linear_head("SDD", "teacher", teacher, self.head)
        check_width("SDD", "student", student_head, own[1])
        check_width("SDD", "teacher", teacher_head, target[1])
        self._student_head = [student_head]
        self.classifier = FrozenHead(teacher_head)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The weighted mean over cells, mean over labelled samples; a scalar in nats.

        Raises:
            UserError: before `build`.
        """
        target = feature_of("SDD", teacher_of(self, teacher), self.layer)
        if self.classifier is None:
            raise not_built("SDD")
        (head,) = self._student_head
        own = feature_of("SDD", student, self.layer)
        sides = (*own.shape[2:], *target.shape[2:])
        # A grid that is finer than a map would count its positions several times.
        grids = [grid for grid in self.grids if grid <= min(sides)]
        weight = self.classifier.get_buffer("weight")
        bias = self.classifier.get_buffer("bias")
        # Divergences of logits need single precision.
        with torch.autocast(student.logits.device.type, enabled=False):
            z = cell_logits(own, head.weight, head.bias, grids)
            v = cell_logits(target, weight, bias, grids)
            return self._distance(z, v, batch)

    def _distance(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """From the logits of all cells, `(B, P, K)` each, a scalar."""
        log_q = torch.log_softmax(student / self.temperature, dim=-1)
        log_p = torch.log_softmax(teacher / self.temperature, dim=-1)

        def cost(labels: Tensor) -> Tensor:
            divergence = self._divergence(log_q, log_p, labels)
            return (cell_weights(teacher, labels) * divergence).mean(1)

        return mean_over_labels(cost, batch, self.temperature**2)

    def _divergence(self, log_q: Tensor, log_p: Tensor, labels: Tensor) -> Tensor:
        """The divergence in each cell, `(B, P)`, of log-probabilities `(B, P, K)`."""
        samples, cells, _ = log_q.shape
        if self.divergence == "dkd":
            # One row per cell, each with its sample's label.
            rows = labels.repeat_interleave(cells)
            flat_log_q = log_q.flatten(0, 1)
            flat_log_p = log_p.flatten(0, 1)
            target_part, other_part = decoupled_kl(flat_log_q, flat_log_p, rows)
            total = self.alpha * target_part + self.beta * other_part
            return total.view(samples, cells)
        difference = finite_log_probs(log_p) - finite_log_probs(log_q)
        return (log_p.exp() * difference).sum(-1)


def _are_grids(grids: Sequence[int]) -> bool:
    """Whether these are increasing whole numbers from 1 on."""
    if not grids or grids[0] != 1:
        return False
    for grid in grids:
        if isinstance(grid, bool) or not isinstance(grid, int):
            return False
    return all(low < high for low, high in itertools.pairwise(grids))

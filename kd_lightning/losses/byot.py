"""A network that teaches its own shallow parts: Zhang et al. 2019 (be your own teacher)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    BatchNorm,
    adapted,
    check_layers,
    check_one_label,
    check_role,
    feature_of,
    not_built,
    pooled,
)
from kd_lightning.losses._labels import costs_of_labels, own_class
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    not_negative,
    positive,
)
from kd_lightning.types import Batch, Output, finite_log_probs, full


def active_distance(student: Tensor, teacher: Tensor) -> Tensor:
    r"""$\sum_c (f_c - g_c)^2$ over the channels where f or g is active, mean over samples.

    As in the authors' code: where both are at most 0, they need not agree.

    Args:
        student: f, `(B, C)`.
        teacher: g, `(B, C)`.

    Returns:
        A scalar; zero if both are equal.
    """
    # Where ReLU has cut both maps to zero there is nothing to learn.
    is_active = (student > 0) | (teacher > 0)
    squares = (student - teacher).square()
    return torch.where(is_active, squares, 0).sum(1).mean()


class Exit(nn.Module):
    """A way out of the network: a bottleneck to the size of the last map, and a classifier.

    As in the authors' code: a 1x1 convolution to a quarter of the last map's channels, one whose
    kernel and stride are the ratio of the sizes, and a 1x1 convolution to the last map's channels,
    each with batch normalization and ReLU; the mean over positions; a linear layer. Convolutions
    have no bias here, because the normalization would remove it.

    Args:
        shape: of the map that is read, `(B, C, H, W)`.
        last: of the last map, `(B, C', H', W')`.
        classes: K.
    """

    def __init__(self, shape: Size, last: Size, classes: int) -> None:
        super().__init__()
        # A bottleneck, which keeps the exits cheap.
        hidden = max(last[1] // 4, 1)
        # One strided convolution bridges all stages between this one and the last.
        height = max(shape[2] // last[2], 1)
        width = max(shape[3] // last[3], 1)
        convolutions = [
            nn.Conv2d(shape[1], hidden, 1, bias=False),
            nn.Conv2d(
                hidden, hidden, (height, width), stride=(height, width), bias=False
            ),
            nn.Conv2d(hidden, last[1], 1, bias=False),
        ]
        layers: list[nn.Module] = []
        for convolution in convolutions:
            nn.init.kaiming_normal_(
                convolution.weight, mode="fan_out", nonlinearity="relu"
            )
            layers += [convolution, BatchNorm(convolution.out_channels), nn.ReLU()]
        self.bottleneck = nn.Sequential(*layers)
        self.head = nn.Linear(last[1], classes)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """The pooled feature `(B, C')` and the logits `(B, K)` of a map `(B, C, H, W)`."""
        bottleneck = pooled(adapted(self.bottleneck, feature))
        return bottleneck, adapted(self.head, bottleneck)


class BYOT(DistillLoss):
    r"""The network's last layers teach exits from its earlier stages; there is no other teacher.

    For each exit e, with logits $q_e$ and a bottleneck feature $f_e$:
    $(1 - a) \, CE(q_e, y) + a T^2 \, \mathrm{KL}(q \| q_e) + b \, d(f_e, f)$, summed over exits and
    averaged over samples; d is `active_distance`. The network's own output q and its last feature f
    teach, and get no gradient; they learn from the labels through `CrossEntropy`, whose weight is
    1 - a. The authors' code has the cross-entropy in place of the divergence, with the same
    gradient.

    Exits train with the student, are in the training checkpoint, and are not exported: what the
    network gains is that its stages learn more directly.

    The authors' code uses a = 0.1, T = 3, and b = 1e-6 with a sum over a batch of 128, which is
    1.28e-4 with the mean over samples here. The paper states a = 0.3 and b = 0.03.

    A sample without a label has no cross-entropy and counts in all means; mixed samples count both
    labels by their shares.

    Args:
        layers: roles of the maps that exits start from.
        last: role of the last map before global pooling.
        soft: a, in [0, 1].
        hints: b, at least 0.
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if a layer does not return a map that
            is at least as large as the last one, or samples have more than one label.
    """

    paper: ClassVar[str] = "Zhang et al. 2019, arXiv 1905.08094"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("labels",)
    uses_teacher: ClassVar[bool] = False
    compares_classes: ClassVar[bool] = True
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layers: Sequence[str] = ("stage1", "stage2"),
        last: str = "map",
        soft: float = 0.1,
        hints: float = 1.28e-4,
        temperature: float = 3.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layers = check_layers("BYOT", layers)
        self.last = check_role("BYOT", "last", last)
        self.soft = not_negative("BYOT", "soft", soft)
        if self.soft > 1:
            raise UserError(f"BYOT: soft must be in [0, 1], got {soft}")
        self.hints = not_negative("BYOT", "hints", hints)
        self.temperature = positive("BYOT", "temperature", temperature)
        self.exits = nn.ModuleList()

    @property
    def student_roles(self) -> set[str]:
        """The maps that exits start from, and the last one."""
        return {*self.layers, self.last}

    @property
    def teacher_roles(self) -> set[str]:
        """None: the network is its own teacher."""
        return set()

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the exits."""
        check_one_label("BYOT", student)
        last = _map_shape(student, self.last)
        classes = student.output.logits.shape[-1]
        for role in self.layers:
            shape = _map_shape(student, role)
            # A strided convolution shrinks maps and cannot enlarge them.
            if shape[2] < last[2] or shape[3] < last[3]:
                raise UserError(
                    f"BYOT: the layer {role!r} has {shape[2]} x {shape[3]} positions, fewer than "
                    f"the last map's {last[2]} x {last[3]}; name an earlier layer"
                )
            self.exits.append(Exit(shape, last, classes))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The sum over exits, mean over samples; a scalar.

        Raises:
            UserError: before `build`.
        """
        if len(self.exits) == 0:
            raise not_built("BYOT")
        # The network's deepest part is the teacher: constant.
        target_logits = full(student.logits).detach()
        target_feature = pooled(feature_of("BYOT", student, self.last)).detach()
        total = target_logits.new_zeros(())
        for role, exit_ in zip(self.layers, self.exits, strict=True):
            feature, logits = exit_(feature_of("BYOT", student, role))
            hard = _hard_cost(logits, batch)
            soft = _divergence(logits, target_logits, self.temperature)
            hint = active_distance(feature, target_feature)
            total = total + (1 - self.soft) * hard
            total = total + self.soft * soft
            total = total + self.hints * hint
        return total


def _hard_cost(logits: Tensor, batch: Batch) -> Tensor:
    """The cross-entropy with the labels, mean over all samples: a scalar in nats."""
    log_probs = torch.log_softmax(logits, dim=1)

    def cost(labels: Tensor) -> Tensor:
        return -own_class(log_probs, labels)

    return costs_of_labels(cost, batch).mean()


def _divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """T^2 KL(target | logits) of logits `(B, K)`, mean over samples: a scalar in nats."""
    log_q = torch.log_softmax(logits / temperature, dim=1)
    log_p = torch.log_softmax(target / temperature, dim=1)
    divergence = F.kl_div(
        finite_log_probs(log_q),
        finite_log_probs(log_p),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


def _map_shape(student: Probe, role: str) -> Size:
    """The shape `(B, C, H, W)` of a layer; UserError if it does not return a map."""
    shape = feature_of("BYOT", student.output, role).shape
    if len(shape) != 4 or math.prod(shape[2:]) == 0:
        raise UserError(
            f"BYOT reads maps (B, C, H, W); the layer {role!r} gives {list(shape[1:])} "
            "per sample"
        )
    return shape

"""Distillation between unlike architectures: Hao et al. 2023 (OFA-KD)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
from torch import Size, Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    BatchNorm,
    adapted,
    check_layers,
    check_one_label,
    feature_of,
    not_built,
)
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    is_labelled,
    is_number,
    not_negative,
    positive,
    teacher_of,
)
from kd_lightning.types import Batch, Output, finite_log_probs, full

ATTENTION_HEADS = 4
"""Of the blocks in a branch that reads tokens, as in the authors' code."""


def enhanced_cost(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    exponent: float,
) -> Tensor:
    r"""$-\sum_k [(p_k + m_k)^e - m_k] \ln q_k$ with m = 1 for the label and 0 otherwise.

    Hao et al. 2023, section 3.3: for e > 1, a teacher that is sure of the label teaches more of it.
    With e = 1 this is the cross-entropy with the teacher's distribution.

    Args:
        student: log-probabilities $\ln q$, `(N, K)`.
        teacher: log-probabilities $\ln p$, `(N, K)`.
        labels: int64 `(N,)`; m is zero in a row whose label is unknown.
        exponent: e.

    Returns:
        `(N,)`, in nats.
    """
    # Class 0 stands in for an unknown label, whose entry of the mask stays 0.
    columns = labels.clamp(min=0)[:, None]
    known = is_labelled(labels)[:, None].to(teacher.dtype)
    mask = torch.zeros_like(teacher).scatter(1, columns, known)
    target = (teacher.exp() + mask).pow(exponent) - mask
    return -(target * finite_log_probs(student)).sum(1)


class OFA(DistillLoss):
    r"""Each stage of the student predicts through a branch of its own, and learns logits.

    Features of unlike architectures are hard to compare, but their logits are not. Branches lead
    from stages of the student to K logits; each branch, and the student's output, has the cost
    `enhanced_cost` towards the teacher's output at a temperature T: $c(q) + b \sum_s c(q_s)$. There
    is no factor $T^2$, and the minimum is not at the teacher.

    A branch on a map halves it by separable convolutions once for each later stage of `layers` (the
    last one has a 1x1 convolution), pools it, and ends with a linear layer. A branch on tokens
    `(B, L, C)`, as of a vision transformer, has one attention block for each later stage and at
    least one, and a linear layer on the mean over tokens. Its width is that of the last stage; the
    authors' code takes the larger one of student and teacher, which needs the teacher's features,
    merges patches of large images, and reads a class token. Branches train with the student and
    are not exported.

    Only the teacher's logits are read, so a full cache of logits serves. Mixed samples count the
    costs of both labels by their shares.

    Args:
        layers: roles of the student's stages, maps or tokens, from the first to the last.
        exponent: e, at least 1; the authors use 1 to 1.5, by pair.
        branches: b, at least 0.
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if a layer returns neither maps nor
            tokens, or samples have more than one label.
    """

    paper: ClassVar[str] = "Hao et al. 2023, arXiv 2310.19444"
    year: ClassVar[int] = 2023
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits", "labels")
    exact_logits: ClassVar[bool] = True
    compares_classes: ClassVar[bool] = True
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layers: Sequence[str] = ("stage1", "stage2", "stage3"),
        exponent: float = 1.0,
        branches: float = 1.0,
        temperature: float = 1.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layers = check_layers("OFA", layers)
        if not is_number(exponent) or exponent < 1:
            raise UserError(
                f"OFA: exponent must be a finite number of at least 1, got {exponent}"
            )
        self.exponent = float(exponent)
        self.branch_weight = not_negative("OFA", "branches", branches)
        self.temperature = positive("OFA", "temperature", temperature)
        self.branches = nn.ModuleList()

    @property
    def student_roles(self) -> set[str]:
        """The stages."""
        return set(self.layers)

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the branches."""
        check_one_label("OFA", student)
        classes = student.output.logits.shape[-1]
        shapes = [_shape_of_stage(student, role) for role in self.layers]
        # Every branch ends with the width of the last stage.
        width = _channels_of(shapes[-1])
        for place, shape in enumerate(shapes):
            later_stages = len(shapes) - 1 - place
            make = map_branch if len(shape) == 4 else token_branch
            self.branches.append(
                make(_channels_of(shape), width, later_stages, classes)
            )

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The costs of the output and of all branches, mean over samples; a scalar.

        Raises:
            UserError: before `build`.
        """
        target = teacher_of(self, teacher).log_probs(self.temperature)
        if len(self.branches) == 0:
            raise not_built("OFA")
        # The output of the network counts once; the branches share their own weight.
        cost = self._mean_cost(full(student.logits), target, batch)
        costs = []
        for role, branch in zip(self.layers, self.branches, strict=True):
            logits = adapted(branch, feature_of("OFA", student, role))
            costs.append(self._mean_cost(logits, target, batch))
        return cost + self.branch_weight * torch.stack(costs).sum()

    def _mean_cost(self, logits: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """`enhanced_cost` of logits `(B, K)`, mean over samples: a scalar."""
        student = torch.log_softmax(logits / self.temperature, dim=1)
        costs = enhanced_cost(student, teacher, batch.labels, self.exponent)
        partner = batch.partner_labels
        share = batch.row_share
        # A mixed sample has two labels; its cost is that of both by their shares.
        if partner is not None and share is not None:
            of_partner = enhanced_cost(student, teacher, partner, self.exponent)
            costs = torch.lerp(of_partner, costs, share.to(costs.dtype))
        return costs.mean()


class MeanOfTokens(nn.Module):
    """The mean over tokens, `(B, L, C)` to `(B, C)`."""

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        return tokens.mean(1)


def separable_convolution(channels: int, out_channels: int) -> nn.Sequential:
    """Two separable 3x3 convolutions, each with batch norm and ReLU; the first halves the map.

    Args:
        channels: C of the input `(B, C, H, W)`.
        out_channels: C' of the output `(B, C', ceil(H / 2), ceil(W / 2))`.
    """
    layers: list[nn.Module] = []
    for stride, width in ((2, channels), (1, out_channels)):
        depthwise = nn.Conv2d(
            channels, channels, 3, stride, padding=1, groups=channels, bias=False
        )
        pointwise = nn.Conv2d(channels, width, 1, bias=False)
        layers += [depthwise, pointwise, BatchNorm(width), nn.ReLU()]
    return nn.Sequential(*layers)


def map_branch(
    channels: int,
    width: int,
    later_stages: int,
    classes: int,
) -> nn.Sequential:
    """From a map `(B, C, H, W)` to logits `(B, K)`.

    Args:
        channels: C.
        width: channels before the linear layer.
        later_stages: how often the map is halved. Channels double each time, up to the last one.
        classes: K.
    """
    layers: list[nn.Module] = []
    for step in range(later_stages):
        is_last = step == later_stages - 1
        # Each step stands for a stage of the student that the branch skips: half the
        # size, twice the channels.
        out_channels = width if is_last else 2 * channels
        layers.append(separable_convolution(channels, out_channels))
        channels = out_channels
    if later_stages == 0:
        layers.append(nn.Conv2d(channels, width, 1))
    head = nn.Linear(width, classes)
    branch = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    for module in branch.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    _init_head(head)
    return branch


def token_branch(
    channels: int,
    width: int,
    later_stages: int,
    classes: int,
) -> nn.Sequential:
    """From tokens `(B, L, C)` to logits `(B, K)`; see `map_branch` for the arguments."""
    layers: list[nn.Module] = []
    if channels != width:
        layers.append(nn.Linear(channels, width))
    for _ in range(max(later_stages, 1)):
        block = nn.TransformerEncoderLayer(
            width,
            ATTENTION_HEADS,
            4 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        layers.append(block)
    head = nn.Linear(width, classes)
    _init_head(head)
    return nn.Sequential(*layers, MeanOfTokens(), head)


def _init_head(head: nn.Linear) -> None:
    """A truncated normal distribution of deviation 0.02, as in the authors' code."""
    nn.init.trunc_normal_(head.weight, std=0.02)
    nn.init.zeros_(head.bias)


def _channels_of(shape: Size) -> int:
    """Channels of a map `(B, C, H, W)` or of tokens `(B, L, C)`."""
    return shape[1] if len(shape) == 4 else shape[2]


def _shape_of_stage(student: Probe, role: str) -> Size:
    """The shape of a stage's feature.

    Raises:
        UserError: if it is neither a map nor tokens of a width that has attention heads.
    """
    shape = feature_of("OFA", student.output, role).shape
    if len(shape) not in (3, 4):
        raise UserError(
            f"OFA reads maps (B, C, H, W) or tokens (B, L, C); the student's layer {role!r} "
            f"gives {list(shape[1:])} per sample"
        )
    if len(shape) == 3 and shape[2] % ATTENTION_HEADS != 0:
        raise UserError(
            f"OFA: the tokens of the student's layer {role!r} are {shape[2]} wide, which "
            f"{ATTENTION_HEADS} attention heads cannot share"
        )
    return shape

"""Tools for losses between features: argument checks, shapes, maps of equal size, adapters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss, Probe, teacher_of
from kd_lightning.types import Output, full

Convention = Literal["paper", "benchmark"]
"""Which formula: the paper's, or that of the CIFAR-100 benchmark (Tian et al. 2020,
arXiv 1910.10699)."""

_KINDS = {2: "vectors (B, C)", 4: "maps (B, C, H, W)"}


def check_convention(owner: str, convention: str) -> Convention:
    """Return `convention` if it is valid; UserError otherwise."""
    if convention not in get_args(Convention):
        raise UserError(
            f"{owner}: convention must be 'paper' or 'benchmark', got {convention!r}"
        )
    return cast(Convention, convention)


def check_role(owner: str, name: str, role: str) -> str:
    """Return `role`, the argument `name`, if it is a non-empty string; UserError otherwise."""
    if not isinstance(role, str) or not role:
        raise UserError(
            f"{owner}: {name} must be the role of a layer, such as 'stage2', got {role!r}"
        )
    return role


def check_layers(owner: str, layers: Sequence[str]) -> list[str]:
    """Return the roles as a list; UserError for a single string, an empty list or duplicates."""
    # A string is a sequence too: "stage1" would become six roles of one letter each.
    roles = [] if isinstance(layers, str) else list(layers)
    if not roles or len(set(roles)) < len(roles):
        raise UserError(
            f"{owner}: layers must list different roles, such as [stage1, stage2, stage3], "
            f"got {layers!r}"
        )
    return [check_role(owner, "each of layers", role) for role in roles]


def shapes_of(
    owner: str,
    student: Probe,
    teacher: Probe | None,
    roles: tuple[str, str],
    ranks: tuple[int, ...] = (2, 4),
) -> tuple[Size, Size]:
    """The shapes of the student's and the teacher's feature, including the batch dimension.

    Args:
        owner: name of the loss.
        student, teacher: their probes.
        roles: the student's and the teacher's role.
        ranks: numbers of dimensions that the loss can read.

    Raises:
        UserError: if there is no teacher, a layer does not return a tensor, the loss cannot read
            its rank, or the two ranks differ.
    """
    if teacher is None:
        raise UserError(
            f"{owner} needs a teacher; use DistillationModule with model.teacher"
        )
    student_shape = _shape_of(owner, "student", student, roles[0], ranks)
    teacher_shape = _shape_of(owner, "teacher", teacher, roles[1], ranks)
    if len(student_shape) != len(teacher_shape):
        raise UserError(
            f"{owner}: student and teacher give features of shape {list(student_shape[1:])} and "
            f"{list(teacher_shape[1:])} per sample; name two maps or two vectors"
        )
    return student_shape, teacher_shape


def _shape_of(
    owner: str,
    network: str,
    probe: Probe,
    role: str,
    ranks: tuple[int, ...],
) -> Size:
    # A hook captures whatever the layer returns: some return tuples, which `Output` cannot rule
    # out.
    feature: object = probe.output.features.get(role)
    if not isinstance(feature, Tensor):
        raise UserError(
            f"{owner}: the {network}'s layer {role!r} gives a {type(feature).__name__}, "
            "not a tensor"
        )
    if feature.ndim not in ranks:
        kinds = " or ".join(_KINDS[rank] for rank in ranks)
        raise UserError(
            f"{owner} reads {kinds}; the {network}'s layer {role!r} gives "
            f"{list(feature.shape[1:])} per sample"
        )
    return feature.shape


def feature_of(owner: str, output: Output, role: str) -> Tensor:
    """The feature of a role, `(B, ...)`, in at least single precision.

    Raises:
        UserError: if the output does not contain the role, or the layer does not return a tensor.
    """
    if role not in output.features:
        raise UserError(
            f"{owner}: the output holds no feature {role!r}; "
            "name its layer in model.layers and teacher.layers"
        )
    feature: object = output.features[role]
    if not isinstance(feature, Tensor):
        raise UserError(
            f"{owner}: the layer of the role {role!r} gives a {type(feature).__name__}, "
            "not a tensor; name another layer"
        )
    return full(feature)


def feature_pairs(
    owner: DistillLoss,
    student: Output,
    teacher: Output | None,
) -> list[tuple[Tensor, Tensor]]:
    """The student's and the teacher's feature of each of the loss's roles; see `feature_of`."""
    name = type(owner).__name__
    target = teacher_of(owner, teacher)
    pairs = []
    for role in owner.roles:
        own_feature = feature_of(name, student, role)
        teacher_feature = feature_of(name, target, role)
        pairs.append((own_feature, teacher_feature))
    return pairs


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Bring two maps `(B, C, H, W)` to one size; vectors `(B, C)` are returned unchanged.

    In each direction the larger map is averaged down to the size of the smaller one.
    """
    if student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    # Averaging down loses detail, but interpolating up would invent some.
    height = min(student.shape[2], teacher.shape[2])
    width = min(student.shape[3], teacher.shape[3])
    student = F.adaptive_avg_pool2d(student, (height, width))
    teacher = F.adaptive_avg_pool2d(teacher, (height, width))
    return student, teacher


def adapted(adapter: nn.Module, feature: Tensor) -> Tensor:
    """Apply an adapter to a feature `(B, ...)`; the result is in at least single precision.

    The adapter itself runs in the precision of its parameters, or in that of autocast.
    """
    # Features come in single precision even from a network in bfloat16 (see `feature_of`), which
    # a layer with bfloat16 weights would refuse.
    dtype = next(adapter.parameters()).dtype
    output = adapter(feature.to(dtype))
    return full(output)


class BatchNorm(nn.BatchNorm2d):
    """Batch normalization of maps `(B, C, H, W)` that accepts a batch with one value per channel.

    Such a batch has no variance of its own, so the running statistics take its place.
    """

    def forward(self, feature: Tensor) -> Tensor:
        """The normalized feature, of the same shape."""
        values_per_channel = feature.numel() // feature.shape[1]
        if self.training and values_per_channel == 1:
            return F.batch_norm(
                feature,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                eps=self.eps,
            )
        return super().forward(feature)


def connector(channels: int, teacher_channels: int) -> nn.Sequential:
    """A 1x1 convolution without bias, and batch normalization: `(B, C, H, W)` to `(B, C', H, W)`.

    The convolution's weights are drawn from a normal distribution of variance 2 / C', as in the
    code of OFD, SRRL and AB (Heo et al. 2019).
    """
    convolution = nn.Conv2d(channels, teacher_channels, 1, bias=False)
    nn.init.normal_(convolution.weight, std=math.sqrt(2 / teacher_channels))
    return nn.Sequential(convolution, BatchNorm(teacher_channels))


def linear_head(owner: str, network: str, probe: Probe, role: str) -> nn.Linear:
    """The classifier of a network: the layer of a role, which must be linear.

    Args:
        owner: name of the loss.
        network: "student" or "teacher", for messages.
        probe: of that network.
        role: the classifier's role.

    Raises:
        UserError: if the layer is not an `nn.Linear` with one output per class.
    """
    head = probe.modules.get(role)
    classes = probe.output.logits.shape[-1]
    if not isinstance(head, nn.Linear) or head.out_features != classes:
        raise UserError(
            f"{owner}: the {network}'s layer {role!r} is a {type(head).__name__}; "
            f"name its classifier, a Linear layer with {classes} outputs"
        )
    return head


def check_width(owner: str, network: str, head: nn.Linear, channels: int) -> None:
    """UserError if a classifier reads another number of channels than the layer before it has."""
    if head.in_features != channels:
        raise UserError(
            f"{owner}: the {network}'s classifier reads {head.in_features} values, but its layer "
            f"has {channels} channels; name the last map before global pooling"
        )


class FrozenHead(nn.Module):
    """A copy of a teacher's classifier that never trains, as buffers: it is in every checkpoint.

    Args:
        head: the classifier.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        # Clones: the teacher may move to another device or precision later.
        weight = head.weight.detach().clone()
        bias = weight.new_zeros(len(weight))
        if head.bias is not None:
            bias = head.bias.detach().clone()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits `(B, K)` of pooled features `(B, C)`, in at least single precision."""
        feature = full(feature)
        weight = full(self.get_buffer("weight"))
        bias = full(self.get_buffer("bias"))
        # Products of a teacher's classifier need single precision, also under autocast.
        with torch.autocast(feature.device.type, enabled=False):
            return F.linear(feature, weight, bias)


@dataclass(frozen=True)
class LastMaps:
    """What a loss needs that applies the teacher's classifier to the student's last map.

    Attributes:
        student: shape of the student's last map, `(B, C, H, W)`.
        teacher: shape of the teacher's last map, `(B, C', H', W')`.
        classifier: a frozen copy of the teacher's, which reads C' pooled channels.
    """

    student: Size
    teacher: Size
    classifier: FrozenHead


def last_maps(
    owner: str,
    student: Probe,
    teacher: Probe | None,
    layer: str,
    head: str,
) -> LastMaps:
    """Check both networks' last maps, and copy the teacher's classifier.

    Args:
        owner: name of the loss.
        student, teacher: their probes.
        layer: role of the last map before global pooling, of student and teacher.
        head: role of the teacher's classifier.

    Raises:
        UserError: if there is no teacher, a layer does not return a map, the head is no linear
            classifier of its channels, or samples have more than one label.
    """
    student_shape, teacher_shape = shapes_of(
        owner, student, teacher, (layer, layer), ranks=(4,)
    )
    # `shapes_of` refuses a missing teacher; type checkers cannot know.
    assert teacher is not None
    check_one_label(owner, student)
    teacher_head = linear_head(owner, "teacher", teacher, head)
    check_width(owner, "teacher", teacher_head, teacher_shape[1])
    return LastMaps(student_shape, teacher_shape, FrozenHead(teacher_head))


def check_one_label(owner: str, probe: Probe) -> None:
    """UserError if the data has several positions per sample, which have no pooled feature."""
    if probe.spec.target_shape != ():
        raise UserError(
            f"{owner} needs one label per sample; the data {probe.spec.data} has targets of "
            f"shape {list(probe.spec.target_shape)} per sample"
        )


def pooled(feature: Tensor) -> Tensor:
    """The mean over positions, `(B, C, H, W)` to `(B, C)`; vectors are returned unchanged."""
    if feature.ndim == 2:
        return feature
    return feature.mean((2, 3))


def not_built(owner: str) -> UserError:
    """The error of a loss that is called before it has its adapters."""
    return UserError(
        f"{owner} has no adapters yet; call build() with a probe of both networks"
    )


def halved_from_the_last(terms: Sequence[Tensor]) -> Tensor:
    """The sum of scalars with weights 1, 1/2, 1/4, ... from the last one back, a scalar."""
    last = len(terms) - 1
    weighted = []
    for place, term in enumerate(terms):
        weight = 2.0 ** (place - last)
        weighted.append(weight * term)
    return torch.stack(weighted).sum()

"""What the losses between features share: arguments, shapes seen before training, maps of one size, precision of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Size, Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss, Probe, teacher_of
from kd_lightning.types import Output, full

Convention = Literal["paper", "benchmark"]
"""Whose formula: the paper's, or that of the CIFAR-100 benchmark's code (Tian et al. 2020, arXiv 1910.10699)."""

_KINDS = {2: "vectors (B, C)", 4: "maps (B, C, H, W)"}


def check_convention(owner: str, convention: Any) -> Convention:
    if convention not in get_args(Convention):
        raise UserError(f"{owner}: convention must be 'paper' or 'benchmark', got {convention!r}")
    return convention  # type: ignore[no-any-return]


def check_role(owner: str, name: str, role: Any) -> str:
    if not isinstance(role, str) or not role:
        raise UserError(
            f"{owner}: {name} must be the role of a layer, such as 'stage2', got {role!r}"
        )
    return role


def check_layers(owner: str, layers: Sequence[str]) -> list[str]:
    """The roles as a list; UserError for a single string, none at all, or one named twice."""
    roles = [] if isinstance(layers, str) else list(layers)
    if not roles or len(set(roles)) < len(roles):
        raise UserError(
            f"{owner}: layers must list different roles, such as [stage1, stage2, stage3], got {layers!r}"
        )
    return [check_role(owner, "each of layers", role) for role in roles]


def shapes_of(
    owner: str,
    student: Probe,
    teacher: Probe | None,
    roles: tuple[str, str],
    ranks: tuple[int, ...] = (2, 4),
) -> tuple[Size, Size]:
    """The shapes of the student's and the teacher's feature, the batch of the probe included.

    Raises:
        UserError: where a layer gives no tensor, or features of a rank that the loss cannot read, or both differ in rank.
    """
    if teacher is None:
        raise UserError(f"{owner} needs a teacher; use DistillationModule with model.teacher")
    shapes = []
    for whose, probe, role in (("student", student, roles[0]), ("teacher", teacher, roles[1])):
        feature: Any = probe.output.features.get(role)
        if not isinstance(feature, Tensor):
            raise UserError(
                f"{owner}: the {whose}'s layer {role!r} gives a {type(feature).__name__}, not a tensor"
            )
        if feature.ndim not in ranks:
            kinds = " or ".join(_KINDS[rank] for rank in ranks)
            raise UserError(
                f"{owner} reads {kinds}; the {whose}'s layer {role!r} gives {list(feature.shape[1:])} a sample"
            )
        shapes.append(feature.shape)
    if len(shapes[0]) != len(shapes[1]):
        a, b = (list(shape[1:]) for shape in shapes)
        raise UserError(
            f"{owner}: student and teacher give features of shape {a} and {b} a sample; name two maps or two vectors"
        )
    return shapes[0], shapes[1]


def feature_of(owner: str, output: Output, role: str) -> Tensor:
    """The feature of a role, in at least single precision."""
    if role not in output.features:
        raise UserError(
            f"{owner}: the output holds no feature {role!r}; name its layer in model.layers and teacher.layers"
        )
    feature: Any = output.features[role]
    if not isinstance(feature, Tensor):
        raise UserError(
            f"{owner}: the layer of the role {role!r} gives a {type(feature).__name__}, not a tensor; name another"
        )
    return full(feature)


def feature_pairs(
    owner: DistillLoss, student: Output, teacher: Output | None
) -> list[tuple[Tensor, Tensor]]:
    """The student's and the teacher's feature of each of the loss's roles, in at least single precision."""
    name, known = type(owner).__name__, teacher_of(owner, teacher)
    return [
        (feature_of(name, student, role), feature_of(name, known, role)) for role in owner.roles
    ]


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps `(B, C, H, W)`, in each direction averaged down to the smaller size; vectors as they are."""
    if student.shape[2:] == teacher.shape[2:]:
        return student, teacher
    height, width = (min(a, b) for a, b in zip(student.shape[2:], teacher.shape[2:], strict=True))
    return F.adaptive_avg_pool2d(student, (height, width)), F.adaptive_avg_pool2d(
        teacher, (height, width)
    )


def adapted(adapter: nn.Module, feature: Tensor) -> Tensor:
    """What an adapter makes of a feature, in at least single precision; the adapter runs in its own, or under autocast."""
    return full(adapter(feature.to(next(adapter.parameters()).dtype)))

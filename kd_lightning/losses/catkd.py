"""Class attention transfer: Guo et al. 2023."""

from __future__ import annotations

from typing import ClassVar, Unpack

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
from kd_lightning.losses._gather import unit
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    teacher_of,
)
from kd_lightning.types import Batch, Output, full


def class_maps(feature: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Where each class is seen: the classifier at every position, instead of behind the pooling.

    The mean of a class's map over positions is its logit.

    Args:
        feature: the last map, `(B, C, H, W)`.
        weight: of the classifier, `(K, C)`.
        bias: of the classifier, `(K,)`.

    Returns:
        `(B, K, H, W)`.
    """
    feature = full(feature)
    # A linear layer at every position is a 1x1 convolution with the same weights.
    kernel = weight.to(feature.dtype)[:, :, None, None]
    if bias is not None:
        bias = bias.to(feature.dtype)
    return F.conv2d(feature, kernel, bias)


def class_map_distance(
    student: Tensor,
    teacher: Tensor,
    grid: int | None = None,
) -> Tensor:
    r"""The mean over samples, classes and positions of the squared difference of unit maps.

    Args:
        student: class activation maps, `(B, K, H, W)`.
        teacher: `(B, K, H', W')`.
        grid: both are first averaged down to `grid x grid`; `None`: to the smaller of both sizes.

    Returns:
        A scalar; zero if the maps agree up to a factor per class. A map of zeros stays zero.
    """
    if grid is None:
        height = min(student.shape[2], teacher.shape[2])
        width = min(student.shape[3], teacher.shape[3])
        size = (height, width)
    else:
        size = (grid, grid)
    # The order matters: first pool, then normalize.
    own = F.adaptive_avg_pool2d(full(student), size).flatten(2)
    target = F.adaptive_avg_pool2d(full(teacher), size).flatten(2)
    return (unit(own) - unit(target)).square().mean()


class CATKD(DistillLoss):
    """The student sees each class where the teacher sees it: class activation maps, made unit.

    The classifiers of both networks are applied at every position of their last maps. The gradient
    reaches the student's classifier too; the teacher's is copied and frozen. There are no adapters;
    both networks must have the same classes.

    `weight` is 600 for resnet32x4 and ShuffleNetV1; the authors tune it per pair so that the
    weighted loss starts between 1 and 50.

    Args:
        layer: role of the last map before global pooling, after its ReLU, of student and teacher.
        head: role of the classifier, of student and teacher.
        grid: the maps are averaged down to this height and width, at most their own; `null`: to the
            smaller of both sizes.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if a layer does not return a map, a
            head is no linear classifier of its channels, or samples have more than one label.
    """

    paper: ClassVar[str] = "Guo et al. 2023, CVPR"
    year: ClassVar[int] = 2023
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features", "teacher classifier")
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layer: str = "map",
        head: str = "head",
        grid: int | None = None,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layer = check_role("CATKD", "layer", layer)
        self.head = check_role("CATKD", "head", head)
        self.roles = [self.layer, self.head]
        is_size = isinstance(grid, int) and not isinstance(grid, bool) and grid >= 1
        if grid is not None and not is_size:
            raise UserError(
                f"CATKD: grid must be a whole number from 1 or null, got {grid}"
            )
        self.grid = grid
        # In a list, because it belongs to the student: a submodule would be saved a second time.
        self._student_head: list[nn.Linear] = []
        self.classifier: FrozenHead | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Find the student's classifier, and copy the teacher's."""
        own, target = shapes_of(
            "CATKD", student, teacher, (self.layer, self.layer), ranks=(4,)
        )
        assert teacher is not None
        check_one_label("CATKD", student)
        student_head = linear_head("CATKD", "student", student, self.head)
        teacher_head = linear_head("CATKD", "teacher", teacher, self.head)
        check_width("CATKD", "student", student_head, own[1])
        check_width("CATKD", "teacher", teacher_head, target[1])
        self._student_head = [student_head]
        self.classifier = FrozenHead(teacher_head)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`class_map_distance` between the maps of both networks, a scalar.

        Raises:
            UserError: before `build`.
        """
        target = feature_of("CATKD", teacher_of(self, teacher), self.layer)
        if self.classifier is None:
            raise not_built("CATKD")
        (head,) = self._student_head
        own = feature_of("CATKD", student, self.layer)
        weight = self.classifier.get_buffer("weight")
        bias = self.classifier.get_buffer("bias")
        # Unit maps of small differences need single precision.
        with torch.autocast(student.logits.device.type, enabled=False):
            own_maps = class_maps(own, head.weight, head.bias)
            target_maps = class_maps(target, weight, bias)
            return class_map_distance(own_maps, target_maps, self.grid)

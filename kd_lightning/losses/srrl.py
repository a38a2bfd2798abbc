"""Softmax regression representation learning: Yang et al. 2021."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor, nn

from kd_lightning.losses._adapters import (
    FrozenHead,
    adapted,
    check_role,
    connector,
    feature_of,
    last_maps,
    not_built,
    pooled,
)
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    positive,
    teacher_of,
)
from kd_lightning.types import Batch, Output, full


class SRRL(DistillLoss):
    """The teacher's classifier should see the same in the student's features as in its own.

    A connector (1x1 convolution, batch norm and ReLU) maps the student's last map to the teacher's
    channels. Two terms are added, both after pooling over positions:

    - the mean over samples and channels of the squared difference of features,
    - the mean over samples and classes of the squared difference of the teacher's logits and those
      of its frozen classifier on the student's features.

    Gradients pass through the classifier to the student; it does not train. In evaluation, the
    student predicts with its own classifier, which learns from the labels.

    Args:
        layer: role of the last map before global pooling, after its ReLU, of student and teacher.
        head: role of the teacher's classifier.
        logit_weight: multiplies the second term; 1 in the paper, 5 in a public port for CIFAR.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if a layer does not return a map, the
            head is no linear classifier of its channels, or samples have more than one label.
    """

    paper: ClassVar[str] = "Yang et al. 2021, ICLR"
    year: ClassVar[int] = 2021
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = (
        "all teacher logits",
        "teacher features",
        "teacher classifier",
    )
    exact_logits: ClassVar[bool] = True
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layer: str = "map",
        head: str = "head",
        logit_weight: float = 1.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layer = check_role("SRRL", "layer", layer)
        self.head = check_role("SRRL", "head", head)
        self.logit_weight = positive("SRRL", "logit_weight", logit_weight)
        self.connector: nn.Module | None = None
        self.classifier: FrozenHead | None = None

    @property
    def student_roles(self) -> set[str]:
        """The last map."""
        return {self.layer}

    @property
    def teacher_roles(self) -> set[str]:
        """The last map and the classifier."""
        return {self.layer, self.head}

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the connector, and copy the teacher's classifier."""
        maps = last_maps("SRRL", student, teacher, self.layer, self.head)
        channels = maps.student[1]
        teacher_channels = maps.teacher[1]
        self.connector = nn.Sequential(
            connector(channels, teacher_channels),
            nn.ReLU(),
        )
        self.classifier = maps.classifier

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The sum of both terms, a scalar.

        Raises:
            UserError: before `build`.
        """
        target = teacher_of(self, teacher)
        if self.connector is None or self.classifier is None:
            raise not_built("SRRL")
        # The feature term compares `(B, C')` after pooling, not maps.
        student_map = feature_of("SRRL", student, self.layer)
        own = pooled(adapted(self.connector, student_map))
        target_feature = pooled(feature_of("SRRL", target, self.layer))
        feature_error = (own - target_feature).square().mean()
        # The logit term compares `(B, K)`: what the teacher's classifier sees in both features.
        own_logits = self.classifier(own)
        logit_error = (own_logits - full(target.logits)).square().mean()
        total: Tensor = feature_error + self.logit_weight * logit_error
        return total

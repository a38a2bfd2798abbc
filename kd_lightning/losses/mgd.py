"""Masked generative distillation: Yang et al. 2022."""

from __future__ import annotations

from typing import ClassVar, Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    adapted,
    check_role,
    feature_of,
    not_built,
    same_size,
    shapes_of,
)
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    is_number,
    teacher_of,
)
from kd_lightning.randomness import hashed, run_seed
from kd_lightning.types import Batch, Output, full

Masked = Literal["channels", "positions"]
"""What is masked: whole channels (classification), or positions (dense prediction)."""

MASK_BITS = 53
"""Random bits per decision: as many as a double holds exactly."""


def draw_mask(index: Tensor, step: Tensor, entries: int, probability: float) -> Tensor:
    """Which entries are masked, a function of (run's seed, step, the sample's row).

    Args:
        index: int64 `(B,)`, the samples' rows.
        step: int64 scalar.
        entries: masked entries per sample, n.
        probability: of an entry to be masked.

    Returns:
        float32 `(B, n)`: 0 where masked, otherwise 1.
    """
    # A first draw mixes step and row into one number; then each entry has a counter of its own.
    seed = run_seed()
    row = hashed(index, seed, "mgd", "row")
    sample = hashed(row + step, seed, "mgd", "step")
    entry = torch.arange(entries, device=index.device)
    number = hashed(sample[:, None] + entry, seed, "mgd", "entry")
    # The upper bits, compared as integers: every device decides the same.
    bits = number >> (63 - MASK_BITS)
    visible = bits >= int(probability * 2**MASK_BITS)
    return visible.float()


def generation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    r"""$\sum (g - t)^2$ over channels and positions, mean over samples.

    Args:
        student: g, the generated map, `(B, C, H, W)`.
        teacher: t, the same shape.

    Returns:
        A scalar.
    """
    squares = (full(student) - full(teacher)).square()
    return squares.flatten(1).sum(1).mean()


class MGD(DistillLoss):
    """A generator completes the teacher's map from a masked one of the student.

    The student's map is brought to the teacher's channels (a 1x1 convolution, if they differ), a
    random part is set to zero, and a generator (3x3 convolution, ReLU, 3x3 convolution) predicts
    the teacher's map. Even a student that equals its teacher has a loss: nothing tells the
    generator what was masked.

    The distance is a sum over elements: choose `weight` for the size of the maps. It is 7e-5 for
    ImageNet, 1.2e-3 in the authors' code for CIFAR, and 2e-5 for detection.

    The mask is a new one in each step, and the same for a sample in whatever batch it is.

    Args:
        layer: role of the last map of student and teacher. The larger map is averaged down.
        masked: "channels" (classification) or "positions" (dense prediction).
        probability: of a channel or position to be masked; 0.15 for channels, 0.65 for detection.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if a layer does not return a map.
    """

    paper: ClassVar[str] = "Yang et al. 2022, arXiv 2205.01529"
    year: ClassVar[int] = 2022
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layer: str = "map",
        masked: Masked = "channels",
        probability: float = 0.15,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layer = check_role("MGD", "layer", layer)
        self.roles = [self.layer]
        if masked not in get_args(Masked):
            raise UserError(
                f"MGD: masked must be 'channels' or 'positions', got {masked!r}"
            )
        self.masked = masked
        if not is_number(probability) or not 0 <= probability < 1:
            raise UserError(
                f"MGD: probability must be a number from 0 to less than 1, got {probability}"
            )
        self.probability = float(probability)
        self.adapter: nn.Module | None = None
        self.generator: nn.Module | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the generator, and the convolution to the teacher's channels."""
        own, target = shapes_of(
            "MGD", student, teacher, (self.layer, self.layer), ranks=(4,)
        )
        channels = target[1]
        if own[1] != channels:
            self.adapter = nn.Conv2d(own[1], channels, 1)
        self.generator = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        # A buffer, so that a resumed run continues with the same masks.
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`generation_loss` of the completed map, a scalar.

        Raises:
            UserError: before `build`.
        """
        target = feature_of("MGD", teacher_of(self, teacher), self.layer)
        own = feature_of("MGD", student, self.layer)
        if self.generator is None:
            raise not_built("MGD")
        if self.adapter is not None:
            own = adapted(self.adapter, own)
        own, target = same_size(own, target)
        mask = self.mask(own, batch.index)
        return generation_loss(adapted(self.generator, own * mask), target)

    def mask(self, feature: Tensor, index: Tensor) -> Tensor:
        """The mask of this step: `(B, C, 1, 1)` for channels, `(B, 1, H, W)` for positions."""
        channels, height, width = feature.shape[1:]
        entries = channels if self.masked == "channels" else height * width
        kept = draw_mask(index, self.get_buffer("steps"), entries, self.probability)
        if self.masked == "channels":
            return kept.view(-1, channels, 1, 1)
        return kept.view(-1, 1, height, width)

    def after_step(self) -> None:
        """Count the step: the next one has other masks."""
        if self.generator is not None:
            self.get_buffer("steps").add_(1)

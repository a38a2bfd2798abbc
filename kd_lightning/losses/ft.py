"""Factor transfer: Kim, Park and Kwak 2018."""

from __future__ import annotations

import warnings
from typing import ClassVar, Literal, Unpack, get_args

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    BatchNorm,
    Convention,
    adapted,
    check_convention,
    check_role,
    feature_of,
    not_built,
    same_size,
    shapes_of,
)
from kd_lightning.losses._gather import unit
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    positive,
    teacher_of,
)
from kd_lightning.types import Batch, Output, full

Stage = Literal["paraphraser", "translator"]
"""What trains: the paraphraser on the teacher's features, or the translator with the student."""


def unit_factor(factor: Tensor, convention: Convention = "paper") -> Tensor:
    r"""A factor as a vector of length one.

    - "paper": all elements, flattened.
    - "benchmark": its attention map, the mean over channels of the squares.

    Args:
        factor: `(B, C, H, W)`.
        convention: see above.

    Returns:
        `(B, D)`; zeros for a factor of zeros.
    """
    factor = full(factor)
    # The benchmark's code compares attention maps of the factors, not the factors.
    if convention == "benchmark":
        factor = factor.square().mean(1)
    return unit(factor.flatten(1))


def factor_distance(
    student: Tensor,
    teacher: Tensor,
    convention: Convention = "paper",
) -> Tensor:
    r"""The mean over samples and elements of $|F_S / \|F_S\| - F_T / \|F_T\||$.

    Kim et al. 2018 with p = 1, as a mean over elements as in the authors' code.

    Args:
        student: the translator's factor, `(B, C, H, W)`.
        teacher: the paraphraser's factor, with the same channels. The larger one is averaged down.
        convention: which vectors are compared, see `unit_factor`.

    Returns:
        A scalar; zero if both agree up to a factor.
    """
    student, teacher = same_size(full(student), full(teacher))
    own = unit_factor(student, convention)
    target = unit_factor(teacher, convention)
    return (own - target).abs().mean()


def encoder(channels: int, width: int, factors: int, batch_norm: bool) -> nn.Sequential:
    """Three 3x3 convolutions with leaky ReLU: from `channels` to `width` to `factors`."""
    layers: list[nn.Module] = []
    steps = [(channels, width), (width, factors), (factors, factors)]
    for before, after in steps:
        layers.append(nn.Conv2d(before, after, 3, padding=1))
        if batch_norm:
            layers.append(BatchNorm(after))
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)


def decoder(factors: int, channels: int) -> nn.Sequential:
    """Three transposed 3x3 convolutions with leaky ReLU: from `factors` back to `channels`."""
    layers: list[nn.Module] = []
    steps = [(factors, factors), (factors, channels), (channels, channels)]
    for before, after in steps:
        layers.append(nn.ConvTranspose2d(before, after, 3, padding=1))
        layers.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*layers)


class FT(DistillLoss):
    """A translator gives the student's map the form of the teacher's, paraphrased in few channels.

    Two stages are two runs:

    1. `stage: paraphraser` (`configs/methods/ft_paraphraser.yaml`): an autoencoder learns to
       reconstruct the teacher's map from factors of fewer channels. The student does not train.
    2. `stage: translator` (`configs/methods/ft.yaml`) with `--model.init_from` set to the first
       run's `last.ckpt`: the paraphraser is frozen, and the translator of the student's map learns
       the factors. Both runs must use the same name for the loss. Without the first run, the
       factors are those of a random paraphraser, and a warning says so.

    - "paper": the authors' code. The reconstruction is a mean absolute error; whole factors are
      compared; `weight` is 500 in the second stage (CIFAR-10).
    - "benchmark": the reconstruction is a mean squared error; attention maps of the factors are
      compared; the translator has batch norm; `weight` is 200.

    The default is the paper's, because the benchmark no longer compares factors.

    Args:
        layer: role of the last map of student and teacher.
        stage: "paraphraser" or "translator".
        rate: the factors' channels as a fraction of the teacher's, k.
        convention: "paper" or "benchmark".
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if a layer does not return a map.
    """

    paper: ClassVar[str] = "Kim et al. 2018, arXiv 1802.04977"
    year: ClassVar[int] = 2018
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features", "a stage of its own")
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        layer: str = "map",
        stage: Stage = "translator",
        rate: float = 0.5,
        convention: Convention = "paper",
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layer = check_role("FT", "layer", layer)
        self.roles = [self.layer]
        if stage not in get_args(Stage):
            raise UserError(
                f"FT: stage must be 'paraphraser' or 'translator', got {stage!r}"
            )
        self.stage = stage
        self.rate = positive("FT", "rate", rate)
        self.convention = check_convention("FT", convention)
        self.paraphraser: nn.ModuleDict | None = None
        self.translator: nn.Module | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create paraphraser and translator; only the stage's own part trains."""
        own, target = shapes_of(
            "FT", student, teacher, (self.layer, self.layer), ranks=(4,)
        )
        channels = target[1]
        # Fewer channels than the map has, so that the paraphraser must compress.
        factors = max(1, round(channels * self.rate))
        self.paraphraser = nn.ModuleDict(
            {
                "encoder": encoder(channels, channels, factors, batch_norm=False),
                "decoder": decoder(factors, channels),
            }
        )
        # The paper's translator has no normalization.
        with_norm = self.convention == "benchmark"
        self.translator = encoder(own[1], own[1], factors, batch_norm=with_norm)
        # Both parts exist in both stages, so that the second run can continue with the first's.
        self.paraphraser.requires_grad_(self.stage == "paraphraser")
        self.translator.requires_grad_(self.stage == "translator")
        self.register_buffer("paraphraser_steps", torch.tensor(0))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The error of reconstruction, or `factor_distance` in the second stage: a scalar.

        Raises:
            UserError: before `build`.
        """
        target = feature_of("FT", teacher_of(self, teacher), self.layer)
        if self.paraphraser is None or self.translator is None:
            raise not_built("FT")
        factor = adapted(self.paraphraser["encoder"], target)
        if self.stage == "paraphraser":
            # An autoencoder: the factor must contain what the teacher's map contains.
            restored = adapted(self.paraphraser["decoder"], factor)
            error = restored - target
            if self.convention == "paper":
                return error.abs().mean()
            return error.square().mean()
        student_map = feature_of("FT", student, self.layer)
        own = adapted(self.translator, student_map)
        return factor_distance(own, factor, self.convention)

    def on_epoch_start(self, epoch: int) -> None:
        """Warn if the second stage uses a paraphraser that was never trained."""
        if self.stage != "translator" or epoch > 0 or self.paraphraser is None:
            return
        # A random paraphraser trains without an error, and teaches nothing.
        if int(self.get_buffer("paraphraser_steps")) == 0:
            warnings.warn(
                "FT: the paraphraser is random; train it first with "
                "configs/methods/ft_paraphraser.yaml, and start from that run's last.ckpt with "
                "--model.init_from",
                stacklevel=2,
            )

    def after_step(self) -> None:
        """Count the paraphraser's steps."""
        if self.stage == "paraphraser":
            self.get_buffer("paraphraser_steps").add_(1)

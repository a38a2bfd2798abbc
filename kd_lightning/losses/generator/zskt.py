"""The generator's objective of zero-shot knowledge transfer: Micaelli and Storkey 2019."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor

from kd_lightning.losses.base import BaseOptions, positive
from kd_lightning.losses.generator.base import GeneratorLoss, output_of
from kd_lightning.types import Batch, Output, finite_log_probs


class ZSKT(GeneratorLoss):
    r"""Images on which the student disagrees with the teacher: $-T^2 \, KL(p_t \| p_s)$.

    Micaelli and Storkey 2019, arXiv 1905.09768, equation 1, mean over images. The authors' code
    takes the mean over classes, too, which is 1 / K of it. The student minimizes the same
    divergence (`KD`), and the paper adds `AT` on all stages: its weight of 250 belongs to the mean
    over classes, so it is 250 K beside `KD`.

    Args:
        temperature: T; 1 in the paper.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature that is not above 0.
    """

    paper: ClassVar[str] = "Micaelli and Storkey 2019, arXiv 1905.09768"
    year: ClassVar[int] = 2019
    family: ClassVar[str] = "generator"
    compares_classes: ClassVar[bool] = True

    def __init__(self, temperature: float = 1.0, **base: Unpack[BaseOptions]) -> None:
        super().__init__(**base)
        self.temperature = positive("ZSKT", "temperature", temperature)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The negative divergence, a scalar of at most 0."""
        target = output_of(self, teacher).log_probs(self.temperature)
        target = finite_log_probs(target)
        own = finite_log_probs(student.log_probs(self.temperature))
        divergence = (target.exp() * (target - own)).sum(1).mean()
        return -(self.temperature**2) * divergence

"""The contract of a generator's loss."""

from __future__ import annotations

from typing import ClassVar

from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss
from kd_lightning.types import Output


class GeneratorLoss(DistillLoss):
    """What a generator minimizes, a function of how both networks answer to its images.

    `forward` receives the outputs of student and teacher with their graphs: the gradient passes
    through both networks to the images, never into their weights. Only the generator learns from
    it, so it belongs into `model.generator_losses`.
    """

    for_generator: ClassVar[bool] = True


def output_of(owner: GeneratorLoss, output: Output | None) -> Output:
    """An output with its graph.

    Raises:
        UserError: if there is none.
    """
    if output is None:
        raise UserError(
            f"{type(owner).__name__} needs a teacher; use DataFreeModule with model.teacher"
        )
    return output

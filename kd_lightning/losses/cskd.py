"""Class-wise self-knowledge distillation: Yun et al. 2020."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import check_one_label
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    is_labelled,
    positive,
)
from kd_lightning.types import Batch, Output, finite_log_probs


class CSKD(DistillLoss):
    r"""KL between the student's own predictions for two samples of one class.

    $T^2\,\mathrm{KL}(p(x') \,\|\, p(x))$ with $p = \mathrm{softmax}(z / T)$. The companion $x'$ is
    another training sample with the label of $x$, drawn anew in every epoch; its prediction is a
    constant. Yun et al. 2020, equations 1 and 2. There is no teacher. The hard loss stays at weight
    1 and does not count companions, because their labels are withheld.

    The loss asks the datamodule for companions; a batch then holds twice `batch_size` samples, see
    `Batch.paired`. Samples without a label take no part. The only sample of a class is its own
    companion and costs nothing.

    The authors' code differs in two details. It sometimes draws the sample itself as its companion,
    and it runs $x$ and $x'$ through the network one after the other, so that each half has batch
    statistics of its own. Here both halves share them.

    Args:
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature that is not a finite number greater than 0; from `build`, if
            samples have more than one label; from `forward`, for samples that are mixed or have no
            companions.
    """

    paper: ClassVar[str] = "Yun et al. 2020, arXiv 2003.13964"
    year: ClassVar[int] = 2020
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("pairs of samples of one class",)
    uses_teacher: ClassVar[bool] = False
    class_pairs: ClassVar[bool] = True
    mean_over: MeanOver = "labelled"

    def __init__(self, temperature: float = 4.0, **base: Unpack[BaseOptions]) -> None:
        super().__init__(**base)
        self.temperature = positive("CSKD", "temperature", temperature)

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Check that samples have one label each."""
        check_one_label("CSKD", student)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """T^2 KL of each labelled sample from its companion, a mean in nats; a scalar."""
        if not batch.paired:
            raise UserError(
                "CSKD needs a companion of its class for each sample, which this data does not "
                "serve; use a datamodule of kd_lightning, or set its class_pairs in your own loop"
            )
        if batch.partner is not None:
            raise UserError(
                "CSKD compares samples of one class; remove Mixup from data.augment"
            )
        half = len(batch) // 2
        log_probs = finite_log_probs(student.log_probs(self.temperature))
        log_q = log_probs[:half]
        # No gradient reaches the companions.
        log_p = log_probs[half:].detach()
        divergences = (log_p.exp() * (log_p - log_q)).sum(-1)
        known = is_labelled(batch.labels[:half])
        costs = torch.where(known, divergences, 0)
        return self.temperature**2 * costs.sum() / known.sum().clamp(min=1)

"""Progressive self-knowledge distillation: Kim et al. 2021."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import check_one_label, not_built
from kd_lightning.losses._gather import JoinedBatch
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    is_labelled,
    is_number,
)
from kd_lightning.types import Batch, Output, finite_log_probs


def softened_labels(labels: Tensor, predictions: Tensor, alpha: float) -> Tensor:
    r"""$(1 - \alpha) \, y + \alpha \, p$ of one-hot labels $y$, Kim et al. 2021, equation 4.

    Args:
        labels: int64 `(N,)`, never `UNLABELLED`.
        predictions: probabilities $p$, `(N, K)`. A row of zeros is no prediction; the label then
            stands alone.
        alpha: in [0, 1].

    Returns:
        `(N, K)`, rows summing to one.
    """
    known = predictions.sum(-1, keepdim=True) > 0
    share = alpha * known.to(predictions.dtype)
    rest = 1 - share
    return (share * predictions).scatter_add(1, labels[:, None], rest)


def last_places(index: Tensor) -> Tensor:
    """The last place at which each entry's value occurs, for int64 `(B,)`."""
    places = torch.arange(len(index), device=index.device)
    same = index[:, None] == index
    return torch.where(same, places, 0).amax(1)


class PSKD(DistillLoss):
    r"""Cross-entropy with labels that are softened by the student's own predictions.

    The target of a sample is $(1 - \alpha_t) \, y + \alpha_t \, p_{t-1}$, where $p_{t-1}$ is what
    the student predicted for it in the previous epoch, and $\alpha_t = \alpha \, t / E$ grows over
    the epochs $t = 1, \dots, E$ (Kim et al. 2021, equations 4 and 7). There is no teacher and no
    temperature. The loss replaces the hard loss. A sample that has not been seen yet, as all in
    the first epoch, has its label alone as target.

    The predictions are those of training: of the augmented sample, before the step that the sample
    took part in. They are K numbers for each row of the source split, stored in the checkpoint.
    Every process stores those of all processes, since an epoch deals the samples anew. A sample
    that an epoch shows more than once, as in a balanced draw, has its latest prediction.

    The mean is over labelled samples.

    Args:
        alpha: the weight of the prediction in the last epoch, in [0, 1]; the paper uses 0.8.
        epochs: E, at least 1; later epochs use `alpha`. Set it to trainer.max_epochs.
        base: weight, start, end, warmup; see `DistillLoss`. Epochs count from `start`.

    Raises:
        UserError: for a number out of range; from `build`, if samples have more than one label, or
            if the data do not provide the number of rows; from `forward`, for mixed samples.
    """

    paper: ClassVar[str] = "Kim et al. 2021, arXiv 2006.12000"
    year: ClassVar[int] = 2021
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("labels", "sample indices")
    uses_teacher: ClassVar[bool] = False
    mean_over: MeanOver = "labelled"

    predictions: Tensor

    def __init__(
        self, alpha: float = 0.8, epochs: int = 300, **base: Unpack[BaseOptions]
    ) -> None:
        super().__init__(**base)
        if not is_number(alpha) or not 0 <= alpha <= 1:
            raise UserError(f"PSKD: alpha must be a number in [0, 1], got {alpha}")
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise UserError(
                f"PSKD: epochs must be a whole number of at least 1, got {epochs}"
            )
        self.alpha = alpha
        self.epochs = epochs
        # Not state: a function of the epoch, which a resumed run begins again.
        self._alpha_now = self.alpha_at(0)
        self._built = False

    def alpha_at(self, epoch: int) -> float:
        """The weight of the prediction in an epoch; the first epoch is 0."""
        begun = epoch - self.start + 1
        return self.alpha * min(max(begun, 0), self.epochs) / self.epochs

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the memory of predictions."""
        check_one_label("PSKD", student)
        rows = student.spec.source_samples
        if rows < 1:
            raise UserError(
                "PSKD: the data's spec must give the number of rows as source_samples, "
                f"1 or more, got {rows}"
            )
        num_classes = student.output.logits.shape[1]
        self.register_buffer("predictions", torch.zeros(rows, num_classes))
        self._built = True

    def on_epoch_start(self, epoch: int) -> None:
        self._alpha_now = self.alpha_at(epoch)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """Cross-entropy with the softened labels, a scalar in nats.

        In training, the memory then holds this batch's predictions.
        """
        if not self._built:
            raise not_built("PSKD")
        if batch.partner is not None:
            raise UserError(
                "PSKD remembers predictions for samples, not for mixtures; remove Mixup from "
                "data.augment"
            )
        log_q = finite_log_probs(student.log_probs())
        known = is_labelled(batch.labels)
        # Indexing copies, so that the memory may change before the backward pass.
        previous = self.predictions[batch.index].to(log_q.dtype)
        # Class 0 stands in for an unknown label; the mask removes its cost.
        target = softened_labels(batch.labels.clamp(min=0), previous, self._alpha_now)
        costs = torch.where(known, -(target * log_q).sum(-1), 0)
        if self.training:
            self._remember(batch, log_q.detach().exp())
        return costs.sum() / known.sum().clamp(min=1)

    def _remember(self, batch: Batch, probs: Tensor) -> None:
        """Store the predictions `(B, K)` of all processes, in every process."""
        joined = JoinedBatch(batch)
        index = joined(batch.index)
        new = joined(probs).to(self.predictions.dtype)
        # If a sample occurs twice, all of its rows store the last one: the order in which a device
        # writes them would not be defined.
        self.predictions.index_copy_(0, index, new[last_places(index)])

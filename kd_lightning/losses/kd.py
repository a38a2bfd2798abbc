"""Soft targets: Hinton, Vinyals and Dean 2015."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import DistillLoss, positive, teacher_of
from kd_lightning.types import Batch, Output


def soft_target_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    r"""$T^2 \, \mathrm{KL}(p \,\|\, q)$, summed over classes, mean over the batch, in nats.

    Hinton et al. 2015, section 2: $p = \mathrm{softmax}(v/T)$ of the teacher, $q = \mathrm{softmax}(z/T)$ of the student.
    The gradient is that of the cross-entropy with soft targets, from which KL differs by the teacher's entropy; it scales
    as $1/T^2$, which the factor $T^2$ undoes.

    Args:
        student: log-probabilities at the temperature, `(B, K)`.
        teacher: log-probabilities at the temperature, `(B, K)`.
        temperature: T.

    Returns:
        A scalar; zero where both agree.
    """
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


class KD(DistillLoss):
    r"""Soft targets at a temperature: $T^2\,\mathrm{KL}(\mathrm{softmax}(v/T) \,\|\, \mathrm{softmax}(z/T))$.

    The weights here are those of the total `w_ce * CE + w_kd * T^2 * KL`: `CrossEntropy(weight=w_ce)`, `KD(weight=w_kd)`.
    What others call alpha maps so:

    | written elsewhere | means | here |
    | --- | --- | --- |
    | Hinton et al. 2015: weighted average of both, soft term times T^2, "considerably lower" weight on the hard one | soft with T^2 | `w_ce` small, `w_kd = 1` (or `1 - w_ce`) |
    | `alpha * CE + (1 - alpha) * T^2 * KL` | alpha is the hard weight | `w_ce = alpha, w_kd = 1 - alpha` |
    | `(1 - alpha) * CE + alpha * T^2 * KL` | alpha is the soft weight | `w_ce = 1 - alpha, w_kd = alpha` |
    | CRD benchmark: `gamma * CE + alpha * T^2 * KL` (0.1, 0.9, T = 4) | two free weights | `w_ce = gamma, w_kd = alpha` |
    | `CE(y, p) + a * CE(q, p)`, no T^2 | soft term T^2 times weaker | `w_ce = 1, w_kd = a / T**2` |
    | `lambda * soft + (1 - lambda) * T^2 * hard` (a slip: T^2 on the wrong term) | `w_ce = (1 - lambda) * T**2, w_kd = lambda / T**2` | the same numbers, if you must |
    | T^2 dropped when alpha is 0 or None (a slip) | the loss changes its scale in silence | never happens: T^2 is in the loss |
    | `KLDivLoss(reduction="mean")` (a slip) | K times too small | `w_kd = a / K` |
    | MSE between probabilities, called KD (a slip) | another loss | not this one; between logits it is `LogitMSE` |

    Cross-entropy with soft targets instead of KL: the same gradients, the same weights.

    Args:
        temperature: T, greater than 0. Testing and deployment are at T = 1, whatever it was.
        base: weight, start, end, warmup; see DistillLoss.

    Raises:
        UserError: for a temperature that is not a finite number greater than 0.
    """

    paper: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531"
    year: ClassVar[int] = 2015
    family: ClassVar[str] = "response"

    def __init__(self, temperature: float = 4.0, **base: Any) -> None:
        super().__init__(**base)
        self.temperature = positive("KD", "temperature", temperature)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        target = teacher_of(self, teacher).log_probs(self.temperature)
        return soft_target_kl(student.log_probs(self.temperature), target, self.temperature)

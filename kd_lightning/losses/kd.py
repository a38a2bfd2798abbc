"""Soft targets: Hinton, Vinyals and Dean 2015."""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch.nn.functional as F
from torch import Tensor

from kd_lightning.losses.base import BaseOptions, DistillLoss, positive, teacher_of
from kd_lightning.types import Batch, Output, finite_log_probs


def soft_target_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    r"""$T^2 \, \mathrm{KL}(p \,\|\, q)$, summed over classes, mean over rows, in nats.

    Hinton et al. 2015, section 2: $p = \mathrm{softmax}(v/T)$ of the teacher,
    $q = \mathrm{softmax}(z/T)$ of the student. KL differs from the cross-entropy with soft targets
    only by the teacher's entropy, so both have the same gradient. It scales as $1/T^2$; the factor
    $T^2$ cancels that. A class to which the teacher gives no probability at all (a logit of -inf)
    counts 0: $0 \ln 0 = 0$.

    Args:
        student: log-probabilities at the temperature, `(N, K)`.
        teacher: log-probabilities at the temperature, `(N, K)`.
        temperature: T.

    Returns:
        A scalar; zero if both agree.
    """
    log_q = finite_log_probs(student)
    log_p = finite_log_probs(teacher)
    # Torch's argument order is (q, p). Its "mean" would also divide by the number of classes.
    divergence = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return divergence * temperature**2


class KD(DistillLoss):
    r"""Soft targets: $T^2\,\mathrm{KL}(\mathrm{softmax}(v/T) \,\|\, \mathrm{softmax}(z/T))$.

    The weights belong to the total `w_ce * CE + w_kd * T^2 * KL`: `CrossEntropy(weight=w_ce)` and
    `KD(weight=w_kd)`. Other conventions translate as follows:

    - Hinton et al. 2015, a weighted average of both, with T^2 on the soft term and a "considerably
      lower" weight on the hard one: a small `w_ce`, and `w_kd = 1` or `1 - w_ce`.
    - `alpha * CE + (1 - alpha) * T^2 * KL`: `w_ce = alpha`, `w_kd = 1 - alpha`.
    - `(1 - alpha) * CE + alpha * T^2 * KL`: `w_ce = 1 - alpha`, `w_kd = alpha`.
    - CRD benchmark, `gamma * CE + alpha * T^2 * KL` (0.1, 0.9, T = 4): `w_ce = gamma`,
      `w_kd = alpha`.
    - `CE(y, p) + a * CE(q, p)` without T^2, a soft term T^2 times weaker: `w_ce = 1`,
      `w_kd = a / T**2`.

    Cross-entropy with soft targets instead of KL has the same gradients and the same weights.

    Common mistakes in other code, and the weights that reproduce them:

    - `lambda * soft + (1 - lambda) * T^2 * hard` has T^2 on the wrong term:
      `w_ce = (1 - lambda) * T**2`, `w_kd = lambda / T**2`.
    - `KLDivLoss(reduction="mean")` is K times too small: `w_kd = a / K`.
    - T^2 dropped if alpha is 0 or None changes the scale silently; here T^2 is in the loss.
    - MSE between probabilities is another loss; for MSE between logits see `LogitMSE`.

    If a cache stores only the teacher's k largest logits, both distributions are over k + 1 events:
    the k classes, and all other classes together. This KL is a lower bound of that over all
    classes, and equally zero at the teacher.

    Args:
        temperature: T, greater than 0. Testing and deployment always use T = 1.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature that is not a finite number greater than 0.
    """

    paper: ClassVar[str] = "Hinton et al. 2015, arXiv 1503.02531"
    year: ClassVar[int] = 2015
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    minimum_at_teacher: ClassVar[bool] = True
    row_wise: ClassVar[bool] = True

    def __init__(self, temperature: float = 4.0, **base: Unpack[BaseOptions]) -> None:
        super().__init__(**base)
        self.temperature = positive("KD", "temperature", temperature)

    @property
    def teacher_temperatures(self) -> tuple[float, ...]:
        """The loss's only temperature."""
        return (self.temperature,)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`soft_target_kl` of both distributions at the temperature; a scalar in nats."""
        target = teacher_of(self, teacher)
        # Paired, because a top-k teacher knows fewer events than the student has classes.
        log_q, log_p = target.paired_log_probs(student, self.temperature)
        return soft_target_kl(log_q, log_p, self.temperature)

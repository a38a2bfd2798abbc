"""Alpha-beta divergence: Wang et al. 2025."""

from __future__ import annotations

from typing import ClassVar, Unpack

from torch import Tensor

from kd_lightning.losses.base import BaseOptions, DistillLoss, positive, teacher_of
from kd_lightning.types import Batch, Output, finite_log_probs


def alpha_beta_divergence(
    student: Tensor,
    teacher: Tensor,
    alpha: float,
    beta: float,
) -> Tensor:
    r"""Mean of $-\frac{1}{ab} \sum_k (p_k^a q_k^b - \frac{a p_k^{a+b} + b q_k^{a+b}}{a+b})$.

    Wang et al. 2025, for positive a and b. A power is computed as the exponential of a
    multiple of the logarithm.

    Args:
        student: log-probabilities $\ln q$, `(N, K)`.
        teacher: log-probabilities $\ln p$, `(N, K)`.
        alpha: a, greater than 0.
        beta: b, greater than 0.

    Returns:
        A scalar; zero if both agree.
    """
    log_q = finite_log_probs(student)
    log_p = finite_log_probs(teacher)
    total = alpha + beta
    # p^a q^b, `(N, K)`.
    log_product = alpha * log_p + beta * log_q
    product = log_product.exp()
    # a p^(a+b) + b q^(a+b), `(N, K)`.
    teacher_power = alpha * (total * log_p).exp()
    student_power = beta * (total * log_q).exp()
    own_powers = teacher_power + student_power
    terms = own_powers / total - product
    return terms.sum(-1).mean() / (alpha * beta)


class ABKD(DistillLoss):
    r"""$T^2 \, D^{(\alpha, \beta)}_{AB}(p \,\|\, q)$, a family between KL and reverse KL.

    A larger $\alpha$ weights classes by the error in the logarithm of the probability, a larger
    $\beta$ by the student's confidence. $\alpha = 1, \beta \to 0$ is KL (`KD`),
    $\alpha \to 0, \beta = 1$ is reverse KL (`ReverseKL`), and $\alpha = \beta = 1/2$ is four times
    one minus the Bhattacharyya coefficient. The defaults are the paper's for language models. The
    factor $T^2$ is ours, for comparison with KD; at the default T = 1 it has no effect.

    Args:
        alpha: greater than 0.
        beta: greater than 0.
        temperature: T, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a temperature, alpha or beta that is not a finite number greater than 0.
    """

    paper: ClassVar[str] = "Wang et al. 2025, arXiv 2505.04560"
    year: ClassVar[int] = 2025
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = ("all teacher logits",)
    exact_logits: ClassVar[bool] = True
    minimum_at_teacher: ClassVar[bool] = True
    row_wise: ClassVar[bool] = True

    def __init__(
        self,
        alpha: float = 0.2,
        beta: float = 0.7,
        temperature: float = 1.0,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.alpha = positive("ABKD", "alpha", alpha)
        self.beta = positive("ABKD", "beta", beta)
        self.temperature = positive("ABKD", "temperature", temperature)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`alpha_beta_divergence` at the temperature, times T^2; a scalar."""
        p = teacher_of(self, teacher).log_probs(self.temperature)
        q = student.log_probs(self.temperature)
        divergence = alpha_beta_divergence(q, p, self.alpha, self.beta)
        return self.temperature**2 * divergence

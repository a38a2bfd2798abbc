"""Wasserstein distillation of logits: Lv et al. 2024."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import ClassVar, Unpack

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.losses._labels import mean_over_labels, weighted_target_cost
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    not_negative,
    positive,
    teacher_of,
)
from kd_lightning.types import Batch, Output, finite_log_probs, full

REGULARIZATION = 0.05
"""Entropic regularization of the transport, as in the authors' code."""


def class_costs(similarities: Tensor, kappa: float) -> Tensor:
    r"""$c_{kl} = 1 - \exp(-\kappa (1 - s_{kl}))$ of similar classes, `(K, K)` in [0, 1).

    Lv et al. 2024. At least 1e-8, as in the authors' code.

    Args:
        similarities: $s$, `(K, K)`, at most 1: the CKA of both classes' features.
        kappa: sharpness, greater than 0.
    """
    costs = -torch.expm1(-kappa * (1 - similarities))
    return costs.clamp(min=0) + 1e-8


def _log_product(log_factors: Tensor, kernel: Tensor) -> Tensor:
    """The log of `log_factors.exp() @ kernel` for a positive `(K, K)` kernel; `(N, K)`."""
    # Without its largest factor, no row underflows: the kernel's entries are not tiny. The factor
    # cancels, and so does its gradient.
    largest = log_factors.detach().amax(-1, keepdim=True)
    factors = (log_factors - largest).exp()
    return (factors @ kernel).log() + largest


def transport_cost(
    student: Tensor,
    teacher: Tensor,
    costs: Tensor,
    iterations: int,
) -> Tensor:
    """Cost of moving each student's distribution to its teacher's, by Sinkhorn's iterations.

    Scaling factors are logarithms, so that small probabilities do not underflow. The gradient
    passes through all iterations. The last of them matches the student's side exactly; the
    teacher's is matched in the limit, which takes more iterations the larger the costs are
    compared with 0.05.

    Args:
        student: log-probabilities `(N, K)`, finite; the lowest number for a class that is left out.
        teacher: log-probabilities `(N, K)`, the same.
        costs: `(K, K)`, in [0, 1].
        iterations: at least 1.

    Returns:
        `(N,)`.
    """
    log_u, log_v = transport_factors(student, teacher, costs, iterations)
    kernel = (-costs / REGULARIZATION).exp()
    moved = _log_product(log_v, (kernel * costs).T)
    return (log_u + moved).exp().sum(-1)


def transport_factors(
    student: Tensor,
    teacher: Tensor,
    costs: Tensor,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    r"""Logarithms of u and v, `(N, K)` each; the plan of a row is $u_k e^{-c_{kl} / 0.05} v_l$.

    See `transport_cost` for the arguments.
    """
    kernel = (-costs / REGULARIZATION).exp()
    # Start from a uniform u over the classes that are not left out.
    present = student > torch.finfo(student.dtype).min
    log_u = torch.where(present, 0.0, student)
    log_v = teacher
    for _ in range(iterations):
        log_v = finite_log_probs(teacher - _log_product(log_u, kernel))
        log_u = finite_log_probs(student - _log_product(log_v, kernel.T))
    return log_u, log_v


def others_only(log_probs: Tensor, target: Tensor) -> Tensor:
    """Log-probabilities `(N, K)`, given that it is not the target; the lowest number for that."""
    lowest = torch.finfo(log_probs.dtype).min
    rest = log_probs.scatter(1, target[:, None], lowest)
    conditional = finite_log_probs(torch.log_softmax(rest, dim=-1))
    return conditional.scatter(1, target[:, None], lowest)


class WKDL(DistillLoss):
    r"""Optimal transport between the other classes: $-p_t \ln q_t + w \, W(\hat q, \hat p)$.

    The first term is the hard loss weighted by the teacher, as in `NKD`. $W$ is the cost of moving
    the student's distribution $\hat q$ over the other classes, at temperature T, to the teacher's
    $\hat p$. Moving probability between similar classes is cheap: $c = 1 - \exp(-\kappa (1 - s))$.
    $W$ is found by a few of Sinkhorn's iterations with entropic regularization 0.05. Few iterations
    do not converge where costs are much larger; with the authors' 10, the value is smaller than the
    distance. There is no factor $T^2$. The minimum is not at the teacher.

    `similarities` names a file that `torch.save` wrote with a `(K, K)` tensor: in the paper, the
    centered kernel alignment of the teacher's features of both classes on the training set. Without
    it all classes are equally unlike, and $W$ is close to `TotalVariation` times a constant. The
    costs are stored in the checkpoint.

    The authors' values on CIFAR-100: T = 8, w = 600, which decays from epoch 150 on (not
    included), $\kappa = 1$; on ImageNet T = 2, w = 30 for resnet34-resnet18. The hard loss has
    weight 1. Mean over labelled rows; mixed samples count both labels by their shares.

    Args:
        similarities: path of a file with the classes' similarities, `(K, K)`; `None` for none.
        transport: w, at least 0.
        temperature: T of the transport, greater than 0.
        kappa: sharpness of the costs, greater than 0.
        iterations: of Sinkhorn, at least 1.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for a number out of range, or a file that does not hold similarities.
    """

    paper: ClassVar[str] = "Lv et al. 2024, arXiv 2412.08139"
    year: ClassVar[int] = 2024
    compares_classes: ClassVar[bool] = True
    family: ClassVar[str] = "response"
    needs: ClassVar[tuple[str, ...]] = (
        "all teacher logits",
        "labels",
        "class similarities",
    )
    exact_logits: ClassVar[bool] = True
    mean_over: MeanOver = "labelled"

    costs: Tensor

    def __init__(
        self,
        similarities: str | None = None,
        transport: float = 600.0,
        temperature: float = 8.0,
        kappa: float = 1.0,
        iterations: int = 10,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.similarities = similarities
        self.transport = not_negative("WKDL", "transport", transport)
        self.temperature = positive("WKDL", "temperature", temperature)
        self.kappa = positive("WKDL", "kappa", kappa)
        if (
            isinstance(iterations, bool)
            or not isinstance(iterations, int)
            or iterations < 1
        ):
            raise UserError(
                f"WKDL: iterations must be a whole number of at least 1, got {iterations}"
            )
        self.iterations = iterations

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Read the similarities, and compute the costs.

        Raises:
            UserError: if the file is missing or does not hold similarities of all classes.
        """
        num_classes = student.output.logits.shape[-1]
        similarities = torch.eye(num_classes)
        if self.similarities is not None:
            similarities = _read_similarities(self.similarities, num_classes)
        self.register_buffer("costs", class_costs(similarities, self.kappa))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The target's term and the transport, mean over labelled rows; a scalar."""
        target = teacher_of(self, teacher)
        # Converted once: two gradients of half-precision logits would be rounded before their sum.
        student = Output(full(student.logits))
        p = target.log_probs()
        q = student.log_probs()
        tempered_p = target.log_probs(self.temperature)
        tempered_q = student.log_probs(self.temperature)
        costs = self.costs.to(q.dtype)

        def cost(labels: Tensor) -> Tensor:
            own = weighted_target_cost(q, p, labels)
            moved = transport_cost(
                others_only(tempered_q, labels),
                others_only(tempered_p, labels),
                costs,
                self.iterations,
            )
            return own + self.transport * moved

        # Products of matrices need single precision, also under autocast.
        with torch.autocast(q.device.type, enabled=False):
            return mean_over_labels(cost, batch)


def _read_similarities(path: str, num_classes: int) -> Tensor:
    """The `(K, K)` tensor of a file; UserError if it is not one."""
    if not Path(path).is_file():
        raise UserError(
            f"WKDL: there is no file {path}; similarities must name one, or nothing"
        )
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as problem:
        raise UserError(
            f"WKDL: {path} does not hold a tensor written by torch.save"
        ) from problem
    shape = (num_classes, num_classes)
    if not isinstance(content, Tensor) or content.shape != shape:
        raise UserError(f"WKDL: {path} must hold a tensor of shape {list(shape)}")
    if not bool(content.isfinite().all()) or bool((content > 1 + 1e-6).any()):
        raise UserError(
            f"WKDL: the similarities in {path} must be finite numbers of at most 1"
        )
    return content.float()

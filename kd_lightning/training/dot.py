"""The Distillation-Oriented Trainer: Zhao et al. 2023."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses.base import is_number
from kd_lightning.training.split_gradients import SplitOptimizer


class DOT(SplitOptimizer):
    r"""SGD whose momentum is larger for the soft losses' gradient than for the hard losses'.

    $v_{hard} \leftarrow (\mu - \Delta) v_{hard} + g_{hard} + \lambda \theta$,
    $v_{soft} \leftarrow (\mu + \Delta) v_{soft} + g_{soft}$,
    $\theta \leftarrow \theta - \eta (v_{hard} + v_{soft})$ (Zhao et al. 2023, arXiv 2307.08436,
    section 3.3). Weight decay enters the hard losses' buffer only. A buffer starts as its first
    gradient.

    A parameter on which losses of one kind depend, such as the adapter of a loss, has one buffer,
    with momentum $\mu$ and weight decay. A kind without a gradient in some step counts as zero in
    that step. Hard losses are those without a teacher. With $\Delta = 0$ this is SGD with momentum.

    Args:
        params: parameters, or groups of them.
        lr: learning rate $\eta$.
        momentum: $\mu$.
        delta: $\Delta$; the paper uses 0.075 for CIFAR-100 and Tiny-ImageNet, 0.09 for ImageNet.
        weight_decay: $\lambda$.

    Raises:
        UserError: for a number out of range.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.05,
        momentum: float = 0.9,
        delta: float = 0.075,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not is_number(value) or value < 0:
                raise UserError(
                    f"DOT: {name} must be a finite number of at least 0, got {value}"
                )
        _check_momenta(momentum, delta)
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "delta": delta,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update all parameters from both gradients.

        Args:
            closure: computes the gradients, and returns the loss.

        Raises:
            UserError: if a scheduler has moved the momentum out of range.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            _check_momenta(group["momentum"], group["delta"])
            for parameter, companion in self.pairs(group):
                self._update(parameter, companion, group)
        return loss

    def _update(
        self,
        parameter: Tensor,
        companion: Tensor,
        group: dict[str, Any],
    ) -> None:
        """Update one parameter.

        Args:
            parameter: its gradient is that of the hard losses.
            companion: its gradient is that of the soft losses.
            group: that they belong to.
        """
        hard = self._known(parameter)
        soft = self._known(companion)
        if not hard and not soft:
            return
        delta = group["delta"] if hard and soft else 0.0
        decayed = parameter if hard else companion
        if hard:
            self._accumulate(parameter, group["momentum"] - delta)
        if soft:
            self._accumulate(companion, group["momentum"] + delta)
        if group["weight_decay"] != 0:
            buffer = self.state[decayed]["momentum_buffer"]
            buffer.add_(parameter, alpha=group["weight_decay"])
        # The decay of both buffers must see the weights of before the step.
        for each, known in ((parameter, hard), (companion, soft)):
            if known:
                parameter.sub_(group["lr"] * self.state[each]["momentum_buffer"])

    def _known(self, tensor: Tensor) -> bool:
        """Whether a kind of loss has, or had in an earlier step, a gradient for this tensor."""
        return tensor.grad is not None or "momentum_buffer" in self.state[tensor]

    def _accumulate(self, tensor: Tensor, momentum: float) -> None:
        """Add the tensor's gradient, zero if it has none, to its decayed momentum buffer."""
        state = self.state[tensor]
        if "momentum_buffer" not in state:
            # The first gradient, without damping.
            state["momentum_buffer"] = torch.zeros_like(tensor)
        state["momentum_buffer"].mul_(momentum)
        if tensor.grad is not None:
            state["momentum_buffer"].add_(tensor.grad)


def _check_momenta(momentum: float, delta: float) -> None:
    """Refuse momenta outside of [0, 1).

    Raises:
        UserError: one line.
    """
    are_numbers = is_number(momentum) and is_number(delta)
    if are_numbers and momentum - abs(delta) >= 0 and momentum + abs(delta) < 1:
        return
    raise UserError(
        f"DOT: momentum - delta and momentum + delta must be in [0, 1), got momentum {momentum} and "
        f"delta {delta}; lower delta, or set cycle_momentum: false if a scheduler moves the momentum"
    )

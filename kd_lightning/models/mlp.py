"""The fully connected networks of Hinton et al. 2015 (arXiv 1503.02531), section 3."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError


class _Dropout(nn.Dropout):
    """Dropout that draws 16 random bits per element on a CPU, and is `nn.Dropout` elsewhere.

    The probability is rounded to a multiple of 2**-16.
    """

    # Why not nn.Dropout: it makes one draw per element, which takes 2 to 7 times as long on a
    # CPU (4.2 ms instead of 0.7 ms for 128 x 1200 elements), and in an MLP dropout is a large part
    # of a training step. Published results were computed with these masks; those of nn.Dropout
    # differ for the same seed.

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of `x`, of any shape, in training; the kept ones are scaled up."""
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        # Each 64-bit integer gives four 16-bit integers, uniform in [-2**15, 2**15).
        num_words = -(-x.numel() // 4)
        words = torch.empty(num_words, dtype=torch.int64).random_(-(2**63), None)
        draws = words.view(torch.int16)[: x.numel()]
        # An element is dropped with probability threshold / 2**16. Never drop all of them.
        threshold = min(round(self.p * 2**16), 2**16 - 1)
        mask = (draws >= threshold - 2**15).view(x.shape)
        scale = 2**16 / (2**16 - threshold)
        return x * mask * scale


class MLP(nn.Module):
    """Linear layers with ReLU and dropout: `input - hidden[0] - ... - num_classes`.

    Args:
        hidden: units of each hidden layer.
        dropout: probability of dropping a hidden unit.
        input_dropout: probability of dropping an input.
        max_norm: largest L2 norm of the weights into a hidden unit; longer weight vectors are
            scaled down to it after each optimizer step (Hinton et al. 2012, arXiv 1207.0580).
            `None`: no constraint.
        input_shape: shape of one sample; `kd` takes it from the data.
        num_classes: number of classes; `kd` takes it from the data.

    Shapes:
        Input `(B, *input_shape)`, output logits `(B, num_classes)`.

    Raises:
        UserError: if an argument is out of range or a shape is missing.
    """

    def __init__(
        self,
        hidden: list[int],
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        max_norm: float | None = None,
        input_shape: list[int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if input_shape is None or num_classes is None:
            raise UserError(
                "MLP: input_shape or num_classes is missing; "
                "kd takes both from the data; in Python, pass them"
            )
        _check_options(hidden, dropout, input_dropout, max_norm)
        self.max_norm = max_norm
        layers: list[nn.Module] = [nn.Flatten()]
        if input_dropout:
            layers.append(_Dropout(input_dropout))
        units = math.prod(input_shape)
        for width in hidden:
            layers.append(nn.Linear(units, width))
            layers.append(nn.ReLU())
            if dropout:
                layers.append(_Dropout(dropout))
            units = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(units, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of samples `(B, *input_shape)`."""
        logits: Tensor = self.head(self.body(x))
        return logits

    def after_step(self) -> None:
        """Scale weight vectors longer than `max_norm` down; called after each optimizer step."""
        if self.max_norm is None:
            return
        with torch.no_grad():
            for module in self.body:
                if isinstance(module, nn.Linear):
                    limited = torch.renorm(
                        module.weight, p=2, dim=0, maxnorm=self.max_norm
                    )
                    module.weight.copy_(limited)


def _check_options(
    hidden: list[int],
    dropout: float,
    input_dropout: float,
    max_norm: float | None,
) -> None:
    """Refuse options of an `MLP` that are out of range."""
    if not hidden or min(hidden) < 1:
        raise UserError(
            f"MLP: hidden must list at least one layer of at least one unit, got {hidden}"
        )
    if not (0 <= dropout < 1 and 0 <= input_dropout < 1):
        raise UserError(
            f"MLP: dropout and input_dropout must be in [0, 1), got {dropout} and {input_dropout}"
        )
    if max_norm is not None and max_norm <= 0:
        raise UserError(
            f"MLP: max_norm must be greater than 0, got {max_norm}; omit it for no constraint"
        )

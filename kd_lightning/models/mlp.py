"""The fully connected networks of Hinton et al. 2015, section 3."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError


class _Dropout(nn.Dropout):
    """Dropout whose mask takes 16 random bits an element: on a CPU four times as fast as one draw an element.

    The probability is rounded to a multiple of 2**-16.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.device.type != "cpu":
            return super().forward(x)
        drawn = (
            torch.empty(-(-x.numel() // 4), dtype=torch.int64)
            .random_(-(2**63), None)
            .view(torch.int16)
        )
        threshold = min(round(self.p * 2**16), 2**16 - 1)
        kept = (drawn[: x.numel()] >= threshold - 2**15).view(x.shape)
        return x * kept * (2**16 / (2**16 - threshold))


class MLP(nn.Module):
    """Linear layers with ReLU and dropout: `input - hidden[0] - ... - num_classes`.

    Args:
        hidden: units of each hidden layer.
        dropout: probability with which a hidden unit is dropped.
        input_dropout: probability with which an input is dropped.
        max_norm: largest L2 norm of the weights into a unit; longer ones are scaled down to it after each optimizer step
            (Hinton et al. 2012, arXiv 1207.0580). `None`: no constraint.
        input_shape: shape of one sample, filled in from the data under `kd`.
        num_classes: units of the output, filled in from the data under `kd`.

    Shapes:
        input `(B, *input_shape)`, output logits `(B, num_classes)`.

    Raises:
        UserError: where an argument is out of range or a shape is missing.
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
                "MLP: input_shape and num_classes are needed; under kd they come from the data"
            )
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
                f"MLP: max_norm must be greater than 0, got {max_norm}; leave it out for no constraint"
            )
        self.max_norm = max_norm
        layers: list[nn.Module] = [nn.Flatten()]
        if input_dropout:
            layers.append(_Dropout(input_dropout))
        units = math.prod(input_shape)
        for width in hidden:
            layers += [nn.Linear(units, width), nn.ReLU()]
            if dropout:
                layers.append(_Dropout(dropout))
            units = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(units, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x))
        return logits

    def after_step(self) -> None:
        """Bring weights that grew past `max_norm` back; the modules call it after each optimizer step."""
        if self.max_norm is None:
            return
        with torch.no_grad():
            for module in self.body:
                if isinstance(module, nn.Linear):
                    module.weight.copy_(
                        torch.renorm(module.weight, p=2, dim=0, maxnorm=self.max_norm)
                    )

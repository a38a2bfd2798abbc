"""Mixed samples."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from kd_lightning.data.images.augment import Mixing
from kd_lightning.errors import UserError
from kd_lightning.randomness import integers

_QUANTILES = 2**16


class Mixup(Mixing):
    """Replace each sample by `share * itself + (1 - share) * another` (Zhang et al. 2018, arXiv 1710.09412).

    `CrossEntropy` mixes the labels alike; losses between networks see what both networks see. Every sample draws a share and
    a partner of its own, where the authors' code draws one share for a batch and a permutation of it.

    Args:
        alpha: the share has the distribution Beta(alpha, alpha) (the paper: 0.1 to 0.4 on ImageNet, 1 on CIFAR).
    """

    def __init__(self, alpha: float = 1.0) -> None:
        if not 0 < alpha < float("inf"):
            raise UserError(f"Mixup: alpha must be a finite number greater than 0, got {alpha}")
        self.alpha = alpha

    def mix(
        self, inputs: Tensor, others: Tensor, index: Tensor, seed: int, view: int
    ) -> tuple[Tensor, Tensor]:
        drawn = integers(index, 0, _QUANTILES - 1, seed, view, "mixup", "share")
        share = _beta_quantiles(float(self.alpha), str(index.device)).index_select(0, drawn)
        own = share[:, None, None, None]
        # Not torch.lerp: its rounding depends on where in the batch a pixel lies.
        return (inputs * own).add_(others * (1 - own)), share


@functools.lru_cache(maxsize=8)
def _beta_quantiles(alpha: float, device: str) -> Tensor:
    """The middles of 2^16 equally likely intervals of Beta(alpha, alpha), float32: one of them is drawn by whole numbers.

    Made on the CPU whatever the device, so that all devices draw the same shares.
    """
    from scipy.special import betaincinv

    middles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    return torch.from_numpy(betaincinv(alpha, alpha, middles).astype(np.float32)).to(device)

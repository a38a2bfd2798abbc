"""Mixup."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from kd_lightning.data.images.augment import Mixing
from kd_lightning.errors import UserError
from kd_lightning.randomness import integers

_NUM_QUANTILES = 2**16


class Mixup(Mixing):
    """Replace each sample by `share * sample + (1 - share) * partner`.

    `CrossEntropy` mixes the labels by the same shares; losses between networks compare the outputs
    for the mixed inputs. Each sample draws its own share and partner, while the authors' code draws
    one share and one permutation per batch.

    Source: Zhang et al. 2018, arXiv 1710.09412.

    Args:
        alpha: the share has the distribution Beta(alpha, alpha) (the paper: 0.1 to 0.4 on ImageNet,
            1 on CIFAR).
    """

    def __init__(self, alpha: float = 1.0) -> None:
        if not 0 < alpha < float("inf"):
            raise UserError(
                f"Mixup: alpha must be a finite number greater than 0, got {alpha}"
            )
        self.alpha = alpha

    def mix(
        self,
        inputs: Tensor,
        others: Tensor,
        index: Tensor,
        seed: int,
        view: int,
    ) -> tuple[Tensor, Tensor]:
        """Mix `inputs` with `others`, both float32 `(B, C, H, W)`; see `Mixing.mix`."""
        share = draw_beta(self.alpha, index, seed, view, "mixup", "share")
        weight = share[:, None, None, None]
        # Not torch.lerp: its rounding depends on the place of a pixel in the batch.
        mixed = (inputs * weight).add_(others * (1 - weight))
        return mixed, share


def draw_beta(alpha: float, index: Tensor, *parts: int | str) -> Tensor:
    """Draw a number with the distribution Beta(alpha, alpha) per index, float32 `(B,)`.

    Args:
        alpha: greater than 0.
        index: int64 `(B,)`.
        parts: see `kd_lightning.randomness`.
    """
    quantile = integers(index, 0, _NUM_QUANTILES - 1, *parts)
    quantiles = _beta_quantiles(float(alpha), str(index.device))
    return quantiles.index_select(0, quantile)


@functools.lru_cache(maxsize=8)
def _beta_quantiles(alpha: float, device: str) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at the middles of 2^16 equal intervals, float32 `(2^16,)`.

    A draw of whole numbers selects one of them. They are computed on the CPU for every device, so
    that all devices draw the same shares.
    """
    from scipy.special import betaincinv

    middles = (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
    quantiles = betaincinv(alpha, alpha, middles).astype(np.float32)
    return torch.from_numpy(quantiles).to(device)

"""Attention scores before the softmax, for losses that match them; computed apart only where they are tapped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.hub import library

NAME = "kd_scores"
"""Under which the function below is known to the transformers library."""

_TAP = "kd_scores_tap"


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention (Vaswani et al. 2017), as the transformers library asks for it.

    Args:
        module: that asks; where its layer's scores are tapped, they pass through the tap.
        query, key, value: `(B, heads, L, d)`.
        attention_mask: bool, true where a key counts, or a number added to the scores; `(B, 1, L, L)` or broadcast to it.
        scaling: multiplies the scores; 1 / sqrt(d) where left out.
        dropout: on the attention weights.

    Returns:
        `(B, L, heads, d)`.
    """
    tap = module.__dict__.get(_TAP)
    if tap is not None and tap._forward_hooks:
        tap(
            query
            @ key.transpose(-1, -2)
            * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        )
    mixed = F.scaled_dot_product_attention(
        query, key, value, attention_mask, dropout, scale=scaling
    )
    return mixed.transpose(1, 2).contiguous(), None


def tap_scores(encoder: Any, layers: nn.ModuleList, taps: Iterable[nn.Module]) -> None:
    """Let each layer's attention scores pass through its tap, where hooks wait there."""
    transformers = library("transformers")
    transformers.AttentionInterface.register(NAME, attention)
    masks = library("transformers.masking_utils")
    transformers.AttentionMaskInterface.register(NAME, masks.sdpa_mask)
    encoder.set_attn_implementation(NAME)
    for layer, tap in zip(layers, taps, strict=True):
        for module in layer.modules():
            module.__dict__[_TAP] = tap  # past nn.Module, which would take it for a part of each

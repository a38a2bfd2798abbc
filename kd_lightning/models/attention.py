"""Attention scores before the softmax, for losses that match them.

Fused attention does not return its scores, so they are computed a second time for the losses that
read them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.hub import Encoder, library

NAME = "kd_scores"
"""The name under which `attention` is registered with the transformers library."""

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
    """Scaled dot-product attention (Vaswani et al. 2017), in the interface of transformers.

    Args:
        module: the calling module; if its layer's scores have a hook, they pass through the tap.
        query: `(B, heads, L, d)`.
        key: `(B, heads, L, d)`.
        value: `(B, heads, L, d)`.
        attention_mask: bool, true at the keys that count, or numbers to add to the scores;
            `(B, 1, L, L)` or broadcastable to it.
        scaling: factor of the scores; default: 1 / sqrt(d).
        dropout: dropout of the attention weights.

    Returns:
        `(B, L, heads, d)`, and no attention weights.
    """
    tap = module.__dict__.get(_TAP)
    if tap is not None and tap._forward_hooks:
        # The scores are computed for the hooks only; the fused kernel below computes its own. They
        # are taken before the mask, whose infinite entries would make any distance NaN.
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        scores = query @ key.transpose(-1, -2) * factor
        tap(scores)
    mixed = F.scaled_dot_product_attention(
        query, key, value, attention_mask, dropout, scale=scaling
    )
    # The library merges the heads with a view, which needs contiguous memory.
    by_token = mixed.transpose(1, 2).contiguous()
    return by_token, None


def tap_scores(
    encoder: Encoder,
    layers: nn.ModuleList,
    taps: Iterable[nn.Module],
) -> None:
    """Route the attention scores of each layer through its tap.

    Args:
        encoder: an encoder of the transformers library.
        layers: its layers.
        taps: one module per layer, on which losses register hooks.
    """
    transformers = library("transformers")
    transformers.AttentionInterface.register(NAME, attention)
    # An attention function without a mask function of the same name would receive no mask at all.
    masks = library("transformers.masking_utils")
    transformers.AttentionMaskInterface.register(NAME, masks.sdpa_mask)
    encoder.set_attn_implementation(NAME)
    for layer, tap in zip(layers, taps, strict=True):
        for module in layer.modules():
            # Not by attribute: nn.Module would register the tap as a submodule of every module.
            module.__dict__[_TAP] = tap

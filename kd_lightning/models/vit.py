"""Vision transformers for small images, with DeiT's distillation token.

Dosovitskiy et al. 2021 (arXiv 2010.11929), section 3.1; Touvron et al. 2021 (arXiv 2012.12877),
section 4.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.models.base import check_image_shapes

INITIAL_STD = 0.02
"""Standard deviation of the initial weights, tokens and positions, as in both papers' code."""


class Heads(NamedTuple):
    """What a network with a distillation token returns in training.

    Attributes:
        logits: of the class token's head, `(B, num_classes)`.
        distillation: of the distillation token's head, `(B, num_classes)`.
    """

    logits: Tensor
    distillation: Tensor


class _Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) between all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Mixed tokens of tokens, both `(B, L, width)`."""
        batch, length, width = x.shape
        # One product for queries, keys and values; then 3 x (B, heads, L, width /
        # heads).
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        by_token = mixed.transpose(1, 2).reshape(batch, length, width)
        out: Tensor = self.out(by_token)
        return out


class _Block(nn.Module):
    """Attention and a two-layer network, each after a layer norm and with a shortcut."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens of tokens, both `(B, L, width)`."""
        # Norms come first ("pre-norm"), so that the shortcut carries the sum unchanged.
        attended = self.attention(self.norm1(x))
        x = x + self.dropout(attended)
        changed = self.mlp(self.norm2(x))
        total: Tensor = x + self.dropout(changed)
        return total


class ViT(nn.Module):
    """A vision transformer: square patches as tokens, and a class token whose head predicts.

    With `distillation_token`, a second token with a head of its own learns from the teacher
    (DeiT). In training, the network then returns both heads' logits; the hard loss reads those of
    the class token, and `HardDistillation` with `head: distillation` the others. In evaluation, and
    when exported, it returns the logarithm of the mean of both heads' probabilities, which are
    logits of that mean. The authors' code averages logits instead.

    Args:
        patch_size: height and width of a patch, in pixels; divides those of the image.
        width: length of a token.
        depth: number of blocks.
        heads: number of attention heads; divides `width`.
        mlp_ratio: hidden units of a block's two-layer network, as a multiple of `width`.
        dropout: probability of dropping an element of what a block adds.
        distillation_token: whether there is a distillation token.
        input_shape: `[channels, height, width]`; `kd` takes it from the data.
        num_classes: number of classes; `kd` takes it from the data.

    Shapes:
        Input `(B, C, H, W)`, output logits `(B, num_classes)`, in training with a distillation
        token `Heads`. Layers to tap: `patches`, `(B, width, H', W')`; `blocks.0` and so on, and
        `norm`, tokens `(B, L, width)`; `head` and `distillation_head`, logits.

    Raises:
        UserError: if an argument is out of range, a shape is missing or the inputs are no images.
    """

    def __init__(
        self,
        patch_size: int = 4,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        distillation_token: bool = False,
        input_shape: list[int] | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        channels, classes = check_image_shapes("ViT", input_shape, num_classes)
        _check_options(patch_size, width, depth, heads, mlp_ratio, dropout)
        assert input_shape is not None
        self.image_size = (input_shape[1], input_shape[2])
        if any(side % patch_size for side in self.image_size):
            raise UserError(
                f"ViT: patch_size must divide the height and width of the images, got {patch_size} "
                f"and images of shape {input_shape}"
            )
        self.patches = nn.Conv2d(channels, width, patch_size, stride=patch_size)
        num_patches = (input_shape[1] // patch_size) * (input_shape[2] // patch_size)
        # A learned position for each patch, and for each token in front of them.
        num_tokens = 2 if distillation_token else 1
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.distillation_token = (
            nn.Parameter(torch.empty(1, 1, width)) if distillation_token else None
        )
        self.positions = nn.Parameter(torch.empty(1, num_tokens + num_patches, width))
        hidden = mlp_ratio * width
        blocks = [_Block(width, heads, hidden, dropout) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        self.distillation_head = (
            nn.Linear(width, classes) if distillation_token else None
        )
        self._initialize()

    def _initialize(self) -> None:
        """Draw weights, tokens and positions from a truncated normal; biases become zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=INITIAL_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Tokens and positions are parameters of this module itself, not of a layer.
        for parameter in (self.class_token, self.distillation_token, self.positions):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=INITIAL_STD)

    def forward(self, x: Tensor) -> Tensor | Heads:
        """Logits of images `(B, C, H, W)`; see the class."""
        if tuple(x.shape[2:]) != self.image_size:
            raise UserError(
                f"ViT was built for images of {list(self.image_size)} pixels and has no positions "
                f"for {list(x.shape[2:])}"
            )
        # (B, width, H/p, W/p) to tokens (B, L, width).
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = [self.class_token.expand(len(x), -1, -1)]
        if self.distillation_token is not None:
            tokens.append(self.distillation_token.expand(len(x), -1, -1))
        joined = torch.cat([*tokens, patches], 1)
        embedded = joined + self.positions
        mixed = self.blocks(embedded)
        y = self.norm(mixed)
        logits: Tensor = self.head(y[:, 0])
        if self.distillation_head is None:
            return logits
        distillation = self.distillation_head(y[:, 1])
        # Training needs both outputs, because each has a loss of its own.
        if self.training:
            return Heads(logits, distillation)
        return _log_mean_probs(logits, distillation)


def _log_mean_probs(first: Tensor, second: Tensor) -> Tensor:
    """The logarithm of the mean of two distributions, given by their logits, `(B, K)` each."""
    log_probs = torch.stack([first, second]).log_softmax(-1)
    # The constant ln 2 changes no distribution, but makes the result log-probabilities.
    return log_probs.logsumexp(0) - math.log(2)


def _check_options(
    patch_size: int,
    width: int,
    depth: int,
    heads: int,
    mlp_ratio: int,
    dropout: float,
) -> None:
    """UserError if an argument is out of range."""
    counts = {
        "patch_size": patch_size,
        "width": width,
        "depth": depth,
        "heads": heads,
        "mlp_ratio": mlp_ratio,
    }
    for name, count in counts.items():
        if count < 1:
            raise UserError(f"ViT: {name} must be at least 1, got {count}")
    if width % heads:
        raise UserError(
            f"ViT: heads must divide width, got {heads} heads and width {width}"
        )
    if not 0 <= dropout < 1:
        raise UserError(f"ViT: dropout must be in [0, 1), got {dropout}")

"""Randomness as a function, not a state: a draw depends only on named numbers, not on past draws.

This makes a resumed run equal to an uninterrupted one, makes data independent of workers and
devices, and allows teacher outputs to be computed once per view and replayed exactly.
"""

from __future__ import annotations

import hashlib
import os

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


def run_seed() -> int:
    """The seed set by `--seed_everything` or `lightning.seed_everything`; 0 if none was set."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def seed_from(*parts: int | str) -> int:
    """A 63-bit seed that is a function of all parts and unrelated to the seed of other parts."""
    # `repr` tells 1 from "1" and keeps the parts apart. Python's own `hash` of a string differs in
    # every process.
    text = repr(parts).encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    # 63 bits fit into an int64, torch's type for integers.
    return int.from_bytes(digest, "little") >> 1


def permutation(n: int, *parts: int | str) -> Tensor:
    """A random order of `n` samples, int64 `(n,)`, as a function of the parts (seed, epoch)."""
    # On the CPU, because a GPU's generator gives another order.
    seed = seed_from("order", *parts)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator)


def weighted_draws(weights: Tensor, *parts: int | str) -> Tensor:
    """As many samples as there are weights, drawn with replacement, as a function of the parts.

    Args:
        weights: float64 `(n,)`, at least 0; the probabilities are proportional to them.
        parts: seed, epoch.

    Returns:
        int64 `(n,)`, positions of the samples.
    """
    seed = seed_from("weighted order", *parts)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(len(weights), generator=generator, dtype=torch.float64)
    # Inverse of the cumulative distribution: torch.multinomial is limited to 2**24 samples.
    cumulative = weights.double().cumsum(0)
    total = cumulative[-1]
    positions = torch.searchsorted(cumulative, draws * total, right=True)
    # Rounding may put a draw at the total itself.
    last = len(weights) - 1
    return positions.clamp(max=last)


def reseed(device: torch.device, *parts: int | str) -> None:
    """Set the global generators of the CPU and of `device` to a function of the parts.

    Dropout draws from these generators. `torch.manual_seed` would seed those of all devices, but
    takes half a millisecond, and this function runs once per training step.
    """
    seed = seed_from(*parts)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def _signed(value: int) -> int:
    """The value, taken modulo 2**64, as the int64 with the same bits."""
    value &= _MASK
    has_sign_bit = value >= 1 << 63
    if has_sign_bit:
        return value - (1 << 64)
    return value


# The constants of splitmix64 (Steele, Lea and Flood 2014).
_INCREMENT = _signed(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = _signed(0x94D049BB133111EB)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of an int64 tensor of any shape; torch's own keeps the sign bit."""
    mask = (1 << (64 - bits)) - 1
    return (x >> bits).bitwise_and_(mask)


def hashed(index: Tensor, *parts: int | str) -> Tensor:
    """Draw 63 random bits per index as a function of (parts, index): splitmix64 with a counter.

    Integer arithmetic gives the same bits on every device.

    Args:
        index: int64 of any shape, on any device.
        parts: everything else the draw depends on: seed, view, name of the quantity.

    Returns:
        int64 of `index`'s shape, values in [0, 2**63).
    """
    # int64 arithmetic wraps around, so it has the same bits as splitmix64's unsigned integers.
    stream = _signed(seed_from(*parts))
    x = index * _INCREMENT
    x.add_(stream)
    # The finalizer of splitmix64: every bit of the counter affects every bit of the result.
    x.bitwise_xor_(_shift(x, 30))
    x.mul_(_MULTIPLIER_1)
    x.bitwise_xor_(_shift(x, 27))
    x.mul_(_MULTIPLIER_2)
    x.bitwise_xor_(_shift(x, 31))
    # Drop a bit, so that the result is not negative.
    return _shift(x, 1)


def integers(index: Tensor, low: int, high: int, *parts: int | str) -> Tensor:
    """Draw an integer in [low, high] per index as a function of (parts, index).

    The draw is uniform up to a bias of (high - low + 1) / 2**63.

    Args:
        index: int64 of any shape.
        low: smallest integer.
        high: largest integer.
        parts: see `hashed`.

    Returns:
        int64 of `index`'s shape.
    """
    choices = high - low + 1
    return hashed(index, *parts).remainder_(choices).add_(low)


def uniform(index: Tensor, *parts: int | str) -> Tensor:
    """Draw a float32 in [0, 1) per index, of `index`'s shape, as a function of (parts, index)."""
    # A float32 represents 24 bits exactly; more would round some draws up to 1.
    upper_bits = _shift(hashed(index, *parts), 39)
    return upper_bits.to(torch.float32) * 2.0**-24

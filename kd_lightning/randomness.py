"""Randomness as a function, not a state: what is drawn depends on named numbers alone, never on what was drawn before.

From this follow resumed runs that equal uninterrupted ones, data that does not depend on workers or devices, and teacher
outputs that can be computed once for a view and replayed exactly.
"""

from __future__ import annotations

import hashlib
import os

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def run_seed() -> int:
    """The seed that `--seed_everything` (or `lightning.seed_everything`) set, 0 where none was set."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def seed_from(*parts: int | str) -> int:
    """A 63-bit seed that is a function of all parts and shares nothing with that of other parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permutation(n: int, *parts: int | str) -> Tensor:
    """An order of `n` samples, `(n,)` int64, as a function of the parts (seed, epoch, ...)."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed_from("order", *parts)))


def reseed(device: torch.device, *parts: int | str) -> None:
    """Set the global generators of the CPU and of `device`, from which dropout draws, to a function of the parts.

    `torch.manual_seed` does the same for all devices, but takes half a millisecond, once a step.
    """
    seed = seed_from(*parts)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def _signed(value: int) -> int:
    """The same 64 bits as torch's int64 holds them."""
    value &= _MASK
    return value - (1 << 64) if value >= 1 << 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's own keeps the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def hashed(index: Tensor, *parts: int | str) -> Tensor:
    """63 random bits for each index as a function of (parts, index): splitmix64 over a counter.

    Args:
        index: int64, any shape, on any device (integer arithmetic gives the same bits everywhere).
        parts: whatever else the draw depends on: seed, view, the name of the quantity drawn.

    Returns:
        int64 tensor of `index`'s shape, values in [0, 2**63).
    """
    x = (index * _signed(_GOLDEN)).add_(_signed(seed_from(*parts)))
    x.bitwise_xor_(_shift(x, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    x.bitwise_xor_(_shift(x, 27)).mul_(_signed(0x94D049BB133111EB))
    return _shift(x.bitwise_xor_(_shift(x, 31)), 1)


def integers(index: Tensor, low: int, high: int, *parts: int | str) -> Tensor:
    """An integer in [low, high] for each index, as a function of (parts, index).

    The remainder of a 63-bit number is uniform up to a bias of (high - low + 1) / 2**63.
    """
    return hashed(index, *parts).remainder_(high - low + 1).add_(low)


def uniform(index: Tensor, *parts: int | str) -> Tensor:
    """A float32 in [0, 1) for each index, as a function of (parts, index): the upper 24 bits of the hash."""
    return _shift(hashed(index, *parts), 39).to(torch.float32) * 2.0**-24

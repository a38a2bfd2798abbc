"""Randomness is a function of named numbers: against an independent splitmix64, and against every hidden state."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kd_lightning.randomness import (
    hashed,
    integers,
    permutation,
    run_seed,
    seed_from,
    uniform,
)

GOLDEN = 0x9E3779B97F4A7C15
M64 = 2**64


def splitmix64(state: int) -> int:
    """The output function of Steele, Lea and Flood 2014, on Python's unbounded integers."""
    z = state % M64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % M64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % M64
    return z ^ (z >> 31)


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "hashed": lambda index: hashed(index, 7, 3, "draw"),
    "integers": lambda index: integers(index, -4, 9, 7, 3, "draw"),
    "uniform": lambda index: uniform(index, 7, 3, "draw"),
}


def test_the_reference_gives_the_published_numbers() -> None:
    # Test vector that circulates with Vigna's splitmix64.c: seed 1234567, first three outputs.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix64(1234567 + i * GOLDEN) for i in (1, 2, 3)] == expected


@pytest.mark.parametrize("parts", [(), (0,), (3, -1, "jitter-y"), (2**62, "a", "b")])
def test_hashed_is_splitmix64_bit_for_bit(parts: tuple[int | str, ...]) -> None:
    index = [*range(500), 59_999, 2**31, 2**40 + 1, 2**63 - 1]
    seed = (
        int.from_bytes(
            hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little"
        )
        >> 1
    )
    expected = [splitmix64(i * GOLDEN + seed) >> 1 for i in index]
    assert hashed(torch.tensor(index), *parts).tolist() == expected


def test_seeds_are_63_bits_and_tell_their_parts_apart() -> None:
    parts: list[tuple[int | str, ...]] = [
        (),
        (0,),
        (1,),
        ("1",),
        (1, 2),
        (12,),
        (2, 1),
        ("1", 2),
        (1, "2"),
        ("1, 2",),
    ]
    seeds = [seed_from(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seeds == [seed_from(*p) for p in parts]


def test_run_seed_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_seed() == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "42")
    assert run_seed() == 42


@pytest.mark.parametrize("name", DRAWS)
def test_draws_ignore_the_global_generator_and_leave_it_alone(name: str) -> None:
    index = torch.arange(100)
    torch.manual_seed(1)
    first, follows = DRAWS[name](index), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), follows)
    assert torch.equal(DRAWS[name](index), first)


@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_does_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    whole = DRAWS[name](torch.arange(1000))
    some = permutation(1000, "some")[:37]
    assert torch.equal(DRAWS[name](some), whole[some])
    assert torch.equal(DRAWS[name](some.view(1, 37)), whole[some].view(1, 37))
    assert torch.equal(DRAWS[name](torch.tensor(5)), whole[5])


def test_permutation_is_a_function_of_its_parts() -> None:
    torch.manual_seed(1)
    first, follows = permutation(200, 3, 4), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), follows)
    assert torch.equal(permutation(200, 3, 4), first)
    assert sorted(first.tolist()) == list(range(200))
    for other in [(3, 5), (4, 4), (4, 3), (3,)]:
        assert not torch.equal(permutation(200, *other), first)


@pytest.mark.parametrize(
    "other", [(1, 0, "x"), (0, 1, "x"), (0, 0, "y")], ids=["seed", "view", "stream"]
)
def test_other_seeds_views_and_streams_are_unrelated(
    other: tuple[int | str, ...],
) -> None:
    index = torch.arange(40_000)
    a, b = uniform(index, 0, 0, "x"), uniform(index, *other)
    # Under independence the correlation has a standard deviation of 1 / sqrt(40,000) = 0.005.
    assert abs(correlation(a, b)) < 0.02
    assert (
        abs(correlation(a[1:], b[:-1])) < 0.02
    )  # nor is one the other shifted by a sample
    assert int((hashed(index, 0, 0, "x") == hashed(index, *other)).sum()) == 0


def test_neighbouring_samples_are_unrelated() -> None:
    u = uniform(torch.arange(40_000), 0)
    assert all(abs(correlation(u[lag:], u[:-lag])) < 0.02 for lag in (1, 2, 3, 10))


@pytest.mark.parametrize(("low", "high"), [(0, 4), (-2, 2), (0, 24), (0, 0)])
def test_integers_are_uniform_on_the_closed_range(low: int, high: int) -> None:
    n, bins = 100_000, high - low + 1
    drawn = integers(torch.arange(n), low, high, 11, "chi-square")
    assert drawn.dtype == torch.int64
    counts = torch.bincount(drawn - low, minlength=bins).double()
    assert len(counts) == bins
    chi_square = float(((counts - n / bins) ** 2 / (n / bins)).sum())
    # Mean bins - 1, variance 2 (bins - 1): five standard deviations above, fixed.
    assert chi_square <= bins - 1 + 5 * (2 * (bins - 1)) ** 0.5


def test_uniform_is_uniform_in_the_half_open_interval() -> None:
    n = 100_000
    u = uniform(torch.arange(n), 5, "u")
    assert u.dtype == torch.float32
    assert float(u.min()) >= 0
    assert float(u.max()) < 1
    counts = torch.histc(u, bins=50, min=0, max=1).double()
    chi_square = float(((counts - n / 50) ** 2 / (n / 50)).sum())
    assert chi_square < 49 + 5 * (2 * 49) ** 0.5


def test_uniform_takes_the_upper_24_bits() -> None:
    index = torch.arange(1000)
    expected = [(bits >> 39) / 2**24 for bits in hashed(index, 5).tolist()]
    assert uniform(index, 5).tolist() == expected

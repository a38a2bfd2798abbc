"""Mixup: whom a sample is mixed with and how much, as functions of (seed, view, index), and caches that replay it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from kd_lightning.data import DigitsDataModule, Flip, Mixing, Mixup, PadCrop
from kd_lightning.errors import UserError
from kd_lightning.models import MLP
from kd_lightning.randomness import permutation
from kd_lightning.teachers import CachedTeacher, ModelTeacher, cache_teacher
from kd_lightning.types import CLEAN, UNLABELLED, Batch


def digits(**changes: Any) -> DigitsDataModule:
    augment = [PadCrop(1), Flip(), Mixup(0.7)]
    arguments: dict[str, Any] = {
        "batch_size": 61,
        "augment": augment,
        "views": 2,
        "augmentation_seed": 3,
    } | changes
    return DigitsDataModule(**arguments)


def shares(alpha: float, n: int = 20_000, seed: int = 0, view: int = 0) -> Tensor:
    x = torch.zeros(n, 1, 1, 1)
    return Mixup(alpha).mix(x, x, torch.arange(n), seed, view)[1]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_have_the_beta_distribution(alpha: float) -> None:
    drawn = shares(alpha)
    assert (drawn.dtype, bool(((drawn >= 0) & (drawn <= 1)).all())) == (
        torch.float32,
        True,
    )
    # Between 0.01 and 0.99, where float32 tells all values apart: at alpha = 0.2 a share in 60 is 1 up to its rounding.
    points = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    found = (drawn.double()[:, None] <= points).double().mean(0).numpy()
    assert (
        abs(found - stats.beta(alpha, alpha).cdf(points)).max()
        < 1.95 / len(drawn) ** 0.5
    )  # passes 999 times in 1,000
    assert (
        abs(found - stats.beta(1.5 * alpha, 1.5 * alpha).cdf(points)).max()
        > 1.95 / len(drawn) ** 0.5
    )


def test_shares_are_drawn_anew_for_seeds_and_views() -> None:
    for other in (shares(1.0, seed=1), shares(1.0, view=1)):
        assert (
            abs(float(torch.corrcoef(torch.stack([shares(1.0), other]))[0, 1])) < 0.04
        )


def test_a_mixed_sample_is_both_by_their_shares() -> None:
    x, y, index = torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4), torch.arange(6)
    before = x.clone(), y.clone()
    mixed, share = Mixup(1.0).mix(x, y, index, 0, 0)
    for i, own in enumerate(share.tolist()):
        torch.testing.assert_close(mixed[i], own * x[i] + (1 - own) * y[i])
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_partners_are_rows_of_the_source_equally_likely() -> None:
    rows = torch.arange(0, 100, 5)
    partners = Mixup(1.0).partners(torch.arange(20_000), rows, 0, 0)
    assert set(partners.tolist()) == set(rows.tolist())
    assert stats.chisquare(torch.bincount(partners // 5).numpy()).pvalue > 1e-3


def test_a_batch_is_its_samples_and_their_partners_as_they_look_in_that_view() -> None:
    data, plain = digits(), digits(augment=[PadCrop(1), Flip()])
    batch = data.source("train").batch(torch.arange(50), view=1)
    rows = data.source("train").rows
    partners = Mixup(0.7).partners(batch.index, rows, 3, 1)
    place = torch.searchsorted(rows, partners)
    own, other = (
        plain.source("train").batch(torch.arange(50), 1),
        plain.source("train").batch(place, 1),
    )
    assert batch.partner is not None
    assert batch.share is not None
    assert torch.equal(batch.target, own.target)
    assert torch.equal(batch.partner, other.target)
    share = batch.share[:, None, None, None]
    assert isinstance(own.inputs, Tensor)
    assert isinstance(other.inputs, Tensor)
    torch.testing.assert_close(
        batch.inputs, share * own.inputs + (1 - share) * other.inputs
    )


def test_the_same_in_any_batch() -> None:
    source = digits(channels=3).source("train")
    whole = source.batch(torch.arange(len(source)), 1)
    order = permutation(len(source), 0)[:200]
    for start in range(0, 200, 33):
        rows = order[start : start + 33]
        batch = source.batch(rows, 1)
        assert isinstance(whole.inputs, Tensor)
        assert isinstance(batch.inputs, Tensor)
        assert torch.equal(batch.inputs, whole.inputs[rows])
        for name in ("partner", "share", "target"):
            assert torch.equal(getattr(batch, name), getattr(whole, name)[rows])


def test_held_out_samples_are_never_mixed_in() -> None:
    data = digits(fraction=0.3)
    source = data.source("train")
    for view in range(20):
        partners = Mixup(0.7).partners(source.rows, source.rows, 3, view)
        assert set(partners.tolist()) <= set(source.rows.tolist())
    # And the source asks for partners among its own rows: only classes 2 and 5 are mixed where only they are trained on.
    kept = digits(keep_classes=[2, 5]).source("train")
    partner = kept.batch(torch.arange(len(kept)), 0).partner
    assert partner is not None
    assert set(partner.tolist()) == {2, 5}


def test_withheld_labels_stay_withheld_in_partners() -> None:
    source = digits(label_fraction=0.5).source("train")
    batch = source.batch(torch.arange(len(source)), 0)
    assert batch.partner is not None
    for labels in (batch.target, batch.partner):
        assert 0.4 < (labels == UNLABELLED).double().mean() < 0.6


def test_clean_views_are_not_mixed() -> None:
    data = digits()
    for source, view in (
        (data.source("train"), CLEAN),
        (data.source("validation"), 1),
        (data.source("test"), CLEAN),
    ):
        batch = source.batch(torch.arange(10), view)
        assert (batch.partner, batch.share) == (None, None)


def test_mixing_comes_last_and_once() -> None:
    for augment in ([Mixup(), Flip()], [Mixup(), Mixup()]):
        with pytest.raises(UserError, match="put it last"):
            digits(augment=augment)


def test_batches_carry_partners_along() -> None:
    batch = Batch(
        torch.zeros(4, 1),
        torch.arange(4),
        torch.arange(4),
        partner=torch.arange(4) + 5,
        share=torch.arange(4) / 4,
    )
    part = batch.slice(1, 3)
    assert part.partner is not None
    assert part.share is not None
    assert (part.partner.tolist(), part.share.tolist()) == ([6, 7], [0.25, 0.5])
    moved = batch.to("meta")
    assert moved.partner is not None
    assert moved.share is not None
    assert {moved.partner.device.type, moved.share.device.type} == {"meta"}
    assert (
        Batch(torch.zeros(4, 1), torch.arange(4), torch.arange(4)).slice(1, 3).partner
        is None
    )


def teacher() -> ModelTeacher:
    torch.manual_seed(0)
    return ModelTeacher(network=MLP([16], input_shape=[1, 8, 8], num_classes=10))


@pytest.mark.parametrize(
    "augment", [[PadCrop(1), Flip()], [PadCrop(1), Flip(), Mixup(0.7)], [Mixup(1.0)]]
)
def test_a_cached_view_replays_exactly(tmp_path: Path, augment: list[Any]) -> None:
    """In batches of the shape that the cache was made with: 1,195 rows are 5 batches of 239."""
    data = digits(augment=augment, validation=0.0, batch_size=239)
    cache_teacher(teacher(), data, tmp_path / "cache", views=2)
    again = digits(augment=augment, validation=0.0, batch_size=239)
    stored, live = CachedTeacher(str(tmp_path / "cache")), teacher()
    stored.prepare(again)
    live.prepare(again)
    loader = again.train_dataloader()
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            assert torch.equal(stored(batch).logits, live(batch).logits)
            wrong = Batch(batch.inputs, batch.target, batch.index, 1 - batch.view)
            assert not torch.allclose(
                stored(wrong).logits, live(batch).logits, atol=1e-3
            )


def test_the_rows_are_in_the_fingerprint_where_samples_are_mixed_and_only_there(
    tmp_path: Path,
) -> None:
    mixed, plain = [Mixup()], [Flip()]
    assert "rows" not in digits(augment=plain).fingerprint()
    prints = {
        json.dumps(digits(augment=mixed, **o).fingerprint())
        for o in ({}, {"fraction": 0.5}, {"split_seed": 1})
    }
    assert len(prints) == 3
    assert (
        json.dumps(digits(augment=mixed, label_fraction=0.5).fingerprint()) in prints
    )  # labels change no input
    cache_teacher(teacher(), digits(augment=mixed), tmp_path / "cache", views=2)
    with pytest.raises(UserError, match="rows is"):
        CachedTeacher(str(tmp_path / "cache")).prepare(
            digits(augment=mixed, fraction=0.5)
        )


def test_other_ways_of_mixing_plug_in() -> None:
    class Average(Mixing):
        def mix(
            self, inputs: Tensor, others: Tensor, index: Tensor, seed: int, view: int
        ) -> tuple[Tensor, Tensor]:
            return (inputs + others) / 2, torch.full((len(index),), 0.5)

    batch = digits(augment=[Average()]).source("train").batch(torch.arange(8), 0)
    assert batch.share is not None
    assert batch.share.tolist() == [0.5] * 8
    assert (
        math.isfinite(float(batch.inputs.sum()))
        if isinstance(batch.inputs, Tensor)
        else False
    )

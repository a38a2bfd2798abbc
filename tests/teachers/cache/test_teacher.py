"""Cached teachers replay the live one, and refuse what they were not made for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from kd_lightning.data import DigitsDataModule, Jitter
from kd_lightning.errors import UserError
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.losses.kd import KD
from kd_lightning.losses.logitmse import LogitMSE
from kd_lightning.models import MLP
from kd_lightning.sparse import TopKOutput
from kd_lightning.teachers import (
    CachedTeacher,
    EnsembleTeacher,
    ModelTeacher,
    Teacher,
    cache_teacher,
)
from kd_lightning.training import DistillationModule
from kd_lightning.types import Output


def digits(**changes: Any) -> DigitsDataModule:
    arguments: dict[str, Any] = {
        "batch_size": 61,
        "augment": [Jitter(1)],
        "views": 2,
        "augmentation_seed": 3,
    } | changes
    return DigitsDataModule(**arguments)


def network(seed: int, hidden: int = 24) -> MLP:
    torch.manual_seed(seed)
    return MLP([hidden], input_shape=[1, 8, 8], num_classes=10)


def live(seed: int = 0) -> ModelTeacher:
    return ModelTeacher(network=network(seed), layers={"penultimate": "body.2"})


def cached(
    folder: Path, data: DigitsDataModule, teacher: Teacher | None = None, **options: Any
) -> CachedTeacher:
    cache_teacher(teacher or live(), data, folder, views=2, **options)
    ready = CachedTeacher(str(folder))
    ready.prepare(data)
    return ready


def complaint(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def train(
    teacher: Teacher, data: DigitsDataModule, epochs: int = 3
) -> dict[str, torch.Tensor]:
    pl.seed_everything(5)
    losses = {"ce": CrossEntropy(weight=0.1), "kd": KD(weight=0.9, temperature=3.0)}
    module = DistillationModule(network(9, 8), teacher, losses)
    off: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
    }
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        enable_model_summary=False,
        use_distributed_sampler=False,
        **off,
    )
    trainer.fit(module, datamodule=data)
    trainer.test(module, datamodule=data, verbose=False)
    return module.net.state_dict()


def test_a_full_cache_trains_the_same_student_bit_for_bit(tmp_path: Path) -> None:
    """Every batch has the shape that the cache was made with: 1,195 rows are 5 batches of 239."""
    data = digits(validation=0.0, batch_size=239)
    assert len(data.source("train")) % 239 == 0
    with_live = train(live(), data)
    with_cache = train(cached(tmp_path / "cache", data), data)
    assert all(torch.equal(with_live[name], with_cache[name]) for name in with_live)


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_outputs_are_the_live_teachers_at_every_temperature(
    tmp_path: Path, mean: Any
) -> None:
    data = digits()
    ensemble = EnsembleTeacher([live(1), live(2)], mean=mean, weights=[1.0, 3.0])
    stored = cached(tmp_path / "cache", data, ensemble)
    loader = data.train_dataloader()
    for epoch in range(3):
        loader.set_epoch(epoch)
        for batch in loader:
            for temperature in (1.0, 4.0):
                expected, got = (
                    ensemble(batch).log_probs(temperature),
                    stored(batch).log_probs(temperature),
                )
                assert torch.allclose(expected, got, atol=1e-5, rtol=0)
    for batch in [
        next(iter(data.loader("validation"))),
        next(iter(data.test_dataloader())),
    ]:
        assert torch.allclose(
            ensemble(batch).logits, stored(batch).logits, atol=1e-5, rtol=0
        )


def test_shards_that_end_within_a_split_or_beyond_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without augmentation training and validation rows are one table: a shard may hold some of both, or of one alone."""
    # Shards become as small as possible: one batch.
    monkeypatch.setattr("kd_lightning.teachers.cache.writer.SHARD_BYTES", 1)
    data = digits(augment=[], views=None)
    teacher = live()
    stored = cached(tmp_path / "cache", data, teacher)
    assert len(list((tmp_path / "cache").glob("train*.bin"))) == -(-1195 // 61)
    for stage in ("train", "validation", "test"):
        for batch in data.loader(stage):
            assert torch.allclose(
                teacher(batch).logits, stored(batch).logits, atol=1e-5, rtol=0
            )


def test_another_view_is_another_target(tmp_path: Path) -> None:
    data = digits()
    stored, loader = cached(tmp_path / "cache", data), data.train_dataloader()
    batch = next(iter(loader))
    first = stored(batch).logits
    batch.view = 1
    assert not torch.allclose(first, stored(batch).logits, atol=1e-3)


def test_half_precision_states_its_error(tmp_path: Path) -> None:
    data = digits()
    stored, batch = (
        cached(tmp_path / "cache", data, dtype="fp16"),
        next(iter(data.train_dataloader())),
    )
    expected = live()
    expected.prepare(data)
    logits = expected(batch).logits
    assert stored(batch).logits.dtype == torch.float16
    assert (
        (stored(batch).logits.float() - logits).abs() <= logits.abs() * 2.0**-11 + 1e-5
    ).all()


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_top_k_cache_knows_its_classes_and_the_rest(
    tmp_path: Path, dtype: str
) -> None:
    data = digits()
    stored = cached(tmp_path / "cache", data, top_k=3, dtype=dtype, temperatures=[4.0])
    exact = live()
    exact.prepare(data)
    tolerance = 1e-5 if dtype == "fp32" else 2e-3
    for batch in (
        next(iter(data.train_dataloader())),
        next(iter(data.loader("validation"))),
    ):
        teacher = exact(batch)
        top = stored(batch)
        assert isinstance(top, TopKOutput)
        expected = teacher.logits.topk(3)
        assert torch.equal(top.indices, expected.indices)
        assert torch.allclose(top.values.float(), expected.values, atol=tolerance)
        for temperature in (1.0, 4.0):
            value = KD(temperature)(teacher, top, batch).item()
            assert abs(value) < tolerance


def test_a_temperature_that_was_not_cached_is_refused_before_training(
    tmp_path: Path,
) -> None:
    data = digits()
    cache_teacher(
        live(), data, tmp_path / "cache", views=2, top_k=3, temperatures=[4.0]
    )
    teacher = CachedTeacher(str(tmp_path / "cache"))
    module = DistillationModule(network(1), teacher, {"kd": KD(temperature=3.0)})
    message = complaint(lambda: module.attach(data))
    assert "holds no temperature 3" in message
    assert "--top-k 3 --dtype fp32 --temperatures 1 3 4" in message


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_temperatures_are_refused(
    tmp_path: Path, temperature: float
) -> None:
    def act() -> None:
        cache_teacher(
            live(), digits(), tmp_path / "c", top_k=3, temperatures=[temperature]
        )

    assert "must be finite and greater than 0" in complaint(act)


def test_a_full_cache_serves_every_temperature(tmp_path: Path) -> None:
    cached(tmp_path / "cache", digits()).require_temperatures((0.123, 17.0))


def test_a_top_k_cache_serves_smaller_ones(tmp_path: Path) -> None:
    data = digits()
    cache_teacher(live(), data, tmp_path / "c5", views=2, top_k=5, temperatures=[4.0])
    cache_teacher(live(), data, tmp_path / "c2", views=2, top_k=2, temperatures=[4.0])
    batch = data.source("train").batch(torch.arange(6), 1)
    student = Output(torch.randn(6, 10))
    values = []
    for teacher in (
        CachedTeacher(str(tmp_path / "c5"), top_k=2),
        CachedTeacher(str(tmp_path / "c2")),
        CachedTeacher(str(tmp_path / "c2"), rest="none"),
    ):
        teacher.prepare(data)
        values.append(KD(4.0)(student, teacher(batch), batch))
    assert torch.allclose(values[0], values[1])
    assert not torch.allclose(values[1], values[2])


@pytest.mark.parametrize(
    ("top_k", "options", "message"),
    [
        (3, {"top_k": 4}, "top_k must be from 1 to the 3 classes that the cache"),
        (3, {"top_k": 0}, "top_k must be from 1 to the 3 classes that the cache"),
        (3, {"rest": "all"}, "rest must be cell or none"),
        (None, {"top_k": 3}, "holds all classes; model.teacher.top_k and rest"),
        (None, {"rest": "none"}, "holds all classes; model.teacher.top_k and rest"),
    ],
)
def test_options_that_a_cache_cannot_serve(
    tmp_path: Path, top_k: int | None, options: dict[str, Any], message: str
) -> None:
    data = digits()
    cache_teacher(live(), data, tmp_path / "cache", views=2, top_k=top_k)
    teacher = CachedTeacher(str(tmp_path / "cache"), **options)
    assert message in complaint(lambda: teacher.prepare(data))


def test_a_mean_of_top_k_caches_is_refused(tmp_path: Path) -> None:
    data = digits()
    cache_teacher(live(), data, tmp_path / "cache", views=2, top_k=3)
    ensemble = EnsembleTeacher([CachedTeacher(str(tmp_path / "cache")), live()])
    assert "a mean needs every logit" in complaint(lambda: ensemble.prepare(data))


def test_a_loss_that_needs_every_logit_refuses_top_k(tmp_path: Path) -> None:
    data = digits()
    cache_teacher(live(), data, tmp_path / "cache", views=2, top_k=3)
    module = DistillationModule(
        network(1), CachedTeacher(str(tmp_path / "cache")), {"logitmse": LogitMSE()}
    )
    assert "needs every logit" in complaint(lambda: module.attach(data))


def test_features_are_cached_on_request(tmp_path: Path) -> None:
    data = digits()
    stored = cached(tmp_path / "cache", data, features=("penultimate",))
    stored.tap({"penultimate"})
    teacher = live()
    teacher.prepare(data)
    teacher.tap({"penultimate"})
    batch = next(iter(data.train_dataloader()))
    assert torch.allclose(
        stored(batch).features["penultimate"],
        teacher(batch).features["penultimate"],
        atol=1e-5,
    )
    assert "'stage1'" in complaint(lambda: stored.tap({"stage1"}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"augment": [Jitter(2)]}, "augment"),
        ({"augmentation_seed": 4}, "augmentation_seed"),
        ({"channels": 3}, "channels"),
        ({"views": 3}, "views"),
        ({"views": None}, "views"),
    ],
)
def test_other_data_is_refused(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    cache_teacher(live(), digits(), tmp_path / "cache", views=2)
    assert named in complaint(
        lambda: CachedTeacher(str(tmp_path / "cache")).prepare(digits(**changes))
    )


def test_another_teacher_is_refused(tmp_path: Path) -> None:
    cache_teacher(live(), digits(), tmp_path / "cache", views=2)
    assert "another teacher" in complaint(
        lambda: CachedTeacher(str(tmp_path / "cache"), sha256=["0"]).prepare(digits())
    )
    assert "holds another cache" in complaint(
        lambda: cache_teacher(live(7), digits(), tmp_path / "cache", views=2)
    )


def test_a_changed_teacher_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pt"
    torch.save(network(0).state_dict(), path)
    cache_teacher(
        ModelTeacher(str(path), network=network(1)),
        digits(),
        tmp_path / "cache",
        views=2,
    )
    torch.save(network(2).state_dict(), path)
    assert "has changed" in complaint(
        lambda: CachedTeacher(str(tmp_path / "cache")).prepare(digits())
    )


def test_validation_rows_never_meet_training_targets(tmp_path: Path) -> None:
    """The planted fault: a held-out sample asked for in a training view, where the cache holds others' targets."""
    data = digits()
    stored = cached(tmp_path / "cache", data)
    batch = next(iter(data.loader("validation")))
    batch.view = 0
    assert "holds no output for row" in complaint(lambda: stored(batch))
    batch.view = 5
    assert "holds nothing for the train split in view 5" in complaint(
        lambda: stored(batch)
    )


def test_one_cache_serves_every_subset(tmp_path: Path) -> None:
    stored = cached(tmp_path / "cache", digits())
    subset = digits(fraction=0.2, drop_classes=[3])
    teacher = live()
    teacher.prepare(subset)
    stored.prepare(subset)
    batch = next(iter(subset.train_dataloader()))
    assert torch.allclose(stored(batch).logits, teacher(batch).logits, atol=1e-5)
    everything = digits(validation=0.0)
    assert any(
        "holds no output for row" in m
        for m in [complaint(lambda: [stored(b) for b in everything.train_dataloader()])]
    )


def test_an_ensemble_in_top_k_is_refused(tmp_path: Path) -> None:
    assert "--top-k cannot hold" in complaint(
        lambda: cache_teacher(
            EnsembleTeacher([live()]), digits(), tmp_path / "c", top_k=2
        )
    )
    assert "--top-k must be" in complaint(
        lambda: cache_teacher(live(), digits(), tmp_path / "d", top_k=10)
    )


def test_the_manifest_holds_builtins_and_no_weights(tmp_path: Path) -> None:
    cached(tmp_path / "cache", digits())
    content = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert set(content) == {
        "version",
        "fingerprint",
        "settings",
        "columns",
        "tables",
        "sha256",
    }
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {
        ".json",
        ".npy",
        ".bin",
    }

"""The image datamodule on real digits: what is served, which rows take part, and what is said of them."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_lightning.data import BatchLoader, DigitsDataModule, ImageSource, Jitter
from kd_lightning.data.images import digits
from kd_lightning.errors import UserError
from kd_lightning.randomness import hashed
from kd_lightning.spec import Spec
from kd_lightning.types import CLEAN, UNLABELLED


def rows(stage: str = "train", **options: Any) -> set[int]:
    """The rows of the source split that take part."""
    return set(DigitsDataModule(**options).source(stage).rows.tolist())


def whole(source: ImageSource, view: int = CLEAN) -> Tensor:
    """The inputs of a source."""
    inputs = source.batch(torch.arange(len(source)), view).inputs
    assert isinstance(inputs, Tensor)
    return inputs


def near(counts: Tensor, share: float, everything: Tensor) -> bool:
    """That every class counts its share, up to rounding, and none is lost."""
    return bool(((counts - share * everything).abs() < 1).all()) and bool(
        ((counts > 0) == (everything * share > 0)).all()
    )


def classes(stage: str = "train", **options: Any) -> Tensor:
    """The number of samples of each class, (10,), without those that are served unlabelled."""
    source = DigitsDataModule(**options).source(stage)
    target = source.batch(torch.arange(len(source)), CLEAN).target
    return torch.bincount(target[target != UNLABELLED], minlength=10).double()


def test_training_inputs_are_normalized() -> None:
    inputs = whole(DigitsDataModule(validation=0).source("train"))
    assert inputs.dtype == torch.float32
    assert abs(float(inputs.mean())) < 1e-3
    assert abs(float(inputs.std()) - 1) < 1e-3


@pytest.mark.parametrize(
    ("stage", "split"), [("train", "train"), ("validation", "train"), ("test", "test")]
)
def test_index_is_the_row_in_the_unfiltered_split(stage: str, split: str) -> None:
    data = DigitsDataModule(
        batch_size=64, fraction=0.5, drop_classes=[3], augment=[Jitter(1)], views=1
    )
    loaders = {
        "train": data.train_dataloader,
        "validation": data.val_dataloader,
        "test": data.test_dataloader,
    }
    loader = loaders[stage]()
    assert isinstance(loader, BatchLoader)
    loader.views = 0  # the clean view of the training samples
    raw = data.raw(split)
    for batch in loader:
        pixels = raw.images[batch.index].double().numpy() / 255
        assert isinstance(batch.inputs, Tensor)
        np.testing.assert_allclose(
            batch.inputs.numpy(), (pixels - data.mean[0]) / data.std[0], atol=1e-5
        )
        assert torch.equal(batch.target, raw.target[batch.index])
        assert (batch.split, batch.view) == (split, CLEAN)


def test_only_training_is_augmented_and_shuffled() -> None:
    data = DigitsDataModule(augment=[Jitter(1)], views=2, augmentation_seed=5)
    train, validation = data.train_dataloader(), data.val_dataloader()
    assert isinstance(validation, BatchLoader)
    for epoch in range(4):
        for loader in (
            train,
            validation,
            data.test_dataloader(),
            data.predict_dataloader(),
        ):
            loader.set_epoch(epoch)
            first = next(iter(loader))
            assert first.view == (epoch % 2 if loader is train else CLEAN)
            assert (first.index.sort().values.tolist() == first.index.tolist()) == (
                loader is not train
            )
    held_out = data.source("validation")
    assert torch.equal(whole(held_out, view=1), whole(held_out))
    batch = data.source("train").batch(torch.arange(100), view=1)
    jittered = Jitter(1)(data.raw("train").images[batch.index], batch.index, 5, 1)
    assert isinstance(batch.inputs, Tensor)
    expected = (jittered.double().numpy() / 255 - data.mean[0]) / data.std[0]
    np.testing.assert_allclose(batch.inputs.numpy(), expected, atol=1e-5)
    assert (
        DigitsDataModule(views=2).train_dataloader().view == CLEAN
    )  # without augmentation every view is the clean one


def test_grey_images_are_repeated_for_networks_made_for_colour() -> None:
    data = DigitsDataModule(channels=3)
    grey, colour = whole(DigitsDataModule().source("test")), whole(data.source("test"))
    assert colour.shape == (602, 3, 8, 8)
    assert all(torch.equal(colour[:, [c]], grey) for c in range(3))
    assert data.spec.input_shape == (3, 8, 8)


def test_the_validation_split_is_stratified() -> None:
    held_out, left, everything = (
        classes("validation"),
        classes("train"),
        classes(validation=0),
    )
    assert near(held_out, 0.1, everything)
    assert torch.equal(held_out + left, everything)
    assert rows("validation").isdisjoint(rows("train"))


def test_run_seeds_share_the_split_but_neither_order_nor_augmentation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    splits, orders, seeds = set(), set(), set()
    for seed in ("1", "2"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        data = DigitsDataModule(fraction=0.5)
        splits.add(
            (
                frozenset(rows("validation")),
                frozenset(data.source("train").rows.tolist()),
            )
        )
        orders.add(tuple(next(iter(data.train_dataloader())).index.tolist()))
        seeds.add(
            (
                data.augmentation_seed,
                DigitsDataModule(augmentation_seed=9).augmentation_seed,
            )
        )
    assert (len(splits), len(orders), seeds) == (1, 2, {(1, 9), (2, 9)})
    assert rows("validation", split_seed=1) != rows("validation")
    # A fresh draw of a tenth shares about a tenth with the first.
    assert len(rows("validation", split_seed=1) & rows("validation")) < 123 / 3


def test_without_validation_everything_is_trained_on() -> None:
    data = DigitsDataModule(validation=0)
    assert data.val_dataloader() == []
    assert rows(validation=0) == set(range(1195))
    assert data.spec.samples == {"train": 1195, "validation": 0, "test": 602}


@pytest.mark.parametrize(
    "options", [{}, {"drop_classes": [0, 7]}, {"parts": 2, "part": 1}]
)
def test_fractions_are_stratified_and_nested(options: dict[str, Any]) -> None:
    fractions = (0.01, 0.1, 0.5, 1.0)
    nested = [rows(fraction=fraction, **options) for fraction in fractions]
    assert nested[0] < nested[1] < nested[2] < nested[3] == rows(**options)
    assert all(
        near(classes(fraction=fraction, **options), fraction, classes(**options))
        for fraction in fractions
    )


def test_parts_are_disjoint_stratified_and_together_everything() -> None:
    parts = [rows(parts=3, part=part) for part in range(3)]
    assert sum(len(part) for part in parts) == len(set.union(*parts))
    assert set.union(*parts) == rows()
    counts = torch.stack(
        [classes(parts=3, part=part, validation=0) for part in range(3)]
    )
    assert float((counts.max(0).values - counts.min(0).values).max()) <= 1


@pytest.mark.parametrize("options", [{"keep_classes": [3, 8]}, {"drop_classes": [3]}])
def test_classes_are_kept_and_dropped_in_training_alone(
    options: dict[str, Any],
) -> None:
    kept = set(options.get("keep_classes", range(10))) - set(
        options.get("drop_classes", [])
    )
    everything = classes()
    assert torch.equal(
        classes(**options),
        everything * torch.tensor([float(c in kept) for c in range(10)]),
    )
    for stage in ("validation", "test"):
        assert rows(stage, **options) == rows(stage)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_labels_are_withheld_in_training_alone(share: float) -> None:
    data = DigitsDataModule(label_fraction=share)
    target = data.source("train").batch(torch.arange(1072), CLEAN).target
    labelled = target != UNLABELLED
    assert set(data.source("train").rows.tolist()) == rows()
    assert int(data.raw("train").target.min()) == 0  # the raw labels stay
    assert torch.equal(
        target[labelled], data.raw("train").target[data.source("train").rows][labelled]
    )
    assert near(classes(label_fraction=share), share, classes())
    for stage in ("validation", "test"):
        assert torch.equal(classes(stage, label_fraction=share), classes(stage))


def test_the_spec_is_made_of_builtins() -> None:
    spec = DigitsDataModule(fraction=0.1).spec
    plain = spec.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert Spec.from_dict(plain) == spec
    assert (spec.data, spec.input_shape, spec.num_classes) == ("digits", (1, 8, 8), 10)
    assert spec.samples["train"] == len(rows(fraction=0.1))


def test_two_processes_share_the_training_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = []
    for rank in (0, 1):
        data = DigitsDataModule(batch_size=64)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        monkeypatch.setattr(
            data,
            "trainer",
            SimpleNamespace(
                global_rank=rank,
                world_size=2,
                strategy=strategy,
                accumulate_grad_batches=1,
            ),
        )
        served.append(next(iter(data.train_dataloader())).index.tolist())
    alone = next(
        iter(DigitsDataModule(batch_size=128).train_dataloader())
    ).index.tolist()
    assert [len(part) for part in served] == [64, 64]
    assert sorted(served[0] + served[1]) == sorted(alone)


class Darker(DigitsDataModule):
    mean = (0.5,)


def test_the_fingerprint_changes_with_whatever_a_teacher_sees(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variants = [
        DigitsDataModule(),
        Darker(),
        DigitsDataModule(channels=3),
        DigitsDataModule(augment=[Jitter(1)]),
        DigitsDataModule(augment=[Jitter(2)]),
        DigitsDataModule(augment=[Jitter(1), Jitter(1)]),
        DigitsDataModule(augment=[Jitter(1)], augmentation_seed=1),
    ]
    prints = [json.dumps(data.fingerprint()) for data in variants]
    assert len(set(prints)) == len(prints)
    # What only chooses rows changes no teacher output: one cache serves every subset and every run seed.
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    subset = DigitsDataModule(
        fraction=0.1,
        label_fraction=0.5,
        keep_classes=[1, 2],
        split_seed=3,
        validation=0,
        batch_size=7,
    )
    assert json.dumps(subset.fingerprint()) == prints[0]
    assert json.dumps(DigitsDataModule(augment=[Jitter(1)]).fingerprint()) not in prints
    subset.raw("train").images[5, 0, 0, 0] += 1
    assert json.dumps(subset.fingerprint()) != prints[0]


def test_the_test_split_of_the_digits_never_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sklearn.datasets import load_digits

    target = torch.from_numpy(load_digits().target)
    key = hashed(torch.arange(1797), "digits-test")
    expected = []
    for c in range(10):  # the third of each class with the smallest keys, rounded up
        members = (target == c).nonzero().flatten().tolist()
        expected += sorted(members, key=lambda row: int(key[row]))[
            : math.ceil(len(members) / 3)
        ]
    pixels = (
        torch.from_numpy(load_digits().images[sorted(expected)])
        .mul(255 / 16)
        .round()[:, None]
    )
    for seed in ("0", "5"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        data = DigitsDataModule(split_seed=int(seed), fraction=0.5)
        test, train = data.raw("test"), data.raw("train")
        assert torch.equal(test.target, target[sorted(expected)])
        assert torch.equal(test.images.double(), pixels)
        assert (len(test.target), len(train.target)) == (602, 1797 - 602)
        contents = [
            {image.numpy().tobytes() for image in split.images}
            for split in (test, train)
        ]
        assert contents[0].isdisjoint(contents[1])


def test_the_digits_do_not_depend_on_where_scikit_learn_keeps_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = digits._digits()
    monkeypatch.setattr(digits, "FILE", "sklearn/elsewhere.csv.gz")
    assert all(
        torch.equal(a, b)
        for a, b in zip(known, digits._digits.__wrapped__(), strict=True)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, r"data.fraction must be a fraction in \(0, 1\]"),
        ({"fraction": 1.5}, r"data.fraction must be a fraction in \(0, 1\]"),
        (
            {"label_fraction": -0.1},
            r"data.label_fraction must be a fraction in \[0, 1\]",
        ),
        (
            {"label_fraction": 1.1},
            r"data.label_fraction must be a fraction in \[0, 1\]",
        ),
        ({"validation": 1.0}, r"data.validation must be a fraction in \[0, 1\)"),
        ({"validation": -0.1}, r"data.validation must be a fraction in \[0, 1\)"),
        (
            {"batch_size": 0},
            "data.batch_size and data.eval_batch_size must be at least 1",
        ),
        (
            {"eval_batch_size": 0},
            "data.batch_size and data.eval_batch_size must be at least 1",
        ),
        (
            {"parts": 2, "part": 2},
            "data.part must be in 0 to data.parts - 1 = 1, got 2",
        ),
        ({"part": -1}, "data.part must be in 0"),
        ({"parts": 0}, "data.part must be in 0"),
        ({"views": 0}, "data.views must be at least 1"),
        (
            {"keep_classes": [3, 10]},
            "data.keep_classes: no such class 10; the classes are 0 to 9",
        ),
        ({"drop_classes": [-1]}, "data.drop_classes: no such class -1"),
        ({"keep_classes": [3], "drop_classes": [3]}, "no training sample is left"),
        ({"keep_classes": []}, "no training sample is left"),
    ],
)
def test_mistakes_get_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        DigitsDataModule(**options).source("train")
    assert "\n" not in str(caught.value)

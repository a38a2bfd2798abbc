"""A specialist's share of the data: whose samples, under which labels, and how often."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.data import (
    BatchLoader,
    DigitsDataModule,
    Jitter,
    SpokenDigitsDataModule,
)
from kd_lightning.data.source import Source
from kd_lightning.errors import UserError
from kd_lightning.specialists import SpecialistDataModule, SpecialistSource
from kd_lightning.types import CLEAN, UNLABELLED, Batch
from tests.data.speech.spoken import spoken_digits
from tests.specialists import small as files
from tests.training.small import complaint


@pytest.fixture(scope="module")
def generalist(tmp_path_factory: pytest.TempPathFactory) -> str:
    return files.generalist(tmp_path_factory.mktemp("generalist"))


def made(
    generalist: str, specialist: int = 0, inner: Any = None, **options: Any
) -> SpecialistDataModule:
    data = inner or DigitsDataModule(batch_size=64)
    arguments: dict[str, Any] = {"specialists": 3, "classes_each": 4} | options
    return SpecialistDataModule(data, generalist, specialist=specialist, **arguments)


def epoch(data: SpecialistDataModule, number: int) -> list[Batch]:
    loader = data.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(number)
    return list(loader)


def joined(batches: list[Batch], name: str) -> Tensor:
    return torch.cat([getattr(batch, name) for batch in batches])


def test_the_spec(generalist: str) -> None:
    for number in range(3):
        data = made(generalist, number)
        ids, whole = data.class_ids, DigitsDataModule()
        about = data.spec.specialist
        assert about is not None
        assert (
            about["class_ids"] == ids == made(generalist, 2 - number).clusters[number]
        )
        assert data.spec.classes == (*(str(at) for at in ids), "other")
        assert data.spec.num_classes == 5
        source = whole.source("train")
        own = int(torch.isin(source.target[source.rows], torch.tensor(ids)).sum())
        assert data.spec.samples["train"] == 2 * own == len(data.source("train"))
        assert data.spec.samples["test"] == 602
        assert about["oversampling"] == pytest.approx((len(source) - own) / own)
        for name in ("input_shape", "mean", "std", "source_samples"):
            assert getattr(data.spec, name) == getattr(whole.spec, name)


@pytest.mark.parametrize("stage", ["train", "validation", "test"])
def test_labels_are_the_classes_or_the_dustbin(generalist: str, stage: str) -> None:
    data = made(generalist, 1)
    raw = DigitsDataModule().raw("test" if stage == "test" else "train").target
    batches = list(data.loader(stage))
    index, target = joined(batches, "index"), joined(batches, "target")
    ids = data.class_ids
    assert target.tolist() == [
        ids.index(label) if label in ids else 4 for label in raw[index].tolist()
    ]
    source = data.source(stage)
    assert torch.equal(
        source.target[source.rows],
        source.batch(torch.arange(len(source)), CLEAN).target,
    )
    if stage != "train":
        assert sorted(index.tolist()) == sorted(
            data.data.source(stage).rows.tolist()
        )  # all samples, each once


def test_half_are_its_own_and_half_are_drawn_from_the_rest(generalist: str) -> None:
    data = made(generalist)
    inner = data.data.source("train")
    own = inner.rows[torch.isin(inner.target[inner.rows], torch.tensor(data.class_ids))]
    others = set(inner.rows.tolist()) - set(own.tolist())
    drawn = []
    for number in range(3):
        index = joined(epoch(data, number), "index").tolist()
        rest = [at for at in index if at in others]
        assert len(index) == len(set(index)) == 2 * len(own)
        assert sorted(set(index) - set(rest)) == sorted(own.tolist())
        assert len(rest) == len(own)
        drawn.append(set(rest))
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]


def test_an_epoch_is_a_function_of_its_number_and_of_the_seed(
    generalist: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = joined(epoch(made(generalist), 3), "index")
    again = made(generalist)
    epoch(again, 0)  # what was served before does not matter
    torch.manual_seed(11)
    assert torch.equal(joined(epoch(again, 3), "index"), first)
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    other = joined(epoch(made(generalist), 3), "index")
    assert set(other.tolist()) != set(first.tolist())


def test_few_others_are_drawn_again(generalist: str) -> None:
    data = made(
        generalist, inner=DigitsDataModule(batch_size=64, fraction=0.2), classes_each=8
    )
    index = joined(epoch(data, 0), "index")
    _, counts = index.unique(return_counts=True)
    about = data.spec.specialist
    assert about is not None
    assert about["oversampling"] < 0.5
    assert counts.max() >= 3
    assert (joined(epoch(data, 0), "target") == 8).double().mean() == 0.5


def test_inputs_are_those_of_the_data(generalist: str) -> None:
    """Augmentation, views and batch size go through."""
    data = made(
        generalist, batch_size=50, augment=[Jitter(1)], inner=DigitsDataModule(views=2)
    )
    batch = epoch(data, 3)[0]
    assert len(batch) == 50
    assert batch.view == 1
    inner = data.data.source("train")
    position = {row: at for at, row in enumerate(inner.rows.tolist())}
    expected = inner.batch(
        torch.tensor([position[row] for row in batch.index.tolist()]), 1
    )
    assert isinstance(batch.inputs, Tensor)
    assert isinstance(expected.inputs, Tensor)
    assert torch.equal(batch.inputs, expected.inputs)
    clean = inner.batch(torch.arange(50), CLEAN).inputs
    assert isinstance(clean, Tensor)
    assert not torch.equal(batch.inputs, clean)
    assert data.fingerprint()["augment"] == [{"name": "Jitter", "pixels": 1}]


def test_augmentation_that_the_data_cannot_do_is_refused(
    generalist: str, tmp_path: Path
) -> None:
    spoken_digits(tmp_path, takes=11)
    said = complaint(
        lambda: made(
            generalist, augment=[Jitter(1)], inner=SpokenDigitsDataModule(str(tmp_path))
        )
    )
    assert said == "data.augment: SpokenDigitsDataModule has no augmentation of images"


def test_what_is_unlabelled_is_on_neither_side(generalist: str) -> None:
    data = made(generalist, inner=DigitsDataModule(batch_size=64, label_fraction=0.3))
    assert UNLABELLED not in joined(epoch(data, 0), "target")
    assert len(data.source("train")) < 0.5 * len(made(generalist).source("train"))


def test_two_processes_share_an_epoch(generalist: str) -> None:
    def share(rank: int, processes: int) -> Tensor:
        data = made(generalist, batch_size=64 // processes)
        device = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=processes,
            strategy=device,
            accumulate_grad_batches=1,
        )  # type: ignore[assignment]
        return joined(
            [batch for batch in epoch(data, 2) if not batch.placeholder], "index"
        )

    together = torch.cat([share(0, 2), share(1, 2)])
    assert sorted(together.tolist()) == sorted(share(0, 1).tolist())


def test_a_loader_of_another_kind(generalist: str) -> None:
    """One that asks its source for the length of each sample, as that of texts does."""

    class Sized(DigitsDataModule):
        def loader(self, stage: str) -> BatchLoader:
            loader = super().loader(stage)
            loader.source = Lengthy(loader.source)
            return loader

    class Lengthy(Source):
        def __init__(self, source: Source) -> None:
            self.source = source
            self.rows = source.rows
            self.target = source.target
            self.split = source.split

        def lengths(self, view: int = CLEAN) -> Tensor:
            return 10 * torch.arange(len(self.source))

        def batch(self, rows: Tensor, view: int) -> Batch:
            return self.source.batch(rows, view)

    loader = made(generalist, inner=Sized()).train_dataloader()
    source = loader.source
    assert isinstance(source, SpecialistSource)
    lengths = source.lengths(CLEAN)
    assert lengths is not None
    assert torch.equal(lengths, 10 * source.positions)


def test_what_cannot_be(generalist: str, tmp_path: Path) -> None:
    assert (
        "data.specialist must be in 0 to data.specialists - 1 = 2, got 3"
        in complaint(lambda: made(generalist, 3))
    )
    assert "data.classes_each must be 1 to 8" in complaint(
        lambda: made(generalist, classes_each=9).spec
    )
    assert "there is no file" in complaint(
        lambda: made(str(tmp_path / "none.ckpt")).spec
    )
    bare = tmp_path / "bare.pt"
    torch.save({"weight": torch.zeros(2)}, bare)
    assert "does not contain a description of its network" in complaint(
        lambda: made(str(bare)).spec
    )


def test_a_class_without_samples(
    generalist: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for keep, whose in (([5, 6], "of its own classes"), ([0, 1], "of other classes")):
        data = made(generalist, inner=DigitsDataModule(keep_classes=keep))
        monkeypatch.setitem(data.__dict__, "clusters", [[0, 1]])
        message = complaint(lambda data=data: data.spec)  # type: ignore[misc]
        assert f"specialist 0 has no labelled training sample {whose}" in message


def test_a_name_that_is_taken(generalist: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = complaint(lambda: made(generalist, dustbin="7"))
    assert (
        message
        == "the data already has a class called '7'; name the dustbin with --data.dustbin=NAME"
    )
    assert made(generalist, dustbin="any other").spec.classes[-1] == "any other"


def test_a_generalist_of_other_classes(tmp_path: Path) -> None:
    spec = DigitsDataModule().spec
    fewer = files.save(
        tmp_path / "fewer.ckpt",
        replace(spec, num_classes=9, classes=spec.classes[:9]),
        seed=0,
    )
    assert (
        f"the generalist {fewer} knows 9 classes, the data digits has 10"
        in complaint(lambda: made(fewer).spec)
    )
    turned = files.save(
        tmp_path / "turned.ckpt", replace(spec, classes=spec.classes[::-1]), seed=0
    )
    assert "calls class 0 '9', the data digits calls it '0'" in complaint(
        lambda: made(turned).spec
    )


def test_balanced_draws_are_refused(generalist: str) -> None:
    data = made(generalist, inner=DigitsDataModule(batch_size=64, balanced=True))
    with pytest.raises(UserError, match="a specialist has a draw of its own"):
        data.loader("train")

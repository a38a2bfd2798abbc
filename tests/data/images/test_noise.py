"""Noise as a function of seed, epoch and row, and real images for the test alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kd_lightning.data import DigitsDataModule, MNISTDataModule, NoiseDataModule
from kd_lightning.data.images.source import Images
from kd_lightning.data.loader import BatchLoader
from tests.training.small import complaint


class TestSplitOnly(DigitsDataModule):
    """Digits whose training split cannot be read."""

    __test__ = False

    def load(self, split: str) -> Images:
        assert split == "test", "the training images were read"
        return super().load(split)


def noise(loader: BatchLoader, epoch: int = 0) -> list[Tensor]:
    loader.set_epoch(epoch)
    return [batch.inputs for batch in loader if isinstance(batch.inputs, Tensor)]


def test_noise_is_a_function_of_seed_epoch_and_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def made(epoch: int = 0) -> Tensor:
        data = NoiseDataModule(TestSplitOnly(), samples=100, batch_size=32, latent=8)
        return torch.cat(noise(data.train_dataloader(), epoch))

    assert made().shape == (100, 8)
    assert torch.equal(made(), made())
    assert not torch.equal(made(), made(epoch=1))
    first = made()
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert not torch.equal(first, made())


def test_noise_is_standard_normal() -> None:
    data = NoiseDataModule(TestSplitOnly(), samples=4000, latent=25)
    values = torch.cat(noise(data.train_dataloader())).flatten().double()
    assert values.mean().abs() < 0.01
    assert values.std() == pytest.approx(1, abs=0.01)
    # The share beyond two standard deviations.
    assert (values.abs() > 2).double().mean() == pytest.approx(0.0455, abs=0.003)
    columns = torch.corrcoef(values.view(4000, 25).T)
    assert (columns - torch.eye(25)).abs().max() < 0.08


def test_batches_that_show_the_same_noise() -> None:
    data = NoiseDataModule(
        TestSplitOnly(), samples=70, batch_size=10, latent=4, repeat=3
    )
    batches = noise(data.train_dataloader())
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])
    assert not torch.equal(batches[2], batches[3])
    assert torch.equal(batches[3], batches[5])


def test_two_processes_show_the_noise_of_one() -> None:
    one = NoiseDataModule(TestSplitOnly(), samples=60, batch_size=20, repeat=2)
    [joint, *_] = noise(one.train_dataloader())
    parts = []
    for rank in range(2):
        source = one.source("train")
        loader = BatchLoader(source, 10, rank=rank, world_size=2, views=None)
        parts.append(noise(loader)[0])
    assert torch.equal(torch.stack(parts, 1).flatten(0, 1), joint)


def test_training_images_are_never_read() -> None:
    data = NoiseDataModule(TestSplitOnly(), samples=64)
    assert data.spec.input_shape == (1, 8, 8)
    assert data.spec.samples == {"train": 64, "validation": 0, "test": 602}
    assert data.val_dataloader() == []
    assert len(data.fingerprint()) > 0
    [batch] = list(data.test_dataloader())
    assert len(batch) == 602
    with pytest.raises(AssertionError, match="were read"):
        NoiseDataModule(TestSplitOnly(), validation=True).source("validation")


def test_broken_training_files_do_not_matter(tmp_path: Path, data_root: Path) -> None:
    copy = tmp_path / "MNIST" / "raw"
    copy.mkdir(parents=True)
    for file in (data_root / "MNIST" / "raw").iterdir():
        if file.name.startswith("t10k"):
            (copy / file.name).symlink_to(file)
        else:
            (copy / file.name).write_bytes(b"no images")
    data = NoiseDataModule(MNISTDataModule(root=str(tmp_path)), samples=128)
    assert data.spec.input_shape == (1, 28, 28)
    assert len(data.source("test")) == 10_000
    complaint(partial(data.data.source, "train"))


def test_validation_on_the_samples_that_the_data_holds_out() -> None:
    data = NoiseDataModule(DigitsDataModule(), validation=True)
    held_out = DigitsDataModule().source("validation").rows
    source = data.source("validation")
    assert torch.equal(source.rows, held_out)


def test_mistakes() -> None:
    assert "latent" in complaint(partial(NoiseDataModule, DigitsDataModule(), latent=0))

"""A folder `val` is the validation split: never trained on, never the test set in silence."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as v2

from kd_lightning.data import Flip, ImageFolderDataModule, Mixup
from kd_lightning.teachers.cache.fill import planned_tables
from kd_lightning.types import UNLABELLED
from tests.data.images.folders import complaint, write_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["val", "valid", "validation"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Per class 6 training images, 3 validation images and 2 test images."""
    return write_folder(tmp_path / "set", {"train": 6, request.param: 3, "test": 2})


@pytest.fixture
def with_val(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set", {"train": 6, "val": 3, "test": 2})


def read(path: Path, **options: object) -> ImageFolderDataModule:
    return ImageFolderDataModule(str(path), **options)  # type: ignore[arg-type]


def test_its_images_are_validated_on_and_never_trained_on(folder: Path) -> None:
    data = read(folder)
    assert data.spec.samples == {"train": 12, "validation": 6, "test": 4}
    assert data.spec.source_samples == 18
    assert data.source("train").rows.tolist() == list(range(12))
    validation = data.source("validation")
    assert (validation.rows.tolist(), validation.split) == (
        list(range(12, 18)),
        "train",
    )
    val_folder = next(path for path in folder.iterdir() if path.name.startswith("val"))
    batch = validation.batch(torch.arange(6), -1)
    assert batch.index.tolist() == list(range(12, 18))
    assert batch.target.tolist() == [0, 0, 0, 1, 1, 1]
    for position, name in enumerate(
        ("ant/0", "ant/1", "ant/2", "bee/0", "bee/1", "bee/2")
    ):
        with Image.open(val_folder / f"{name}.png") as image:
            stored = data.raw("train").images[12 + position]
            assert torch.equal(stored, v2.pil_to_tensor(image))


def test_a_zip_is_read_like_its_folder(with_val: Path) -> None:
    archive = Path(shutil.make_archive(str(with_val), "zip", with_val))
    assert read(archive).fingerprint() == read(with_val).fingerprint()


def test_the_validation_fraction_does_not_matter_but_zero_leaves_the_folder_unused(
    with_val: Path,
) -> None:
    for validation in (0.1, 0.5):
        data = read(with_val, validation=validation)
        assert data.spec.samples == {"train": 12, "validation": 6, "test": 4}
    unused = read(with_val, validation=0.0)
    assert unused.spec.samples == {"train": 12, "validation": 0, "test": 4}
    assert unused.source("train").rows.tolist() == list(range(12))


def test_subsets_and_labels_come_from_the_training_folder(with_val: Path) -> None:
    data = read(with_val, fraction=0.5, label_fraction=0.5)
    rows = data.source("train").rows
    assert len(rows) == 6
    assert int(rows.max()) < 12
    target = data.source("train").batch(torch.arange(6), -1).target
    assert int((target == UNLABELLED).sum()) == 2
    held_out = data.source("validation").batch(torch.arange(6), -1).target
    assert int(held_out.min()) == 0
    parts = [
        read(with_val, parts=3, part=part).source("train").rows for part in range(3)
    ]
    assert sorted(torch.cat(parts).tolist()) == list(range(12))
    assert [len(part) for part in parts] == [4, 4, 4]
    kept = read(with_val, keep_classes=[1])
    assert kept.source("train").rows.tolist() == list(range(6, 12))
    assert len(kept.source("validation")) == 6


def test_subsets_do_not_depend_on_the_validation_folder(
    with_val: Path, tmp_path: Path
) -> None:
    options = {"fraction": 0.5, "parts": 2, "part": 1}
    rows = read(with_val, **options).source("train").rows
    shutil.rmtree(with_val / "val")
    assert torch.equal(
        read(with_val, validation=0.0, **options).source("train").rows, rows
    )


def test_validation_images_are_neither_augmented_nor_mixed_in(with_val: Path) -> None:
    data = read(with_val, augment=[Flip(1.0), Mixup()], views=1)
    train = data.source("train")
    assert train.mixing is not None
    partners = train.mixing.partners(torch.arange(12), train.rows, train.seed, 0)
    assert int(partners.max()) < 12
    validation = data.source("validation")
    rows = torch.arange(6)
    augmented = validation.batch(rows, 0).inputs
    clean = validation.batch(rows, -1).inputs
    assert isinstance(augmented, torch.Tensor)
    assert isinstance(clean, torch.Tensor)
    assert torch.equal(augmented, clean)


def test_the_normalization_is_that_of_the_training_folder(with_val: Path) -> None:
    with_validation = read(with_val)
    shutil.rmtree(with_val / "val")
    without = read(with_val)
    assert (with_validation.mean, with_validation.std) == (without.mean, without.std)


def test_a_cache_holds_every_row_once(with_val: Path) -> None:
    tables = planned_tables(read(with_val), views=1)
    rows = {
        name: torch.cat([source.rows for source in sources]).tolist()
        for name, (sources, _) in tables.items()
    }
    assert sorted(len(each) for each in rows.values()) == [4, 18]
    assert list(range(18)) in rows.values()


# -- without a test folder ----------------------------------------------------------------------


def test_without_a_test_folder_a_line_says_what_is_tested_on(
    with_val: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(with_val / "test")
    # The second time, everything comes from the cache of decoded images.
    for _ in range(2):
        data = read(with_val)
        assert data.spec.samples == {"train": 12, "validation": 6, "test": 6}
        assert torch.equal(data.raw("test").images, data.raw("train").images[12:])
        assert data.raw("test").target.tolist() == [0, 0, 0, 1, 1, 1]
    out = capsys.readouterr().out
    assert (
        out.count(
            "has no folder test: val is both the validation split and the test split"
        )
        == 1
    )
    data = read(with_val, validation=0.0)
    assert data.spec.samples == {"train": 12, "validation": 0, "test": 6}
    assert "has no folder test: val is the test split" in capsys.readouterr().out


def test_no_line_with_a_test_folder(
    with_val: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    read(with_val)
    assert "no folder test" not in capsys.readouterr().out


# -- mistakes -----------------------------------------------------------------------------------


def test_images_in_other_folders_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "set", {"train": 6, "dev": 3, "val": 2, "test": 2})
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("no image")
    assert read(folder).spec.samples == {"train": 12, "validation": 4, "test": 4}
    out = capsys.readouterr().out
    assert "does not read the images in dev/ (6); the splits are train, test" in out
    assert "notes" not in out


def test_two_validation_folders(with_val: Path) -> None:
    shutil.copytree(with_val / "val", with_val / "valid")
    assert "validation folders val and valid; keep one" in complaint(with_val)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("val", "val has no class 'bee', which train has"),
        ("train", "train has no class 'bee', which val has"),
    ],
)
def test_other_classes(with_val: Path, name: str, part: str) -> None:
    shutil.rmtree(with_val / name / "bee")
    assert part in complaint(with_val)

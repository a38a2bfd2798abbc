"""Omniglot: the true files where they are, and files made in their format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kd_lightning.data import OmniglotDataModule
from kd_lightning.errors import UserError


def draw(path: Path, on: int) -> None:
    """A drawing as Omniglot has it: one bit, 105x105, black ink (False) on white."""
    ink = np.ones((105, 105), dtype=bool)
    ink[:on] = False
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ink).convert("1").save(path)


def write_omniglot(root: Path) -> Path:
    """Two alphabets in the first folder; the second repeats one of them and adds a third."""
    for folder, alphabets in (
        ("images_background_small1", "AB"),
        ("images_background_small2", "BC"),
    ):
        for alphabet in alphabets:
            for character in (1, 2):
                for take in range(1, 9):
                    name = f"{alphabet}/character{character:02d}/{take:02d}.png"
                    draw(root / "omniglot" / folder / name, on=105 * take // 8)
    return root


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write_omniglot(tmp_path)


def test_characters_are_classes_and_repeated_alphabets_are_read_once(
    small: Path,
) -> None:
    data = OmniglotDataModule(root=str(small), validation=0.0)
    assert data.classes == tuple(
        f"{alphabet}/character{c:02d}" for alphabet in "ABC" for c in (1, 2)
    )
    train, test = data.raw("train"), data.raw("test")
    assert (
        torch.bincount(train.target).tolist() == [6] * 6
    )  # a quarter of eight drawings is the test set
    assert torch.bincount(test.target).tolist() == [2] * 6
    assert train.images.shape == (36, 1, 28, 28)


def test_ink_is_bright_and_averaged(small: Path) -> None:
    data = OmniglotDataModule(root=str(small))
    drawings = [
        raw.images[raw.target == 0].double()
        for raw in (data.raw("train"), data.raw("test"))
    ]
    shares = sorted((torch.cat(drawings).mean((1, 2, 3)) / 255).tolist())
    assert shares == pytest.approx([take / 8 for take in range(1, 9)], abs=0.01)


def test_missing_broken_and_empty_are_one_line(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no characters in .*nowhere"):
        OmniglotDataModule(root=str(tmp_path / "nowhere"))
    broken = small / "omniglot/images_background_small1/A/character01/03.png"
    broken.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"03\.png cannot be read as an image"):
        OmniglotDataModule(root=str(small)).raw("train")
    for path in broken.parent.iterdir():
        path.unlink()
    with pytest.raises(UserError, match="A/character01 holds no drawing"):
        OmniglotDataModule(root=str(small))


def test_the_true_set(data_root: Path) -> None:
    if not (data_root / "omniglot").is_dir():
        pytest.skip(f"no Omniglot below {data_root}")
    data = OmniglotDataModule(root=str(data_root), validation=0.0)
    assert len(data.classes) == 242
    assert len(data.source("train")) == 242 * 15
    images = data.raw("train").images.double() / 255
    assert float(images.mean()) == pytest.approx(data.mean[0], abs=1e-3)
    assert float(images.std()) == pytest.approx(data.std[0], abs=1e-3)

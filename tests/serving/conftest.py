"""The fixtures of the tests of runs, a trained run on the digits, and its exports."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_lightning.cli import main
from kd_lightning.data import DigitsDataModule
from tests.runs.conftest import kd, place, teacher

__all__ = ["kd", "place", "teacher"]


@pytest.fixture(scope="session")
def run(teacher: Path) -> Path:
    """The folder of a trained run on the digits."""
    return teacher.parent.parent


@pytest.fixture(scope="session")
def torch_export(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its export as a graph."""
    folder = tmp_path_factory.mktemp("exports") / "torch-export"
    assert (
        main(["export", str(run), "--format", "torch-export", f"--output={folder}"])
        == 0
    )
    # The run's seed must not become the seed of the tests that follow.
    os.environ.pop("PL_GLOBAL_SEED", None)
    return folder


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first ten test images as PNG files, and the same as an array."""
    folder = tmp_path_factory.mktemp("digits")
    images = DigitsDataModule().raw("test").images[:10]
    (folder / "images").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image[0].numpy()).save(folder / "images" / f"{number}.png")
    np.savez(folder / "digits.npz", images.numpy())
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache_of_exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where `kd export` notes which programs it wrote, for other processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield

"""`kd predict` on new images: file names in, classes and probabilities out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kd_lightning.cli import main
from kd_lightning.data import ImageFolderDataModule
from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.launch import launch
from kd_lightning.types import UNLABELLED
from tests.data.images.folders import complaint, picture, write_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "set", {"train": 4, "test": 2})


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """Three images without labels, at two depths, and a file that is none."""
    root = tmp_path / "new"
    (root / "sub").mkdir(parents=True)
    picture(70).save(root / "sub" / "c\td.png")
    picture(71).save(root / "b.png")
    picture(72).save(root / "a.bmp")
    (root / "notes.txt").write_text("x")
    return root


def test_new_images_are_served_in_the_order_of_their_names(
    folder: Path, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ImageFolderDataModule(str(folder), predict_folder=str(new), channels=3)
    (batch,) = list(data.predict_dataloader())
    assert batch.split == "predict"
    assert batch.index.tolist() == [0, 1, 2]
    assert batch.target.tolist() == [UNLABELLED] * 3
    images = data.raw("predict").images
    for position, seed in enumerate((72, 71, 70)):
        expected = torch.from_numpy(np.array(picture(seed))).permute(2, 0, 1)
        assert torch.equal(images[position], expected)
    assert (
        "skips 1 file that have no suffix of an image: 1 .txt"
        in capsys.readouterr().out
    )
    # New images change nothing that a cache of teacher outputs or a spec compares.
    plain = ImageFolderDataModule(str(folder))
    assert data.spec == plain.spec
    assert data.fingerprint() == plain.fingerprint()


def test_new_images_are_resized_and_read_as_gray_like_the_training_images(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    picture(1, width=20, height=11).save(tmp_path / "new" / "x.png")
    options = {"size": 5, "grey": True, "predict_folder": str(tmp_path / "new")}
    data = ImageFolderDataModule(str(folder), **options)  # type: ignore[arg-type]
    assert data.raw("predict").images.shape == (1, 1, 5, 5)
    message = complaint(folder, predict_folder=str(tmp_path / "new"))
    assert "x.png is 20x11, the training images are 6x6; set --data.size" in message


def test_a_zip_of_new_images(folder: Path, new: Path) -> None:
    archive = shutil.make_archive(str(new), "zip", new)
    from_zip = ImageFolderDataModule(str(folder), predict_folder=archive).raw("predict")
    from_folder = ImageFolderDataModule(str(folder), predict_folder=str(new)).raw(
        "predict"
    )
    assert torch.equal(from_zip.images, from_folder.images)


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    assert "there is no folder or zip" in complaint(folder, predict_folder="nowhere")
    (tmp_path / "empty").mkdir()
    message = complaint(folder, predict_folder=str(tmp_path / "empty"))
    assert "holds no image (png, jpg" in message
    (tmp_path / "empty" / "x.png").write_bytes(b"no image")
    message = complaint(folder, predict_folder=str(tmp_path / "empty"))
    assert "x.png cannot be read as an image" in message


def table(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_classes_and_probabilities_are_written_beside_file_names(
    folder: Path, new: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        *("fit", "-c", "configs/trainer.yaml", "-c", "configs/data/image_folder.yaml"),
        *(f"--data.path={folder}", "--model=kd_lightning.ClassifierModule"),
        *("--model.network=kd_lightning.models.MLP", "--model.network.hidden=[4]"),
        *(
            "--trainer.max_epochs=1",
            "--trainer.accelerator=cpu",
            f"--run.dir={tmp_path / 'run'}",
        ),
    ]
    checkpoint = launch(resolve_configs(arguments)).folder / "checkpoints" / "last.ckpt"
    predict = ["predict", f"--ckpt_path={checkpoint}"]
    capfd.readouterr()
    out = tmp_path / "out"
    assert main([*predict, f"--data.predict_folder={new}", f"--run.dir={out}"]) == 0
    assert capfd.readouterr().err == ""
    heading, *rows = table(out / "predictions.tsv")
    assert heading == ["label", "ant", "bee", "file"]
    assert [row[3] for row in rows] == ["a.bmp", "b.png", "sub/c d.png"]
    logits = load_file(out / "predictions.safetensors")["logits"]
    for row, probabilities in zip(rows, logits.softmax(-1).tolist(), strict=True):
        assert [float(value) for value in row[1:3]] == pytest.approx(
            probabilities, abs=1e-6
        )
        assert row[0] == ("ant" if probabilities[0] > probabilities[1] else "bee")

    assert main([*predict, f"--run.dir={tmp_path / 'test'}"]) == 0
    _, *rows = table(tmp_path / "test" / "predictions.tsv")
    names = ["test/ant/0.png", "test/ant/1.png", "test/bee/0.png", "test/bee/1.png"]
    assert [row[3] for row in rows] == names

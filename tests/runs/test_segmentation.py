"""One label per pixel, from a folder of images to a student: the same losses and modules as for one label per image."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from kd_lightning.data import SegmentationDataModule
from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.launch import launch
from kd_lightning.tasks.segmentation import Segmentation
from kd_lightning.types import UNLABELLED
from tests.data.images.camvid import CLASSES, HEIGHT, VOID, WIDTH, write_camvid
from tests.runs import Kd

SMALL = [
    "--trainer.max_epochs=2",
    "--trainer.accelerator=cpu",
    "-c",
    "configs/loggers/csv.yaml",
]
STUDENT_RUN = Path("runs/small-unet-distill")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of a small data set with augmentation."""
    root = tmp_path_factory.mktemp("segmentation")
    arguments = {
        "path": str(write_camvid(root / "small")),
        "masks": "labels",
        "classes": CLASSES,
        "void": [VOID],
        "validation": "val",
        "batch_size": 4,
        "views": 2,
        "augment": [
            {"class_path": "kd_lightning.data.PadCrop", "init_args": {"padding": 2}},
            {"class_path": "kd_lightning.data.Flip"},
        ],
    }
    config = {
        "data": {
            "class_path": "kd_lightning.data.SegmentationDataModule",
            "init_args": arguments,
        }
    }
    path = root / "small.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def common(data: Path) -> list[str]:
    return ["-c", "configs/trainer.yaml", "-c", str(data), *SMALL]


def fit_teacher(data: Path) -> list[str]:
    return [
        "fit",
        *common(data),
        "-c",
        "configs/teachers/camvid_unet.yaml",
        "--run.name=teacher",
    ]


@pytest.fixture(scope="module")
def pixel_teacher(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a small U-Net, trained for two epochs and tested."""
    root = tmp_path_factory.mktemp("runs")
    more = ["--model.network.width=8", "--run.test=last", f"--run.root={root}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        return launch(resolve_configs([*fit_teacher(data), *more])).folder


def pair(data: Path, method: str) -> list[str]:
    pair_config = "configs/pairs/unet32_unet8.yaml"
    small = "--model.student.width=4"
    return [
        *common(data),
        "-c",
        pair_config,
        "-c",
        f"configs/methods/{method}.yaml",
        small,
    ]


def live(teacher: Path) -> str:
    return f"--model.teacher.checkpoint={teacher / 'checkpoints' / 'last.ckpt'}"


def curve(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def record(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "run.json").read_text())
    return content


def test_a_teacher_learns_and_its_test_stores_classes(
    data: Path, pixel_teacher: Path
) -> None:
    written = record(pixel_teacher)
    assert written["status"] == "finished"
    assert written["task"] == Segmentation().describe()
    assert written["data"]["target_shape"] == [HEIGHT, WIDTH]
    metrics = written["metrics"]
    assert {
        "val_miou",
        "val_accuracy",
        "val_nll",
        "test_miou",
        "test_errors",
    } <= metrics.keys()
    losses = [float(row["train_loss"]) for row in curve(pixel_teacher)]
    assert losses[1] < losses[0]
    best = torch.load(pixel_teacher / "checkpoints" / "best.ckpt", weights_only=True)
    scores = [float(row["val_miou"]) for row in curve(pixel_teacher)]
    assert scores[best["epoch"]] == max(scores)

    stored = load_file(pixel_teacher / "predictions-test.safetensors")
    assert sorted(stored) == [
        "classes",
        "count",
        "index",
        "labelled_pixels",
        "wrong_pixels",
    ]
    arguments = yaml.safe_load(data.read_text())["data"]["init_args"]
    arguments["augment"] = []
    target = SegmentationDataModule(**arguments).source("test").target
    exists = target != UNLABELLED
    assert torch.equal(stored["classes"] == UNLABELLED, ~exists)
    wrong = (stored["classes"] != target) & exists
    assert torch.equal(stored["wrong_pixels"], wrong.flatten(1).sum(1))
    assert metrics["test_errors"] == int(wrong.sum())


@pytest.mark.parametrize(
    ("method", "terms"),
    [("kd", ["ce", "kd"]), ("dkd", ["ce", "dkd"]), ("logitmse", ["logitmse"])],
)
def test_a_student_learns_with_losses_over_rows(
    method: str, terms: list[str], data: Path, pixel_teacher: Path, kd: Kd
) -> None:
    outcome = kd("fit", *pair(data, method), live(pixel_teacher), "--run.test=last")
    assert (outcome.code, outcome.err) == (0, "")
    metrics = record(STUDENT_RUN)["metrics"]
    for name in ("train_loss", *(f"train_loss_{term}" for term in terms), "test_miou"):
        assert math.isfinite(metrics[name]), name
    assert 0 < metrics["val_teacher_agreement"] <= 1
    rows = curve(STUDENT_RUN)
    assert float(rows[1]["train_loss"]) != float(rows[0]["train_loss"])


def test_a_cached_teacher_gives_the_live_teachers_losses(
    data: Path, pixel_teacher: Path, kd: Kd
) -> None:
    argv = [*pair(data, "kd"), "--trainer.max_epochs=3"]
    assert kd("fit", *argv, live(pixel_teacher), "--run.name=live").code == 0
    outcome = kd("cache", *argv, live(pixel_teacher), "--output=cache", "--views=2")
    assert (outcome.code, outcome.err) == (0, "")
    cached = [
        "--model.teacher=kd_lightning.teachers.CachedTeacher",
        "--model.teacher.path=cache",
    ]
    outcome = kd("fit", *argv, *cached, "--run.name=cached")
    assert (outcome.code, outcome.err) == (0, "")
    for live_row, cached_row in zip(
        curve(Path("runs/live")), curve(Path("runs/cached")), strict=True
    ):
        for name in ("train_loss", "train_loss_ce", "train_loss_kd", "val_miou"):
            assert cached_row[name] == live_row[name], name


def test_a_prediction_holds_the_class_of_every_pixel(
    data: Path, pixel_teacher: Path, kd: Kd
) -> None:
    checkpoint = pixel_teacher / "checkpoints" / "last.ckpt"
    outcome = kd("predict", f"--ckpt_path={checkpoint}", "--run.root=runs")
    assert (outcome.code, outcome.err) == (0, "")
    [path] = Path("runs").rglob("predictions.safetensors")
    predicted = load_file(path)
    assert sorted(predicted) == ["classes", "index"]
    assert predicted["classes"].shape == (4, HEIGHT, WIDTH)
    assert predicted["index"].tolist() == [0, 1, 2, 3]
    tested = load_file(pixel_teacher / "predictions-test.safetensors")["classes"]
    exists = tested != UNLABELLED
    assert torch.equal(predicted["classes"][exists], tested[exists])


def test_unlabelled_images_train_the_soft_loss(
    data: Path, pixel_teacher: Path, kd: Kd
) -> None:
    few = ["--data.label_fraction=0.0", "--trainer.max_epochs=1"]
    assert kd("fit", *pair(data, "kd"), live(pixel_teacher), *few).code == 0
    metrics = record(STUDENT_RUN)["metrics"]
    assert metrics["train_loss_ce"] == 0
    assert metrics["train_loss_kd"] > 0


def test_a_network_of_torchvision_by_its_class_path(data: Path, kd: Kd) -> None:
    config = "configs/teachers/camvid_lraspp.yaml"
    argv = [
        "fit",
        *common(data),
        "-c",
        config,
        "--run.name=lraspp",
        "--trainer.max_epochs=1",
    ]
    outcome = kd(*argv)
    assert (outcome.code, outcome.err) == (0, "")
    checkpoint = Path("runs/lraspp/checkpoints/last.ckpt")
    tested = kd("test", f"--ckpt_path={checkpoint}")
    assert (tested.code, tested.err) == (0, "")
    distilled = kd("fit", *pair(data, "kd"), f"--model.teacher.checkpoint={checkpoint}")
    assert (distilled.code, distilled.err) == (0, "")
    assert record(STUDENT_RUN)["metrics"]["train_loss_kd"] > 0


def test_a_teacher_of_single_labels_is_refused(
    data: Path, teacher: Path, kd: Kd
) -> None:
    outcome = kd("fit", *pair(data, "kd"), f"--model.teacher.checkpoint={teacher}")
    assert outcome.code == 2
    assert "was trained for classification" in outcome.err
    assert outcome.err.count("\n") == 1

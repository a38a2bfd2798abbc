"""`--ckpt_path` of a damaged or foreign file: exit code 2, one line, and the file is named."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.weights import KEY
from tests.runs import TEACHER, Kd

Change = Callable[[dict[str, Any]], object]


def set_loops(content: dict[str, Any], key: str, value: object) -> None:
    content["loops"]["fit_loop"][key] = value


def spoil_callbacks(content: dict[str, Any]) -> None:
    for state in content["callbacks"].values():
        state.clear()


RESUMED: dict[str, tuple[Change, str]] = {
    "no epoch": (lambda c: c.pop("epoch"), "epoch is missing"),
    "no version of Lightning": (
        lambda c: c.pop("pytorch-lightning_version"),
        "version is missing",
    ),
    "garbage schedulers": (
        lambda c: c.update(lr_schedulers="x"),
        "lr_schedulers is a str",
    ),
    "no role": (
        lambda c: c[KEY].pop("role"),
        "is not a checkpoint of a ClassifierModule",
    ),
    "weights alone": (
        lambda c: c.pop("optimizer_states"),
        "holds no optimizer state to resume",
    ),
    "garbage progress": (
        lambda c: set_loops(c, "epoch_progress", [1]),
        "epoch_progress is a list",
    ),
    "no progress": (lambda c: c["loops"]["fit_loop"].clear(), "is missing"),
    "empty callbacks": (spoil_callbacks, "is missing"),
}


def changed(teacher: Path, target: Path, change: Change) -> Path:
    content = torch.load(teacher, weights_only=True)
    change(content)
    torch.save(content, target)
    return target


def refused(kd: Kd, argv: list[str], *words: str) -> None:
    outcome = kd(*argv)
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""
    for word in words:
        assert word in outcome.err


@pytest.mark.parametrize("kind", RESUMED)
def test_training_does_not_resume(
    kind: str, kd: Kd, teacher: Path, place: Path
) -> None:
    change, words = RESUMED[kind]
    path = changed(teacher, place / "spoilt.ckpt", change)
    refused(
        kd,
        [*TEACHER, f"--ckpt_path={path}", "--trainer.max_epochs=2"],
        str(path),
        words,
    )


def infinite(content: dict[str, Any]) -> None:
    content["state_dict"]["network.head.bias"][0] = float("inf")


TESTED: dict[str, tuple[Change, str]] = {
    "an infinite weight": (infinite, "'head.bias' holds an infinite value"),
    "no version of Lightning": (
        lambda c: c.pop("pytorch-lightning_version"),
        "version is missing",
    ),
    "metadata of another form": (
        lambda c: c.update({KEY: ["x"]}),
        "kd_lightning is a list",
    ),
    "not ours": (lambda c: c.pop(KEY), "is not a checkpoint of a ClassifierModule"),
}


@pytest.mark.parametrize("kind", TESTED)
def test_is_not_tested(kind: str, kd: Kd, teacher: Path, place: Path) -> None:
    change, words = TESTED[kind]
    path = changed(teacher, place / "spoilt.ckpt", change)
    refused(kd, ["test", *TEACHER[1:], f"--ckpt_path={path}"], str(path), words)


def test_a_flipped_bit_is_not_tested(kd: Kd, teacher: Path, place: Path) -> None:
    data = bytearray(teacher.read_bytes())
    with contextlib.closing(zipfile.ZipFile(teacher)) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    data[largest.header_offset + largest.file_size // 2] ^= 1
    path = place / "flipped.ckpt"
    path.write_bytes(data)
    refused(kd, ["test", *TEACHER[1:], f"--ckpt_path={path}"], str(path), "checksum")


FACTORY = """\
from torch import nn
from kd_lightning.models import MLP

def create_model(name: str, **kwargs) -> nn.Module:
    return MLP([kwargs["width"]], input_shape=[1, 8, 8], num_classes=kwargs["classes"])
"""


def test_a_network_of_a_factory_with_keywords_teaches(
    kd: Kd, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "factory_of_networks.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(place)
    network = [
        "--model.network=factory_of_networks.create_model",
        "--model.network.name=net",
        "--model.network.dict_kwargs={width: 5, classes: 10}",
    ]
    base = [
        word
        for word in TEACHER
        if word not in ("-c", "configs/teachers/digits_mlp.yaml")
    ]
    configs = [
        word for name in base[1:] if name.startswith("configs") for word in ("-c", name)
    ]
    options = [name for name in base[1:] if not name.startswith("configs")]
    model = ["--model=kd_lightning.ClassifierModule", *network, "--run.dir=teacher"]
    outcome = kd("fit", *configs, *options, *model)
    assert outcome.code == 0, outcome
    pair = [
        "-c",
        "configs/pairs/digits_mlp256_mlp16.yaml",
        "-c",
        "configs/methods/kd.yaml",
    ]
    teacher = "--model.teacher.checkpoint=teacher/checkpoints/last.ckpt"
    outcome = kd("fit", *configs, *options, *pair, teacher, "--run.dir=student")
    assert outcome.code == 0, outcome

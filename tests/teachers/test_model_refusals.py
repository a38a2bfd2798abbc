"""Files that a teacher does not take: missing, damaged, changed, foreign, hostile, or trained on other data."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kd_lightning.data import DigitsDataModule
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import ClassifierModule
from kd_lightning.weights import KEY
from tests.training.small import complaint, distillation, mlp, shaky, trainer


class Marker:
    """Pickled, it is a call that leaves a file behind where it is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def refusal(
    data: DigitsDataModule, checkpoint: Path | str | None = None, **arguments: Any
) -> str:
    teacher = ModelTeacher(str(checkpoint) if checkpoint else None, **arguments)
    return complaint(lambda: teacher.prepare(data))


def test_nothing_given(data: DigitsDataModule) -> None:
    assert "--model.teacher.checkpoint=PATH" in refusal(data)


def test_missing(tmp_path: Path, data: DigitsDataModule) -> None:
    assert f"there is no file {tmp_path / 'none.ckpt'}" in refusal(
        data, tmp_path / "none.ckpt"
    )
    assert "there is no file" in refusal(data, tmp_path)


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_cut_short(
    kept: int, checkpoint: Path, tmp_path: Path, data: DigitsDataModule
) -> None:
    path = tmp_path / "cut.ckpt"
    path.write_bytes(checkpoint.read_bytes()[:kept])
    assert "cannot be read (it is corrupt)" in refusal(data, path)


def test_damaged_safetensors(tmp_path: Path, data: DigitsDataModule) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(mlp().state_dict(), path)
    ModelTeacher(str(path), network=mlp()).prepare(data)
    path.write_bytes(path.read_bytes()[:-8])
    assert "cannot be read (it is corrupt)" in refusal(data, path, network=mlp())


def test_changed(checkpoint: Path, tmp_path: Path, data: DigitsDataModule) -> None:
    path, content = tmp_path / "last.ckpt", torch.load(checkpoint, weights_only=True)
    content["state_dict"]["network.head.bias"] += 1e-3
    torch.save(content, path)
    ModelTeacher(str(path)).prepare(data)
    message = refusal(data, path, sha256="0" * 64)
    assert message.endswith(f"not {'0' * 64}: the file is another one")


def test_says_no_network(tmp_path: Path, data: DigitsDataModule) -> None:
    bare, python = tmp_path / "bare.pt", tmp_path / "python.ckpt"
    torch.save(mlp().state_dict(), bare)
    fit = trainer()
    fit.fit(ClassifierModule(mlp()), datamodule=data)
    fit.save_checkpoint(python)
    for path in (bare, python):
        assert "does not name the network its weights belong to" in refusal(data, path)
    ModelTeacher(str(python), network=mlp()).prepare(
        data
    )  # with the network named, both are teachers
    ModelTeacher(str(bare), network=mlp()).prepare(data)


def test_weights_of_another_network(tmp_path: Path, data: DigitsDataModule) -> None:
    path = tmp_path / "weights.pt"
    torch.save(mlp().state_dict(), path)
    assert "the weights hold no '1.weight' for Sequential" in refusal(
        data, path, network=shaky()
    )
    assert "(16, 64) in the weights and (8, 64) in MLP" in refusal(
        data, path, network=mlp(8)
    )
    torch.save([1, 2], path)
    assert "holds a list" in refusal(data, path, network=mlp())


PICKLED = ("raw.pt", "hidden.safetensors")


@pytest.mark.parametrize("name", [*PICKLED, "saved.pt", "inside.ckpt"])
def test_pickled_code_is_not_run(
    name: str, tmp_path: Path, data: DigitsDataModule
) -> None:
    path, marker = tmp_path / name, tmp_path / "marker"
    if name in PICKLED:
        path.write_bytes(pickle.dumps({"state_dict": Marker(marker)}))
    else:
        torch.save(
            Marker(marker)
            if name == "saved.pt"
            else {"state_dict": mlp().state_dict(), "x": Marker(marker)},
            path,
        )
    message = refusal(data, path, network=mlp())
    assert "cannot be read" in message
    assert not marker.exists()
    assert ("more than tensors and plain values" in message) == (
        path.suffix != ".safetensors"
    )
    if name in PICKLED:
        pickle.loads(path.read_bytes())
    else:
        torch.load(path, weights_only=False)
    assert marker.exists()  # the code was live: a careless reader runs it


class Spy:
    """In the place of a class that starts a process."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise AssertionError("called")


def spy(command: str) -> int:
    raise AssertionError("called")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "class_path", ["os.system", "subprocess.Popen", "shutil.rmtree", "builtins.eval"]
)
def test_a_class_path_that_makes_no_network_is_not_called(
    class_path: str,
    nested: bool,
    checkpoint: Path,
    tmp_path: Path,
    data: DigitsDataModule,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "system", spy)
    monkeypatch.setattr(subprocess, "Popen", Spy)
    monkeypatch.setattr(shutil, "rmtree", spy)
    content = torch.load(checkpoint, weights_only=True)
    hostile = {"class_path": class_path, "init_args": {}}
    if nested:
        content[KEY]["network"]["init_args"]["hidden"] = hostile
    else:
        content[KEY]["network"] = hostile
    path = tmp_path / "hostile.ckpt"
    torch.save(content, path)
    message = refusal(data, path)
    assert f"{class_path!r} is not an nn.Module class" in message


def test_a_class_path_that_cannot_be_imported(
    checkpoint: Path, tmp_path: Path, data: DigitsDataModule
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    for class_path in ("no_such_package.Net", "kd_lightning.models.Nothing", "Net"):
        content[KEY]["network"]["class_path"] = class_path
        torch.save(content, tmp_path / "other.ckpt")
        assert f"the network {class_path!r} cannot be imported" in refusal(
            data, tmp_path / "other.ckpt"
        )


class Eleven(DigitsDataModule):
    classes = (*DigitsDataModule.classes, "10")


class Reversed(DigitsDataModule):
    classes = DigitsDataModule.classes[::-1]


OTHER_DATA: dict[str, tuple[Callable[[], DigitsDataModule], str]] = {
    "classes": (Eleven, "knows 10 classes, the data digits has 11"),
    "order": (Reversed, "calls class 0 '0', the data digits calls it '9'"),
    "shape": (
        lambda: DigitsDataModule(channels=3),
        "inputs of shape [1, 8, 8], the data digits gives [3, 8, 8]",
    ),
}


@pytest.mark.parametrize("kind", OTHER_DATA)
def test_trained_on_other_data(
    kind: str, checkpoint: Path, data: DigitsDataModule
) -> None:
    make, words = OTHER_DATA[kind]
    assert words in refusal(make(), checkpoint)
    teacher = ModelTeacher(str(checkpoint))
    teacher.prepare(data)
    assert words in complaint(
        lambda: teacher.prepare(make())
    )  # ready for one data set is not ready for another


def test_a_teacher_that_does_not_fit_is_not_ready(checkpoint: Path) -> None:
    teacher = ModelTeacher(str(checkpoint))
    complaint(lambda: teacher.prepare(Reversed()))
    assert not teacher.ready


@pytest.mark.parametrize("network", [mlp(classes=7), mlp(classes=1), shaky()[:3]])
def test_a_bare_network_that_does_not_fit(network: Any, data: DigitsDataModule) -> None:
    module = distillation(teacher=ModelTeacher(network=network))
    complaint(lambda: trainer().fit(module, datamodule=data))

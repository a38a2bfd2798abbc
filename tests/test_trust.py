"""Which code a file may name, and what is never called."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from kd_lightning import trust
from kd_lightning.cli import main
from kd_lightning.errors import UserError, printable
from kd_lightning.experiments.functions import load_function
from kd_lightning.networks import build_network

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture(autouse=True)
def forget_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins without packages that the user allowed."""
    monkeypatch.setattr(trust, "_allowed", set())
    monkeypatch.delenv(trust.VARIABLE, raising=False)


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package in the current folder whose import leaves a file behind."""
    name = f"stranger_{tmp_path.name.replace('-', '_')}"
    lines = [
        "import pathlib, torch.nn",
        "pathlib.Path('executed').touch()",
        "class Net(torch.nn.Linear):",
        "    def __init__(self): super().__init__(2, 2)",
    ]
    (tmp_path / f"{name}.py").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_checkpoint_cannot_import_a_package_of_the_folder(stranger: str) -> None:
    with pytest.raises(UserError, match=f"--trust {stranger}"):
        build_network({"class_path": f"{stranger}.Net"})
    assert not Path("executed").exists()
    assert stranger not in sys.modules


def test_an_allowed_package_is_imported(
    stranger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trust.take_trust_options(["fit", "--trust", stranger, "-c", "x"]) == [
        "fit",
        "-c",
        "x",
    ]
    assert isinstance(build_network({"class_path": f"{stranger}.Net"}), nn.Linear)
    monkeypatch.setattr(trust, "_allowed", set())
    monkeypatch.setenv(trust.VARIABLE, f"other, {stranger}")
    assert trust.is_allowed(f"{stranger}.sub.Net")


def test_a_module_that_the_user_imported_is_trusted() -> None:
    network = build_network({"class_path": f"{__name__}.OwnNet"})
    assert isinstance(network, OwnNet)


class OwnNet(nn.Identity):
    """A network of the user, who imported this module."""


def test_a_file_of_the_folder_cannot_take_the_name_of_a_trusted_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    assert not trust.is_allowed("timm.Net")


@pytest.mark.parametrize(
    "class_path",
    ["os.system", "subprocess.Popen", "builtins.eval", "torch.load", "torch.hub.load"],
)
def test_nothing_but_networks_is_called_as_a_network(class_path: str) -> None:
    with pytest.raises(UserError):
        build_network(
            {"class_path": class_path, "init_args": {"command": "touch executed"}}
        )


@pytest.mark.parametrize("place", ["model", "losses", "callbacks", "bare"])
def test_a_run_folder_cannot_import_code(
    stranger: str, place: str, tmp_path: Path
) -> None:
    named: object = {"class_path": f"{stranger}.Net"}
    if place == "bare":
        named = f"{stranger}.Net"
    if place == "callbacks":
        named = [{"a": 1}, named]
    with pytest.raises(UserError, match=stranger):
        trust.check_config({"model": {place: named}}, "config.yaml")
    assert not Path("executed").exists()


def test_names_of_files_and_trusted_classes_pass() -> None:
    config = {
        "data": "kd_lightning.data.DigitsDataModule",
        "train_file": "test.tsv",
        "other": "no_such_package.csv",
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}},
    }
    trust.check_config(config, "config.yaml")


@pytest.mark.parametrize("name", ["optimizer", "scheduler"])
@pytest.mark.parametrize(
    "class_path", ["os.system", "subprocess.getoutput", "os.mkdir", "subprocess.Popen"]
)
def test_a_function_in_place_of_an_optimizer_is_not_called(
    name: str,
    class_path: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {
        "os.mkdir": "path: executed",
        "subprocess.getoutput": "cmd: touch executed",
    }
    argument = arguments.get(class_path, "command: touch executed")
    config = f"model: {{init_args: {{{name}: {{class_path: {class_path}, "
    (tmp_path / "evil.yaml").write_text(config + f"init_args: {{{argument}}}}}}}}}\n")
    files = ["trainer.yaml", "data/digits.yaml", "teachers/digits_mlp.yaml"]
    words = [word for file in files for word in ("-c", str(CONFIGS / file))]
    assert main(["fit", *words, "-c", "evil.yaml", "--run.root=runs"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "name", ["os.system", "shutil.copytree", "builtins.eval", "json.dumps"]
)
def test_a_function_that_is_no_analysis_is_not_called(name: str) -> None:
    with pytest.raises(TypeError, match="not an analysis"):
        load_function(name)


def test_control_characters_of_a_message_are_shown_as_escapes() -> None:
    text = "a\x1b[31m\n\tb\u202e"
    assert printable(text) == "a\\x1b[31m b\\u202e"
    assert str(UserError(text)) == printable(text)
    assert printable("Zürich 漢字 é") == "Zürich 漢字 é"


def test_the_trust_option_needs_a_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--trust"]) == 2
    assert main(["list", "--trust=a/b"]) == 2
    assert "not the name of a package" in capsys.readouterr().err


def test_an_internal_error_is_a_line_and_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(argv: list[str]) -> int:
        return len(torch.zeros(2) @ torch.zeros(3))

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("KD_DEBUG", raising=False)
    monkeypatch.setattr("kd_lightning.cli.dispatch", broken)
    assert main(["list", "methods"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "RuntimeError" in error
    assert f"{Path(__file__).name}:" in error
    (report,) = tmp_path.iterdir()
    assert str(report) in error
    content = report.read_text()
    assert "Traceback" in content
    assert "kd list methods" in content
    assert os.stat(report).st_mode & 0o077 == 0


def test_an_error_that_torch_finds_is_traced_to_the_users_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def of_the_user(argv: list[str]) -> int:
        return len(nn.Linear(2, 2)(torch.zeros(1, 3)))

    def of_ours(argv: list[str]) -> int:
        return len(build_network({"class_path": 3, "init_args": [of_the_user]}))  # type: ignore[arg-type]

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("KD_DEBUG", raising=False)
    monkeypatch.setattr("kd_lightning.cli.dispatch", of_the_user)
    assert main(["list"]) == 1
    assert f"{Path(__file__).name}:" in capsys.readouterr().err
    # Code of ours that a user's function calls is at fault itself.
    monkeypatch.setattr("kd_lightning.cli.dispatch", of_ours)
    assert main(["list"]) == 1
    assert "internal error in kd_lightning" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OSError(28, "No space left on device", "runs/x"),
            "no space left on the disk for runs/x",
        ),
        (MemoryError(), "not enough memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to"), "not enough memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: x"),
            "not enough memory",
        ),
    ],
)
def test_a_full_disk_or_memory_is_a_line(
    error: Exception,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def failing(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("kd_lightning.cli.dispatch", failing)
    assert main(["list"]) == 2
    assert message in capsys.readouterr().err

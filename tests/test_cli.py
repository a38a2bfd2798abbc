"""The `kd` command itself: help, version, lists, and how fast it is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningDataModule
from torch import nn

import kd_lightning
from kd_lightning.cli import COMMANDS, main
from kd_lightning.losses import DistillLoss
from kd_lightning.paths import shipped

SLOW = (
    "torch",
    "lightning",
    "torchvision",
    "numpy",
    "sklearn",
    "scipy",
    "wandb",
    "matplotlib",
    "jsonargparse",
)
KINDS = ("methods", "models", "data", "experiments", "configs")
MISTAKES = [
    ["fit", "-c", "missing.yaml"],
    ["fit", "--ckpt_path", "missing.ckpt"],
    ["cache", "-c", "missing.yaml", "--output", "x"],
    ["reproduce", "nothing"],
    ["compare"],
    ["compare", "nothing"],
    ["nothing"],
]
"""Mistakes that are reported before anything slow is imported."""
BASES = {"methods": DistillLoss, "models": nn.Module, "data": LightningDataModule}


def output(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command prints that succeeds."""
    assert main(list(argv)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def listed(capsys: pytest.CaptureFixture[str], kind: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(output(capsys, "list", kind, "--json"))
    return rows


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["help"], []])
def test_help_names_every_command(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = output(capsys, *argv)
    assert [name for name in COMMANDS if f"\n  {name} " not in out] == []
    assert max(map(len, out.splitlines())) <= 128


@pytest.mark.parametrize("command", COMMANDS)
def test_help_speaks_of_commands_that_are_there(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code: object = main([command, "--help"])
    except SystemExit as stop:  # argparse ends the process after its help
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    # `kd demo` is a shorter name of another command.
    assert ("kd reproduce" if command == "demo" else command) in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "--version") == f"kd_lightning {kd_lightning.__version__}\n"


@pytest.mark.parametrize("kind", KINDS)
def test_lists_are_objects_with_a_name(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = listed(capsys, kind)
    names = [row["name"] for row in rows]
    assert names
    assert len(set(names)) == len(names)
    table = output(capsys, "list", kind).splitlines()
    assert table[0].split()[0] == "name"
    assert [
        line
        for name, line in zip(names, table[1:], strict=True)
        if not line.startswith(name)
    ] == []


@pytest.mark.parametrize("kind", BASES)
def test_listed_classes_can_be_imported(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for row in listed(capsys, kind):
        module, _, name = row["class_path"].rpartition(".")
        assert issubclass(getattr(import_module(module), name), BASES[kind])
        assert "config" not in row or shipped(row["config"]) is not None


def test_what_is_listed_is_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    losses = Path(kd_lightning.__file__).parent / "losses"
    files = {path.stem for path in losses.glob("[!_]*.py")} - {"base"}
    methods = {row["name"]: row for row in listed(capsys, "methods")}
    assert (
        {"ce", "kd", "crd_inbatch"} | files
        <= set(methods)
        == {p.stem for p in Path("configs/methods").glob("*.yaml")}
    )
    assert methods["ce"]["needs"] == ["labels"]
    assert (methods["kd"]["year"], methods["kd"]["needs"]) == (2015, ["teacher logits"])
    assert {"digits", "mnist"} <= {row["name"] for row in listed(capsys, "data")}
    assert "mlp" in {row["name"] for row in listed(capsys, "models")}
    demo = next(row for row in listed(capsys, "experiments") if row["name"] == "demo")
    assert demo["claim"]
    assert demo["time"]


def test_public_names_can_be_had_and_others_not() -> None:
    assert [name for name in dir(kd_lightning) if not hasattr(kd_lightning, name)] == []
    with pytest.raises(AttributeError, match="Nothing"):
        _ = kd_lightning.Nothing


@pytest.mark.parametrize(
    "statement",
    [
        "import kd_lightning",
        "from kd_lightning.cli import main; main(['--help'])",
        "from kd_lightning.cli import main; main(['fit', '--help'])",
        *(
            f"from kd_lightning.cli import main; main(['list', '{kind}'])"
            for kind in KINDS
        ),
        f"from kd_lightning.cli import main; [main(words) for words in {MISTAKES}]",
    ],
)
def test_nothing_slow_is_imported(statement: str) -> None:
    seen = f"import sys; {statement}; print('imported:', *sorted({set(SLOW)!r} & set(sys.modules)), file=sys.stderr)"
    process = subprocess.run(
        [sys.executable, "-c", seen],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *mistakes, last = process.stderr.strip().splitlines()
    assert last == "imported:"
    assert len(mistakes) == (len(MISTAKES) if "words" in statement else 0)
    assert [line for line in mistakes if not line.startswith("kd: ")] == []
    assert [line for line in mistakes if "internal error" in line] == []


def test_a_reader_that_has_gone_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"
    }
    process = subprocess.run(
        [sys.executable, "-m", "kd_lightning", "list", "methods"],
        stdout=writer,
        stderr=subprocess.PIPE,
        env=environment,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (0, b"")

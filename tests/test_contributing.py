"""CONTRIBUTING.md's steps to a new method, followed literally in a copy of the source."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source with the new files in it, and nothing else edited."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("kd_lightning", "configs", "tests", "experiments"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "pyproject.toml", folder)
    steps = re.findall(
        r"^\*\*\d\. [^*]+\*\*, `([^`]+)`.*?```\w+\n(.*?)```",
        TEXT,
        flags=re.DOTALL | re.MULTILINE,
    )
    assert [Path(path).suffix for path, _ in steps] == [".py", ".py", ".yaml"]
    for path, content in steps:
        assert not (folder / path).exists()
        (folder / path).write_text(content)
    return folder


def test_make_lint_adds_it_to_the_typed_list(checkout: Path) -> None:
    run(checkout, "-m", "tests.losses.exports")
    stub = (checkout / "kd_lightning" / "losses" / "__init__.pyi").read_text()
    assert "from kd_lightning.losses.pearson import Pearson as Pearson\n" in stub


def run(checkout: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(checkout), "WANDB_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_listed_with_its_yaml(checkout: Path) -> None:
    listed = {
        row["name"]: row
        for row in json.loads(
            run(checkout, "-m", "kd_lightning", "list", "methods", "--json")
        )
    }
    assert listed["pearson"]["class_path"] == "kd_lightning.losses.Pearson"
    assert listed["pearson"]["year"] == 2022
    assert (checkout / listed["pearson"]["config"]).is_file()


def test_its_own_tests_pass_and_its_files_are_clean(checkout: Path) -> None:
    said = run(
        checkout,
        "-m",
        "pytest",
        "-v",
        "-p",
        "no:cacheprovider",
        "tests/losses/test_pearson.py",
    )
    assert "[100%]" in said
    run(
        checkout,
        "-m",
        "ruff",
        "check",
        "kd_lightning/losses/pearson.py",
        "tests/losses/test_pearson.py",
    )
    run(
        checkout,
        "-m",
        "ruff",
        "format",
        "--check",
        "kd_lightning/losses/pearson.py",
        "tests/losses/test_pearson.py",
    )


def test_a_pair_trains_with_it(checkout: Path) -> None:
    quick = [
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--data.fraction=0.2",
        "--run.wandb=offline",
    ]
    head = [
        "-m",
        "kd_lightning",
        "fit",
        "-c",
        "configs/trainer.yaml",
        "-c",
        "configs/data/digits.yaml",
    ]
    run(
        checkout,
        *head,
        "-c",
        "configs/teachers/digits_mlp.yaml",
        *quick,
        "--run.dir=runs/teacher",
    )
    # A backslash continues a command on the next line.
    text = TEXT.replace("\\\n", "")
    [command] = re.findall(r"^\$ kd (fit .*pearson.*)$", text, flags=re.MULTILINE)
    words = shlex.split(
        command.replace("TEACHER", "runs/teacher/checkpoints/last.ckpt")
    )
    run(checkout, "-m", "kd_lightning", *words, *quick, "--run.dir=runs/student")
    assert (
        "train_loss_pearson"
        in (checkout / "runs" / "student" / "metrics.csv").read_text()
    )

"""A folder for each test, `kd` as a user sees it, and one trained teacher for all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.launch import launch
from tests.runs import TEACHER, Kd, Outcome, call


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a digits teacher, trained for one epoch."""
    root = tmp_path_factory.mktemp("teacher")
    before = os.environ.get("PL_GLOBAL_SEED")
    folder = launch(resolve_configs([*TEACHER, f"--run.root={root}"])).folder
    if (
        before is None
    ):  # the run's seed must not become the seed of the tests that follow
        os.environ.pop("PL_GLOBAL_SEED", None)
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of a test: `runs/` comes to lie there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def kd(capfd: pytest.CaptureFixture[str]) -> Kd:
    """Run `kd ARGUMENTS...` in this process."""

    def run(*argv: str) -> Outcome:
        return call(capfd, list(argv))

    return run

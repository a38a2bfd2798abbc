"""The fixtures of the tests of runs, and a distilled student on real digits."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.launch import launch
from tests.runs import student
from tests.runs.conftest import kd, place, teacher

__all__ = ["distilled", "kd", "place", "teacher"]


@pytest.fixture(scope="session")
def distilled(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a student that was distilled for two epochs and tested."""
    root = tmp_path_factory.mktemp("distilled")
    more = ["--run.name=distilled", "--run.test=last", "--trainer.max_epochs=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        argv = [*student(teacher), *more, f"--run.root={root}"]
        return launch(resolve_configs(argv)).folder

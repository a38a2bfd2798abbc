"""A teacher that `kd fit` trained, and the data it was trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from kd_lightning.data import DigitsDataModule
from kd_lightning.runs.launch import RunResult
from tests.training import small


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return small.teacher_run(tmp_path_factory)


@pytest.fixture(scope="session")
def checkpoint(teacher_run: RunResult) -> Path:
    return small.last(teacher_run)


@pytest.fixture
def data() -> DigitsDataModule:
    return DigitsDataModule()

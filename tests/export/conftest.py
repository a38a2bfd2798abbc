"""The fixtures of the tests of runs, and a trained run to export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs.conftest import kd, place, teacher

__all__ = ["kd", "place", "teacher"]


@pytest.fixture(scope="session")
def run(teacher: Path) -> Path:
    """The folder of a trained run on the digits."""
    return teacher.parent.parent


@pytest.fixture(scope="session", autouse=True)
def cache_of_exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where `kd export` notes which programs it wrote, for other processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield

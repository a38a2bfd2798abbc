"""The fixtures of the tests of runs, and a trained run to export."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs.conftest import kd, place, teacher

__all__ = ["kd", "place", "teacher"]


@pytest.fixture(scope="session")
def run(teacher: Path) -> Path:
    """The folder of a trained run on the digits."""
    return teacher.parent.parent

"""What the tests of losses share."""

from __future__ import annotations

from collections.abc import Mapping

import pytest


@pytest.fixture(autouse=True)
def untrained_teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `kd fit` take teachers with random weights: a loss needs no good teacher to be tested."""

    def accept(config: Mapping[str, object]) -> None:
        pass

    monkeypatch.setattr("kd_lightning.runs.build.check_teachers_are_trained", accept)

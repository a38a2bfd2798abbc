"""Warnings of libraries are hidden, warnings of users' own code are shown."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
from lightning.fabric.utilities.warnings import PossibleUserWarning

from kd_lightning.runs.quiet import quiet


@pytest.fixture
def shown() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        quiet()
        yield caught


@pytest.mark.parametrize(
    "text", ["odd batch_size", "my num_workers", "not in eval mode"]
)
def test_users_own_warnings_are_shown(
    text: str, shown: list[warnings.WarningMessage]
) -> None:
    warnings.warn(text, stacklevel=1)
    assert [str(warning.message) for warning in shown] == [text]


@pytest.mark.parametrize(
    "module", ["lightning.pytorch.trainer", "torch.optim", "torchmetrics"]
)
def test_warnings_of_libraries_are_hidden(
    module: str, shown: list[warnings.WarningMessage]
) -> None:
    warnings.warn_explicit("a hint", UserWarning, "file.py", 1, module=module)
    warnings.warn("a hint about the caller", PossibleUserWarning, stacklevel=1)
    assert shown == []

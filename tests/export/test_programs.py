"""Programs of torch.export are loaded only if this user made them or trusts them."""

from __future__ import annotations

import contextlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kd_lightning import trust
from kd_lightning.errors import UserError
from kd_lightning.export import programs
from kd_lightning.export.torch_export import TorchExport


@pytest.fixture(autouse=True)
def nobody_is_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trust, "_allowed", set())
    monkeypatch.setattr(programs, "_made", set())
    monkeypatch.delenv(trust.VARIABLE, raising=False)
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))


class Payload:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A folder with a program."""
    exported = torch.export.export(nn.Linear(4, 2), (torch.zeros(1, 4),))
    torch.export.save(exported, tmp_path / "student.pt2")
    return tmp_path


def poison(folder: Path) -> Path:
    """Replace the pickled inputs of a program; returns the folder that loading it makes."""
    executed = folder / "executed"
    buffer = io.BytesIO()
    torch.save((Payload(executed),), buffer)
    path = folder / "student.pt2"
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            is_pickle = "sample_inputs" in name
            archive.writestr(name, buffer.getvalue() if is_pickle else content)
    return executed


def test_the_program_of_a_stranger_is_not_loaded(program: Path) -> None:
    executed = poison(program)
    with pytest.raises(UserError, match="repeat the command with --trust torch_export"):
        TorchExport().read(program)
    assert not executed.exists()
    # The user may decide otherwise, and loading it then does run its code.
    trust.allow("torch_export")
    with contextlib.suppress(Exception):
        TorchExport().read(program)
    assert executed.exists()


def test_ones_own_program_is_loaded_by_later_commands(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs.remember(program / "student.pt2")
    monkeypatch.setattr(programs, "_made", set())
    TorchExport().read(program)
    # Whoever changes it makes it another program.
    executed = poison(program)
    with pytest.raises(UserError, match="was not exported here"):
        TorchExport().read(program)
    assert not executed.exists()


def test_a_cache_that_cannot_be_written_costs_nothing(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KD_CACHE", "/proc/nothing")
    programs.remember(program / "student.pt2")
    TorchExport().read(program)


def test_a_missing_program_is_left_to_the_loader(tmp_path: Path) -> None:
    programs.check(tmp_path / "student.pt2", "a program", "torch_export")

"""A file is written whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.files import write_whole


def dead_process() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    for data in (b"one", memoryview(b"two and more"), b""):
        write_whole(path, data)
        assert path.read_bytes() == bytes(data)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


def fail(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("how", [fail, stop])
def test_a_failure_leaves_the_old_file(
    step: str, how: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    write_whole(path, b"old")
    monkeypatch.setattr(os, step, how)
    with pytest.raises((OSError, KeyboardInterrupt)):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]


def test_the_temporary_file_lies_in_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced = []
    replace = os.replace

    def spy(source: Path, target: Path) -> None:
        replaced.append((Path(source), Path(target)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    write_whole(tmp_path / "a.ckpt", b"new")
    ((source, target),) = replaced
    assert source.parent == target.parent == tmp_path


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    gone = dead_process()
    leftover = tmp_path / f".a.ckpt.{gone}"
    kept = [
        tmp_path / f".a.ckpt.{os.getppid()}",  # its process lives
        tmp_path / f".b.ckpt.{gone}",  # of another file
        tmp_path / ".a.ckpt.notes",
        tmp_path / f"a.ckpt.{gone}",
    ]
    for path in (leftover, *kept):
        path.write_bytes(b"part")
    write_whole(tmp_path / "a.ckpt", b"whole")
    assert not leftover.exists()
    assert all(path.exists() for path in kept)

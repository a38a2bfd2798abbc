"""Killed writers, full disks and two writers at once: the next call finishes the same cache."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kd_lightning.errors import UserError
from kd_lightning.teachers.cache.files import only_writer
from kd_lightning.teachers.cache.manifest import Column
from kd_lightning.teachers.cache.writer import Writer

COLUMNS = {"logits": Column("float32", (3,))}
ROWS = {"train/0": np.array([7, 2, 9, 4, 0]), "train/1": np.array([7, 2, 9, 4, 0])}
ROWS["test/clean"] = np.arange(4)

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="kills processes that it forks"
)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kd_lightning.teachers.cache.writer.SHARD_BYTES", 2 * 12)
    # These processes die, the system does not: waiting for the disk would only take time.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def write(folder: Path) -> None:
    """What `kd cache` does: all tables, then all shards that are missing."""
    with only_writer(folder):
        writer = Writer(folder, {"of": "a"}, {}, COLUMNS, align=1)
        todo = {name: writer.open(name, rows) for name, rows in ROWS.items()}
        for name, ranges in todo.items():
            for number, start, stop in ranges:
                rows = ROWS[name][start:stop]
                logits = (rows[:, None] + np.array([0.0, 0.25, 0.5])).astype(np.float32)
                writer.put(name, number, {"logits": logits})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def complaint(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def killed(act: Callable[[], object]) -> bool:
    """Whether a process that does this is killed."""
    process = os.fork()
    if process == 0:
        act()
        os._exit(0)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status)


def kill_at(
    monkeypatch: pytest.MonkeyPatch, call: int, owner: object, name: str
) -> None:
    """Kill the process before the given call of a function."""
    calls = 0
    original = getattr(owner, name)

    def counted(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)

    monkeypatch.setattr(owner, name, counted)


@pytest.mark.parametrize(
    ("owner", "name"), [(os, "fsync"), (Path, "replace"), (os, "open")]
)
def test_a_writer_killed_at_any_moment_is_finished_by_the_next(
    tmp_path: Path, owner: object, name: str
) -> None:
    write(tmp_path / "whole")
    expected = content(tmp_path / "whole")
    leftovers = 0
    kills = 0
    for call in range(1, 100):
        folder = tmp_path / f"{call}"

        def act(folder: Path = folder, call: int = call) -> None:
            with pytest.MonkeyPatch.context() as patch:
                kill_at(patch, call, owner, name)
                write(folder)

        if not killed(act):
            break
        kills += 1
        leftovers += sum(path.name.startswith(".") for path in folder.iterdir())
        write(folder)
        assert content(folder) == expected, call
    assert kills >= 1
    if name != "open":
        # The manifest is written first, then anew after each table and each of 8 shards.
        assert kills == 1 + (2 + 3) + 2 * 8
        assert leftovers == kills


def test_leftovers_of_version_0_1_do_not_block_a_folder(tmp_path: Path) -> None:
    """It wrote the row numbers before the manifest."""
    write(tmp_path / "whole")
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "train.view0.rows.npy").write_bytes(b"cut")
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    (folder / f".manifest.json.{dead}").write_bytes(b"{")
    write(folder)
    assert content(folder) == content(tmp_path / "whole")


def test_temporary_files_of_others_stay(tmp_path: Path) -> None:
    write(tmp_path)
    alive = tmp_path / f".train.view0.00000.bin.{os.getppid()}"
    alive.write_bytes(b"")
    mine = tmp_path / ".notes.1234567"
    mine.write_bytes(b"")
    write(tmp_path)
    assert alive.exists()
    assert mine.exists()


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with only_writer(tmp_path / "c"):
        assert "another kd cache is writing" in complaint(lambda: write(tmp_path / "c"))
    write(tmp_path / "c")


def test_a_file_system_without_locks_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    write(tmp_path / "c")


def test_a_full_disk_ends_in_one_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "whole")
    expected = content(tmp_path / "whole")
    for call in range(1, 23):
        folder = tmp_path / f"{call}"
        calls = 0

        def full(descriptor: int, call: int = call) -> None:
            nonlocal calls
            calls += 1
            if calls >= call:
                raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            message = complaint(lambda folder=folder: write(folder))  # type: ignore[misc]
        assert "cannot be written (No space left on device)" in message
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        written = content(folder)
        for name in written.keys() - {"manifest.json"}:
            assert written[name] == expected[name]
        write(folder)
        assert content(folder) == expected

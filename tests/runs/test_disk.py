"""A disk that fills up or goes away ends a run in one line."""

from __future__ import annotations

import errno
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kd_lightning import cli
from kd_lightning.errors import UserError
from kd_lightning.files import write_whole_text
from kd_lightning.runs.folder import RunRecord
from kd_lightning.runs.problems import explain
from kd_lightning.training import TrainingModule
from tests.runs import TEACHER, Kd, Outcome
from tests.runs.test_resume import content, record

RUN = Path("runs/digits-mlp")
LAST = RUN / "checkpoints" / "last.ckpt"
CONSTANT = "--model.scheduler=null"


def at_epoch(kd: Kd, epoch: int, act: Callable[[], None], *argv: str) -> Outcome:
    """Do something in the middle of an epoch."""
    start = TrainingModule.on_train_batch_start

    def hook(module: TrainingModule, data: Any, batch_idx: int) -> None:
        if (module.current_epoch, batch_idx) == (epoch, 3):
            act()
        start(module, data, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "on_train_batch_start", hook)
        return kd(*TEACHER, CONSTANT, "--trainer.max_epochs=3", *argv)


@contextmanager
def small_files() -> Iterator[Callable[[], None]]:
    """Gives a function after which no file of this process can be longer than 20 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_one_line(kd: Kd) -> None:
    with small_files() as fill:
        outcome = at_epoch(kd, 1, fill)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1, outcome.err
    assert "cannot be written" in outcome.err
    assert "the earlier one is whole" in outcome.err
    assert record(RUN)["status"] == "failed"
    assert content(LAST)["epoch"] == 0
    assert kd("fit", f"--ckpt_path={LAST}").code == 0
    assert record(RUN)["status"] == "finished"


def test_a_deleted_folder_is_one_line(kd: Kd) -> None:
    outcome = at_epoch(kd, 1, lambda: shutil.rmtree(RUN))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "the run's folder runs/digits-mlp was deleted while it ran" in outcome.err
    assert not LAST.exists()


def test_errors_about_other_files_are_not_explained(tmp_path: Path) -> None:
    missing = FileNotFoundError(errno.ENOENT, "No such file", "data.npz")
    assert explain(missing, tmp_path, True) is None
    assert explain(RuntimeError("a bug"), tmp_path, True) is None
    own = PermissionError(
        errno.EACCES, "Permission denied", str(tmp_path / "metrics.csv")
    )
    assert "Permission denied" in str(explain(own, tmp_path, True))
    full = RuntimeError("the checkpoint")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert "No space left on device" in str(explain(full, tmp_path, True))
    assert explain(UserError("mine"), tmp_path, True) is None


def test_a_record_is_written_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = RunRecord(tmp_path, {"seed": 0})

    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kd_lightning.runs.folder.write_whole_text", full)
    kept.write_anyway(status="failed")
    assert record(tmp_path)["status"] == "failed"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole_text(path, "old")
    with small_files() as fill:
        fill()
        with pytest.raises(OSError, match="File too large"):
            write_whole_text(path, "x" * 30_000)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_late_signal_prints_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    handlers = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)
    }
    monkeypatch.setattr(cli, "main", interrupted)
    try:
        with pytest.raises(SystemExit) as stop:
            cli.entry()
        assert stop.value.code == 130
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert capsys.readouterr().err == ""

"""A checkpoint replaces the earlier one only once it is whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from kd_lightning import cli
from kd_lightning.training.checkpoint_io import WholeCheckpointIO
from kd_lightning.weights import read_file
from tests.training.small import FAST, complaint, run_fit, trainer


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_writes_what_lightning_reads(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "a.ckpt"
    WholeCheckpointIO().save_checkpoint({"a": torch.arange(3)}, path)
    assert torch.equal(TorchCheckpointIO().load_checkpoint(path)["a"], torch.arange(3))


def test_a_full_disk_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ckpt"
    writer = WholeCheckpointIO()
    writer.save_checkpoint({"a": 1}, path)
    monkeypatch.setattr(os, "fsync", full)
    message = complaint(lambda: writer.save_checkpoint({"a": 2}, path))
    assert (
        f"the checkpoint {path} cannot be written (No space left on device)" in message
    )
    assert "the earlier one is whole" in message
    assert read_file(path, "here") == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.ckpt"]
    message = complaint(lambda: writer.save_checkpoint({"a": 2}, tmp_path / "b.ckpt"))
    assert "the earlier one" not in message


def test_a_full_disk_ends_a_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def full_for_checkpoints(source: Path, target: Path) -> None:
        if Path(target).suffix == ".ckpt":
            full()
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_for_checkpoints)
    message = complaint(
        lambda: run_fit(tmp_path / "run", ["teachers/digits_mlp.yaml"], FAST)
    )
    assert (
        "best.ckpt cannot be written" in message
        or "last.ckpt cannot be written" in message
    )
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "there is no space left on the disk for metrics.csv; free some"),
        (errno.EIO, "Input/output error: metrics.csv"),
    ],
)
def test_a_full_disk_anywhere_is_one_line(
    number: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(argv: list[str]) -> int:
        raise OSError(number, os.strerror(number), "metrics.csv")

    monkeypatch.setattr(cli, "dispatch", fail)
    assert cli.main([]) == 2
    assert capsys.readouterr().err == f"kd: {message}\n"


def test_a_users_own_writer_has_priority(tmp_path: Path) -> None:
    class Own(TorchCheckpointIO):
        pass

    fit = trainer(plugins=[Own()])
    assert isinstance(fit.strategy.checkpoint_io, Own)

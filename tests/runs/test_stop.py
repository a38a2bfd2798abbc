"""A signal in the middle of an epoch loses nothing: the run goes on at the next step, to the same bits."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.training import TrainingModule
from tests.runs import TEACHER, Kd, Outcome, student
from tests.runs.test_resume import JITTER, SCHEDULERS, content, differences, record

LAST = Path("runs/parts/checkpoints/last.ckpt")
OWN = (
    "--trainer.callbacks+={class_path: lightning.pytorch.callbacks.ModelCheckpoint, "
    "init_args: {every_n_train_steps: 5, dirpath: own, filename: own}}"
)


def signalled(
    kd: Kd, argv: list[str], epoch: int, batch: int, times: int = 1
) -> Outcome:
    """Run until a step of an epoch begins; then comes a SIGTERM."""
    start = TrainingModule.on_train_batch_start

    def ask(module: TrainingModule, data: Any, batch_idx: int) -> None:
        if (module.current_epoch, batch_idx) == (epoch, batch):
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGTERM)
        start(module, data, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "on_train_batch_start", ask)
        return kd(*argv)


def check_same(whole: Path, parts: Path) -> None:
    assert (parts / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    for name in ("last.ckpt", "best.ckpt"):
        a, b = (
            content(whole / "checkpoints" / name),
            content(parts / "checkpoints" / name),
        )
        keys = (
            "epoch",
            "global_step",
            "state_dict",
            "optimizer_states",
            "lr_schedulers",
        )
        assert differences({k: a[k] for k in keys}, {k: b[k] for k in keys}) == []
    assert record(parts)["metrics"] == record(whole)["metrics"]


@pytest.mark.parametrize(
    ("setting", "batch", "epoch", "step"),
    [
        ("", 6, 2, 7),
        ("", 0, 2, 1),
        ("", 8, 2, 9),  # the last of the epoch
        ("--trainer.accumulate_grad_batches=3", 3, 2, 6),
        ("--trainer.val_check_interval=0.5", 3, 2, 5),  # validation comes after batch 3
        ("--trainer.val_check_interval=0.5", 6, 2, 7),
        ("--trainer.limit_train_batches=6", 2, 0, 3),
    ],
)
def test_goes_on_within_an_epoch(
    setting: str, batch: int, epoch: int, step: int, teacher: Path, kd: Kd
) -> None:
    distilled = [
        *student(teacher),
        "--model.student.dropout=0.3",
        JITTER,
        SCHEDULERS["each step"],
    ]
    argv = [
        *distilled,
        "--trainer.max_epochs=4",
        "--data.batch_size=128",
        *([setting] if setting else []),
    ]
    assert kd(*argv, "--run.name=whole").code == 0
    outcome = signalled(kd, [*argv, "--run.name=parts"], epoch, batch)
    assert (outcome.code, record(LAST.parents[1])["status"]) == (130, "interrupted")
    assert outcome.err == f"kd: interrupted; resume with: kd fit --ckpt_path {LAST}\n"
    progress = content(LAST)["loops"]["fit_loop"]["epoch_loop.batch_progress"][
        "current"
    ]
    assert (content(LAST)["epoch"], progress["processed"]) == (epoch, step)
    resumed = kd("fit", f"--ckpt_path={LAST}")
    assert (resumed.code, resumed.err) == (0, "")
    check_same(Path("runs/whole"), Path("runs/parts"))


def test_a_second_signal_of_the_same_moment_is_the_same_one(kd: Kd) -> None:
    assert signalled(kd, [*TEACHER, "--run.name=parts"], 0, 3, times=2).code == 130
    assert content(LAST)["global_step"] == 4


def test_a_later_signal_stops_at_once(monkeypatch: pytest.MonkeyPatch, kd: Kd) -> None:
    monkeypatch.setattr("kd_lightning.runs.checkpoints.StopAtStep.AGAIN_S", -1.0)
    outcome = signalled(kd, [*TEACHER, "--run.name=parts"], 0, 3, times=2)
    assert (outcome.code, LAST.exists()) == (130, False)
    assert (
        outcome.err
        == "kd: interrupted before the first checkpoint; start the run again\n"
    )


def test_goes_on_from_a_checkpoint_of_the_users_own(teacher: Path, kd: Kd) -> None:
    argv = [
        *student(teacher),
        JITTER,
        SCHEDULERS["each step"],
        "--trainer.max_epochs=3",
    ]
    assert kd(*argv, "--run.name=whole").code == 0
    assert signalled(kd, [*argv, OWN, "--run.name=parts"], 1, 6).code == 130
    own = LAST.with_name("own.ckpt")
    Path("own/own.ckpt").rename(own)
    assert content(own)["global_step"] % 5 == 0
    assert kd("fit", f"--ckpt_path={own}").code == 0
    check_same(Path("runs/whole"), Path("runs/parts"))


@pytest.mark.parametrize("method", ["crd", "vid"])  # a memory of features; adapters
def test_what_losses_keep_goes_on_too(method: str, teacher: Path, kd: Kd) -> None:
    layers = "{penultimate: body.1, stage1: body.1, stage2: body.1, stage3: body.1}"
    argv = [
        *student(teacher),
        "-c",
        f"configs/methods/{method}.yaml",
        f"--model.layers={layers}",
        "--trainer.max_epochs=3",
    ]
    argv += [f"--model.teacher.layers={layers}", "--run.test=last", JITTER]
    assert kd(*argv, "--run.name=whole").code == 0
    assert signalled(kd, [*argv, "--run.name=parts"], 1, 4).code == 130
    assert kd("fit", f"--ckpt_path={LAST}").code == 0
    check_same(Path("runs/whole"), Path("runs/parts"))

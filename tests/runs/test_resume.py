"""A run that was stopped and resumed equals one that was not, to the bit."""

from __future__ import annotations

import json
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.training import TrainingModule
from tests.runs import TEACHER, Kd, Outcome, finish, spawn, student

JITTER = (
    "--data.augment=[{class_path: kd_lightning.data.Jitter, init_args: {pixels: 1}}]"
)
SCHEDULERS = {
    "each step": "--model.scheduler={class_path: torch.optim.lr_scheduler.OneCycleLR, init_args: {max_lr: 0.05}}",
    "each epoch": "--model.scheduler={class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1, gamma: 0.7}}",
    "none": "--model.scheduler=null",
}


def content(checkpoint: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return loaded


def record(run: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((run / "run.json").read_text())
    return read


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested values are not the same, bit by bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
        return [d for key in a for d in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [
            d
            for at, (x, y) in enumerate(zip(a, b, strict=True))
            for d in differences(x, y, f"{where}[{at}]")
        ]
    return [] if a == b else [f"{where}: {a!r} != {b!r}"]


def arguments(role: str, scheduler: str, teacher: Path) -> list[str]:
    """Four epochs with dropout and jitter."""
    distilled = [
        *student(teacher),
        "--model.student.dropout=0.3",
        "--model.losses.ce.weight=1",
    ]
    own = distilled if role == "student" else TEACHER  # which has dropout
    return [
        *own,
        JITTER,
        SCHEDULERS[scheduler],
        "--trainer.max_epochs=4",
        "--seed_everything=1",
    ]


def stop_at(patch: pytest.MonkeyPatch, epoch: int, batch: int) -> None:
    """Press Ctrl-C in the middle of an epoch."""
    start = TrainingModule.on_train_batch_start

    def interrupted(module: TrainingModule, data: Any, batch_idx: int) -> None:
        if (module.current_epoch, batch_idx) == (epoch, batch):
            raise KeyboardInterrupt
        start(module, data, batch_idx)

    patch.setattr(TrainingModule, "on_train_batch_start", interrupted)


def stopped(kd: Kd, argv: list[str], epoch: int, batch: int) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, epoch, batch)
        return kd(*argv)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("role", "batch"), [("network", 0), ("student", 7)])
def test_resumed_equals_uninterrupted(
    role: str, scheduler: str, batch: int, teacher: Path, kd: Kd
) -> None:
    argv = arguments(role, scheduler, teacher)
    assert kd(*argv, "--run.name=whole").code == 0
    outcome = stopped(kd, [*argv, "--run.name=parts"], 2, batch)
    whole, parts = Path("runs/whole"), Path("runs/parts")
    assert outcome.code == 130
    assert record(parts)["status"] == "interrupted"
    assert content(parts / "checkpoints" / "last.ckpt")["epoch"] == 1

    resumed = kd("fit", f"--ckpt_path={parts}/checkpoints/last.ckpt")
    assert (resumed.code, resumed.err) == (0, "")
    assert not Path("runs/parts-2").exists()
    assert (parts / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
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
    # `started` and the wall time go on; the rest of the record is that of a finished run.
    assert record(parts)["status"] == "finished"
    assert record(parts)["metrics"] == record(whole)["metrics"]
    assert record(parts)["resumed_from"] == str(parts / "checkpoints" / "last.ckpt")


def test_the_comparison_sees_a_different_run(teacher: Path, kd: Kd) -> None:
    argv = arguments("network", "none", teacher)
    for seed in (1, 2):
        assert (
            kd(*argv, f"--seed_everything={seed}", f"--run.name=seed{seed}").code == 0
        )
    a, b = (content(Path(f"runs/seed{seed}/checkpoints/last.ckpt")) for seed in (1, 2))
    assert differences(a["state_dict"], b["state_dict"]) != []
    assert differences(a["optimizer_states"], b["optimizer_states"]) != []


@pytest.mark.parametrize("validation", [0.0, 0.1])
def test_every_finished_epoch_is_kept(validation: float, kd: Kd) -> None:
    # Epoch 1 learns nothing, so that it is no better than epoch 0.
    still = "--model.scheduler={class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1, gamma: 0.0}}"
    argv = [
        *TEACHER,
        still,
        "--trainer.max_epochs=4",
        f"--data.validation={validation}",
    ]
    assert "resume with" in stopped(kd, argv, 2, 3).err
    assert content(Path("runs/digits-mlp/checkpoints/last.ckpt"))["epoch"] == 1


def test_an_interrupt_before_the_first_checkpoint_says_so(kd: Kd) -> None:
    outcome = stopped(kd, TEACHER, 0, 3)
    assert outcome.code == 130
    assert (
        outcome.err
        == "kd: interrupted before the first checkpoint; start the run again\n"
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_run_that_can_be_resumed(
    number: signal.Signals, place: Path, kd: Kd
) -> None:
    run = place / "runs" / "digits-mlp"
    last = run / "checkpoints" / "last.ckpt"
    process = spawn(
        [*TEACHER, SCHEDULERS["each epoch"], "--trainer.max_epochs=100000"], place
    )
    end = time.monotonic() + 60
    while not last.is_file() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(number)
    outcome = finish(process)
    assert outcome.code != 0
    assert record(run)["status"] == "interrupted"
    assert (
        outcome.err
        == "kd: interrupted; resume with: kd fit --ckpt_path runs/digits-mlp/checkpoints/last.ckpt\n"
    )
    epochs = int(content(last)["epoch"]) + 1
    argv = shlex.split(outcome.err.partition("resume with: kd ")[2])
    assert kd(*argv, f"--trainer.max_epochs={epochs + 1}").code == 0
    assert record(run)["status"] == "finished"
    assert content(last)["epoch"] == epochs


def failed_in_one_line(outcome: Outcome, run: Path) -> None:
    assert outcome.code == 2
    assert outcome.err.startswith(("kd: the loss became ", "kd: weights became "))
    assert outcome.err.count("\n") == 1
    assert record(run)["status"] == "failed"
    assert "learning rate" in record(run)["error"]


def finite(checkpoint: Path) -> bool:
    return all(
        bool(tensor.isfinite().all())
        for tensor in content(checkpoint)["state_dict"].values()
    )


def sgd(rate: str) -> str:
    return (
        f"--model.optimizer={{class_path: torch.optim.SGD, init_args: {{lr: {rate}}}}}"
    )


def test_a_loss_that_is_not_finite_stops_the_run(kd: Kd) -> None:
    failed_in_one_line(
        kd(*TEACHER, sgd("1.0e+12"), SCHEDULERS["none"]), Path("runs/digits-mlp")
    )
    assert not Path("runs/digits-mlp/checkpoints").exists()


def test_the_best_checkpoint_of_a_diverged_run_is_finite(kd: Kd) -> None:
    later = "--model.scheduler={class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1, gamma: 1.0e+14}}"
    outcome = kd(*TEACHER, sgd("0.01"), later, "--trainer.max_epochs=3")
    failed_in_one_line(outcome, Path("runs/digits-mlp"))
    assert "epoch 1" in outcome.err
    for name in ("best", "last"):
        assert finite(Path(f"runs/digits-mlp/checkpoints/{name}.ckpt"))


def test_weights_that_overflow_in_the_last_step_are_not_kept(kd: Kd) -> None:
    one_step = [
        *TEACHER,
        sgd("1.0e+40"),
        SCHEDULERS["none"],
        "--data.batch_size=2000",
        "--trainer.max_epochs=2",
    ]
    failed_in_one_line(kd(*one_step), Path("runs/digits-mlp"))
    assert all(
        finite(path) for path in Path("runs/digits-mlp/checkpoints").glob("*.ckpt")
    )


def test_a_finished_run_that_is_resumed_keeps_its_metrics(kd: Kd) -> None:
    assert kd(*TEACHER).code == 0
    before = record(Path("runs/digits-mlp"))["metrics"]
    assert before["val_accuracy"] > 0
    assert (
        kd("fit", f"--ckpt_path={Path('runs/digits-mlp/checkpoints/last.ckpt')}").code
        == 0
    )
    assert record(Path("runs/digits-mlp"))["metrics"] == before

"""What a resumed run may change, what is refused, and what its folder then says."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kd_lightning.data import DigitsDataModule, Images
from kd_lightning.errors import UserError
from kd_lightning.runs import lock
from kd_lightning.runs.resume import changed_settings, may_change
from tests.runs import TEACHER, Kd, student
from tests.runs.test_resume import content, record, stopped

RUN = Path("runs/digits-mlp")
LAST = RUN / "checkpoints" / "last.ckpt"
CONSTANT = "--model.scheduler=null"


def files(run: Path) -> dict[str, bytes]:
    return {
        name: (run / name).read_bytes()
        for name in ("run.json", "config.yaml", "metrics.csv")
    }


def config(run: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text())
    return loaded


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def refused(kd: Kd, *argv: str) -> str:
    """The one line of a refused command, which leaves the run's files alone."""
    before = files(RUN)
    outcome = kd(*argv)
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1, outcome.err
    assert files(RUN) == before
    assert not (RUN / lock.LOCK).exists()
    return outcome.err


def test_other_settings_are_refused(kd: Kd) -> None:
    assert kd(*TEACHER, CONSTANT).code == 0
    for option, old, new in (
        ("data.batch_size", 64, 32),
        ("data.split_seed", 0, 9),
        ("data.validation", 0.1, 0.2),
        ("seed_everything", 0, 1),
        ("trainer.accumulate_grad_batches", 1, 2),
        ("trainer.gradient_clip_val", "null", 1.0),
        ("trainer.precision", "null", "bf16-mixed"),
        ("model.network.dropout", 0.3, 0.1),
    ):
        line = refused(
            kd,
            "fit",
            f"--ckpt_path={LAST}",
            f"--{option}={new}",
            "--trainer.max_epochs=2",
        )
        assert f"--{option} is {new}" in line
        assert f"trained with {old};" in line or option == "model.network.dropout", line
        assert f"--model.init_from={LAST.resolve()}" in line or str(LAST) in line


def test_another_optimizer_is_refused(kd: Kd) -> None:
    assert kd(*TEACHER, CONSTANT).code == 0
    line = refused(
        kd,
        "fit",
        f"--ckpt_path={LAST}",
        "--model.optimizer=torch.optim.Adam",
        "--trainer.max_epochs=2",
    )
    assert "--model.optimizer is torch.optim.Adam" in line


def test_allowed_changes_are_recorded(kd: Kd) -> None:
    assert kd(*TEACHER, CONSTANT).code == 0
    first = record(RUN)
    outcome = kd(
        "fit",
        f"--ckpt_path={LAST}",
        "--trainer.max_epochs=2",
        "--trainer.log_every_n_steps=5",
        "--run.tags=[a]",
    )
    assert (outcome.code, outcome.err) == (0, "")
    said = record(RUN)
    changed = {
        change["name"]: (change["old"], change["new"]) for change in said["changes"]
    }
    assert changed["trainer.max_epochs"] == (1, 2)
    assert {change["epoch"] for change in said["changes"]} == {0}
    assert config(RUN)["trainer"]["max_epochs"] == 2
    assert "ckpt_path" not in config(RUN)
    assert [part["command"] for part in said["earlier"]] == [first["command"]]
    assert said["earlier"][0]["commit"] == first["commit"]
    assert said["wandb"]["id"] == first["wandb"]["id"]
    # The config is still that of a run: it can be trained anew.
    assert kd("fit", "-c", str(RUN / "config.yaml")).code == 0
    again = Path("runs/digits-mlp-2/checkpoints/last.ckpt")
    assert content(again)["epoch"] == content(LAST)["epoch"] == 1


def test_a_schedule_of_another_length_leaves_the_run_alone(kd: Kd) -> None:
    assert kd(*TEACHER).code == 0
    assert record(RUN)["status"] == "finished"
    line = refused(kd, "fit", f"--ckpt_path={LAST}", "--trainer.max_epochs=2")
    assert "learning rates were planned" in line


def test_a_finished_run_has_nothing_to_do(kd: Kd) -> None:
    assert kd(*TEACHER).code == 0
    before = files(RUN)
    outcome = kd("fit", f"--ckpt_path={LAST}")
    assert (outcome.code, outcome.err) == (0, "")
    assert (
        "digits-mlp is finished after 1 epochs; nothing is left to train" in outcome.out
    )
    assert files(RUN) == before


def test_a_finished_run_can_still_be_tested(kd: Kd) -> None:
    assert kd(*TEACHER).code == 0
    assert kd("fit", f"--ckpt_path={LAST}", "--run.test=last").code == 0
    assert record(RUN)["metrics"]["test_errors"] > 0
    assert config(RUN)["run"]["test"] == "last"


class ChangedDigits(DigitsDataModule):
    """Digits of which a test can change one pixel."""

    changed = False

    def load(self, split: str) -> Images:
        raw = super().load(split)
        if self.changed and split == "train":
            images = raw.images.clone()
            images[0, 0, 0, 0] += 1
            return Images(images, raw.target)
        return raw


def test_changed_data_is_refused(kd: Kd, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kd(*TEACHER, CONSTANT, f"--data={__name__}.ChangedDigits").code == 0
    assert sorted(record(RUN)["data_sha256"]) == ["test", "train"]
    monkeypatch.setattr(ChangedDigits, "changed", True)
    line = refused(kd, "fit", f"--ckpt_path={LAST}", "--trainer.max_epochs=2")
    assert "the train samples changed since this run was trained" in line


class OverlappingDigits(DigitsDataModule):
    """Digits whose first 20 test images are training images."""

    def load(self, split: str) -> Images:
        raw = super().load(split)
        if split == "train":
            return raw
        images = raw.images.clone()
        images[:20] = super().load("train").images[:20]
        return Images(images, raw.target)


def test_test_samples_in_the_training_data_are_counted(kd: Kd) -> None:
    argv = [*TEACHER, f"--data={__name__}.OverlappingDigits", "--data.validation=0"]
    outcome = kd(*argv)
    assert outcome.code == 0
    assert "data: 20 of 602 test samples also lie in the training data" in outcome.out
    assert record(RUN)["shared_test_samples"] == 20


def test_another_teacher_is_refused(teacher: Path, kd: Kd, place: Path) -> None:
    own = place / "teacher.ckpt"
    own.write_bytes(teacher.read_bytes())
    assert kd(*student("teacher.ckpt"), CONSTANT, "--run.name=digits-mlp").code == 0
    moved = place / "moved.ckpt"
    own.rename(moved)
    # The same weights under another name are the same teacher.
    argv = ["fit", f"--ckpt_path={LAST}", "--model.teacher.checkpoint=moved.ckpt"]
    assert kd(*argv, "--trainer.max_epochs=2").code == 0
    altered = content(moved)
    altered["state_dict"] = {name: t * 0.9 for name, t in altered["state_dict"].items()}
    torch.save(altered, moved)
    line = refused(kd, *argv, "--trainer.max_epochs=3")
    assert "the teacher is not the one that this run was trained with" in line


def test_a_relative_teacher_is_found_from_elsewhere(
    teacher: Path, kd: Kd, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "teacher.ckpt").write_bytes(teacher.read_bytes())
    assert kd(*student("teacher.ckpt"), CONSTANT).code == 0
    last = (place / "runs/digits-mlp-distill/checkpoints/last.ckpt").resolve()
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    outcome = kd("fit", f"--ckpt_path={last}", "--trainer.max_epochs=2")
    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_a_checkpoint_is_not_used_on_other_data(
    command: str, teacher: Path, kd: Kd
) -> None:
    class_path = f"{__name__}.BrightDigits"
    outcome = kd(command, f"--ckpt_path={teacher}", f"--data={class_path}")
    assert outcome.code == 2
    assert "normalized by mean" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not Path("runs").exists()


class BrightDigits(DigitsDataModule):
    """Digits of another normalization."""

    mean = (0.5,)


def test_a_kill_before_the_row_is_written_leaves_a_whole_row(kd: Kd) -> None:
    argv = [*TEACHER, CONSTANT, "--trainer.max_epochs=3"]
    assert kd(*argv, "--run.name=whole").code == 0
    assert stopped(kd, [*argv, "--run.name=digits-mlp"], 2, 0).code == 130
    # As if killed before the training metrics of epoch 1 came to metrics.csv.
    header, *rows = (RUN / "metrics.csv").read_text().splitlines()
    names = header.split(",")
    cells = rows[1].split(",")
    for name in ("train_loss", "learning_rate"):
        cells[names.index(name)] = ""
    (RUN / "metrics.csv").write_text(
        "\n".join([header, rows[0], ",".join(cells)]) + "\n"
    )
    assert kd("fit", f"--ckpt_path={LAST}").code == 0
    assert (RUN / "metrics.csv").read_bytes() == Path(
        "runs/whole/metrics.csv"
    ).read_bytes()


def test_a_kill_before_any_row_is_written_leaves_a_whole_row(kd: Kd) -> None:
    argv = [*TEACHER, CONSTANT, "--trainer.max_epochs=2"]
    assert kd(*argv, "--run.name=whole").code == 0
    assert stopped(kd, [*argv, "--run.name=digits-mlp"], 1, 0).code == 130
    (RUN / "metrics.csv").unlink()
    assert kd("fit", f"--ckpt_path={LAST}").code == 0
    assert rows(RUN) == rows(Path("runs/whole"))


def test_curves_within_an_epoch_continue(kd: Kd) -> None:
    argv = [
        *TEACHER,
        CONSTANT,
        "--trainer.max_epochs=3",
        "--trainer.log_every_n_steps=5",
    ]
    assert kd(*argv, "--run.name=whole").code == 0
    assert stopped(kd, [*argv, "--run.name=digits-mlp"], 2, 9).code == 130
    assert kd("fit", f"--ckpt_path={LAST}").code == 0
    curves = (RUN / "steps.csv").read_text()
    assert curves.startswith("step,epoch,train_loss_step,learning_rate_step\n5,0,")
    assert curves == Path("runs/whole/steps.csv").read_text()


# -- without training ------------------------------------------------------------------------------


def test_observers_and_data_places_may_change() -> None:
    stopping = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {},
    }
    averaging: dict[str, Any] = {
        "class_path": "lightning.pytorch.callbacks.WeightAveraging",
        "init_args": {},
    }
    inner = {"class_path": "D", "init_args": {"root": "a", "fraction": 1.0}}
    old: dict[str, Any] = {
        "trainer": {"callbacks": None},
        "data": {"init_args": {"data": inner}},
    }
    new: dict[str, Any] = {
        "trainer": {"callbacks": [stopping]},
        "data": {
            "init_args": {
                "data": {**inner, "init_args": {"root": "b", "fraction": 1.0}}
            }
        },
    }
    changes = changed_settings(old, new)
    assert [change.name for change in changes] == ["data.init_args.data.init_args.root"]
    assert may_change(changes[0])
    [change, *_] = changed_settings(old, {**old, "trainer": {"callbacks": [averaging]}})
    assert change.name.startswith("trainer.callbacks")
    assert not may_change(change)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with lock.locked(tmp_path):
        with (
            pytest.raises(UserError, match=f"in use by process {os.getpid()}"),
            lock.locked(tmp_path),
        ):
            pass
        assert (tmp_path / lock.LOCK).is_file()
    assert not (tmp_path / lock.LOCK).exists()


def test_the_lock_of_a_dead_process_is_removed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    held = {"pid": process.pid, "host": socket.gethostname(), "started": "1"}
    for text in (json.dumps(held), "", json.dumps({**held, "pid": os.getpid()})):
        (tmp_path / lock.LOCK).write_text(text)
        with lock.locked(tmp_path):
            assert str(os.getpid()) in (tmp_path / lock.LOCK).read_text()
    (tmp_path / lock.LOCK).write_text(json.dumps({**held, "host": "another"}))
    with pytest.raises(UserError, match="on another"), lock.locked(tmp_path):
        pass


def test_a_run_in_use_is_refused(kd: Kd) -> None:
    assert kd(*TEACHER, CONSTANT).code == 0
    before = files(RUN)
    with lock.locked(RUN):
        outcome = kd("fit", f"--ckpt_path={LAST}", "--trainer.max_epochs=2")
    assert outcome.code == 2
    assert "is in use by process" in outcome.err
    assert files(RUN) == before

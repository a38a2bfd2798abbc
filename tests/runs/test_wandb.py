"""Weights & Biases: on, off, and not there at all."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers.logger import Logger

from tests.runs import TEACHER, Kd, Outcome, finish, spawn, student

WITHOUT_CSV_CONFIG = [*TEACHER[:5], *TEACHER[7:]]
"""The teacher's arguments without configs/loggers/csv.yaml: W&B is on."""


class FakeRun:
    """Stands for what `wandb.init` returns and keeps what it is given."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.rows: list[dict[str, Any]] = []
        self.exit_codes: list[int] = []

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.exit_codes.append(exit_code)


class FakeLogger(Logger):
    """Stands for Lightning's WandbLogger."""

    def __init__(self, experiment: FakeRun) -> None:
        super().__init__()
        self.experiment = experiment

    @property
    def name(self) -> str:
        return "fake"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("the config is handed over when the run is made")

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics))


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """The W&B runs that this test made."""
    made: list[FakeRun] = []

    def init(**arguments: Any) -> FakeRun:
        made.append(FakeRun(**arguments))
        return made[-1]

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("wandb.init", init)
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger", FakeLogger)
    return made


def test_the_loggers_config_turns_it_on(wandb_runs: list[FakeRun], kd: Kd) -> None:
    assert kd(*WITHOUT_CSV_CONFIG, "-c", "configs/loggers/wandb.yaml").code == 0
    [run] = wandb_runs
    assert run.arguments["project"] == "kd_lightning"
    assert "val_accuracy" in {name for row in run.rows for name in row}


def test_wandb_is_told_of_config_group_job_type_and_tags(
    teacher: Path, wandb_runs: list[FakeRun], kd: Kd
) -> None:
    options = [
        "--run.wandb=offline",
        "--run.group=mine",
        "--run.tags=[a,b]",
        "--run.project=p",
        "--run.test=last",
    ]
    assert kd(*student(teacher), *options).code == 0
    [run] = wandb_runs
    given = run.arguments
    assert (given["group"], given["job_type"], given["tags"]) == (
        "mine",
        "distill",
        ["a", "b"],
    )
    assert (given["project"], given["name"], given["mode"]) == (
        "p",
        "digits-mlp-distill",
        "offline",
    )
    assert (
        given["config"]["model"]["init_args"]["losses"]["kd"]["init_args"][
            "temperature"
        ]
        == 4.0
    )
    assert given["config"]["seed_everything"] == 0
    assert given["config"]["teacher"][0]["path"] == str(teacher)
    assert given["config"]["data"]["class_path"] == "kd_lightning.data.DigitsDataModule"
    assert given["config"]["spec"]["samples"]["test"] == 602
    assert given["config"]["folder"] == str(Path("runs/digits-mlp-distill").resolve())
    logged = {name for row in run.rows for name in row}
    assert {
        "train_loss",
        "val_accuracy",
        "test_errors",
        "test_confusion_matrix",
        "test_mistakes",
    } <= logged
    assert run.exit_codes == [0]


def test_a_folder_of_the_users_keeps_the_runs_name(
    wandb_runs: list[FakeRun], kd: Kd
) -> None:
    """An experiment's folders are hashes, which tell nobody anything."""
    assert kd(*TEACHER, "--run.wandb=offline", "--run.dir=0123456789abcdef").code == 0
    assert (
        kd(*TEACHER, "--run.wandb=offline", "--run.dir=mine", "--run.name=null").code
        == 0
    )
    assert [run.arguments["name"] for run in wandb_runs] == ["digits-mlp", "mine"]


def test_a_failed_run_is_marked_as_failed(wandb_runs: list[FakeRun], kd: Kd) -> None:
    sgd = "{class_path: torch.optim.SGD, init_args: {lr: 1.0e+12}}"
    assert (
        kd(
            *TEACHER,
            "--run.wandb=offline",
            "--model.scheduler=null",
            f"--model.optimizer={sgd}",
        ).code
        == 2
    )
    assert [run.exit_codes for run in wandb_runs] == [[1]]


def test_the_csv_config_turns_wandb_off(wandb_runs: list[FakeRun], kd: Kd) -> None:
    assert kd(*TEACHER).code == 0
    assert wandb_runs == []
    assert kd(*WITHOUT_CSV_CONFIG).code == 0
    assert len(wandb_runs) == 1


@pytest.mark.parametrize("off", ["--run.wandb=off", "WANDB_MODE"])
def test_off_is_off(
    off: str, wandb_runs: list[FakeRun], kd: Kd, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*WITHOUT_CSV_CONFIG]
    if off == "WANDB_MODE":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    else:
        argv.append(off)
    outcome = kd(*argv)
    assert (outcome.code, wandb_runs) == (0, [])
    assert "wandb" not in outcome.out.lower()
    assert "W&B" not in outcome.out


def test_a_wrong_mode_is_one_line(
    wandb_runs: list[FakeRun], kd: Kd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "onlin")
    outcome = kd(*WITHOUT_CSV_CONFIG)
    line = "kd: WANDB_MODE is 'onlin'; valid modes: online, offline, disabled\n"
    assert (outcome.code, outcome.err) == (2, line)
    assert not Path("runs").exists()


def test_online_without_a_key_is_one_line(
    wandb_runs: list[FakeRun], kd: Kd, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "no-netrc")
    outcome = kd(*TEACHER, "--run.wandb=online")
    assert outcome.code == 2
    assert "needs an API key; run wandb login" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not Path("runs").exists()


def test_an_error_of_wandb_is_one_line(kd: Kd, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**arguments: Any) -> None:
        raise RuntimeError("no network\nat all")

    monkeypatch.setattr("wandb.init", init)
    outcome = kd(*TEACHER, "--run.wandb=offline")
    assert outcome.code == 2
    assert outcome.err.startswith("kd: W&B could not start the run (no network)")
    said = json.loads(Path("runs/digits-mlp/run.json").read_text())
    assert said["status"] == "failed"


def test_a_resumed_run_continues_its_run(wandb_runs: list[FakeRun], kd: Kd) -> None:
    argv = [*TEACHER, "--run.wandb=offline", "--model.scheduler=null"]
    assert kd(*argv).code == 0
    last = "--ckpt_path=runs/digits-mlp/checkpoints/last.ckpt"
    assert kd("fit", last).code == 0
    assert len(wandb_runs) == 1  # nothing was left to train
    assert kd("fit", last, "--trainer.max_epochs=2").code == 0
    first, second = (run.arguments for run in wandb_runs)
    said = json.loads(Path("runs/digits-mlp/run.json").read_text())
    assert first["id"] == second["id"] == said["wandb"]["id"]
    assert second["resume"] == "allow"
    assert kd(*argv).code == 0
    assert wandb_runs[-1].arguments["id"] != first["id"]


def test_losses_within_an_epoch_are_logged(wandb_runs: list[FakeRun], kd: Kd) -> None:
    assert (
        kd(*TEACHER, "--run.wandb=offline", "--trainer.log_every_n_steps=5").code == 0
    )
    [run] = wandb_runs
    steps = [row for row in run.rows if "train_loss_step" in row]
    assert len(steps) == 3
    assert all(row["learning_rate_step"] > 0 for row in steps)


def test_a_run_goes_on_without_wandb(monkeypatch: pytest.MonkeyPatch, kd: Kd) -> None:
    monkeypatch.setitem(
        sys.modules, "wandb", None
    )  # `import wandb` now raises ImportError
    outcome = kd(*WITHOUT_CSV_CONFIG)
    assert (outcome.code, outcome.err) == (0, "")
    assert "W&B is not installed" in outcome.out
    assert Path("runs/digits-mlp/metrics.csv").is_file()


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path]:
    """A run with the real W&B in a process of its own, and its folder."""
    place = tmp_path_factory.mktemp("offline")
    folders = {
        f"WANDB_{name}_DIR": str(place / "wandb-own")
        for name in ("CACHE", "CONFIG", "DATA")
    }
    # WANDB_SERVICE would lead to the service of this process, if it had one.
    unset = dict.fromkeys(("WANDB_MODE", "WANDB_API_KEY", "WANDB_SERVICE"))
    process = spawn(
        [*WITHOUT_CSV_CONFIG, "--run.wandb=offline"], place, **folders, **unset
    )
    return finish(process), place / "runs" / "digits-mlp"


def test_an_offline_run_needs_no_network(offline: tuple[Outcome, Path]) -> None:
    outcome, run = offline
    assert outcome.code == 0
    assert "W&B: offline" in outcome.out
    assert "wandb sync runs/digits-mlp/wandb/offline-run-*" in outcome.out
    [written] = run.glob("wandb/offline-run-*/*.wandb")
    assert written.stat().st_size > 0


def test_an_offline_run_writes_nothing_on_standard_error(
    offline: tuple[Outcome, Path],
) -> None:
    assert offline[0].err == ""

"""What a run leaves behind, and what can be done with it."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from kd_lightning import ClassifierModule, DistillationModule
from kd_lightning.data import DigitsDataModule, Images
from kd_lightning.runs.predictions import join_batches
from tests.runs import TEACHER, Kd, finish, spawn, student

STUDENT_RUN = Path("runs/digits-mlp-distill")
LAST = "checkpoints/last.ckpt"
SPOILT = [
    "--trainer.max_epochs=2",
    "--model.scheduler={class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1, gamma: 400.0}}",
]
"""The rate grows 400 times after the first epoch, which therefore stays the best."""


def content(checkpoint: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    return loaded


def record(run: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((run / "run.json").read_text())
    return read


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same_weights(a: Path, b: Path) -> bool:
    left, right = content(a)["state_dict"], content(b)["state_dict"]
    return list(left) == list(right) and all(
        torch.equal(left[name], right[name]) for name in left
    )


def logits_on_test(checkpoint: Path) -> Tensor:
    """A forward pass by hand over the test set, in its own order."""
    module = DistillationModule.load_from_checkpoint(checkpoint).eval()
    source = DigitsDataModule().source("test")
    with torch.no_grad():
        logits: Tensor = module(source.batch(torch.arange(len(source)), -1).inputs)
    return logits


def test_a_run_folder_tells_what_ran_and_how_it_ended(teacher: Path, kd: Kd) -> None:
    outcome = kd(*student(teacher), "--trainer.max_epochs=2", "--seed_everything=3")
    assert (outcome.code, outcome.err) == (0, "")
    assert f"checkpoint: {STUDENT_RUN / LAST}" in outcome.out
    found = sorted(
        str(path.relative_to(STUDENT_RUN))
        for path in STUDENT_RUN.rglob("*")
        if path.is_file()
    )
    assert found == [
        "checkpoints/best.ckpt",
        LAST,
        "config.yaml",
        "metrics.csv",
        "run.json",
    ]

    said = record(STUDENT_RUN)
    assert (said["status"], said["error"], said["seed"], said["job_type"]) == (
        "finished",
        None,
        3,
        "distill",
    )
    assert said["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"python", "kd_lightning", "lightning", "torchmetrics", "numpy"} <= set(
        said["versions"]
    )
    assert "commit" in said
    assert said["hardware"]["threads"] == torch.get_num_threads()
    assert 0 < said["wall_time_s"] < 600
    assert said["data"]["samples"] == {"train": 1072, "validation": 123, "test": 602}
    sha256 = hashlib.sha256(teacher.read_bytes()).hexdigest()
    assert said["teacher"] == [
        {"path": str(teacher), "sha256": sha256, "network": "MLP"}
    ]
    assert content(STUDENT_RUN / LAST)["kd_lightning"]["teacher"] == said["teacher"]

    table = rows(STUDENT_RUN)
    assert [row["epoch"] for row in table] == ["0", "1"]
    for name in (
        "train_loss",
        "train_loss_ce",
        "train_loss_kd",
        "val_accuracy",
        "val_nll",
        "val_teacher_kl",
        "learning_rate",
    ):
        assert all(row[name] for row in table), name
        assert float(table[-1][name]) == said["metrics"][name]
    # The total is the weighted sum of the unweighted terms (0.1 and 0.9 in configs/methods/kd.yaml).
    first = {name: float(value) for name, value in table[0].items()}
    assert first["train_loss"] == pytest.approx(
        0.1 * first["train_loss_ce"] + 0.9 * first["train_loss_kd"], rel=1e-5
    )


def test_a_second_run_of_a_name_gets_a_number(teacher: Path, kd: Kd) -> None:
    for _ in range(2):
        assert kd(*student(teacher), "--run.name=mine").code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["mine", "mine-2"]
    assert [record(Path("runs", name))["name"] for name in ("mine", "mine-2")] == [
        "mine",
        "mine-2",
    ]


def test_config_alone_reproduces_the_run(teacher: Path, kd: Kd) -> None:
    jitter = "--data.augment=[{class_path: kd_lightning.data.Jitter, init_args: {pixels: 1}}]"
    assert (
        kd(
            *student(teacher),
            "--model.student.dropout=0.3",
            jitter,
            "--seed_everything=5",
        ).code
        == 0
    )
    again = STUDENT_RUN.with_name("digits-mlp-distill-2")
    torch.manual_seed(99)  # nothing may depend on what was drawn before
    assert kd("fit", "-c", str(STUDENT_RUN / "config.yaml")).code == 0
    assert same_weights(STUDENT_RUN / LAST, again / LAST)
    assert (STUDENT_RUN / "metrics.csv").read_bytes() == (
        again / "metrics.csv"
    ).read_bytes()
    assert (
        kd("fit", "-c", str(STUDENT_RUN / "config.yaml"), "--seed_everything=6").code
        == 0
    )
    assert not same_weights(
        STUDENT_RUN / LAST, STUDENT_RUN.with_name("digits-mlp-distill-3") / LAST
    )


class NoisyDigits(DigitsDataModule):
    """Draws from the global generator before the network does."""

    def load(self, split: str) -> Images:
        torch.rand(7)
        return super().load(split)


def test_the_first_weights_depend_on_the_seed_alone(teacher: Path, kd: Kd) -> None:
    still = [*student(teacher), "--model.optimizer.lr=0", "--model.scheduler=null"]
    for name, more in {
        "one": [],
        "two": [f"--data={__name__}.NoisyDigits"],
        "three": ["--seed_everything=1"],
    }.items():
        assert kd(*still, f"--run.name={name}", *more).code == 0
    assert same_weights(Path("runs/one", LAST), Path("runs/two", LAST))
    assert not same_weights(Path("runs/one", LAST), Path("runs/three", LAST))


def test_later_configs_and_leaves_win(teacher: Path, place: Path, kd: Kd) -> None:
    (place / "one.yaml").write_text(
        "data: {init_args: {batch_size: 100, fraction: 0.5}}\nrun: {name: one}\n"
    )
    (place / "two.yaml").write_text(
        "data: {init_args: {batch_size: 200}}\nrun: {name: two}\n"
    )
    extra = [
        "-c",
        "one.yaml",
        "-c",
        "two.yaml",
        "--data.label_fraction=0.5",
        "--model.losses.kd.temperature=2",
    ]
    assert kd(*student(teacher), *extra).code == 0
    config = yaml.safe_load(Path("runs/two/config.yaml").read_text())
    data, losses = config["data"]["init_args"], config["model"]["init_args"]["losses"]
    assert (data["batch_size"], data["fraction"], data["label_fraction"]) == (
        200,
        0.5,
        0.5,
    )
    assert losses["kd"]["init_args"]["temperature"] == 2.0
    assert (
        losses["kd"]["init_args"]["weight"],
        losses["ce"]["init_args"]["weight"],
    ) == (
        0.9,
        0.1,
    )  # the rest is kept


def test_a_checkpoint_alone_is_validated_tested_and_used(teacher: Path, kd: Kd) -> None:
    assert kd(*student(teacher)).code == 0
    checkpoint = STUDENT_RUN / LAST
    before = checkpoint.read_bytes()
    for command in ("validate", "test", "predict"):
        outcome = kd(command, f"--ckpt_path={checkpoint}")
        assert (outcome.code, outcome.err) == (0, ""), outcome
    assert checkpoint.read_bytes() == before

    logits = logits_on_test(checkpoint)
    predicted = load_file("runs/digits-mlp-distill-predict/predictions.safetensors")
    assert sorted(predicted) == ["index", "logits"]
    assert torch.equal(predicted["index"], torch.arange(602))
    torch.testing.assert_close(predicted["logits"], logits, rtol=0, atol=1e-6)
    wrong = int((logits.argmax(-1) != DigitsDataModule().source("test").target).sum())
    assert (
        record(Path("runs/digits-mlp-distill-test"))["metrics"]["test_errors"] == wrong
    )
    validated = record(Path("runs/digits-mlp-distill-validate"))["metrics"]
    assert validated["val_errors"] == float(rows(STUDENT_RUN)[-1]["val_errors"])


def test_outputs_are_joined_in_the_order_of_the_index() -> None:
    index = torch.tensor([4, 0, 3, 1, 2])
    batches = [
        {"index": part, "logits": part[:, None] * 10.0} for part in index.split(2)
    ]
    assert {
        name: value.flatten().tolist() for name, value in join_batches(batches).items()
    } == {
        "index": [0, 1, 2, 3, 4],
        "logits": [0.0, 10.0, 20.0, 30.0, 40.0],
    }


@pytest.mark.parametrize("command", ["test", "fit"])
def test_a_run_in_a_folder_of_its_own_is_used_as_any_other(
    command: str, kd: Kd
) -> None:
    assert kd(*TEACHER, "--run.dir=own").code == 0
    argv = (
        ["test", f"--ckpt_path=own/{LAST}"]
        if command == "test"
        else ["fit", "-c", "own/config.yaml"]
    )
    outcome = kd(*argv)
    assert (outcome.code, outcome.err) == (0, "")
    if command == "fit":
        assert same_weights(Path("own", LAST), Path("runs/digits-mlp", LAST))


@pytest.mark.parametrize("which", ["last", "best"])
def test_the_test_set_is_read_with_the_chosen_weights(
    which: str, teacher: Path, kd: Kd
) -> None:
    assert kd(*student(teacher), *SPOILT, f"--run.test={which}").code == 0
    best = content(STUDENT_RUN / "checkpoints" / "best.ckpt")
    assert best["epoch"] == 0
    tested = load_file(STUDENT_RUN / "predictions-test.safetensors")
    assert torch.equal(tested["index"], torch.arange(602))
    by_best = torch.allclose(
        tested["logits"],
        logits_on_test(STUDENT_RUN / "checkpoints" / "best.ckpt"),
        rtol=0,
        atol=1e-6,
    )
    assert by_best is (which == "best")
    wrong = int((tested["logits"].argmax(-1) != tested["target"]).sum())
    metrics = record(STUDENT_RUN)["metrics"]
    assert metrics["test_errors"] == wrong
    assert {"train_loss", "val_accuracy", "test_accuracy"} <= set(metrics)


def test_the_last_checkpoint_is_of_the_last_epoch(teacher: Path, kd: Kd) -> None:
    assert kd(*student(teacher), *SPOILT).code == 0
    assert content(STUDENT_RUN / LAST)["epoch"] == 1


def test_a_tested_run_has_one_row_an_epoch(teacher: Path, kd: Kd) -> None:
    assert kd(*student(teacher), "--run.test=last").code == 0
    [row] = rows(STUDENT_RUN)
    assert row["epoch"] == "0"
    assert float(row["test_errors"]) == record(STUDENT_RUN)["metrics"]["test_errors"]


def test_a_module_in_python_reads_the_checkpoint(teacher: Path) -> None:
    module = ClassifierModule.load_from_checkpoint(teacher)
    assert module.spec is not None
    assert module.spec.classes == tuple("0123456789")


def test_a_process_of_its_own_writes_nothing_on_standard_error(place: Path) -> None:
    outcome = finish(spawn([*TEACHER, "--run.test=last"], place))
    assert (outcome.code, outcome.err) == (0, "")
    assert record(place / "runs" / "digits-mlp")["status"] == "finished"


def test_no_checkpoint_where_none_is_wanted(kd: Kd) -> None:
    assert (
        kd(*TEACHER, "--trainer.enable_checkpointing=false", "--run.test=last").code
        == 0
    )
    assert sorted(path.name for path in Path("runs/digits-mlp").iterdir()) == [
        "config.yaml",
        "metrics.csv",
        "predictions-test.safetensors",
        "run.json",
    ]

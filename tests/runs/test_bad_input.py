"""A user's mistake: exit code 2, one line that names it, and nothing left behind."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs import COMMON, PAIR, TEACHER, Kd, Outcome, finish, spawn, student

LAST = "teacher.ckpt"
"""The trained teacher, copied into the test's folder."""

STUDENT = student(LAST)
MNIST = [
    "fit",
    "-c",
    "configs/trainer.yaml",
    "-c",
    "configs/data/mnist.yaml",
    "-c",
    "configs/teachers/mnist_mlp1200.yaml",
]


def edited(path: Path, target: Path, classes: list[str]) -> None:
    """A copy of the teacher that knows these classes instead of the ten digits."""
    content: dict[str, Any] = torch.load(path, weights_only=True)
    ours, count = content["kd_lightning"], len(classes)
    ours["spec"] |= {"num_classes": count, "classes": classes}
    ours["network"]["init_args"]["num_classes"] = count
    for name in ("network.head.weight", "network.head.bias"):
        content["state_dict"][name] = content["state_dict"][name][:count].clone()
    torch.save(content, target)


@pytest.fixture
def bench(place: Path, teacher: Path) -> Path:
    """The test's folder with a good teacher, bad ones, and bad configs."""
    shutil.copy(teacher, LAST)
    edited(teacher, place / "seven.ckpt", list("0123456"))
    edited(teacher, place / "reversed.ckpt", list("9876543210"))
    (place / "garbage.ckpt").write_bytes(b"no checkpoint")
    (place / "short.ckpt").write_bytes(teacher.read_bytes()[:4000])
    (place / "empty.yaml").write_text("\n")
    (place / "comments.yaml").write_text("# nothing\n")
    (place / "list.yaml").write_text("- model\n- data\n")
    (place / "broken.yaml").write_text("model: [1,\n  data: }\n")
    (place / "file").write_text("not a folder")
    (place / "taken").mkdir()
    (place / "taken" / "notes.txt").write_text("mine")
    return place


def listing(folder: Path) -> dict[str, int]:
    """Every file and folder below, with its size; an empty `runs/` is no run's folder."""
    paths = [path for path in folder.rglob("*") if path != folder / "runs"]
    return {
        str(path.relative_to(folder)): path.stat().st_size if path.is_file() else -1
        for path in paths
    }


def refused(outcome: Outcome, *culprits: str) -> None:
    """Exit code 2 and a single line that holds all of the words."""
    assert outcome.code == 2, outcome
    assert outcome.err.startswith("kd: ")
    assert outcome.err.count("\n") == 1
    assert outcome.err.endswith("\n")
    assert outcome.out == ""
    assert [word for word in culprits if word not in outcome.err] == [], outcome.err


CASES: dict[str, tuple[list[str], list[str]]] = {
    # keys
    "misspelt method argument": (
        [*STUDENT, "--model.losses.kd.temprature=2"],
        ["model.losses.kd", "'temprature'"],
    ),
    "misspelt network argument": (
        [*TEACHER, "--model.network.dropuot=0.1"],
        ["model.network", "'dropuot'"],
    ),
    "misspelt trainer key": (
        [*STUDENT, "--trainer.max_epoks=2"],
        ["--trainer.max_epoks"],
    ),
    "abbreviated trainer key": (
        [*STUDENT, "--trainer.max_epoch=2"],
        ["--trainer.max_epoch=2"],
    ),
    "misspelt run key": ([*STUDENT, "--run.tset=best"], ["--run.tset"]),
    "stray word": ([*STUDENT, "stray"], ["stray"]),
    # types and classes
    "wrong type of a trainer key": (
        [*STUDENT, "--trainer.max_epochs=two"],
        ["trainer.max_epochs", "int", "'two'"],
    ),
    "wrong type of a data argument": (
        [*STUDENT, "--data.batch_size=many"],
        ["data.batch_size", "int", "many"],
    ),
    "wrong type of the seed": (
        [*STUDENT, "--seed_everything=abc"],
        ["seed_everything", "'abc'"],
    ),
    "unknown choice": (
        [*STUDENT, "--run.wandb=maybe"],
        ["run.wandb", "'offline'", "maybe"],
    ),
    "unknown model": (
        [*TEACHER, "--model=kd_lightning.Nothing"],
        ["model", "'Nothing'"],
    ),
    "unknown student": (
        [*STUDENT, "--model.student=kd_lightning.models.Nothing"],
        ["model.student", "'Nothing'"],
    ),
    "unknown data": (
        [*STUDENT, "--data=kd_lightning.data.Nothing"],
        ["data", "'Nothing'"],
    ),
    "unknown package": (
        [*STUDENT, "--model.student=nowhere.Net"],
        ["model.student", "'nowhere'"],
    ),
    # configs
    "missing config": ([*STUDENT, "-c", "nowhere.yaml"], ["config", "nowhere.yaml"]),
    "missing config after =": (
        [*STUDENT, "--config=nowhere.yaml"],
        ["config", "nowhere.yaml"],
    ),
    "empty config": ([*STUDENT, "-c", "empty.yaml"], ["empty.yaml is empty"]),
    "config that is a folder": ([*STUDENT, "-c", "taken"], ["config", "taken"]),
    "config of comments": (
        [*STUDENT, "-c", "comments.yaml"],
        ["comments.yaml is empty"],
    ),
    "config that is a list": ([*STUDENT, "-c", "list.yaml"], ["list.yaml", "list"]),
    "config that is no YAML": (
        [*STUDENT, "-c", "broken.yaml"],
        ["broken.yaml", "not YAML"],
    ),
    "no file after -c": ([*STUDENT, "-c"], ["-c/--config"]),
    "no model": (["fit", *COMMON], ["missing", "model"]),
    "no data": ([*PAIR[:3], *PAIR[5:]], ["missing", "data"]),
    "no MNIST": (
        [*MNIST, "--data.download=false", "--data.root=none"],
        ["MNIST", "none/MNIST/raw", "--data.root"],
    ),
    # teachers
    "no teacher": (PAIR, ["teacher", "--model.teacher.checkpoint=PATH"]),
    "missing teacher": (student("nowhere.ckpt"), ["teacher", "nowhere.ckpt"]),
    "teacher that is no file of torch": (
        student("garbage.ckpt"),
        ["teacher", "garbage.ckpt"],
    ),
    "teacher cut short": (student("short.ckpt"), ["teacher", "short.ckpt", "corrupt"]),
    "teacher of seven classes": (
        student("seven.ckpt"),
        ["teacher", "7 classes", "digits has 10"],
    ),
    "teacher of another class order": (
        student("reversed.ckpt"),
        ["teacher", "class 0", "'9'", "'0'", "order"],
    ),
    "teacher of another checksum": (
        [*STUDENT, "--model.teacher.sha256=00"],
        ["teacher", "sha256", "not 00"],
    ),
    # losses
    "temperature 0": (
        [*STUDENT, "--model.losses.kd.temperature=0"],
        ["KD", "temperature", "got 0"],
    ),
    "temperature -1": (
        [*STUDENT, "--model.losses.kd.temperature=-1"],
        ["KD", "temperature", "got -1"],
    ),
    "temperature nan": (
        [*STUDENT, "--model.losses.kd.temperature=.nan"],
        ["KD", "temperature", "got nan"],
    ),
    "temperature abc": (
        [*STUDENT, "--model.losses.kd.temperature=abc"],
        ["model.losses.kd.temperature", "got abc"],
    ),
    "negative weight": (
        [*STUDENT, "--model.losses.kd.weight=-1"],
        ["KD", "weight", "got -1"],
    ),
    "no losses": ([*STUDENT, "--model.losses={}"], ["model.losses is empty"]),
    "loss without its teacher": (
        [*TEACHER, "--model.losses.kd=KD"],
        ["'kd'", "needs a teacher"],
    ),
    # what is resumed
    "foreign checkpoint": (
        [*STUDENT, f"--ckpt_path={LAST}"],
        ["--ckpt_path", LAST, "DistillationModule"],
    ),
    "garbage checkpoint": (
        [*STUDENT, "--ckpt_path=garbage.ckpt"],
        ["--ckpt_path", "garbage.ckpt"],
    ),
    "checkpoint cut short": (
        [*TEACHER, "--ckpt_path=short.ckpt"],
        ["--ckpt_path", "short.ckpt"],
    ),
    "missing checkpoint": (
        [*STUDENT, "--ckpt_path=nowhere.ckpt"],
        ["--ckpt_path", "nowhere.ckpt"],
    ),
    "checkpoint of another size": (
        [*TEACHER, f"--ckpt_path={LAST}", "--model.network.hidden=[128,256]"],
        [LAST, "'body.1.weight'", "(256, 64)", "(128, 64)"],
    ),
    "weights of another size": (
        [*TEACHER, f"--model.init_from={LAST}", "--model.network.hidden=[8]"],
        ["init_from", LAST],
    ),
    "test of no checkpoint": (["test", *TEACHER[1:]], ["kd test", "--ckpt_path"]),
    "validation of no checkpoint": (
        ["validate", *TEACHER[1:]],
        ["kd validate", "--ckpt_path"],
    ),
    "prediction of no checkpoint": (
        ["predict", *TEACHER[1:]],
        ["kd predict", "--ckpt_path"],
    ),
    "best of no validation": (
        [*STUDENT, "--run.test=best", "--data.validation=0"],
        ["--run.test=best", "validation"],
    ),
    "best of no checkpoint": (
        [*STUDENT, "--run.test=best", "--trainer.enable_checkpointing=false"],
        ["--run.test=best", "best.ckpt"],
    ),
    # folders
    "root below a file": (
        [*STUDENT, "--run.root=file/runs"],
        ["file/runs", "cannot write"],
    ),
    "root is a file": ([*STUDENT, "--run.root=file"], ["file/", "cannot write"]),
    "folder that is taken": ([*STUDENT, "--run.dir=taken"], ["--run.dir taken exists"]),
    "folder that is a file": ([*STUDENT, "--run.dir=file"], ["--run.dir file"]),
    "folder below a file": (
        [*STUDENT, "--run.dir=file/run"],
        ["file/run", "--run.dir"],
    ),
    # numbers
    "negative learning rate": (
        [*STUDENT, "--model.optimizer.lr=-1"],
        ["learning rate", "-1"],
    ),
    "no cycle": (
        [*TEACHER, "--model.scheduler.pct_start=7"],
        ["model.scheduler", "pct_start"],
    ),
    "no layers": ([*STUDENT, "--model.student.hidden=[]"], ["MLP", "hidden", "[]"]),
    "unknown accelerator": (
        [*STUDENT, "--trainer.accelerator=abacus"],
        ["accelerator", "'abacus'"],
    ),
    "batches of nothing": ([*STUDENT, "--data.batch_size=0"], ["batch_size"]),
    # other commands
    "misspelt command": (["fti"], ["'fti'", "did you mean 'fit'"]),
    "unknown command": (["xyzzy"], ["'xyzzy'", "valid commands: init, fit"]),
    "unknown kind": (["list", "methds"], ["'methds'", "methods"]),
    "unknown option of list": (["list", "methods", "--jsno"], ["--jsno", "--json"]),
    "unknown experiment": (["reproduce", "nowhere"], ["'nowhere'", "--list"]),
    "unknown option of reproduce": (["reproduce", "demo", "--seds=3"], ["--seds"]),
    "no seeds": (["reproduce", "demo", "--seeds=0"], ["--seeds", "0"]),
}


@pytest.mark.parametrize(("argv", "culprits"), CASES.values(), ids=CASES)
def test_refused_in_one_line(
    argv: list[str], culprits: list[str], bench: Path, kd: Kd
) -> None:
    before = listing(bench)
    refused(kd(*argv), *culprits)
    assert listing(bench) == before


def test_a_process_of_its_own_says_no_more(bench: Path) -> None:
    """What the first import of a library writes is seen only in a fresh process."""
    refused(finish(spawn(student("nowhere.ckpt"), bench)), "teacher", "nowhere.ckpt")

"""Two processes (gloo, on the CPU) train and measure as one process on the joined batches does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kd_lightning.data import DigitsDataModule

ROOT = Path(__file__).parent.parent.parent
CONFIGS = [
    f"-cconfigs/{name}.yaml"
    for name in ("trainer", "data/digits", "teachers/digits_mlp", "loggers/csv")
]
PLAIN = [  # nothing is drawn, so that both see the same
    "--model.network.dropout=0",
    "--model.scheduler=null",
    "--model.optimizer.lr=0.05",
    "--data.augment=[]",
    "--trainer.max_epochs=2",
    "--run.test=last",
]


def kd(arguments: list[str], folder: Path, **environment: str) -> dict[str, Any]:
    """Run `kd fit` in a process of its own, as DDP starts the second one by the first one's command."""
    command = [sys.executable, "-m", "kd_lightning", "fit"]
    for config in CONFIGS:
        command += ["-c", config.removeprefix("-c")]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    run = subprocess.run(
        [*command, *arguments, f"--run.dir={folder}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=env,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def weights(folder: Path) -> dict[str, torch.Tensor]:
    content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return dict(content["state_dict"])


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same training by one process and by two; 1,025 samples are 32 steps of 32 and one sample more.

    `again` goes on from the checkpoint that the two wrote at step 40, the seventh of the second epoch.
    """
    folder = tmp_path_factory.mktemp("two")
    fraction = 0.953
    assert len(DigitsDataModule(fraction=fraction).source("train")) % 32 == 1
    data = [
        f"--data.fraction={fraction}",
        "--data.label_fraction=0.9",
    ]  # unlabelled rows fall unevenly on the two
    kd([*PLAIN, *data, "--data.batch_size=32"], folder / "one")
    devices = [
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.accelerator=cpu",
    ]
    own = {
        "every_n_train_steps": 40,
        "dirpath": str(folder / "two" / "checkpoints"),
        "filename": "own",
    }
    checkpoint = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": own,
    }
    two = [
        *PLAIN,
        *data,
        "--data.batch_size=16",
        *devices,
        f"--trainer.callbacks+={json.dumps(checkpoint)}",
    ]
    kd(two, folder / "two")
    shutil.copytree(folder / "two", folder / "again")
    kd([*two, f"--ckpt_path={folder}/again/checkpoints/own.ckpt"], folder / "again")
    return folder / "one", folder / "two"


def test_weights_are_those_of_one_process(both: tuple[Path, Path]) -> None:
    one, two = map(weights, both)
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=2e-4), name


def test_losses_and_metrics_are_those_of_one_process(both: tuple[Path, Path]) -> None:
    one, two = (
        json.loads((folder / "run.json").read_text())["metrics"] for folder in both
    )
    assert one.keys() == two.keys()
    assert one["train_loss_ce"] == pytest.approx(two["train_loss_ce"], abs=1e-4)
    for name in ("val_nll", "test_nll", "test_accuracy", "test_calibration_error"):
        assert one[name] == pytest.approx(two[name], abs=2e-3)


def test_every_test_sample_is_counted_once(both: tuple[Path, Path]) -> None:
    one, two = (load_file(folder / "predictions-test.safetensors") for folder in both)
    assert torch.equal(two["index"], torch.arange(len(two["index"])))
    assert torch.equal(one["index"], two["index"])
    assert torch.allclose(one["logits"], two["logits"], atol=2e-2)


def test_two_processes_go_on_within_an_epoch(both: tuple[Path, Path]) -> None:
    again = both[1].with_name("again")
    whole, resumed = weights(both[1]), weights(again)
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())
    whole, resumed = (
        json.loads((folder / "run.json").read_text())["metrics"]
        for folder in (both[1], again)
    )
    assert resumed == pytest.approx(whole, rel=1e-6)


def test_two_processes_make_one_run(both: tuple[Path, Path]) -> None:
    assert sorted(path.name for path in both[1].parent.iterdir()) == [
        "again",
        "one",
        "two",
    ]
    assert (
        len((both[1] / "metrics.csv").read_text().splitlines()) == 3
    )  # names and two epochs

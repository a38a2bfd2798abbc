"""What the tests of `kd compare` share: folders of runs as `kd fit` leaves them, without training."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file

from kd_lightning.cli import main

EXAMPLES = 100
SPEC: dict[str, Any] = {
    "data": "digits",
    "num_classes": 10,
    "samples": {"train": 1000, "validation": 0, "test": EXAMPLES},
}
CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 3, "enable_progress_bar": True},
    "model": {
        "class_path": "kd_lightning.DistillationModule",
        "init_args": {
            "student": {
                "class_path": "kd_lightning.models.MLP",
                "init_args": {"hidden": [16], "num_classes": 10},
            },
            "teacher": {
                "class_path": "kd_lightning.teachers.ModelTeacher",
                "init_args": {},
            },
            "losses": {
                "ce": {
                    "class_path": "kd_lightning.losses.CrossEntropy",
                    "init_args": {"weight": 0.1},
                },
                "kd": {
                    "class_path": "kd_lightning.losses.KD",
                    "init_args": {"weight": 0.9, "temperature": 4.0},
                },
            },
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}},
            "spec": SPEC,
        },
    },
    "data": {
        "class_path": "kd_lightning.data.DigitsDataModule",
        "init_args": {"root": "/data", "fraction": 1.0},
    },
    "run": {"root": "runs", "test": "last"},
}


def config_of(seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    """CONFIG with some settings changed; `None` takes one out."""
    config = copy.deepcopy(CONFIG)
    config["seed_everything"] = seed
    for key, value in settings.items():
        *above, last = key.split(".")
        node = config
        for part in above:
            node = (
                node["init_args"] if "init_args" in node and part not in node else node
            )
            node = node[part]
        node = (
            node["init_args"] if "init_args" in node and last != "class_path" else node
        )
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    return config


def make_run(
    folder: Path,
    seed: int,
    errors: float | None = None,
    settings: dict[str, Any] | None = None,
    **record: Any,
) -> str:
    """A run's folder; `errors` on the test set, none where it was not tested. Returns its path."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config_of(seed, settings or {})))
    tested = (
        {}
        if errors is None
        else {"test_errors": errors, "test_accuracy": 1 - errors / EXAMPLES}
    )
    given = {
        "status": "finished",
        "seed": seed,
        "job_type": "distill",
        "data": SPEC,
        "teacher": [],
        "started": f"{seed:04}",
    }
    content = {"metrics": {"val_accuracy": 0.5, **tested}, **given, **record}
    (folder / "run.json").write_text(json.dumps(content))
    return str(folder)


def add_predictions(folder: Path, errors: int) -> None:
    """Logits that err on the first so many examples."""
    target = torch.arange(EXAMPLES) % 10
    guess = torch.where(torch.arange(EXAMPLES) < errors, (target + 1) % 10, target)
    outputs = {
        "logits": torch.eye(10)[guess],
        "target": target,
        "index": torch.arange(EXAMPLES),
    }
    save_file(outputs, folder / "predictions-test.safetensors")


def seeds(
    folder: Path,
    name: str,
    errors: Sequence[float],
    settings: dict[str, Any] | None = None,
    **record: Any,
) -> list[str]:
    """One run for each number of errors, with seeds 0, 1, ..."""
    return [
        make_run(folder / f"{name}-{at}", at, wrong, settings, **record)
        for at, wrong in enumerate(errors)
    ]


def compare(capsys: Any, *argv: str) -> dict[str, Any]:
    """What `kd compare ... --format json` prints."""
    capsys.readouterr()
    assert main(["compare", *argv, "--format", "json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    content: dict[str, Any] = json.loads(out)
    return content


def table(
    content: dict[str, Any], metric: str = "test_errors"
) -> dict[str, list[float]]:
    """Label -> values of a metric."""
    return {
        row["run"]: row["values"] for row in content["rows"] if row["metric"] == metric
    }


def refused(capsys: Any, *argv: str) -> str:
    """The one line that a mistake gives."""
    capsys.readouterr()
    assert main(["compare", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith("kd: ")
    return str(line)

"""What the tests of experiments share: a small experiment on the digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from kd_lightning.experiments.functions import resolve_function

HEAD: dict[str, Any] = {"title": "A title", "claim": "A claim", "time": "no time"}

MINI: dict[str, Any] = {
    **HEAD,
    "seeds": 2,
    "configs": [
        "configs/trainer.yaml",
        "configs/data/digits.yaml",
        "configs/loggers/csv.yaml",
    ],
    "overrides": {"trainer.max_epochs": 1, "trainer.accelerator": "cpu"},
    "paper": {"distilled": {"test_errors": 74}},
    "compare": [["distilled", "student-alone"]],
    "runs": {
        "teacher": {"configs": ["configs/teachers/digits_mlp.yaml"]},
        "student-alone": {
            "configs": [
                "configs/pairs/digits_mlp256_mlp16.yaml",
                "configs/methods/ce.yaml",
            ]
        },
        "distilled": {
            "configs": [
                "configs/pairs/digits_mlp256_mlp16.yaml",
                "configs/methods/kd.yaml",
            ],
            "needs": {"model.teacher.checkpoint": "teacher"},
        },
    },
}


def resolve_analyses(content: dict[str, Any], folder: Path) -> None:
    """Make the files of analyses absolute, so that the YAML can be written to another folder."""
    for analysis in content.get("analyses", {}).values():
        analysis["function"] = resolve_function(analysis["function"], folder)


def write(folder: Path, content: dict[str, Any], name: str = "mini.yaml") -> Path:
    """An experiment's YAML."""
    path = folder / name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path

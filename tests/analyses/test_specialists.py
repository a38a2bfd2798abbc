"""The tables about specialists, on runs whose every answer is written down here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from experiments.hinton2015.analysis.specialists import (
    against_generalist,
    gain_by_coverage,
)
from kd_lightning.experiments.analysis import Finished
from tests.training.small import complaint

IDS = [[0, 1], [1, 2]]
TARGET = [0, 0, 1, 1, 2, 2, 3, 4]

GENERALIST = [0, 1, 0, 1, 2, 3, 3, 3]
"""What it says: four right; two wrong that a specialist is asked about; one that it would know, but is not asked about."""

SPECIALISTS = [[0, 0, 1, 1, 2, 2, 2, 2], [2, 2, 0, 0, 1, 1, 2, 2]]
"""What each says, the dustbin being 2: both always right."""


def logits(answers: list[int], classes: int, sure: float) -> torch.Tensor:
    return sure * torch.nn.functional.one_hot(torch.tensor(answers), classes).float()


def run(
    folder: Path, seed: int, said: torch.Tensor, samples: int, **about: Any
) -> Finished:
    """A finished run of ten epochs."""
    folder.mkdir()
    data = {"samples": {"train": samples}, **about}
    (folder / "run.json").write_text(json.dumps({"data": data, "wall_time_s": 7.0}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": 10}}))
    target = torch.tensor(TARGET)
    save_file(
        {"logits": said, "target": target, "index": torch.arange(8)},
        folder / "predictions-test.safetensors",
    )
    return Finished(seed, folder, {})


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, list[Finished]]:
    """Seed 0's specialists are right, seed 1's know nothing: their dustbin takes all, as much as it did in the data."""
    found: dict[str, list[Finished]] = {
        "generalist": [],
        "generalist, longer": [],
        "generalist, other seeds": [],
    }
    for seed in (0, 1):
        found["generalist"].append(
            run(tmp_path / f"g{seed}", seed, logits(GENERALIST, 5, 2.0), 100)
        )
        found["generalist, longer"].append(
            run(tmp_path / f"l{seed}", seed, logits([0] * 8, 5, 2.0), 100)
        )
        other = logits([0, 0, 0, 0, 0, 0, 3, 4] if seed else TARGET, 5, 2.1)
        found["generalist, other seeds"].append(
            run(tmp_path / f"o{seed}", 100 + seed, other, 100)
        )
        for number, ids in enumerate(IDS):
            about = {
                "number": number,
                "class_ids": ids,
                "oversampling": 1.0 if seed == 0 else math.e**20,
            }
            said = (
                logits(SPECIALISTS[number], 3, 5.0) if seed == 0 else torch.zeros(8, 3)
            )
            one = run(
                tmp_path / f"s{seed}{number}",
                seed,
                said,
                40,
                specialist=about,
                classes=["abcde"[at] for at in ids] + ["x"],
            )
            found.setdefault(f"specialist specialist={number}", []).append(one)
            found.setdefault(f"specialist with more specialist={number}", []).append(
                found["generalist"][seed]
            )  # another team
    return found


OPTIONS: dict[str, Any] = {
    "generalist": "generalist",
    "systems": {"both": {"run": "specialist"}},
    "longer": "generalist, longer",
    "others": "generalist, other seeds",
}


def test_accuracies(runs: dict[str, list[Finished]], tmp_path: Path) -> None:
    values = {
        (row.run, row.metric): row.values
        for row in against_generalist(runs, tmp_path, **OPTIONS)
    }
    # Seed 0: two mended. Seed 1: where asked, all is moved out of the specialist's classes, whatever it is.
    assert values["both", "test_accuracy"][0] == pytest.approx(6 / 8)
    assert values["both", "test_accuracy"][1] < 4 / 8
    assert values["ensemble of 2 generalists", "test_accuracy"] == pytest.approx(
        [1.0, 4 / 8]
    )
    # Of specialist 0's classes there are four samples, of specialist 1's as many; chosen among two.
    assert values["generalist", "conditional_accuracy"] == pytest.approx(
        [(2 + 3) / 8] * 2
    )
    assert values["both", "conditional_accuracy"][0] == pytest.approx(7 / 8)
    assert values["specialist, each by itself", "conditional_accuracy"][
        0
    ] == pytest.approx(1.0)
    assert values["generalist, longer", "conditional_accuracy"] == pytest.approx(
        [(2 + 2) / 8] * 2
    )
    assert (
        "generalist",
        "test_accuracy",
    ) not in values  # which stands in the runs' own table


def test_coverage_costs_and_clusters(
    runs: dict[str, list[Finished]], tmp_path: Path
) -> None:
    against_generalist(runs, tmp_path, **OPTIONS)
    told = json.loads((tmp_path / "specialists.json").read_text())
    # By coverage: classes 3 and 4 have none, 0 and 2 one, 1 two.
    assert told["coverage"][0] == {"0": [2, 1, 1], "1": [4, 2, 3], "2": [2, 1, 2]}
    costs = {cost["label"]: cost for cost in told["costs"]}
    assert (costs["generalist"]["samples"], costs["a specialist"]["samples"]) == (
        1000,
        400,
    )
    assert (
        costs["a specialist"]["count"],
        costs["generalist, other seeds"]["count"],
    ) == (2, 1)
    assert told["clusters"] == {
        "0": [["a", "b"], ["b", "c"]],
        "1": [["a", "b"], ["b", "c"]],
    }
    *rivals, by_coverage = told["tests"]
    assert {(t["a"], t["b"]) for t in rivals} == {
        ("both", rival)
        for rival in ("generalist", "generalist, longer", "ensemble of 2 generalists")
    }
    # Seed 0: one more of four samples right at one specialist, one more of two at two: a quarter of a sample for each.
    assert by_coverage["a"] == "gain with each further specialist"
    assert gain_by_coverage(
        {0: (2, 1, 1), 1: (4, 2, 3), 2: (2, 1, 2)}
    ) == pytest.approx(0.25)
    assert gain_by_coverage({3: (8, 4, 5)}) == 0.0
    text = (tmp_path / "specialists.md").read_text()
    assert "| a specialist | 400 | 7.0 | 2 | 800 |" in text
    assert "1. b, c" in text


def test_how_many_classes_decide(
    runs: dict[str, list[Finished]], tmp_path: Path
) -> None:
    """With all classes deciding, every specialist is asked about every sample, also of classes that it does not know."""
    everyone = {
        "both": {"run": "specialist"},
        "all asked": {"run": "specialist", "n": 5},
    }
    values = {
        (r.run, r.metric): r.values
        for r in against_generalist(runs, tmp_path, **{**OPTIONS, "systems": everyone})
    }
    assert values["all asked", "test_accuracy"][0] == pytest.approx(7 / 8)
    assert values["both", "test_accuracy"][0] == pytest.approx(6 / 8)


def test_conditional_accuracies_compare_on_the_same_classes(
    runs: dict[str, list[Finished]], tmp_path: Path
) -> None:
    about = {"number": 0, "class_ids": [3, 4], "oversampling": 1.0}
    for seed in (0, 1):
        said = torch.zeros(8, 3)
        one = run(
            tmp_path / f"w{seed}",
            seed,
            said,
            40,
            specialist=about,
            classes=["d", "e", "x"],
        )
        runs.setdefault("others specialist=0", []).append(one)
    systems = {"both": {"run": "specialist"}, "of other classes": {"run": "others"}}
    values = {
        (r.run, r.metric): r.values
        for r in against_generalist(runs, tmp_path, **{**OPTIONS, "systems": systems})
    }
    assert values["generalist", "conditional_accuracy"] == pytest.approx([5 / 8] * 2)
    # Two samples, of classes 3 and 4: the generalist says 3 to both.
    assert values[
        "generalist, on the classes of of other classes", "conditional_accuracy"
    ] == pytest.approx([1 / 2] * 2)
    told = json.loads((tmp_path / "specialists.json").read_text())["tests"]
    assert ("both", "of other classes") in {
        (t["a"], t["b"]) for t in told if t["metric"] == "test_accuracy"
    }
    conditional = {
        (t["a"], t["b"]) for t in told if t["metric"] == "conditional_accuracy"
    }
    assert (
        "of other classes",
        "generalist, on the classes of of other classes",
    ) in conditional
    assert ("of other classes", "generalist") not in conditional
    assert ("both", "of other classes") not in conditional


def test_runs_that_are_not_there(
    runs: dict[str, list[Finished]], tmp_path: Path
) -> None:
    options = {**OPTIONS, "systems": {"both": {"run": "specialists"}}}
    message = complaint(lambda: against_generalist(runs, tmp_path, **options))
    assert (
        message
        == "analysis of specialists: there are no runs 'specialists' with a grid over data.specialist"
    )
    message = complaint(
        lambda: against_generalist(runs, tmp_path, **OPTIONS, ensemble=3)
    )
    assert (
        message
        == "analysis of specialists: 'generalist, other seeds' needs 2 seeds for each of the generalist's"
    )
    message = complaint(
        lambda: against_generalist(
            {**runs, "x specialist=0": runs["generalist"]},
            tmp_path,
            "generalist",
            {"b": {"run": "x"}},
        )
    )
    assert "is not a specialist's run" in message

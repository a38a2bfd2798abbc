from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from experiments.bornagain.analysis.generations import ensembles
from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished

SURE = [[4.0, 0.0], [0.0, 1.0]]
UNSURE = [[0.0, 1.0], [0.0, 1.0]]
WRONG = [[0.0, 1.0], [9.0, 0.0]]


def finished(folder: Path, seed: int, logits: list[list[float]]) -> Finished:
    """A run with two test samples, of class 0 and 1."""
    place = folder / str(seed)
    place.mkdir(parents=True)
    tensors = {"logits": torch.tensor(logits), "target": torch.tensor([0, 1])}
    save_file(tensors, place / "predictions-test.safetensors")
    return Finished(seed, place, {})


def test_a_chain_has_a_higher_seed_per_generation(tmp_path: Path) -> None:
    runs = {
        "0": [finished(tmp_path / "0", seed, WRONG) for seed in range(4)],
        # Of the first generation, seeds 1 and 2 are members; seed 0 would change the results.
        "1": [
            finished(tmp_path / "1", seed, logits)
            for seed, logits in enumerate((WRONG, SURE, UNSURE))
        ],
        "2": [finished(tmp_path / "2", seed, UNSURE) for seed in range(2)],
    }
    rows = {
        (row.run, row.metric): row.values
        for row in ensembles(runs, tmp_path, ["1", "2"], "0")
    }
    # The sure member is right about the first sample and decides; two unsure ones are wrong.
    assert rows["ensemble of generations 1 to 2", "test_errors"] == [0.0, 1.0]
    assert rows["ensemble of generations 1 to 2", "test_accuracy"] == [1.0, 0.5]
    assert rows["ensemble of 2 without teacher", "test_errors"] == [2.0, 2.0]
    text = (tmp_path / "ensembles.md").read_text()
    assert "2 - ensemble of generations 1 to 2: +0.5 test_errors" in text


def test_a_missing_network(tmp_path: Path) -> None:
    runs = {"0": [], "1": [finished(tmp_path, 0, SURE)]}
    with pytest.raises(UserError, match="the ensembles need seed 0 of the run '0'"):
        ensembles(runs, tmp_path, ["1"], "0")

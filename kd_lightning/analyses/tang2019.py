"""Teachers of different kinds as one, best epochs, and how fast sentences are classified."""

from __future__ import annotations

import csv
import statistics
import time
from pathlib import Path

import torch

from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished, Row, Runs
from kd_lightning.features import run_network


def mean_of_logits(runs: Runs, output: Path, run: str, members: list[str]) -> list[Row]:
    """Test errors of the mean of several networks' logits, seed by seed: those of `EnsembleTeacher(mean="geometric")`.

    Args:
        runs: the finished runs.
        output: folder of the results.
        run: what the ensemble is called.
        members: runs that each have a member of every seed.
    """
    errors, accuracy = [], []
    by_seed = [{one.seed: one for one in runs[name]} for name in members]
    for seed in sorted(set.intersection(*(set(found) for found in by_seed))):
        said = [found[seed].predictions("test") for found in by_seed]
        wrong = (
            torch.stack([s["logits"].double() for s in said]).mean(0).argmax(1) != said[0]["target"]
        )
        errors.append(float(wrong.sum()))
        accuracy.append(1 - float(wrong.double().mean()))
    if not errors:
        raise UserError(f"{run}: the runs {', '.join(members)} have no seed in common")
    return [Row(run, "test_errors", errors), Row(run, "test_accuracy", accuracy)]


def best_validation(runs: Runs, output: Path) -> list[Row]:
    """The accuracy on the validation split at each run's best epoch."""
    found = []
    for name, group in runs.items():
        tables = [
            run.folder / "metrics.csv" for run in group if (run.folder / "metrics.csv").is_file()
        ]  # a cache has none
        values = [
            [float(row["val_accuracy"]) for row in csv.DictReader(table.open(newline=""))]
            for table in tables
        ]
        if values:
            found.append(Row(name, "best_val_accuracy", [max(epochs) for epochs in values]))
    return found


def throughput(
    runs: Runs,
    output: Path,
    names: list[str],
    together: dict[str, list[str]] | None = None,
    batch_size: int = 64,
    repeats: int = 3,
) -> list[Row]:
    """Test sentences that each run's network classifies a second, in padded batches of similar length, on the CPU.

    Tokenizing is not part of it. The median of some passes over the test set, after one to warm up. Of ensembles also the
    parameters of all members.

    Args:
        runs: the finished runs.
        output: folder of the results.
        names: runs.
        together: ensemble -> its members, each of which classifies every sentence.
        batch_size: sentences a batch.
        repeats: passes.
    """
    speeds = {name: _speed(runs[name][0], batch_size, repeats) for name in names}
    speeds |= {
        name: 1 / sum(1 / speeds[member] for member in members)
        for name, members in (together or {}).items()
    }
    sizes = {
        name: sum(_parameters(runs[member][0]) for member in members)
        for name, members in (together or {}).items()
    }
    return [
        *(Row(name, "sentences_per_second", [speed]) for name, speed in speeds.items()),
        *(Row(name, "parameters", [float(size)]) for name, size in sizes.items()),
    ]


def _parameters(run: Finished) -> int:
    return sum(p.numel() for p in run.network().parameters())


def _speed(run: Finished, batch_size: int, repeats: int) -> float:
    loader = run.datamodule().loader("test")
    loader.batch_size = batch_size
    network, batches = run.network(), list(loader)
    took = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            for batch in batches:
                run_network(network, batch.inputs)
            took.append(time.perf_counter() - begun)
    return sum(len(batch) for batch in batches) / statistics.median(took[1:])

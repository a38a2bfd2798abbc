"""Ensembles of different networks, best epochs, and the speed of classifying sentences."""

from __future__ import annotations

import csv
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished, Row, Runs
from kd_lightning.features import run_network


def mean_of_logits(runs: Runs, output: Path, run: str, members: list[str]) -> list[Row]:
    """Evaluate the mean of several networks' logits on the test set, separately for each seed.

    This is the prediction of `EnsembleTeacher(mean="geometric")`.

    Args:
        runs: the finished runs.
        output: unused.
        run: name of the ensemble in the results.
        members: the runs whose networks of the same seed form an ensemble.

    Returns:
        Rows `test_errors` and `test_accuracy`, over the seeds that all members have.

    Raises:
        UserError: if the members have no seed in common.
    """
    seeds = _common_seeds(runs, members)
    if not seeds:
        raise UserError(f"{run}: the runs {', '.join(members)} have no seed in common")

    errors = Row(run, "test_errors", [])
    accuracy = Row(run, "test_accuracy", [])
    for seed in seeds:
        logits = []
        for name in members:
            member = _with_seed(runs[name], seed)
            predictions = member.predictions("test")
            logits.append(predictions["logits"].double())
        mean = torch.stack(logits).mean(0)
        # All members were tested on the same sentences in the same order.
        wrong = mean.argmax(1) != predictions["target"]
        errors.values.append(float(wrong.sum()))
        error_rate = float(wrong.double().mean())
        accuracy.values.append(1 - error_rate)
    return [errors, accuracy]


def _common_seeds(runs: Runs, names: list[str]) -> list[int]:
    """The seeds that all of the runs have, in order."""
    seeds = {run.seed for run in runs[names[0]]}
    for name in names[1:]:
        seeds &= {run.seed for run in runs[name]}
    return sorted(seeds)


def _with_seed(group: Sequence[Finished], seed: int) -> Finished:
    """The run with a seed, which must exist."""
    return next(run for run in group if run.seed == seed)


def best_validation(runs: Runs, output: Path) -> list[Row]:
    """Read the accuracy on the validation split at each run's best epoch.

    Args:
        runs: the finished runs.
        output: unused.

    Returns:
        One row `best_val_accuracy` per run that was trained.
    """
    rows = []
    for name, group in runs.items():
        values = []
        for run in group:
            path = run.folder / "metrics.csv"
            # A cache of teacher outputs is a run without metrics.
            if path.is_file():
                values.append(_highest(path, "val_accuracy"))
        if values:
            rows.append(Row(name, "best_val_accuracy", values))
    return rows


def _highest(path: Path, metric: str) -> float:
    """The highest value of a column over all epochs."""
    with path.open(newline="") as file:
        epochs = csv.DictReader(file)
        return max(float(epoch[metric]) for epoch in epochs)


def throughput(
    runs: Runs,
    output: Path,
    names: list[str],
    together: dict[str, list[str]] | None = None,
    batch_size: int = 64,
    repeats: int = 3,
) -> list[Row]:
    """Measure how many test sentences per second each run's network classifies on the CPU.

    Sentences of similar length share a padded batch. Tokenization is not measured. The result is
    the median over several passes over the test set, after one pass to warm up.

    Args:
        runs: the finished runs.
        output: unused.
        names: the runs to measure; the first seed of each is used.
        together: ensembles with their members, each of which classifies every sentence.
        batch_size: sentences per batch.
        repeats: measured passes.

    Returns:
        One row `sentences_per_second` per run and ensemble, then one row `parameters` per ensemble,
        which counts the parameters of all members.
    """
    speed_rows = []
    speeds = {}
    for name in names:
        # The speed depends on the network, not on its weights: one seed is enough.
        first_seed = runs[name][0]
        speeds[name] = _sentences_per_second(first_seed, batch_size, repeats)
        speed_rows.append(Row(name, "sentences_per_second", [speeds[name]]))

    size_rows = []
    for ensemble, members in (together or {}).items():
        # The members run one after another, so their times per sentence add up.
        seconds_per_sentence = sum(1 / speeds[member] for member in members)
        speed = 1 / seconds_per_sentence
        speed_rows.append(Row(ensemble, "sentences_per_second", [speed]))
        size = sum(_parameters(runs[member][0]) for member in members)
        size_rows.append(Row(ensemble, "parameters", [float(size)]))
    return speed_rows + size_rows


def _parameters(run: Finished) -> int:
    """The number of parameters of a run's network."""
    network = run.network()
    return sum(parameter.numel() for parameter in network.parameters())


def _sentences_per_second(run: Finished, batch_size: int, repeats: int) -> float:
    """The median speed of a run's network over several passes; see `throughput`."""
    loader = run.datamodule().loader("test")
    loader.batch_size = batch_size
    network = run.network()
    # Batches are made before the clock starts.
    batches = list(loader)
    seconds = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            for batch in batches:
                run_network(network, batch.inputs)
            seconds.append(time.perf_counter() - start)
    sentences = sum(len(batch) for batch in batches)
    # The first pass warms up.
    median_seconds = statistics.median(seconds[1:])
    return sentences / median_seconds

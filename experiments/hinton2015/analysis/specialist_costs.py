"""What it costs to train a generalist, its specialists and the baselines."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from kd_lightning.experiments.analysis import Finished, Runs
from kd_lightning.runs.folder import read_json

from .specialist_answers import Baselines, runs_of_grid


@dataclass
class Cost:
    """The training cost of a kind of network, mean over seeds (and over specialists).

    Attributes:
        label: name of the network.
        samples: training samples seen, repetitions included.
        seconds: wall time of the run, evaluation included.
        count: how many of these networks one seed needs.
    """

    label: str
    samples: float
    seconds: float
    count: int = 1

    @classmethod
    def of(cls, label: str, group: Sequence[Finished], count: int = 1) -> Cost:
        """Average the cost of finished runs.

        Args:
            label: name of the network.
            group: the runs.
            count: how many of these networks one seed needs.
        """
        samples = []
        seconds = []
        for run in group:
            config = yaml.safe_load((run.folder / "config.yaml").read_text())
            # The data's own count, because a specialist sees a part of the training samples.
            record = read_json(run.folder / "run.json")
            epochs = config["trainer"]["max_epochs"]
            samples_per_epoch = record["data"]["samples"]["train"]
            samples.append(float(epochs * samples_per_epoch))
            seconds.append(float(record["wall_time_s"]))
        mean_samples = statistics.fmean(samples)
        mean_seconds = statistics.fmean(seconds)
        return cls(label, mean_samples, mean_seconds, count)


def training_cost(
    runs: Runs, generalist: str, specialists: str, baselines: Baselines
) -> list[Cost]:
    """Compute the cost of the generalist, of one of its specialists, and of the baselines.

    Args:
        runs: the finished runs.
        generalist: the generalist's run.
        specialists: the run with a grid over specialists.
        baselines: the runs of the baselines.
    """
    grid = runs_of_grid(runs, specialists)
    # Specialists train on different numbers of samples, so the cost of one is a mean over all.
    every_specialist = [run for group in grid for run in group]
    costs = [
        Cost.of(generalist, runs[generalist]),
        Cost.of("a specialist", every_specialist, len(grid)),
    ]
    if baselines.longer is not None:
        costs.append(Cost.of(baselines.longer, runs[baselines.longer]))
    if baselines.others is not None:
        others = runs[baselines.others]
        costs.append(Cost.of(baselines.others, others, baselines.others_per_seed))
    return costs

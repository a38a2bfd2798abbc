"""Soft targets as regularizers in speech (Hinton et al. 2015, section 6, table 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished, Row, Runs, Stage
from kd_lightning.experiments.stats import holm, paired
from kd_lightning.features import run_network
from kd_lightning.weights import read_file


class EarlyStopped(Finished):
    """A run at its best epoch on validation data."""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of the best epoch."""
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def epochs(self) -> int:
        """The number of epochs until the best one, itself included."""
        content = read_file(self.checkpoint, "the checkpoint")
        # A checkpoint counts epochs from 0.
        return int(content["epoch"]) + 1


def regularizers(
    runs: Runs,
    output: Path,
    early: Mapping[str, str],
    compare: Sequence[tuple[str, str]] = (),
) -> list[Row]:
    """Compute training accuracies, and both accuracies with early stopping.

    Writes regularizers.md, with the tests of `compare`.

    Args:
        runs: the finished runs.
        output: folder of the results.
        early: names of runs, each with its name in the results if it stops early.
        compare: pairs of either kind of name, whose test accuracies are compared over seeds.

    Returns:
        A row `train_accuracy` per run, and with early stopping the rows `train_accuracy`,
        `test_accuracy` and `stopped_after_epochs`.

    Raises:
        UserError: if `compare` contains an unknown name.
    """
    # Only the training accuracies must be computed; test accuracies are in the runs' own records.
    rows = []
    for name, group in runs.items():
        # A cache of teacher outputs is a run without a checkpoint.
        trained = [run for run in group if run.checkpoint.is_file()]
        if not trained:
            continue
        data = trained[0].datamodule()
        rows.append(_accuracies(name, trained, data, "train"))
        if name in early:
            rows += _early_stopping(early[name], trained, data)

    accuracies = {}
    for name, group in runs.items():
        if group:
            accuracies[name] = [run.metrics["test_accuracy"] for run in group]
    for row in rows:
        if row.metric == "test_accuracy":
            accuracies[row.run] = row.values
    _write_tests(output / "regularizers.md", accuracies, compare)
    return rows


def _accuracies(
    name: str, group: Sequence[Finished], data: DataModule, stage: Stage
) -> Row:
    """The accuracy of each seed of a run on the samples of a stage."""
    values = [accuracy(run.network(), data, stage) for run in group]
    return Row(name, f"{stage}_accuracy", values)


def _early_stopping(
    name: str, group: Sequence[Finished], data: DataModule
) -> list[Row]:
    """The rows of runs at their best epochs."""
    best = [EarlyStopped(run.seed, run.folder, run.metrics) for run in group]
    epochs = [float(run.epochs) for run in best]
    # The stored test predictions are those of the last epoch, so both accuracies are computed.
    return [
        _accuracies(name, best, data, "train"),
        _accuracies(name, best, data, "test"),
        Row(name, "stopped_after_epochs", epochs),
    ]


def _write_tests(
    path: Path,
    accuracies: Mapping[str, list[float]],
    compare: Sequence[tuple[str, str]],
) -> None:
    """Compare pairs by paired t-tests over seeds, Holm-corrected together."""
    tests = []
    for a, b in compare:
        for name in (a, b):
            if name not in accuracies:
                known = ", ".join(accuracies)
                raise UserError(f"the analysis compares {name!r}; there are {known}")
        test = paired(a, b, "test_accuracy", accuracies[a], accuracies[b])
        tests.append(test)
    holm(tests)
    lines = [f"- {test.sentence()}." for test in tests]
    text = "\n".join(lines)
    path.write_text(text + "\n")


def accuracy(network: nn.Module, datamodule: DataModule, stage: Stage) -> float:
    """Compute the share of a stage's frames whose state is predicted.

    Args:
        network: an acoustic model, in eval mode.
        datamodule: the data.
        stage: the samples.
    """
    correct = 0
    total = 0
    with torch.inference_mode():
        for batch in datamodule.loader(stage):
            output = run_network(network, batch.inputs)
            predicted = output.logits.argmax(1)
            is_correct = predicted == batch.target
            correct += int(is_correct.sum())
            total += len(batch)
    return correct / total

"""What a training step costs in time and memory, measured anew, each run in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished, Row, Runs

WARM = 5
"""Steps that are not counted: the first ones choose kernels and fill pages."""


def private_bytes() -> int:
    """Memory that belongs to this process alone, without mapped files; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


class Meter(pl.Callback):
    """Writes seconds a step (the median) and peak bytes over those before the losses were built, to `path` as JSON.

    On the CPU the peak is taken between the forward and the backward pass, where activations are held; on a GPU it is the
    allocator's.
    """

    def __init__(self, path: str) -> None:
        self.path, self.peak, self.before = path, 0, 0
        self.ends: list[float] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.before = private_bytes()

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        self.peak = max(self.peak, private_bytes())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        steps = [
            after - before
            for before, after in zip(self.ends[WARM:], self.ends[WARM + 1 :], strict=False)
        ]
        cuda = pl_module.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else self.peak - self.before
        Path(self.path).write_text(json.dumps({"seconds": statistics.median(steps), "bytes": peak}))


def measured(run: Finished, steps: int) -> dict[str, float]:
    """The first steps of a run once more: seconds a step, and bytes."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        words = [
            *(
                "fit",
                "-c",
                str(run.folder / "config.yaml"),
                f"--run.dir={folder}/run",
                "--run.test=no",
                "--run.wandb=off",
            ),
            *(
                "--trainer.max_epochs=1",
                f"--trainer.limit_train_batches={WARM + 1 + steps}",
                "--trainer.limit_val_batches=0",
            ),
            *(
                "--trainer.enable_progress_bar=false",
                "--trainer.callbacks+=kd_lightning.analyses.steps.Meter",
            ),
            f"--trainer.callbacks.path={answer}",
        ]
        words += [f"--data.root={run.root}"] if run.root else []
        threads = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run(
            [sys.executable, "-m", "kd_lightning", *words],
            capture_output=True,
            text=True,
            env=threads,
            check=False,
        )
        if done.returncode:
            raise UserError(
                f"{run.folder}: its steps cannot be run again: {(done.stderr.strip().splitlines() or [''])[-1]}"
            )
        found: dict[str, float] = json.loads(answer.read_text())
        return found


def time_and_memory(
    runs: Runs, output: Path, reference: str, names: list[str], steps: int = 30, rounds: int = 3
) -> list[Row]:
    """Time and memory of a step of each run relative to that of `reference`; all in turn, once a round.

    Args:
        names: the runs, of which the first seed is taken.
        steps: counted in each round.
        rounds: values of each row.
    """
    order = list(dict.fromkeys([reference, *names]))
    found = [{name: measured(runs[name][0], steps) for name in order} for _ in range(rounds)]
    rows = []
    for name in order:
        for metric, key in (("step_time", "seconds"), ("step_memory", "bytes")):
            ratios = [one[name][key] / one[reference][key] for one in found if one[reference][key]]
            rows += (
                [Row(name, f"{metric}_relative_to_{reference.lower()}", ratios)] if ratios else []
            )
    return rows

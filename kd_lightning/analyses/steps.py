"""Time and memory of a training step, measured again with each run in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished, Row, Runs
from kd_lightning.types import Batch

WARM_UP = 5
"""Steps that are not measured: the first ones choose kernels and touch new memory pages."""


Measurement = dict[str, float]
"""Median "seconds" per step, and peak "bytes"."""


def private_bytes() -> int:
    """Memory of this process alone, without mapped files; 0 if the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        # The line is `RssAnon:  1234 kB`.
        if line.startswith("RssAnon:"):
            kilobytes = int(line.split()[1])
            return kilobytes * 1024
    return 0


class Meter(pl.Callback):
    """Writes a step's median time in seconds and its peak memory in bytes to a JSON file.

    On a GPU the peak is the allocator's. On the CPU it is the memory between the forward and the
    backward pass, while all activations are alive, minus the memory before the losses were built.

    Args:
        path: the file to write.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.memory_before = 0
        self.peak = 0
        self.step_ends: list[float] = []

    def setup(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        stage: str,
    ) -> None:
        """Measure the memory before training."""
        self.memory_before = private_bytes()

    def on_before_backward(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        loss: Tensor,
    ) -> None:
        """Measure the memory while all activations are alive."""
        self.peak = max(self.peak, private_bytes())

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor | Mapping[str, Tensor] | None,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Note when the step ended."""
        # A GPU computes asynchronously, so the step may still be running.
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        self.step_ends.append(time.perf_counter())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the measurements."""
        ends = self.step_ends[WARM_UP:]
        seconds = [after - before for before, after in pairwise(ends)]
        if pl_module.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = self.peak - self.memory_before
        measurement = {"seconds": statistics.median(seconds), "bytes": peak}
        Path(self.path).write_text(json.dumps(measurement))


def measure_run(run: Finished, steps: int) -> Measurement:
    """Run the first steps of a run again.

    Args:
        run: the finished run, whose config is used.
        steps: how many steps to measure, after the warm-up.

    Returns:
        `seconds` per step, and `bytes`.

    Raises:
        UserError: if the run fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        measurement = Path(folder) / "measurement.json"
        command = _command(run, steps, Path(folder) / "run", measurement)
        # The new process would choose its own number of threads, which changes the time of a step.
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
        process = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False
        )
        if process.returncode:
            # The last line of a traceback names the error.
            errors = process.stderr.strip().splitlines() or [""]
            raise UserError(
                f"{run.folder}: its steps cannot be run again: {errors[-1]}"
            )
        content: Measurement = json.loads(measurement.read_text())
        return content


def _command(run: Finished, steps: int, folder: Path, measurement: Path) -> list[str]:
    """The command that trains a run for a few steps under a Meter."""
    command = [
        sys.executable,
        "-m",
        "kd_lightning",
        "fit",
        "-c",
        str(run.folder / "config.yaml"),
        f"--run.dir={folder}",
        "--run.test=no",
        "--run.wandb=off",
        "--trainer.max_epochs=1",
        f"--trainer.limit_train_batches={WARM_UP + 1 + steps}",
        "--trainer.limit_val_batches=0",
        "--trainer.enable_progress_bar=false",
        f"--trainer.callbacks+={Meter.__module__}.{Meter.__qualname__}",
        f"--trainer.callbacks.path={measurement}",
    ]
    if run.root:
        command.append(f"--data.root={run.root}")
    return command


def time_and_memory(
    runs: Runs,
    output: Path,
    reference: str,
    names: list[str],
    steps: int = 30,
    rounds: int = 3,
) -> list[Row]:
    """Measure the time and memory of a step, relative to a reference run.

    Each round measures all runs in turn, so that a slow phase of the machine affects all of them.

    Args:
        runs: the finished runs.
        output: unused.
        reference: the run that the others are compared with.
        names: the runs to measure; the first seed of each is used.
        steps: measured steps per round.
        rounds: how often each run is measured.

    Returns:
        Rows `step_time_relative_to_...` and `step_memory_relative_to_...` with one value per round.
    """
    order = list(dict.fromkeys([reference, *names]))
    measurements: dict[str, list[Measurement]] = {name: [] for name in order}
    for _ in range(rounds):
        for name in order:
            first_seed = runs[name][0]
            measurements[name].append(measure_run(first_seed, steps))

    rows = []
    ending = f"relative_to_{reference.lower()}"
    for name in order:
        # Ratios within a round cancel the machine's slow phases.
        for metric, key in (("step_time", "seconds"), ("step_memory", "bytes")):
            ratios = _ratios(measurements[name], measurements[reference], key)
            if ratios:
                rows.append(Row(name, f"{metric}_{ending}", ratios))
    return rows


def _ratios(
    measurements: list[Measurement],
    references: list[Measurement],
    key: str,
) -> list[float]:
    """A run's measurements over those of the reference, round by round."""
    ratios = []
    for measurement, reference in zip(measurements, references, strict=True):
        # Memory is 0 if the system does not report it.
        if reference[key]:
            ratios.append(measurement[key] / reference[key])
    return ratios

"""`kd benchmark`: teacher, student and exports side by side."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from kd_lightning.errors import UserError
from kd_lightning.escaping import plain
from kd_lightning.files import write_whole_text
from kd_lightning.trust import VARIABLE, trusted_packages

BATCHES = (1, 64)

Value = float | str | None
Row = dict[str, Value]


@dataclass
class Candidate:
    """One network, loaded in a process of its own.

    Attributes:
        target: folder of a run or an export.
        process: waits for batch sizes.
        loaded: what the process said about the network.
        timings: by batch size, one for each round.
    """

    target: str
    process: subprocess.Popen[str]
    loaded: dict[str, object] = field(default_factory=dict)
    timings: dict[int, list[dict[str, float | None]]] = field(default_factory=dict)

    def read_line(self) -> dict[str, object]:
        """The next line of JSON that the process prints.

        Raises:
            UserError: if the process ended instead.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            # Notes of the loader, such as conversions of weights, are no JSON.
            if line.startswith("{"):
                content: dict[str, object] = json.loads(line)
                return content
        assert self.process.stderr is not None
        # The process has ended; the last line of its traceback says why.
        lines = self.process.stderr.read().strip().splitlines() or ["it stopped"]
        raise UserError(f"{self.target} cannot be measured: {lines[-1]}")

    def measure(self, batch: int) -> None:
        """Measure one batch size once."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{batch}\n")
        self.process.stdin.flush()
        timing = self.read_line()
        self.timings.setdefault(batch, []).append(timing)  # type: ignore[arg-type]

    def row(self) -> Row:
        """The medians over the rounds, by column."""
        row: Row = {"network": self.target}
        for name in ("kind", "parameters", "flops", "file_bytes"):
            row[name] = self.loaded[name]  # type: ignore[assignment]
        for batch, timings in self.timings.items():
            # Medians, because one disturbed round would move a mean.
            for name in ("p50_ms", "p95_ms", "per_second"):
                row[f"{name}_batch_{batch}"] = _median(timings, name)
        largest = self.timings[max(self.timings)]
        row["peak_bytes"] = _median(largest, "peak_bytes")
        per_sample = _median(largest, "millijoules")
        # A thousand samples at x mJ each take x J.
        row["joules_per_1000"] = per_sample
        metrics = self.loaded["metrics"]
        assert isinstance(metrics, dict)
        row.update(metrics)
        return row


def _median(timings: Sequence[dict[str, float | None]], name: str) -> float | None:
    values = [timing[name] for timing in timings]
    known = [value for value in values if value is not None]
    if not known:
        return None
    return statistics.median(known)


def parser() -> argparse.ArgumentParser:
    """The options of `kd benchmark`."""
    options = argparse.ArgumentParser(
        prog="kd benchmark",
        description="Measure networks side by side on the CPU: parameters, FLOPs, file size, "
        "memory, latency, throughput, energy where the machine has a counter, and the test "
        "metrics of their runs. Rounds alternate between the networks.",
        allow_abbrev=False,
    )
    options.add_argument(
        "targets",
        nargs="+",
        metavar="RUN|EXPORT",
        help="folders of runs, checkpoints, or folders that kd export wrote",
    )
    options.add_argument(
        "--rounds", type=int, default=3, help="measurements of each; default: 3"
    )
    options.add_argument(
        "--threads", type=int, default=1, help="threads per network; default: 1"
    )
    options.add_argument(
        "--output", type=Path, metavar="FILE.json", help="also write the table as JSON"
    )
    options.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="also plot the test metric against the latency",
    )
    return options


def main(argv: Sequence[str]) -> None:
    """Run `kd benchmark`.

    Args:
        argv: the arguments.

    Raises:
        UserError: for a user's mistake, or if a network cannot be loaded.
    """
    options = parser().parse_args(argv)
    for name in ("rounds", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be at least 1")
    # Before the first network is loaded, which takes seconds.
    for target in options.targets:
        if not Path(target).exists():
            raise UserError(f"there is no run, checkpoint or export {target}")
    from kd_lightning.export.plots import check_path, plot_metric_against_latency

    if options.plot is not None:
        check_path(options.plot)
    rows = measure_all(options.targets, options.rounds, options.threads)
    _print(rows)
    if options.output is not None:
        write_whole_text(options.output, json.dumps(rows, indent=2))
    if options.plot is not None:
        plot_metric_against_latency(rows, options.plot)


def measure_all(targets: Sequence[str], rounds: int, threads: int) -> list[Row]:
    """Load every network in a process of its own, and measure them in turn.

    Args:
        targets: folders of runs and exports.
        rounds: how often each is measured at each batch size.
        threads: of each process.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        VARIABLE: trusted_packages(),
    }
    candidates = []
    try:
        for target in targets:
            process = subprocess.Popen(
                [sys.executable, "-m", "kd_lightning.export.latency", target],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            candidate = Candidate(target, process)
            candidates.append(candidate)
            # One after another: the loading of one would disturb nothing yet, but memory peaks.
            candidate.loaded = candidate.read_line()
        # Networks alternate, so that a machine that grows warm slows all of them.
        for _ in range(rounds):
            for batch in BATCHES:
                for candidate in candidates:
                    candidate.measure(batch)
        return [candidate.row() for candidate in candidates]
    finally:
        for candidate in candidates:
            candidate.process.kill()
            candidate.process.communicate()


HEADINGS = {
    "network": "network",
    "kind": "kind",
    "parameters": "parameters",
    "flops": "FLOPs",
    "file_bytes": "file, bytes",
    "peak_bytes": "memory, bytes",
    "p50_ms_batch_1": "p50 ms, batch 1",
    "p95_ms_batch_1": "p95 ms, batch 1",
    "p50_ms_batch_64": "p50 ms, batch 64",
    "p95_ms_batch_64": "p95 ms, batch 64",
    "per_second_batch_64": "samples/s",
    "joules_per_1000": "J per 1,000",
}
"""The heading of each measurement; test metrics follow."""


def _print(rows: Sequence[Row]) -> None:
    """Print one column per network: there are more measurements than networks."""
    headings = dict(HEADINGS)
    for row in rows:
        for name in row:
            # Networks of different tasks have different metrics, and the table has a
            # row for each.
            if name.startswith("test_"):
                headings[name] = name
    table = Table()
    table.add_column(headings.pop("network"))
    for row in rows:
        table.add_column(plain(str(row["network"])), justify="right")
    for name, heading in headings.items():
        table.add_row(plain(heading), *(plain(_shown(row.get(name))) for row in rows))
    Console().print(table)


def _shown(value: Value) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if value == int(value) and abs(value) >= 1000:
        return f"{int(value):,}"
    return f"{value:.4g}"

"""Size and speed of the networks of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kd_lightning.errors import UserError
from kd_lightning.experiments.cost import measure_checkpoint
from kd_lightning.export.benchmark_command import HEADINGS
from kd_lightning.export.student import find_checkpoint
from kd_lightning.report.blocks import Block, Panel, Paragraph, Section, Table, missing
from kd_lightning.report.reading import ReportedRun

Costs = Mapping[str, float]
"""Measurements of one network by name, in the units of `kd benchmark`."""

Benchmark = Mapping[Path, Costs]
"""The measurements that `kd benchmark` wrote, by the path of the network."""

COUNTED = ("parameters", "flops", "file_bytes")
"""What a checkpoint tells; everything else was measured on some machine."""


def read_benchmark(path: Path) -> Benchmark:
    """Read the JSON file of `kd benchmark --output`.

    Args:
        path: of the file.

    Raises:
        UserError: if it is another file.
    """
    problem = UserError(
        f"--benchmark {path} is not a file that kd benchmark --output wrote"
    )
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise problem from error
    if not isinstance(rows, list):
        raise problem
    measured = {}
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("network"), str):
            raise problem
        values = {}
        for name in HEADINGS:
            value = row.get(name)
            if isinstance(value, int | float):
                values[name] = float(value)
        measured[Path(row["network"]).resolve()] = values
    return measured


def costs_of(reported: ReportedRun, benchmark: Benchmark) -> tuple[Costs, str]:
    """The costs of a run's network, and why they are missing.

    Args:
        reported: the run.
        benchmark: measurements of networks, this one perhaps among them.
    """
    folder = reported.folder.path
    for path, values in benchmark.items():
        # A checkpoint lies two folders below its run's.
        if folder in (path, *path.parents[:2]):
            return values, ""
    # Counting needs no clock, so that a report of a busy machine is right.
    try:
        checkpoint = find_checkpoint(folder)
        return measure_checkpoint(checkpoint, batches=()), ""
    except UserError as error:
        return {}, f"{reported.label}: size and FLOPs are unknown: {error}."


def costs_section(
    runs: Sequence[ReportedRun],
    costs: Mapping[str, Costs],
    notes: Sequence[str],
) -> Section:
    """A table with one column per run.

    Args:
        runs: of the page.
        costs: of each run, by its label.
        notes: why some are missing.
    """
    blocks: list[Block] = []
    lines = []
    measured = False
    for name, heading in HEADINGS.items():
        values = [costs[run.label].get(name) for run in runs]
        # Energy, for one, is unknown on most machines.
        if all(value is None for value in values):
            continue
        measured = measured or name not in COUNTED
        shown = ["" if value is None else _format(value) for value in values]
        lines.append([heading, *shown])
    if lines:
        headings = ["", *(run.label for run in runs)]
        blocks.append(Table(headings, lines, "FLOPs are those of one sample."))
    blocks += [missing(note) for note in notes]
    if not measured:
        text = (
            "No latency was recorded for these runs: kd benchmark RUN --output "
            "FILE.json measures it, and kd report --benchmark FILE.json shows it."
        )
        blocks.append(missing(text))
    return Section("Size and speed", [Panel("", blocks or [Paragraph("")])])


def _format(value: float) -> str:
    if value >= 1000 and value == int(value):
        return f"{value:,.0f}"
    return f"{value:.4g}"

"""The sections of a page about runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import yaml

from kd_lightning.compare.diff import differences_table
from kd_lightning.errors import UserError
from kd_lightning.experiments.report import is_fraction
from kd_lightning.report.agreement import agreement
from kd_lightning.report.blocks import (
    Block,
    Code,
    Panel,
    Paragraph,
    Section,
    Table,
    missing,
)
from kd_lightning.report.costs import Benchmark, costs_of, costs_section
from kd_lightning.report.curves import (
    Curves,
    figure_of_groups,
    figure_of_run,
    read_curves,
)
from kd_lightning.report.mistakes import worst_mistakes
from kd_lightning.report.predictions import calibration, confusions
from kd_lightning.report.reading import ReportedRun
from kd_lightning.report.soft_targets import soft_targets
from kd_lightning.values import Value, mapping_at

SECTIONS: Mapping[str, Callable[[ReportedRun], list[Block]]] = {
    "Confusion matrix": confusions,
    "Calibration": calibration,
    "Agreement with the teacher": agreement,
    "What the soft targets say": soft_targets,
    "Worst mistakes": worst_mistakes,
}
"""Sections with one panel per run."""


def sections_of_runs(
    runs: Sequence[ReportedRun], benchmark: Benchmark
) -> list[Section]:
    """All sections about runs.

    Args:
        runs: at least one.
        benchmark: measurements of `kd benchmark`.
    """
    costs = {}
    notes = []
    for run in runs:
        costs[run.label], note = costs_of(run, benchmark)
        if note:
            notes.append(note)
    sections = [
        _overview(runs),
        _metrics(runs),
        costs_section(runs, costs, notes),
        _learning_curves(runs),
    ]
    for title, content in SECTIONS.items():
        sections.append(_side_by_side(title, runs, content))
    if len(runs) > 1:
        sections.append(_differences(runs))
    sections.append(_side_by_side("Config and environment", runs, _environment))
    return sections


def _side_by_side(
    title: str,
    runs: Sequence[ReportedRun],
    content: Callable[[ReportedRun], list[Block]],
) -> Section:
    """A section with one panel per run."""
    panels = []
    for run in runs:
        # A page about one run names it at the top.
        name = run.label if len(runs) > 1 else ""
        panels.append(Panel(name, content(run)))
    return Section(title, panels)


def _overview(runs: Sequence[ReportedRun]) -> Section:
    """What ran, one column per run."""
    columns = [_facts(run) for run in runs]
    # A dict keeps the order: runs of different kinds have different facts.
    names: dict[str, None] = {}
    for column in columns:
        names.update(dict.fromkeys(column))
    lines = []
    for name in names:
        values = [column.get(name, "") for column in columns]
        lines.append([name, *values])
    headings = ["", *(run.label for run in runs)]
    return Section("Overview", [Panel("", [Table(headings, lines)])])


def _facts(reported: ReportedRun) -> dict[str, str]:
    """What a reader must know of a run first."""
    run = reported.run
    record = reported.folder.record
    # In the order in which a reader asks for them.
    facts = {"status": run.status}
    if record.get("error"):
        facts["error"] = str(record["error"])
    facts["kind of run"] = str(record.get("job_type") or "")
    facts["seed"] = str(run.seed)
    facts["data"] = str(reported.spec.data)
    samples = []
    for split, count in reported.spec.samples.items():
        samples.append(f"{count:,} {split}")
    facts["samples"] = ", ".join(samples)
    model = mapping_at(run.config, "model")
    arguments = mapping_at(model, "init_args")
    facts["network"] = _class_name(
        arguments.get("student") or arguments.get("network") or {}
    )
    teachers = []
    for source in run.teacher_sources:
        teachers.append(str(source.get("network") or "unknown"))
    if teachers:
        facts["teacher"] = ", ".join(teachers)
    losses = []
    for name, loss in mapping_at(arguments, "losses").items():
        losses.append(f"{name} ({_class_name(loss)})")
    facts["losses"] = ", ".join(losses)
    facts["started"] = run.started
    facts["training time, s"] = f"{reported.folder.wall_time_s:.0f}"
    return facts


def _class_name(described: Value) -> str:
    """The class of an object in a config, without its module."""
    if not isinstance(described, Mapping):
        return str(described or "")
    return str(described.get("class_path", "")).rpartition(".")[2]


def _metrics(runs: Sequence[ReportedRun]) -> Section:
    """The last value of each metric on test and validation data, one column per run."""
    names: set[str] = set()
    for run in runs:
        names |= run.run.metrics.keys()
    lines = []
    # Training metrics are curves.
    for prefix in ("test_", "val_"):
        for name in sorted(names):
            if not name.startswith(prefix):
                continue
            values = []
            for run in runs:
                value = run.run.metrics.get(name)
                values.append("" if value is None else _format_metric(name, value))
            lines.append([name, *values])
    headings = ["metric", *(run.label for run in runs)]
    blocks: list[Block] = [Table(headings, lines)]
    if not lines:
        blocks = [missing("These runs measured nothing on test or validation data.")]
    return Section("Metrics", [Panel("", blocks)])


def _format_metric(name: str, value: float) -> str:
    if is_fraction(name) or name.endswith("agreement"):
        return f"{value:.2%}"
    return f"{value:.6g}"


def _learning_curves(runs: Sequence[ReportedRun]) -> Section:
    """The curves of each run; several runs also in common plots."""
    by_label: dict[str, Sequence[Curves]] = {}
    panels = []
    for run in runs:
        name = run.label if len(runs) > 1 else ""
        monitor = run.task.monitor if run.task is not None else "accuracy"
        try:
            curves = read_curves(run.folder.path / "metrics.csv")
        except UserError as error:
            text = f"There are no learning curves: {error}."
            panels.append(Panel(name, [missing(text)]))
            continue
        by_label[run.label] = [curves]
        figure = figure_of_run(run.label, curves, monitor)
        if figure is None:
            text = "There are no learning curves: the run logged fewer than two epochs."
            panels.append(Panel(name, [missing(text)]))
        else:
            panels.append(Panel(name, [figure]))
    # One run has the same lines in its own figure.
    if len(by_label) > 1:
        task = runs[0].task
        monitor = task.monitor if task is not None else "accuracy"
        figure = figure_of_groups(by_label, monitor)
        if figure is not None:
            panels.insert(0, Panel("All runs", [figure]))
    return Section("Learning curves", panels)


def _differences(runs: Sequence[ReportedRun]) -> Section:
    """What differs between the runs."""
    cells = differences_table([run.run for run in runs], [run.label for run in runs])
    blocks: list[Block] = [Table(cells.headings, cells.lines)]
    if not cells.lines:
        blocks = [Paragraph("Settings, data and code of these runs are the same.")]
    return Section("What differs", [Panel("", blocks)])


def _environment(reported: ReportedRun) -> list[Block]:
    """How the run was started, on what, and its whole config."""
    record = reported.folder.record
    command = record.get("command") or []
    facts = {
        "command": " ".join(map(str, command)),
        "commit": str(record.get("commit") or "unknown"),
    }
    for group in ("hardware", "versions"):
        for name, value in mapping_at(record, group).items():
            facts[name] = _plain(value)
    lines = [[name, value] for name, value in facts.items()]
    # config.yaml itself, because it holds no secrets and the resolved settings.
    text = yaml.safe_dump(
        dict(reported.run.config), sort_keys=False, allow_unicode=True
    )
    return [
        Table(["", ""], lines),
        Code("The resolved config, config.yaml", text.splitlines()),
    ]


def _plain(value: Value) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return str(value)

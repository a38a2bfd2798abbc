"""The sections of a page about an experiment that `kd reproduce` has run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from kd_lightning.compare.experiment_results import read_results
from kd_lightning.compare.plot import Point, height_of_rows, plot_points, plot_rows
from kd_lightning.errors import UserError
from kd_lightning.experiments.measurements import ResultRow, SeedGroup
from kd_lightning.experiments.report import format_mean, heading, table_cells
from kd_lightning.report.blocks import (
    Block,
    Figure,
    Panel,
    Paragraph,
    Section,
    Table,
    missing,
)
from kd_lightning.report.curves import Curves, figure_of_groups, read_curves
from kd_lightning.report.figures import draw
from kd_lightning.runs.folder import RunFolder, read_json
from kd_lightning.values import Values, mapping_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

AGAINST = ("parameters", "flops", "latency_ms_batch_1")
"""Costs that the first metric is plotted against, if they were measured."""

MOST_LINES = 10
"""As many lines as there are colors."""


@dataclass
class ReportedExperiment:
    """What `kd reproduce` left of an experiment.

    Attributes:
        name: of the experiment.
        content: of results.json.
        groups: the measurements of each run.
        rows: one per run and metric.
        curves: of each run's seeds, by the run's name.
        monitor: the metric that selects the best checkpoint of these runs.
        curves_note: why some curves are missing; empty if none are.
    """

    name: str
    content: Values
    groups: Sequence[SeedGroup]
    rows: Sequence[ResultRow]
    curves: Mapping[str, Sequence[Curves]]
    monitor: str
    curves_note: str


def read_experiment(path: Path, store: Path | None) -> ReportedExperiment:
    """Read the results of an experiment, and the curves of its runs.

    Args:
        path: of results.json.
        store: the folder of the runs; None looks where `kd reproduce` puts it.

    Raises:
        UserError: if the file is not one that `kd reproduce` writes.
    """
    groups, _ = read_results(path)
    content = cast(Values, read_json(path))
    rows = []
    for group in groups:
        for metric in _in_order(group, content):
            row = group.row(metric)
            if row is not None:
                rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no results; write it again with kd reproduce")
    # The runs fill in their curves and the metric that they monitor.
    experiment = ReportedExperiment(
        name=str(content.get("experiment") or path.parent.name),
        content=content,
        groups=groups,
        rows=rows,
        curves={},
        monitor="accuracy",
        curves_note="",
    )
    _read_runs(experiment, path.parent, store)
    return experiment


def _in_order(group: SeedGroup, content: Values) -> list[str]:
    """The metrics of a group in the order of results.json."""
    ordered: dict[str, None] = {}
    for row in cast(Sequence[Values], content["rows"]):
        if str(row["metric"]) in group.metrics:
            ordered[str(row["metric"])] = None
    return list(ordered)


def _read_runs(
    experiment: ReportedExperiment,
    output: Path,
    store: Path | None,
) -> None:
    """Read the curves of the runs that the store still has."""
    jobs = read_json(output / "jobs.json")
    # The results stand for themselves: a page without curves is better than none.
    if not jobs:
        experiment.curves_note = (
            "There are no learning curves: jobs.json, which names the folders of the "
            "runs, is not next to results.json."
        )
        return
    # Experiments are named PAPER/EXPERIMENT or EXPERIMENT, beside one store.
    places = (
        [store] if store else [output.parent / "store", output.parents[1] / "store"]
    )
    curves: dict[str, list[Curves]] = {}
    absent = []
    for name, job in jobs.items():
        folder = _folder_of(job, places)
        run = name.rpartition("/")[0]
        if folder is None:
            absent.append(name)
            continue
        try:
            curves.setdefault(run, []).append(read_curves(folder / "metrics.csv"))
        # A teacher's cache, for one, has no curves.
        except UserError:
            absent.append(name)
            continue
        task = mapping_at(RunFolder(folder).record, "task")
        experiment.monitor = str(task.get("monitor") or experiment.monitor)
    experiment.curves = curves
    if absent:
        listed = ", ".join(absent[:8])
        experiment.curves_note = (
            f"{len(absent)} of {len(jobs)} runs have no curves in the store, such as "
            f"{listed}; --store DIR names another store."
        )


def _folder_of(job: object, places: Sequence[Path]) -> Path | None:
    """The folder of a job's run; None if no store has it."""
    if not isinstance(job, dict) or not isinstance(job.get("address"), str):
        return None
    # The name of a folder, so that a file from elsewhere leads nowhere else.
    name = Path(job["address"]).name
    for place in places:
        if (place / name / "run.json").is_file():
            return place / name
    return None


def sections_of_experiment(
    experiment: ReportedExperiment, prefix: str = ""
) -> list[Section]:
    """All sections about an experiment.

    Args:
        experiment: that was read.
        prefix: what to put before the headings, if the page has several experiments.
    """
    sections = {
        "Results": _results(experiment),
        "Metric and costs": _figures(experiment),
        "Learning curves": _curves(experiment),
        "Statistical tests": _tests(experiment),
        "Note and environment": _environment(experiment),
    }
    return [
        Section(prefix + title, [Panel("", blocks)])
        for title, blocks in sections.items()
    ]


def _results(experiment: ReportedExperiment) -> list[Block]:
    headings, lines = table_cells(list(experiment.rows))
    return [Table(headings, lines, "Mean ± standard deviation over seeds.")]


def _rows_of(experiment: ReportedExperiment, metric: str) -> list[ResultRow]:
    return [row for row in experiment.rows if row["metric"] == metric]


def _figures(experiment: ReportedExperiment) -> list[Block]:
    """The first metric of each run, alone and against costs."""
    metric = experiment.rows[0]["metric"]
    rows = _rows_of(experiment, metric)
    blocks: list[Block] = [_figure_of_rows(rows)]
    absent = []
    for cost in AGAINST:
        # Runs without weights of their own, such as ensembles, have no costs.
        costs = {}
        for row in _rows_of(experiment, cost):
            costs[row["run"]] = row["mean"]
        points = [Point(row, costs[row["run"]]) for row in rows if row["run"] in costs]
        if points:
            blocks.append(_figure_of_points(points, cost))
        else:
            absent.append(heading(cost))
    if absent:
        blocks.append(missing(f"Not measured: {', '.join(absent)}."))
    return blocks


def _figure_of_rows(rows: Sequence[ResultRow]) -> Figure:
    described = [f"{row['run']} {format_mean(row)}" for row in rows]
    metric = heading(rows[0]["metric"])
    alternative = f"{metric} of each run: {'; '.join(described)}."

    def plot(drawing: Drawing) -> None:
        plot_rows(drawing.subplots(), rows)

    caption = "Dots are seeds, squares their mean, bars the standard deviation."
    return draw(height_of_rows(len(rows)), alternative, plot, caption)


def _figure_of_points(points: Sequence[Point], cost: str) -> Figure:
    described = []
    for point in points:
        row = point.row
        described.append(f"{row['run']} {format_mean(row)} at {point.cost:,.4g}")
    metric = heading(points[0].row["metric"])
    alternative = f"{metric} against {heading(cost)}: {'; '.join(described)}."

    def plot(drawing: Drawing) -> None:
        plot_points(drawing.subplots(), points, cost)

    return draw(3.4, alternative, plot)


def _curves(experiment: ReportedExperiment) -> list[Block]:
    """The learning curves of all runs, with bands over their seeds."""
    blocks: list[Block] = []
    # More lines than colors could not be told apart.
    chosen = dict(list(experiment.curves.items())[:MOST_LINES])
    figure = None
    if chosen:
        caption = "Means over seeds; bands show the standard deviation."
        if len(chosen) < len(experiment.curves):
            caption += (
                f" The first {len(chosen)} of {len(experiment.curves)} runs are shown."
            )
        figure = figure_of_groups(chosen, experiment.monitor, caption)
    if figure is not None:
        blocks.append(figure)
    if experiment.curves_note:
        blocks.append(missing(experiment.curves_note))
    elif figure is None:
        blocks.append(missing("The runs logged no metric in several epochs."))
    return blocks


def _tests(experiment: ReportedExperiment) -> list[Block]:
    """The tests that results.json holds, in words."""
    tests = experiment.content.get("comparisons")
    if not isinstance(tests, list) or not tests:
        return [missing("The experiment compares no pair of runs by a test.")]
    blocks: list[Block] = []
    for test in tests:
        if isinstance(test, Mapping) and test.get("sentence"):
            blocks.append(Paragraph(f"{test['sentence']}."))
    return blocks


def _environment(experiment: ReportedExperiment) -> list[Block]:
    content = experiment.content
    facts = {
        "commit": content.get("commit"),
        "training time of all runs, s": content.get("wall_time_s"),
        **mapping_at(content, "hardware"),
    }
    lines = []
    for name, value in facts.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        lines.append([name, shown or "none"])
    blocks: list[Block] = []
    if content.get("note"):
        blocks.append(Paragraph(str(content["note"])))
    blocks.append(Table(["", ""], lines))
    return blocks

"""Results of an experiment: from its finished runs to results.json, .csv, .md and a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from kd_lightning.errors import UserError
from kd_lightning.escaping import markdown as escaped
from kd_lightning.experiments.analysis import analyse, finished
from kd_lightning.experiments.cost import measure_checkpoint
from kd_lightning.experiments.measurements import (
    ResultRow,
    SeedGroup,
    SeedResult,
    compare_groups,
    result_row,
    values_over_shared_seeds,
)
from kd_lightning.experiments.planning import Job, by_run
from kd_lightning.experiments.report import (
    HEADINGS,
    ROW_COLUMNS,
    Cells,
    csv_fields,
    is_fraction,
    join_numbers,
    markdown_table,
    table_cells,
)
from kd_lightning.experiments.report import csv_text as format_csv
from kd_lightning.experiments.spec import Experiment
from kd_lightning.experiments.stats import Comparison, Equivalence, alike
from kd_lightning.runs.folder import RunFolder, commit, hardware, write_json
from kd_lightning.values import Values


class FailedRun(TypedDict):
    """A run that failed, or that could not start because another one failed."""

    run: str
    seed: int
    error: str


def failed_run(job: Job, error: str) -> FailedRun:
    """The entry of results.json for a failed job."""
    return {"run": job.run, "seed": job.seed, "error": error}


class Results(TypedDict):
    """The content of results.json.

    `comparisons` holds the attributes of each Comparison and Equivalence, and its `sentence`.
    `accepted` lists the runs that other code finished; see `kd reproduce --keep-finished`.
    `failed` lists the runs that are missing because they failed.
    """

    experiment: str
    rows: list[ResultRow]
    comparisons: list[dict[str, Any]]
    commit: str | None
    hardware: dict[str, Any]
    wall_time_s: float
    note: str
    accepted: NotRequired[list[dict[str, Any]]]
    failed: NotRequired[list[FailedRun]]


def collect(
    experiment: Experiment,
    jobs: Sequence[Job],
    output: Path,
    complete: bool = True,
    failed: Sequence[FailedRun] = (),
) -> Results:
    """Collect the content of results.json.

    Args:
        experiment: the experiment.
        jobs: its finished jobs.
        output: the folder of the results; analyses can write plots there.
        complete: whether all runs were asked for; if not, the analyses are skipped.
        failed: the runs that are missing because they failed; the analyses are then skipped too.

    Raises:
        UserError: if no run measured a metric that the experiment names.
    """
    groups = seed_groups(experiment, jobs)
    if not failed:
        _check_metrics(experiment, groups)
    rows = metric_rows(experiment, groups)
    # Analyses may need any run of the experiment.
    if complete and not failed:
        rows += analysis_rows(experiment, jobs, output)
    wall_time_s = sum(RunFolder(job.folder).wall_time_s for job in jobs)
    content: Results = {
        "experiment": experiment.name,
        "rows": rows,
        "comparisons": _tests(experiment, groups),
        "commit": commit(),
        "hardware": hardware(),
        "wall_time_s": round(wall_time_s, 1),
        "note": _note(experiment, complete, failed),
    }
    if failed:
        content["failed"] = list(failed)
    return content


def _tests(
    experiment: Experiment,
    groups: Mapping[str, SeedGroup],
) -> list[dict[str, Any]]:
    """The comparisons and equivalences of the experiment, in plain values."""
    tests = []
    for comparison in comparisons(experiment, groups):
        sentence = {"sentence": comparison.sentence()}
        tests.append(comparison.as_dict() | sentence)
    for equivalence in equivalences(experiment, groups):
        tests.append(equivalence.as_dict())
    return tests


def _note(experiment: Experiment, complete: bool, failed: Sequence[FailedRun]) -> str:
    """The experiment's own note, and what its results lack."""
    note = experiment.note.strip()
    if not complete:
        note = f"{note} Some runs only (--only).".strip()
    if failed:
        note = f"{note} {_failure_note(failed)}".strip()
    return note


def _failure_note(failed: Sequence[FailedRun]) -> str:
    """Which runs are missing from the table."""
    names = []
    for each in failed:
        names.append(f"{each['run']} (seed {each['seed']})")
    listed = ", ".join(names)
    return f"Incomplete: {len(failed)} runs failed and are missing: {listed}."


def seed_groups(experiment: Experiment, jobs: Sequence[Job]) -> dict[str, SeedGroup]:
    """The measurements of each run of the experiment, by the name of the run."""
    groups = {}
    for name, seeds in by_run(jobs).items():
        results = []
        for job in seeds:
            folder = RunFolder(job.folder)
            results.append(SeedResult(job.seed, folder.metrics, folder))
        paper = experiment.paper.get(name, {})
        groups[name] = SeedGroup(name, results, paper)
    return groups


def _check_metrics(experiment: Experiment, groups: Mapping[str, SeedGroup]) -> None:
    """Raise a UserError if no run measured a metric that the experiment names."""
    measured: set[str] = set()
    for group in groups.values():
        measured |= group.metrics
    named = list(experiment.metrics)
    if experiment.compare:
        named.append(experiment.compare_metric)
    for metric in named:
        if metric not in measured:
            available = ", ".join(sorted(measured))
            raise UserError(
                f"no run measured {metric!r}; measured metrics: {available}"
            )


def metric_rows(
    experiment: Experiment, groups: Mapping[str, SeedGroup]
) -> list[ResultRow]:
    """One row per run and metric; the costs of a run follow its metrics."""
    rows = []
    for name, group in groups.items():
        for metric in experiment.metrics:
            row = group.row(metric, with_interval=True)
            if row is not None:
                rows.append(row)
        # All seeds have the same network, so the first one is measured.
        folder = group.results[0].folder
        if experiment.costs and folder is not None and not folder.is_cache:
            for cost, value in measure_checkpoint(folder.checkpoint).items():
                rows.append(result_row(name, cost, [value], paper=None))
    return rows


def analysis_rows(
    experiment: Experiment,
    jobs: Sequence[Job],
    output: Path,
) -> list[ResultRow]:
    """The rows of the experiment's own analyses, which can also write plots to `output`."""
    runs = finished(by_run(jobs))
    rows = []
    for label, options in experiment.analyses.items():
        for row in analyse(label, options, runs, output):
            # The experiment's YAML takes precedence over the analysis.
            paper_of_run = experiment.paper.get(row.run, {})
            paper = paper_of_run.get(row.metric, row.paper)
            result = result_row(row.run, row.metric, row.values, paper=paper)
            rows.append(result)
    return rows


def comparisons(
    experiment: Experiment, groups: Mapping[str, SeedGroup]
) -> list[Comparison]:
    """Test the experiment's pairs of runs over shared seeds, and over test examples."""
    pairs = []
    for a, b in experiment.compare:
        # With --only, some runs are missing.
        if a in groups and b in groups:
            pairs.append((groups[a], groups[b]))
    tested = compare_groups(pairs, experiment.compare_metric)
    # Without a shared seed there is nothing to report.
    return [comparison for comparison in tested if comparison.n]


def equivalences(
    experiment: Experiment, groups: Mapping[str, SeedGroup]
) -> list[Equivalence]:
    """Test the experiment's pairs of runs that should be equal, over shared seeds."""
    tested = []
    metric = experiment.compare_metric
    for pair in experiment.alike:
        a = groups.get(pair["a"])
        b = groups.get(pair["b"])
        # With --only, some runs are missing.
        if a is None or b is None:
            continue
        values_a, values_b = values_over_shared_seeds(a, b, metric)
        if values_a:
            margin = float(pair["margin"])
            test = alike(a.label, b.label, metric, margin, values_a, values_b)
            tested.append(test)
    return tested


def cells(content: Results) -> Cells:
    """The table of results.md, which `kd reproduce` also prints."""
    return table_cells(content["rows"])


def markdown(experiment: Experiment, content: Results) -> str:
    """The text of results.md."""
    title = f"# {escaped(experiment.title)}"
    claim = escaped(experiment.claim)
    text = [title, "", claim, ""]
    text += markdown_table(*cells(content))
    text.append("")
    for comparison in content["comparisons"]:
        text.append(f"- {escaped(comparison['sentence'])}.")
    # The table shows standard deviations; the intervals follow in a sentence.
    intervals = _interval_sentence(content["rows"])
    if intervals:
        text += ["", escaped(intervals)]

    machine = content["hardware"]
    device = ", ".join(machine["gpus"])
    if not device:
        device = f"{machine['cpu']}, {machine['threads']} threads"
    text += [
        "",
        "Mean ± standard deviation over seeds. "
        f"{content['wall_time_s']:.0f} s of runs on {device}; commit {content['commit']}.",
    ]
    if content["note"]:
        text += ["", escaped(content["note"])]
    return "\n".join(text) + "\n"


def _interval_sentence(rows: Sequence[ResultRow]) -> str:
    """One sentence with the intervals of the table's first metric; empty if there are none."""
    if not rows:
        return ""
    metric = rows[0]["metric"]
    scale = 1
    unit = ""
    if is_fraction(metric):
        scale = 100
        unit = "%"
    intervals = []
    for row in rows:
        bounds = row.get("interval")
        if row["metric"] == metric and bounds:
            low = f"{scale * bounds[0]:.4g}"
            high = f"{scale * bounds[1]:.4g}"
            intervals.append(f"{row['run']} [{low}, {high}]{unit}")
    if not intervals:
        return ""
    name = HEADINGS.get(metric, metric)
    return f"95% intervals of the mean {name} over seeds: {'; '.join(intervals)}."


def csv_text(content: Results) -> str:
    """The text of results.csv."""
    lines = []
    for row in content["rows"]:
        values = join_numbers(row["values"])
        lines.append([*csv_fields(row), values])
    return format_csv([*ROW_COLUMNS, "values"], lines, line_end="\r\n")


def write(experiment: Experiment, content: Results, output: Path) -> None:
    """Write results.json, results.csv, results.md and summary.png."""
    from kd_lightning.experiments.plots import summary

    write_json(output / "results.json", cast(Values, content))
    (output / "results.csv").write_text(csv_text(content))
    (output / "results.md").write_text(markdown(experiment, content))
    summary(experiment, content["rows"], output / "summary.png")

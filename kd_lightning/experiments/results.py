"""From finished runs to results.json, results.csv, results.md, a plot and a table in the terminal."""

from __future__ import annotations

import csv
import io
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import analyse, finished
from kd_lightning.experiments.cost import measure_checkpoint
from kd_lightning.experiments.planning import Job, by_run
from kd_lightning.experiments.spec import Experiment
from kd_lightning.experiments.stats import (
    Comparison,
    alike,
    bootstrap_examples,
    holm,
    interval,
    paired,
)
from kd_lightning.runs.folder import commit, hardware, write_json

COSTS = ("parameters", "flops", "file_bytes", "latency_ms_batch_1", "latency_ms_batch_256")
_HEADINGS = {
    "test_errors": "test errors",
    "test_accuracy": "test accuracy",
    "flops": "FLOPs",
    "file_bytes": "file, kB",
    "cache_bytes": "cache, kB",
    "latency_ms_batch_1": "CPU ms, batch 1",
    "latency_ms_batch_256": "CPU ms, batch 256",
}


def _row(
    run: str, metric: str, values: list[float], paper: float | None, seeds: list[int] | None = None
) -> dict[str, Any]:
    return {
        "run": run,
        "metric": metric,
        "paper": paper,
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "interval": interval(values),
        "n": len(values),
        "values": values,
        **({"seeds": seeds} if seeds is not None else {}),
    }


def rows(experiment: Experiment, jobs: list[Job]) -> list[dict[str, Any]]:
    """One row a run and metric, costs after the metrics."""
    found = []
    measured = {metric for job in jobs for metric in job.record["metrics"]}
    for metric in {
        *experiment.metrics,
        *([experiment.compare_metric] if experiment.compare else []),
    } - measured:
        raise UserError(f"no run measured {metric!r}; measured were {', '.join(sorted(measured))}")
    for name, group in by_run(jobs).items():
        records = [job.record for job in group]
        for metric in experiment.metrics:
            seeds = [
                job.seed for job, r in zip(group, records, strict=True) if metric in r["metrics"]
            ]
            values = [float(r["metrics"][metric]) for r in records if metric in r["metrics"]]
            if values:
                found.append(
                    _row(name, metric, values, experiment.paper.get(name, {}).get(metric), seeds)
                )
        if experiment.costs and not group[0].is_cache:
            found += [
                _row(name, cost, [value], None)
                for cost, value in measure_checkpoint(group[0].checkpoint).items()
            ]
    return found


def _wrong(jobs: list[Job]) -> NDArray[np.bool_]:
    """`(seeds, examples)`: whether each seed's run errs on each test example."""
    tested = [load_file(job.folder / "predictions-test.safetensors") for job in jobs]
    return np.stack([t["logits"].argmax(-1) != t["target"] for t in tested])


def comparisons(experiment: Experiment, jobs: list[Job]) -> list[Comparison]:
    """The experiment's pairs, tested over the seeds that both have, and over test examples."""
    groups = {name: {job.seed: job for job in group} for name, group in by_run(jobs).items()}
    metric, found = experiment.compare_metric, []
    for a, b in experiment.compare:
        seeds = sorted(groups.get(a, {}).keys() & groups.get(b, {}).keys())
        if not seeds:
            continue
        pair = [[groups[run][seed] for seed in seeds] for run in (a, b)]
        values = [[float(job.record["metrics"][metric]) for job in side] for side in pair]
        result = paired(a, b, metric, *values)
        if metric == "test_errors" and result.p is not None:
            result.examples_low, result.examples_high = bootstrap_examples(
                _wrong(pair[0]), _wrong(pair[1])
            )
        found.append(result)
    holm(found)
    return found


def equivalences(experiment: Experiment, jobs: list[Job]) -> list[dict[str, Any]]:
    """The experiment's pairs that are said to be alike, tested over the seeds that both have."""
    groups = {name: {job.seed: job for job in group} for name, group in by_run(jobs).items()}
    metric, found = experiment.compare_metric, []
    for pair in experiment.alike:
        sides = [groups.get(pair[side], {}) for side in ("a", "b")]
        seeds = sorted(sides[0].keys() & sides[1].keys())
        if seeds:
            values = [
                [float(side[seed].record["metrics"][metric]) for seed in seeds] for side in sides
            ]
            found.append(
                alike(pair["a"], pair["b"], metric, float(pair["margin"]), *values).as_dict()
            )
    return found


def analysed(experiment: Experiment, jobs: list[Job], output: Path) -> list[dict[str, Any]]:
    """Rows of the experiment's own analyses."""
    runs = finished(by_run(jobs))
    found = [
        row
        for label, described in experiment.analyses.items()
        for row in analyse(label, described, runs, output)
    ]
    return [
        _row(
            row.run,
            row.metric,
            row.values,
            experiment.paper.get(row.run, {}).get(row.metric, row.paper),
        )
        for row in found
    ]


def collect(
    experiment: Experiment, jobs: list[Job], output: Path, complete: bool = True
) -> dict[str, Any]:
    """The content of results.json; analyses need all runs, and are left out where some are not wanted."""
    note = "" if complete else "Some runs only (--only)."
    found = rows(experiment, jobs)
    tests = [c.as_dict() | {"sentence": c.sentence()} for c in comparisons(experiment, jobs)]
    return {
        "experiment": experiment.name,
        "rows": found + (analysed(experiment, jobs, output) if complete else []),
        "comparisons": tests + equivalences(experiment, jobs),
        "commit": commit(),
        "hardware": hardware(),
        "wall_time_s": round(sum(float(job.record.get("wall_time_s", 0)) for job in jobs), 1),
        "note": " ".join(filter(None, [experiment.note.strip(), note])),
    }


def _number(row: dict[str, Any]) -> str:
    mean, std, metric = row["mean"], row["std"], row["metric"]
    if metric in ("parameters", "flops"):
        return f"{mean:,.0f}"
    if metric.endswith("_bytes"):
        return f"{mean / 1000:,.1f}"
    if metric.startswith("latency"):
        return f"{mean:.3g}"
    if not std and "accuracy" not in metric and "errors" not in metric and mean.is_integer():
        return f"{mean:.0f}"
    scale, digits = (100, 2) if "accuracy" in metric else (1, 1 if "errors" in metric else 4)
    spread = f" ± {scale * std:.{digits}f}" if std is not None else ""
    return f"{scale * mean:.{digits}f}{spread}" + ("%" if scale == 100 else "")


def _paper(row: dict[str, Any]) -> str:
    return f"{100 * row['paper']:g}%" if "accuracy" in row["metric"] else f"{row['paper']:g}"


def cells(content: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines of the table: a run a line, the paper's number in brackets where there is one."""
    metrics = list(dict.fromkeys(row["metric"] for row in content["rows"]))
    found = {(row["run"], row["metric"]): row for row in content["rows"]}
    has_paper = {
        metric: any(row["paper"] is not None for row in content["rows"] if row["metric"] == metric)
        for metric in metrics
    }
    lines = []
    for run in dict.fromkeys(row["run"] for row in content["rows"]):
        line = [run, str(found[run, metrics[0]]["n"]) if (run, metrics[0]) in found else ""]
        for metric in metrics:
            row = found.get((run, metric))
            line.append(_number(row) if row else "")
            if has_paper[metric]:
                line.append(_paper(row) if row and row["paper"] is not None else "")
        lines.append(line)
    headings = ["run", "seeds"]
    for metric in metrics:
        heading = _HEADINGS.get(metric, metric.replace("_", " "))
        headings += [heading, f"paper's {heading}"] if has_paper[metric] else [heading]
    if len(headings) > 7 and len(lines) <= 5:  # wide: metrics become lines
        turned = [list(line) for line in zip(headings, *lines, strict=True)]
        return turned[0], turned[1:]
    return headings, lines


def _intervals(content: dict[str, Any]) -> str:
    """One line with the intervals of the table's first metric."""
    metric = content["rows"][0]["metric"]
    scale, unit = (100, "%") if "accuracy" in metric else (1, "")
    rows = [row for row in content["rows"] if row["metric"] == metric and row["interval"]]
    said = (
        f"{row['run']} [{scale * row['interval'][0]:.4g}, {scale * row['interval'][1]:.4g}]{unit}"
        for row in rows
    )
    return (
        f"95% intervals of the mean {_HEADINGS.get(metric, metric)} over seeds: {'; '.join(said)}."
        if rows
        else ""
    )


def markdown(experiment: Experiment, content: dict[str, Any]) -> str:
    headings, lines = cells(content)
    text = [
        f"# {experiment.title}",
        "",
        experiment.claim.strip(),
        "",
        "| " + " | ".join(headings) + " |",
    ]
    text += ["| " + " | ".join(["---", *["---:"] * (len(headings) - 1)]) + " |"]
    text += ["| " + " | ".join(line) + " |" for line in lines]
    text += ["", *(f"- {c['sentence']}." for c in content["comparisons"])]
    text += ["", said] if (said := _intervals(content)) else []
    machine = content["hardware"]
    where = ", ".join(machine["gpus"]) or f"{machine['cpu']}, {machine['threads']} threads"
    text += [
        "",
        f"Mean ± standard deviation over seeds. {content['wall_time_s']:.0f} s of runs on {where}; commit {content['commit']}.",
    ]
    text += ["", content["note"]] if content["note"] else []
    return "\n".join(text) + "\n"


def csv_text(content: dict[str, Any]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["run", "metric", "paper", "mean", "std", "n", "values"])
    for row in content["rows"]:
        writer.writerow(
            [
                *(row[k] for k in ("run", "metric", "paper", "mean", "std", "n")),
                " ".join(map(repr, row["values"])),
            ]
        )
    return out.getvalue()


def write(experiment: Experiment, content: dict[str, Any], output: Path) -> None:
    """results.json, results.csv, results.md and summary.png."""
    from kd_lightning.experiments.plots import summary

    write_json(output / "results.json", content)
    (output / "results.csv").write_text(csv_text(content))
    (output / "results.md").write_text(markdown(experiment, content))
    summary(experiment, content, output / "summary.png")

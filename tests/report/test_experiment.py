"""`kd report` of an experiment: results.json alone, and with runs in the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.report.reading_pages import read
from tests.runs import Kd

HOSTILE = "<script>alert(1)</script>"
SENTENCE = "distilled - <b>alone</b>: -29 test_errors on average over 2 paired seeds"


def row(run: str, metric: str, values: list[float]) -> dict[str, Any]:
    mean = sum(values) / len(values)
    return {
        "run": run,
        "metric": metric,
        "paper": None,
        "mean": mean,
        "std": abs(values[0] - values[-1]) if len(values) > 1 else None,
        "n": len(values),
        "values": values,
    }


def write_results(folder: Path, costs: bool = True) -> Path:
    """The results of two runs with two seeds each."""
    folder.mkdir(parents=True)
    rows = []
    for run, errors, parameters in (("alone", 50.0, 900.0), (HOSTILE, 20.0, 90_000.0)):
        rows.append(row(run, "test_errors", [errors, errors + 4]))
        rows.append(row(run, "test_accuracy", [1 - errors / 100, 0.9]))
        if costs:
            rows.append(row(run, "parameters", [parameters]))
            rows.append(row(run, "latency_ms_batch_1", [parameters / 1e4]))
    content = {
        "experiment": "paper/small",
        "rows": rows,
        "comparisons": [{"a": HOSTILE, "b": "alone", "sentence": SENTENCE}],
        "commit": "abc",
        "hardware": {"cpu": "a CPU", "gpus": []},
        "wall_time_s": 12.5,
        "note": "A note & more.",
    }
    path = folder / "results.json"
    path.write_text(json.dumps(content))
    return path


def write_runs(results: Path, store: Path) -> None:
    """The runs of the store with their curves; that of the last job is gone."""
    jobs: dict[str, dict[str, Any]] = {}
    for run in ("alone", HOSTILE):
        for seed in (0, 1):
            address = f"{len(jobs):016x}"
            jobs[f"{run}/{seed}"] = {"address": address, "key": {}}
            if (run, seed) == (HOSTILE, 1):
                continue
            folder = store / address
            folder.mkdir(parents=True)
            (folder / "run.json").write_text('{"task": {"monitor": "accuracy"}}')
            lines = ["epoch,step,train_loss,val_accuracy"]
            for epoch in range(3):
                lines.append(f"{epoch},{epoch},{3 - epoch + seed},0.{5 + epoch}")
            (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    (results.parent / "jobs.json").write_text(json.dumps(jobs))


def test_results_alone(kd: Kd, place: Path) -> None:
    path = write_results(place / "results")
    outcome = kd("report", str(path))

    assert (outcome.code, outcome.err) == (0, "")
    page = read(place / "report.html")
    assert page.headings() == [
        "Results",
        "Metric and costs",
        "Learning curves",
        "Statistical tests",
        "Note and environment",
    ]
    assert page.of_tag("h1")[0].text == "Report: paper/small"
    assert f"{HOSTILE} 2 22.0 ± 2.8" in page.section("Results")
    # Errors alone, against parameters, and against latency.
    assert len(page.of_tag("svg")) == 3
    assert "Not measured: FLOPs." in page.section("Metric and costs")
    assert SENTENCE in page.section("Statistical tests")
    assert "jobs.json" in page.section("Learning curves")
    assert "A note & more." in page.section("Note")
    assert HOSTILE not in (place / "report.html").read_text()


@pytest.mark.parametrize("arguments", [[], ["--store", "elsewhere"]])
def test_curves_of_the_store(arguments: list[str], kd: Kd, place: Path) -> None:
    # Results of a paper's experiment lie one folder deeper than the store.
    results = write_results(place / "runs" / "paper" / "small", costs=False)
    store = place / "elsewhere" if arguments else place / "runs" / "store"
    write_runs(results, store)

    # By its name, as `kd reproduce` and `kd compare` take it.
    assert kd("report", "paper/small", *arguments).code == 0
    page = read(place / "report.html")
    section = page.section("Learning curves")
    # Means over both seeds of the first run: 3 and 4, then 1 and 2.
    assert "train loss: alone goes from 3.5 to 1.5" in section
    assert "validation accuracy: alone goes from 0.5 to 0.7" in section
    assert "1 of 4 runs have no curves in the store" in section


def test_an_experiment_and_a_damaged_one(kd: Kd, place: Path) -> None:
    write_results(place / "good")
    bad = place / "bad"
    bad.mkdir()
    (bad / "results.json").write_text('{"rows": [{"run": 1}]}')

    outcome = kd("report", "good", "bad")

    assert outcome.code == 2
    [line] = outcome.err.splitlines()
    assert "bad/results.json is damaged; write it again with kd reproduce" in line
    assert not (place / "report.html").exists()


def test_two_experiments_name_their_sections(kd: Kd, place: Path) -> None:
    for name in ("one", "two"):
        path = write_results(place / name, costs=False)
        content = json.loads(path.read_text())
        path.write_text(json.dumps({**content, "experiment": name}))

    assert kd("report", "one", "two").code == 0
    headings = read(place / "report.html").headings()
    assert headings[0] == "one: Results"
    assert headings[5] == "two: Results"

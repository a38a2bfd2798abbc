"""`kd compare`: runs of folders and of experiments as one table over seeds."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_rel

from kd_lightning.cli import main
from tests.compare.comparing import (
    SPEC,
    add_predictions,
    compare,
    make_run,
    refused,
    seeds,
    table,
)

Capture = pytest.CaptureFixture[str]
T2 = {"model.losses.kd.temperature": 2.0}
ALONE = {"model.losses.kd": None, "model.losses.ce.weight": 1.0}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_that_differ_in_the_seed_alone_are_one_row(
    place: Path, capsys: Capture
) -> None:
    runs = seeds(place, "four", [10, 12, 11])
    runs += [
        make_run(
            place / "elsewhere",
            3,
            13,
            {
                "data.root": "/other",
                "run.root": "x",
                "trainer.enable_progress_bar": False,
            },
        )
    ]
    runs += seeds(place, "two", [8, 9], T2)
    content = compare(capsys, *runs)
    assert table(content) == {
        "temperature=4": [10, 12, 11, 13],
        "temperature=2": [8, 9],
    }
    row = content["rows"][0]
    assert (row["n"], row["seeds"], row["mean"]) == (4, [0, 1, 2, 3], 11.5)
    assert row["std"] == pytest.approx(statistics.stdev([10, 12, 11, 13]))
    assert [row["metric"] for row in content["rows"][:2]] == [
        "test_errors",
        "test_accuracy",
    ]
    assert content["notes"] == []


def test_rows_that_differ_in_much_have_their_runs_name(
    place: Path, capsys: Capture
) -> None:
    bare = {
        "model.class_path": "kd_lightning.ClassifierModule",
        "trainer.max_epochs": 9,
        "data.fraction": 0.5,
    }
    runs = (
        seeds(place, "small", [20, 22], {**ALONE, **bare})
        + seeds(place, "kd", [10, 12])
        + seeds(place, "kd-s", [8, 9], T2)
    )
    content = compare(capsys, *runs)
    assert list(table(content)) == ["small", "kd, temperature=4", "kd, temperature=2"]
    # ce.weight and losses follow from the model's class, and are not said again.
    assert content["notes"] == ["The rows also differ in fraction, model, max_epochs."]


def test_by_pools_and_says_so(place: Path, capsys: Capture) -> None:
    runs = (
        seeds(place, "a", [10, 12])
        + seeds(place, "b", [20], {"model.optimizer.lr": 0.1})
        + seeds(place, "c", [8], T2)
    )
    content = compare(capsys, *runs, "--by", "temperature")
    assert table(content) == {"temperature=4": [10, 20, 12], "temperature=2": [8]}
    assert content["notes"] == ["temperature=4 pools runs that differ in lr."]
    whole = compare(
        capsys, *runs, "--by", "model.init_args.losses.init_args.kd", "optimizer.lr"
    )
    assert table(whole) == table(compare(capsys, *runs))
    assert "could be model.losses.ce.weight or model.losses.kd.weight" in refused(
        capsys, *runs, "--by", "weight"
    )
    assert "no run has such a setting" in refused(capsys, *runs, "--by", "temprature")


def test_a_repeated_run_counts_once(place: Path, capsys: Capture) -> None:
    runs = [
        make_run(place / "old", 0, 10, started="2026-01-01"),
        make_run(place / "new", 0, 11, started="2026-01-02"),
    ]
    content = compare(capsys, *runs)
    assert table(content) == {"old": [11]}
    assert (
        f"{runs[0]} is skipped: {runs[1]} repeats it with the same seed."
        in content["notes"]
    )


def test_what_is_left_out_is_named(place: Path, capsys: Capture) -> None:
    runs = seeds(place, "done", [10, 12])
    running = make_run(place / "on", 2, 3, status="running")
    untested = make_run(place / "untested", 0, None, T2)
    (place / "cache").mkdir()
    for name, content in (
        ("run.json", {"status": "finished", "metrics": {"cache_bytes": 5}}),
        ("manifest.json", {}),
    ):
        (place / "cache" / name).write_text(json.dumps(content))
    found = compare(capsys, *runs, running, untested, str(place / "cache"))
    assert table(found) == {"temperature=4": [10, 12]}
    said = " ".join(found["notes"])
    assert f"{running} (running)" in said
    assert "Skipped untested rows: temperature=2." in said
    assert f"Skipped teacher caches: {place / 'cache'}." in said
    assert "none of the 1 runs is finished" in refused(capsys, running)
    assert "a teacher's cache" in refused(capsys, str(place / "cache"))


def test_untested_runs_are_compared_on_validation_data(
    place: Path, capsys: Capture
) -> None:
    runs = [make_run(place / f"u-{seed}", seed) for seed in (0, 1)]
    content = compare(capsys, *runs)
    assert table(content, "val_accuracy") == {"u": [0.5, 0.5]}
    assert content["notes"][-1].startswith("None of these runs was tested")
    nothing = make_run(place / "nothing", 0, metrics={})
    assert "none of these runs was tested" in refused(capsys, nothing)


ORIGIN: dict[str, Any] = {
    "commit": "a" * 40,
    "versions": {"torch": "2.14.1"},
    "data_sha256": {"train": "1", "test": "2"},
    "data": {**SPEC, "mean": [0.5], "classes": ["a", "b"]},
}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"commit": "b" * 40}, "code"),
        ({"versions": {"torch": "2.13.0"}}, "torch"),
        ({"data_sha256": {"train": "1", "test": "3"}}, "samples"),
        ({"data": {**ORIGIN["data"], "mean": [0.1]}}, "mean"),
        ({"data": {**ORIGIN["data"], "classes": ["b", "a"]}}, "classes"),
    ],
)
def test_runs_of_other_code_or_data_are_not_seeds_of_one_run(
    change: dict[str, Any], name: str, place: Path, capsys: Capture
) -> None:
    runs = [
        make_run(place / "one", 0, 10, **ORIGIN),
        make_run(place / "two", 1, 12, **ORIGIN),
        make_run(place / "other", 2, 50, **{**ORIGIN, **change}),
    ]
    found = table(compare(capsys, *runs))
    assert list(found.values()) == [[10, 12], [50]]
    assert all(f"{name}=" in label for label in found), found
    pooled = compare(capsys, *runs, "--by", "optimizer.lr")
    assert list(table(pooled).values()) == [[10, 12, 50]]
    assert f"pools runs that differ in {name}" in " ".join(pooled["notes"])


def test_the_code_of_a_stored_run_is_that_of_its_key(
    place: Path, capsys: Capture
) -> None:
    runs = [make_run(place / "one", 0, 10, **ORIGIN)]
    runs += [make_run(place / "two", 1, 12, **{**ORIGIN, "commit": "b" * 40})]
    for run in runs:
        key = {"code.runs/launch.py": "1", "version.torch": "2.14.1", "seed": run}
        (Path(run) / "key.json").write_text(json.dumps(key))
    # Another commit that changed none of the run's files.
    assert list(table(compare(capsys, *runs)).values()) == [[10, 12]]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_metric_that_is_not_finite_is_marked(
    value: float, place: Path, capsys: Capture
) -> None:
    runs = seeds(place, "a", [10, 11, value])
    runs += seeds(place, "b", [8, 9, 10], T2)
    assert (
        main(
            [
                "compare",
                *runs,
                "--metrics",
                "test_errors",
                "--baseline",
                "temperature=2",
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    assert err == ""
    assert "not finite (1 of 3)" in out
    # The seed is not paired.
    assert "no test: 2 seeds" in out


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"data": [1]}, "run.json: data must be a mapping, got list"),
        ({"data": {"samples": 3}}, "run.json: data.samples must be a mapping, got int"),
        ({"teacher": "t"}, "run.json: teacher must be a list, got str"),
        ({"teacher": ["t"]}, "run.json: teacher must be a mapping, got str"),
        ({"versions": 1}, "run.json: versions must be a mapping, got int"),
        ({"commit": 1}, "run.json: commit must be a text, got int"),
        ({"task": "x"}, "run.json: task must be a mapping, got str"),
        ({"metrics": 1}, "another program or version wrote run.json"),
    ],
)
def test_wrong_types_are_one_line(
    changes: dict[str, Any], line: str, place: Path, capsys: Capture
) -> None:
    assert line in refused(capsys, make_run(place / "a", 0, 10, **changes))


def test_a_wrong_config_is_one_line(place: Path, capsys: Capture) -> None:
    run = make_run(place / "a", 0, 10)
    (place / "a" / "config.yaml").write_text("run: [1]\n")
    assert "config.yaml: run must be a mapping, got list" in refused(capsys, run)


def test_what_is_no_run_is_skipped(place: Path, capsys: Capture) -> None:
    runs = seeds(Path("runs"), "a", [10, 12])
    Path("runs/store").mkdir()
    Path("runs/notes.txt").touch()
    Path("runs/mine").mkdir()
    Path("runs/mine/results.json").write_text('{"rows": []}')
    everything = sorted(map(str, Path("runs").iterdir()))
    content = compare(capsys, *everything)
    assert list(table(content).values()) == [[10, 12]]
    said = " ".join(content["notes"])
    assert "Skipped what is not a run: runs/notes.txt, runs/store, runs/mine." in said
    assert "no run or experiment is called 'nobody'" in refused(capsys, *runs, "nobody")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["nobody"], "no run or experiment is called 'nobody'"),
        (["folder"], "folder is not a run: it has no run.json"),
        (["damaged"], "damaged: run.json is damaged"),
        (["bare"], "bare: config.yaml is missing or damaged"),
        (
            ["a", "other-data"],
            "different data sets: digits with 100 test samples (a); mnist with 10000 test samples (other-data)",
        ),
        (
            ["a", "--metrics", "test_erors"],
            "no run measured 'test_erors'; did you mean test_errors?",
        ),
        (
            ["a", "--metrics", "x"],
            "no run measured 'x'; measured metrics: test_accuracy, test_errors, val_accuracy",
        ),
        (["a", "--baseline", "b"], "there is no row 'b'; rows are: a"),
        (
            ["caches/mnist-top-k"],
            "has no results yet; make them with: kd reproduce caches/mnist-top-k",
        ),
        (["a", "mine"], "a is a run and mine an experiment"),
        (["mine", "--by", "lr"], "--by groups runs"),
        (["spoilt"], "runs/spoilt/results.json is damaged"),
        (["a", "--group", "g"], "--group selects runs of --wandb"),
        (["a", "--format", "xml"], "invalid choice: 'xml'"),
        (["a", "--output", "nowhere/x.md"], "--output nowhere/x.md cannot be written"),
        (["--metrics", "test_errors", "a"], "before all options"),
        ([], "give folders of runs or experiments"),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str], line: str, place: Path, capsys: Capture
) -> None:
    make_run(Path("a"), 0, 10)
    data = {"data": "mnist", "num_classes": 10, "samples": {"test": 10000}}
    make_run(Path("other-data"), 0, 10, data=data)
    make_run(Path("bare"), 0, 10)
    Path("bare/config.yaml").unlink()
    for folder, name, text in (
        ("folder", "x", ""),
        ("damaged", "run.json", "{"),
        ("runs/mine", "results.json", '{"rows": []}'),
        ("runs/spoilt", "results.json", '{"rows": [{"run": "a"}]}'),
    ):
        (place / folder).mkdir(parents=True)
        (place / folder / name).write_text(text)
    assert line in refused(capsys, *argv)


def test_a_baseline_is_tested_over_shared_seeds(place: Path, capsys: Capture) -> None:
    base, better = [10.0, 12.0, 11.0, 14.0, 10.0, 13.0], [7.0, 10.0, 9.0, 11.0, 9.0]
    runs = seeds(place, "four", base) + seeds(place, "two", better, T2)
    runs += seeds(place, "eight", [9, 13], {"model.losses.kd.temperature": 8.0})
    content = compare(capsys, *runs, "--baseline", "temperature=4")
    first, second = content["comparisons"]
    assert (first["a"], first["n"], first["mean"]) == (
        "temperature=2",
        5,
        pytest.approx(-2.2),
    )
    assert first["p"] == pytest.approx(ttest_rel(better, base[:5]).pvalue)
    assert first["p_holm"] == first["p"]  # the other is no test
    assert first["examples_low"] is None  # nobody kept predictions
    assert first["cell"].startswith("-2.2 [")
    assert (second["n"], second["p"], second["cell"]) == (
        2,
        None,
        "+0 (no test: 2 seeds)",
    )
    assert (
        "Rows with fewer than 5 shared seeds are not tested and not ranked."
        in content["notes"]
    )
    for folder, wrong in zip(runs, base + better, strict=False):
        add_predictions(Path(folder), int(wrong))
    low, high = (
        compare(capsys, *runs, "--baseline", "temperature=4")["comparisons"][0][
            f"examples_{e}"
        ]
        for e in ("low", "high")
    )
    assert low < -2.2 < high


def test_the_last_column_is_the_difference(place: Path, capsys: Capture) -> None:
    runs = seeds(place, "four", [10, 12]) + seeds(place, "two", [8, 9], T2)
    assert (
        main(
            [
                "compare",
                *runs,
                "--metrics",
                "test_accuracy",
                "--baseline",
                "temperature=4",
                "--format",
                "markdown",
            ]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| run | seeds | test accuracy | difference from temperature=4 |"
    assert (
        lines[3]
        == "| temperature=2 | 2 | 91.50 ± 0.71% | +2.5 points (no test: 2 seeds) |"
    )
    many = ["test_errors", "test_accuracy", "a", "b", "c", "d"]
    runs = [
        make_run(place / f"m{t}", 0, settings=t, metrics=dict.fromkeys(many, 1.0))
        for t in ({}, T2)
    ]
    assert (
        main(["compare", *runs, "--metrics", *many, "--baseline", "temperature=4"]) == 0
    )  # metrics are lines
    last = [
        line
        for line in capsys.readouterr().out.splitlines()
        if "difference from" in line
    ]
    assert "+0 (no test: 1 seed)" in last[0]


def content_of(rows: dict[str, list[float]]) -> str:
    made = [
        {"run": run, "metric": "test_errors", "paper": 9.0, "values": values}
        for run, values in rows.items()
    ]
    return json.dumps(
        {
            "rows": [
                *made,
                {"run": "a", "metric": "flops", "paper": None, "values": [5]},
            ],
            "note": "A note.",
        }
    )


@pytest.mark.parametrize(
    "argument", ["mine", "mine.yaml", "runs/mine", "runs/mine/results.json"]
)
def test_an_experiment_is_found_by_name_and_by_folder(
    argument: str, place: Path, capsys: Capture
) -> None:
    (place / "runs" / "mine").mkdir(parents=True)
    (place / "runs" / "mine" / "results.json").write_text(
        content_of({"a": [1, 2, 3, 4, 6], "b": [2, 4, 4, 6, 7]})
    )
    content = compare(capsys, argument, "--baseline", "b")
    assert table(content) == {"a": [1, 2, 3, 4, 6], "b": [2, 4, 4, 6, 7]}
    assert {row["metric"] for row in content["rows"]} == {"test_errors"}
    assert content["rows"][0]["paper"] == 9.0
    assert content["comparisons"][0]["mean"] == pytest.approx(-1.4)
    assert content["notes"][-1] == "A note."


def test_experiments_side_by_side(place: Path, capsys: Capture) -> None:
    for name, values in (("one", [1.0, 2.0]), ("two", [3.0])):
        (place / name).mkdir()
        (place / name / "results.json").write_text(content_of({"a": values}))
    assert table(compare(capsys, "one", "two")) == {"one: a": [1, 2], "two: a": [3]}


def test_a_long_note_is_printed_once_and_wrapped(place: Path, capsys: Capture) -> None:
    note = "Both arms take about 1,130 steps. " * 9
    for name in ("one", "two"):
        (place / name).mkdir()
        text = content_of({"a": [1.0, 2.0]}).replace("A note.", note.strip())
        (place / name / "results.json").write_text(text)
    capsys.readouterr()
    assert main(["compare", "one", "two"]) == 0
    out = capsys.readouterr().out
    assert " ".join(out.split()).count(note.strip()) == 1
    assert max(map(len, out.splitlines())) <= 88


def test_every_format_holds_the_same(place: Path, capsys: Capture) -> None:
    runs = [
        *seeds(place, "four", [10, 12]),
        make_run(place / "failed", 2, 1, status="failed"),
    ]
    outputs: dict[str, Any] = {}
    for suffix in ("txt", "md", "csv", "json"):
        capsys.readouterr()
        assert main(["compare", *runs, "--output", f"out.{suffix}"]) == 0
        outputs[suffix] = (place / f"out.{suffix}").read_text()
        out, err = capsys.readouterr()
        assert (out, "failed" in err) == (
            "",
            suffix == "csv",
        )  # a CSV has no place for the note
    # The text wraps where a long path ends.
    assert "failed (failed)" in " ".join(outputs["txt"].split())
    assert "failed (failed)" in outputs["md"]
    assert "11.0 ± 1.4" in outputs["txt"]
    assert "| four | 2 | 11.0 ± 1.4 | 89.00 ± 1.41% |" in outputs["md"]
    [first, _] = csv.DictReader(io.StringIO(outputs["csv"]))
    row = json.loads(outputs["json"])["rows"][0]
    assert (first["run"], first["metric"], first["values"], first["seeds"]) == (
        "four",
        "test_errors",
        "10.0 12.0",
        "0 1",
    )
    assert (float(first["mean"]), float(first["std"]), int(first["n"])) == (
        row["mean"],
        row["std"],
        row["n"],
    )

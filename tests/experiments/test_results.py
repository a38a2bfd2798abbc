"""From finished runs to results.json and its tables; and `kd reproduce` as a whole."""

from __future__ import annotations

import csv
import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kd_lightning.cli import main
from kd_lightning.experiments import results
from kd_lightning.experiments.measurements import ResultRow
from kd_lightning.experiments.planning import Job
from kd_lightning.experiments.spec import Experiment, RunSpec
from kd_lightning.models import MLP
from tests.experiments import HEAD, MINI, write

ERRORS = {"big": [10.0, 12.0, 9.0, 14.0, 11.0], "small": [8.0, 11.0, 9.0, 10.0, 9.0]}
EXAMPLES = 200


def job(folder: Path, run: str, seed: int, wrong: int) -> Job:
    """A finished job that errs on the last `wrong` of the test examples."""
    made = Job(run, seed, {}, folder / f"{run}-{seed}", [], [])
    made.checkpoint.parent.mkdir(parents=True)
    metrics = {"test_errors": wrong, "test_accuracy": 1 - wrong / EXAMPLES}
    (made.folder / "run.json").write_text(
        json.dumps({"status": "finished", "metrics": metrics, "wall_time_s": 1.5})
    )
    target = torch.arange(EXAMPLES) % 3
    guess = target.clone()
    guess[EXAMPLES - wrong :] = (guess[EXAMPLES - wrong :] + 1) % 3
    outputs = {
        "logits": torch.eye(3)[guess],
        "target": target,
        "index": torch.arange(EXAMPLES),
    }
    save_file(outputs, made.folder / "predictions-test.safetensors")
    arguments = {"hidden": [4], "input_shape": [1, 8, 8], "num_classes": 3}
    network = MLP(hidden=[4], input_shape=[1, 8, 8], num_classes=3)
    ours = {
        "role": "network",
        "network": {"class_path": "kd_lightning.models.MLP", "init_args": arguments},
        "spec": {"input_shape": [1, 8, 8]},
    }
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "kd_lightning": ours}, made.checkpoint)
    return made


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    return [
        job(tmp_path, run, seed, int(wrong))
        for run, values in ERRORS.items()
        for seed, wrong in enumerate(values)
    ]


def experiment(**changes: Any) -> Experiment:
    given = {
        "paper": {"small": {"test_errors": 9.5}},
        "compare": [["big", "small"]],
        "note": " A note. ",
        **changes,
    }
    return Experiment("name", runs=[RunSpec("big"), RunSpec("small")], **HEAD, **given)


def row_of(content: results.Results, run: str, metric: str) -> ResultRow:
    [row] = [
        row for row in content["rows"] if (row["run"], row["metric"]) == (run, metric)
    ]
    return row


def test_rows_hold_mean_spread_and_every_seed(jobs: list[Job]) -> None:
    content = results.collect(experiment(), jobs, Path(), complete=False)
    row = row_of(content, "small", "test_errors")
    assert row["values"] == ERRORS["small"]
    assert (row["n"], row["paper"]) == (5, 9.5)
    assert row["mean"] == pytest.approx(9.4)
    assert row["std"] == pytest.approx(statistics.stdev(ERRORS["small"]))  # over n - 1
    assert row["interval"] is not None
    low, high = row["interval"]
    said = results.markdown(experiment(), content)
    assert "95% intervals of the mean test errors over seeds: big [" in said
    assert f"; small [{low:.4g}, {high:.4g}]." in said
    assert row_of(content, "big", "test_errors")["paper"] is None
    assert row_of(content, "big", "test_accuracy")["values"][0] == pytest.approx(0.95)
    assert content["wall_time_s"] == 15.0
    assert content["note"] == "A note. Some runs only (--only)."


def test_one_seed_has_no_spread_and_no_test(jobs: list[Job]) -> None:
    content = results.collect(
        experiment(), [job for job in jobs if job.seed == 0], Path()
    )
    assert row_of(content, "big", "test_errors")["std"] is None
    [comparison] = content["comparisons"]
    assert (comparison["n"], comparison["p"], comparison["examples_low"]) == (
        1,
        None,
        None,
    )


def test_runs_are_compared_over_the_seeds_that_both_have(jobs: list[Job]) -> None:
    [whole] = results.collect(experiment(), jobs, Path())["comparisons"]
    assert (whole["a"], whole["b"], whole["n"]) == ("big", "small", 5)
    assert whole["mean"] == pytest.approx(1.8)
    assert whole["p"] == whole["p_holm"] == pytest.approx(0.0537, abs=5e-4)
    assert whole["examples_low"] < 1.8 < whole["examples_high"]
    [shared] = results.collect(experiment(), jobs[:-1], Path())["comparisons"]
    assert shared["n"] == 4
    assert shared["mean"] == pytest.approx(7 / 4)


def test_a_seed_without_the_metric_is_not_compared(jobs: list[Job]) -> None:
    """Its training diverged, and the experiment allows that."""
    (jobs[0].folder / "run.json").write_text(json.dumps({"status": "failed"}))
    content = results.collect(experiment(), jobs, Path())
    assert row_of(content, "big", "test_errors")["seeds"] == [1, 2, 3, 4]
    assert content["comparisons"][0]["n"] == 4


def test_runs_without_predictions_are_compared_over_seeds_only(jobs: list[Job]) -> None:
    (jobs[0].folder / "predictions-test.safetensors").unlink()
    [comparison] = results.collect(experiment(), jobs, Path())["comparisons"]
    assert comparison["p"] is not None
    assert comparison["examples_low"] is None


@pytest.mark.parametrize(
    "changes", [{"metrics": ["tset_errors"]}, {"compare_metric": "tset_errors"}]
)
def test_a_metric_that_no_run_has_is_named(
    changes: dict[str, Any], jobs: list[Job]
) -> None:
    with pytest.raises(ValueError, match="tset_errors"):
        results.collect(experiment(**changes), jobs, Path())


def test_tables_say_what_the_rows_say(jobs: list[Job]) -> None:
    content = results.collect(experiment(), jobs, Path())
    text = results.markdown(experiment(), content)
    assert "| run | seeds | test errors | paper's test errors | test accuracy |" in text
    assert "| small | 5 | 9.4 ± 1.1 | 9.5 | 95.30 ± 0.57% |" in text
    assert f"- {content['comparisons'][0]['sentence']}." in text
    lines = list(csv.DictReader(io.StringIO(results.csv_text(content))))
    assert [float(value) for value in lines[0]["values"].split()] == ERRORS["big"]
    assert [line["metric"] for line in lines[:2]] == ["test_errors", "test_accuracy"]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of `kd reproduce` of the small experiment, which was run once."""
    folder = tmp_path_factory.mktemp("reproduced")
    path = write(
        folder, {**MINI, "overrides": {**MINI["overrides"], "data.fraction": 0.3}}
    )
    argv = ["reproduce", str(path), f"--output={folder}/out", f"--store={folder}/store"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")  # whatever the runs set is undone
        assert main(argv) == 0
    return argv


def test_results_json_holds_what_others_read(reproduced: list[str]) -> None:
    folder = Path(reproduced[1]).parent
    content = json.loads((folder / "out" / "results.json").read_text())
    assert set(content) == {
        "experiment",
        "rows",
        "comparisons",
        "commit",
        "hardware",
        "wall_time_s",
        "note",
    }
    assert {tuple(row) for row in content["rows"]} == {
        ("run", "metric", "paper", "mean", "std", "interval", "n", "values", "seeds")
    }
    errors = {
        row["run"]: row for row in content["rows"] if row["metric"] == "test_errors"
    }
    assert list(errors) == list(MINI["runs"])
    stored = [
        json.loads(path.read_text()) for path in (folder / "store").glob("*/run.json")
    ]
    assert len(stored) == 6
    for name, row in errors.items():
        assert (row["n"], row["paper"]) == (2, 74 if name == "distilled" else None)
    kept = sorted(record["metrics"]["test_errors"] for record in stored)
    assert sorted(value for row in errors.values() for value in row["values"]) == kept
    assert {record["status"] for record in stored} == {"finished"}
    assert {path.name for path in (folder / "out").iterdir()} >= {
        "results.json",
        "results.csv",
        "results.md",
        "summary.png",
    }


def test_reproducing_again_trains_nothing(
    reproduced: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(argv: list[str]) -> None:
        raise AssertionError(f"trained again: {argv}")

    monkeypatch.setattr("kd_lightning.runs.launch.launch", refuse)
    path = Path(reproduced[1]).parent / "out" / "results.json"
    before = json.loads(path.read_text())["rows"]
    assert main(reproduced) == 0
    out, err = capsys.readouterr()
    assert "6 of 6 runs are finished already" in out
    assert err == ""
    assert json.loads(path.read_text())["rows"] == before


def test_a_dry_run_prints_commands_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, MINI)
    argv = [
        "reproduce",
        str(path),
        f"--output={tmp_path}/out",
        f"--store={tmp_path}/store",
        "--dry-run",
        "--seeds=1",
    ]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.count("\n  kd fit -c ") == 3
    assert "teacher, seed 0 (to run)" in out
    assert [entry.name for entry in tmp_path.iterdir()] == ["mini.yaml"]

"""What `kd reproduce` takes besides an experiment's name, and what an experiment's YAML may ask of the runner."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_1samp

from kd_lightning.cli import main
from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Row, Runs
from kd_lightning.experiments.planning import RunnerOptions, plan
from kd_lightning.experiments.spec import load
from kd_lightning.experiments.stats import alike
from tests.experiments import MINI, write

Capture = pytest.CaptureFixture[str]


def mini(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(MINI), **changes}


def settings(folder: Path, **options: Any) -> RunnerOptions:
    return RunnerOptions(folder / "out", folder / "store", 2, {}, **options)


def best(runs: Runs, output: Path, of: str) -> list[Row]:
    """An analysis: the least errors of a run."""
    (output / "seen.txt").write_text(
        " ".join(str(one.checkpoint.is_file()) for one in runs[of])
    )
    said = runs[of][0].predictions("validation")
    assert len(said["logits"]) == len(said["target"])
    return [
        Row(
            f"best {of}",
            "test_errors",
            [min(one.metrics["test_errors"] for one in runs[of])],
        )
    ]


def test_all_seeds_of_a_run_can_be_needed_as_a_list(tmp_path: Path) -> None:
    content = mini()
    content["runs"]["teacher"]["seeds"] = [0, 1, 2]
    content["runs"]["distilled"]["overrides"] = {
        "model.teacher": "kd_lightning.teachers.EnsembleTeacher"
    }
    content["runs"]["distilled"]["needs"] = {"model.teacher.checkpoints": "teacher@*"}
    jobs = plan(load(str(write(tmp_path, content))), settings(tmp_path))
    [first, _] = [job for job in jobs if job.run == "distilled"]
    assert [need.seed for need in first.needs] == [0, 1, 2]
    [word] = [
        word for word in first.argv if word.startswith("--model.teacher.checkpoints=")
    ]
    assert (
        word
        == f"--model.teacher.checkpoints=[{', '.join(str(need.checkpoint) for need in first.needs)}]"
    )
    content["runs"]["distilled"]["needs"] = {
        "model.teacher.checkpoints": ["teacher@0", "teacher@2"]
    }
    again = plan(load(str(write(tmp_path, content))), settings(tmp_path))
    fewer = next(job for job in again if job.run == "distilled")
    assert [need.seed for need in fewer.needs] == [0, 2]
    assert fewer.folder != first.folder


def test_a_higher_seed_can_be_needed(tmp_path: Path) -> None:
    """A teacher with its student's network would otherwise have its student's initial weights."""
    content = mini()
    content["runs"]["distilled"]["needs"] = {"model.teacher.checkpoint": "teacher@+1"}
    jobs = plan(load(str(write(tmp_path, content))), settings(tmp_path))
    distilled = [job for job in jobs if job.run == "distilled"]
    assert [[need.seed for need in job.needs] for job in distilled] == [[1], [2]]
    # The experiment's seeds are 0 and 1; the third teacher is trained for its student.
    assert [job.seed for job in jobs if job.run == "teacher"] == [0, 1, 2]


def test_only_takes_a_run_with_what_it_needs(tmp_path: Path) -> None:
    experiment = load(str(write(tmp_path, MINI)))
    jobs = plan(experiment, settings(tmp_path, only=["distilled"]))
    assert [job.run for job in jobs] == ["teacher", "distilled"] * 2
    with pytest.raises(
        UserError, match=r"'distiled'.*teacher, student-alone, distilled"
    ):
        plan(experiment, settings(tmp_path, only=["distiled"]))


def test_settings_fill_texts_and_change_the_name(tmp_path: Path) -> None:
    content = mini(settings={"digit": 3}, title="Without ${digit}")
    content["runs"]["distilled"]["overrides"] = {"data.drop_classes": ["${digit}"]}
    path = str(write(tmp_path, content))
    assert load(path).title == "Without 3"
    changed = load(path, {"digit": 7})
    assert changed.run("distilled").overrides == {"data.drop_classes": [7]}
    assert changed.name.endswith("mini-digit-7")
    with pytest.raises(UserError, match="no setting --digits; it has digit"):
        load(path, {"digits": 7})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "digit"], "--set takes NAME=VALUE, got 'digit'"),
        (["--workers=0"], "--workers must be at least 1"),
        (["--quick"], "has no quick form"),
        (["--only", "nobody"], "no such run"),
    ],
)
def test_bad_options_are_one_line(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "reproduce",
        str(write(tmp_path, MINI)),
        f"--output={tmp_path}/out",
        f"--store={tmp_path}/store",
        *words,
    ]
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_quick_side_by_side_with_an_analysis_and_a_run_that_diverges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real thing: two processes, `--quick`, an analysis, a run that may fail; then all of it again, from the store."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    content = mini(
        quick={"seeds": 1, "overrides": {"data.fraction": 0.2}},
        analyses={
            "best": {"function": "tests.experiments.test_options.best", "of": "teacher"}
        },
        compare=[],
    )
    wild = {
        "model.optimizer.lr": 1e30,
        "model.scheduler": None,
        "trainer.max_epochs": 3,
    }
    content["runs"]["wild"] = {
        **MINI["runs"]["student-alone"],
        "overrides": wild,
        "may_fail": True,
    }
    path = write(tmp_path, content)
    argv = [
        "reproduce",
        str(path),
        f"--output={tmp_path}/out",
        f"--store={tmp_path}/store",
        "--quick",
        "--workers=2",
    ]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "quick: cut down" in out
    assert "[4/4]" in out
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    errors = {
        row["run"]: row["values"] for row in rows if row["metric"] == "test_errors"
    }
    assert errors["best teacher"] == errors["teacher"]
    assert "wild" not in errors
    assert (tmp_path / "out" / "seen.txt").read_text() == "True"
    assert main(argv) == 0
    assert "4 of 4 runs are finished already" in capsys.readouterr().out


def test_an_analysis_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = mini(
        analyses={"best": {"function": "tests.experiments.test_options.worst"}},
        seeds=1,
        compare=[],
    )
    content["runs"] = {"teacher": MINI["runs"]["teacher"]}
    content["paper"] = {}
    argv = [
        "reproduce",
        str(write(tmp_path, content)),
        f"--output={tmp_path}/out",
        f"--store={tmp_path}/store",
    ]
    assert main(argv) == 2
    assert (
        "the analysis 'best': tests.experiments.test_options.worst"
        in capsys.readouterr().err
    )


def test_alike_is_two_one_sided_tests() -> None:
    a, b = [70.0, 72, 71, 69, 73], [71.0, 71, 72, 70, 72]
    found = alike("a", "b", "test_errors", 3.0, a, b)
    difference = [x - y for x, y in zip(a, b, strict=True)]
    low, high = ttest_1samp(difference, 0.0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.p is not None
    assert found.p < 0.05
    assert "shown" in found.sentence()
    narrow = alike("a", "b", "test_errors", 0.5, a, b)
    assert narrow.p is not None
    assert narrow.p > 0.05
    assert "not shown" in narrow.sentence()
    assert alike("a", "b", "test_errors", 3.0, a[:4], b[:4]).p is None
    # The 90% interval lies within the margin exactly where p < 0.05.
    edge = max(abs(low), abs(high))
    assert (
        (alike("a", "b", "m", edge * 1.001, a, b).p or 1)
        < 0.05
        < (alike("a", "b", "m", edge * 0.999, a, b).p or 0)
    )


def test_wandb_takes_all_runs_into_one_group(tmp_path: Path) -> None:
    from kd_lightning.experiments.command import parser

    assert parser().parse_args(["mini", "--wandb=offline"]).wandb == "offline"
    jobs = plan(
        load(str(write(tmp_path, MINI))),
        RunnerOptions(tmp_path, tmp_path, 2, {"run.wandb": "offline"}),
    )
    off = plan(
        load(str(write(tmp_path, MINI))), RunnerOptions(tmp_path, tmp_path, 2, {})
    )
    groups = {
        word for job in jobs for word in job.argv if word.startswith("--run.group=")
    }
    assert len(groups) == 1
    assert all("--run.wandb=offline" in job.argv for job in jobs)
    assert [job.folder for job in jobs] == [
        job.folder for job in off
    ]  # logging changes no result


def test_a_dry_run_prints_lists_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = mini(
        overrides={**MINI["overrides"], "data.drop_classes": [3]},
        runs={"teacher": MINI["runs"]["teacher"]},
    )
    content |= {"compare": [], "paper": {}}
    argv = [
        "reproduce",
        str(write(tmp_path, content)),
        f"--store={tmp_path}/[/a]",
        "--dry-run",
        "--seeds=1",
    ]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "--data.drop_classes=[3]" in out
    assert "/[/a]/" in out


def test_settings_may_list_their_valid_values(tmp_path: Path, capsys: Capture) -> None:
    content = mini(
        settings={"digit": 3}, choices={"digit": [3, 7]}, compare=[], paper={}
    )
    content["runs"]["distilled"]["overrides"] = {"data.drop_classes": ["${digit}"]}
    path = str(write(tmp_path, content))
    assert load(path, {"digit": 7}).name.endswith("digit-7")
    assert main(["reproduce", path, "--digit", "12", "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert "--digit cannot be 12; valid values: 3, 7" in err
    assert main(["reproduce", path, "--help"]) == 0
    assert "--digit VALUE  default: 3; one of 3, 7" in capsys.readouterr().out
    shipped = "hinton2015/mnist-unseen-digit"
    assert main(["reproduce", shipped, "--digit", "12", "--dry-run"]) == 2
    assert "valid values: 0, 1, 2" in capsys.readouterr().err


def test_a_quick_run_says_that_its_numbers_rank_nothing(tmp_path: Path) -> None:
    from kd_lightning.experiments.command import quick

    experiment = load(str(write(tmp_path, mini(quick={"seeds": 1}, note="A note."))))
    assert "too short to rank" in quick(experiment).note


def test_one_seed_is_no_plural() -> None:
    assert "over 1 seed (" in alike("a", "b", "m", 1.0, [1.0], [2.0]).sentence()
    assert "over 2 seeds (" in alike("a", "b", "m", 1.0, [1.0, 2], [2.0, 3]).sentence()

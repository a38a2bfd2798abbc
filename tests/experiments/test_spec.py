"""An experiment's YAML: what is understood, and one line for what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kd_lightning.cli import main
from kd_lightning.errors import UserError
from kd_lightning.experiments.spec import RunSpec, load
from kd_lightning.paths import shipped, shipped_root
from tests.experiments import HEAD, MINI, write

SHIPPED = sorted((shipped_root() / "experiments").rglob("*.yaml"))


def loaded(folder: Path, **content: Any) -> Any:
    return load(str(write(folder, {**HEAD, **content})))


@pytest.mark.parametrize(
    ("content", "culprits"),
    [
        ({"colour": "red", "runs": {"a": {}}}, ["'colour'", "compare_metric"]),
        ({"runs": {"a": {"cfgs": []}}}, ["runs.a", "'cfgs'", "configs"]),
        ({}, ["no runs"]),
        ({"runs": ["a"]}, ["no runs"]),
        ({"title": "", "runs": {"a": {}}}, ["title"]),
        ({"claim": None, "runs": {"a": {}}}, ["claim"]),
        ({"time": None, "runs": {"a": {}}}, ["time"]),
        ({"runs": {"a": {"needs": {"model.teacher.checkpoint": "b"}}}}, ["'b'", "a"]),
        ({"runs": {"a": {}}, "compare": [["a", "c"]]}, ["'c'", "a"]),
    ],
)
def test_what_is_not_understood_is_named(
    content: dict[str, Any], culprits: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, **content)
    said = str(caught.value)
    assert "mini.yaml" in said
    assert "\n" not in said
    assert [word for word in culprits if word not in said] == []


@pytest.mark.parametrize(
    ("content", "culprit"),
    [
        ({"runs": {"a": 3}}, "runs.a"),
        ({"runs": {"a": {"seeds": 3}}}, "seeds"),
        ({"runs": {"a": {"grid": {"x": 3}}}}, "grid"),
        ({"runs": {"a": {"configs": "configs/trainer.yaml"}}}, "configs"),
        ({"runs": {"a": {"overrides": ["x"]}}}, "overrides"),
        ({"runs": {"a": {}}, "seeds": "many"}, "seeds"),
        ({"runs": {"a": {}}, "seeds": 0}, "seeds"),
        ({"runs": {"a": {}}, "compare": ["a"]}, "compare"),
        ({"runs": {"a": {}}, "paper": {"b": {"test_errors": 74}}}, "'b'"),
    ],
)
def test_values_of_another_type_are_named(
    content: dict[str, Any], culprit: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=culprit):
        loaded(tmp_path, **content)


@pytest.mark.parametrize("text", ["runs: [1,\n b: }", "- a", "", "just words"])
def test_a_file_that_is_no_experiment_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert (
        main(
            [
                "reproduce",
                str(path),
                f"--output={tmp_path}/out",
                f"--store={tmp_path}/store",
            ]
        )
        == 2
    )
    err = capsys.readouterr().err
    assert "bad.yaml" in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_defaults(tmp_path: Path) -> None:
    experiment = loaded(tmp_path, runs={"a": None})
    assert [run.name for run in experiment.runs] == ["a"]
    assert (experiment.seeds, experiment.metrics) == (
        5,
        ["test_errors", "test_accuracy"],
    )
    assert experiment.run("a").overrides == {}


def test_a_grid_is_one_run_for_each_combination() -> None:
    run = RunSpec(
        "student",
        configs=["x.yaml"],
        overrides={"trainer.max_epochs": 3, "data.labels": 1.0},
        needs={"model.teacher.checkpoint": "teacher"},
        grid={"model.student.hidden": [[8], [16]], "data.labels": [0.1, 0.2, 0.5]},
    )
    expanded = run.expanded()
    assert [r.name for r in expanded][:4] == [
        "student hidden=[8] labels=0.1",
        "student hidden=[8] labels=0.2",
        "student hidden=[8] labels=0.5",
        "student hidden=[16] labels=0.1",
    ]
    assert len(expanded) == 6
    assert expanded[5].overrides == {
        "trainer.max_epochs": 3,
        "data.labels": 0.5,
        "model.student.hidden": [16],
    }
    assert all(
        (r.configs, r.needs, r.grid) == (["x.yaml"], run.needs, {}) for r in expanded
    )
    assert run.overrides["data.labels"] == 1.0  # its own is left as it was


def test_no_grid_is_one_run_of_the_same_name(tmp_path: Path) -> None:
    [run] = RunSpec("student").expanded()
    assert run.name == "student"
    experiment = loaded(tmp_path, runs={"a": {"grid": {"x.lr": [1, 2]}}, "b": {}})
    assert [r.name for r in experiment.runs] == ["a lr=1", "a lr=2", "b"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_experiments_are_understood_and_their_configs_are_there(
    path: Path,
) -> None:
    if "runs:" not in path.read_text():
        pytest.skip("another kind of file")
    name = path.relative_to(shipped_root() / "experiments").with_suffix("").as_posix()
    experiment = load(name)
    assert experiment.name == name
    configs = [
        *experiment.configs,
        *(config for run in experiment.runs for config in run.configs),
    ]
    assert [config for config in configs if shipped(config) is None] == []


def test_the_small_experiment_of_these_tests_is_understood(tmp_path: Path) -> None:
    experiment = load(str(write(tmp_path, MINI)))
    assert [run.name for run in experiment.runs] == [
        "teacher",
        "student-alone",
        "distilled",
    ]
    assert experiment.paper["distilled"]["test_errors"] == 74

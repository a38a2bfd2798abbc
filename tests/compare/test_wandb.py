"""`kd compare --wandb`: what our logger writes is what is read, and whatever fails is one line."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.launch import launch
from tests.compare.comparing import compare, refused, table
from tests.runs import TEACHER, student
from tests.runs.test_wandb import FakeLogger, FakeRun

Capture = pytest.CaptureFixture[str]
KEY = "0" * 40


@dataclass
class Trained:
    """Two seeds of a teacher and of its student, as folders and as W&B was told of them."""

    folders: list[str]
    told: list[FakeRun]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root, told, folders = tmp_path_factory.mktemp("trained"), [], []

    def init(**arguments: Any) -> FakeRun:
        told.append(FakeRun(**arguments))
        return told[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")  # whatever the runs set is undone
        patch.setattr("wandb.init", init)
        patch.setattr("lightning.pytorch.loggers.WandbLogger", FakeLogger)
        shared = [
            f"--run.root={root}",
            "--run.wandb=offline",
            "--run.test=last",
            "--run.group=pair",
        ]
        for seed in (0, 1):
            teacher = launch(
                resolve_configs([*TEACHER, *shared, f"--seed_everything={seed}"])
            ).folder
            words = [
                *student(teacher / "checkpoints" / "last.ckpt"),
                *shared,
                f"--seed_everything={seed}",
            ]
            folders += [str(teacher), str(launch(resolve_configs(words)).folder)]
    return Trained(folders, told)


class FakeApi:
    """Stands for `wandb.Api`: serves what `wandb.init` was given."""

    served: list[Any]
    asked: list[dict[str, Any]]
    problem: Exception | None

    def __init__(self, timeout: int) -> None:
        assert timeout <= 10

    def runs(
        self, path: str, filters: dict[str, Any], per_page: int = 50, lazy: bool = True
    ) -> list[Any]:
        self.asked.append({"path": path, "filters": filters, "lazy": lazy})
        if self.problem:
            raise self.problem
        return [
            run for run in self.served if run.group == filters.get("group", run.group)
        ]


def as_served(at: int, run: FakeRun, state: str = "finished") -> Any:
    given, summary = (
        run.arguments,
        {name: value for row in run.rows for name, value in row.items()},
    )
    # As a server would: through JSON, keys sorted, whole numbers without their point.
    config = json.loads(
        json.dumps(given["config"], sort_keys=True)
        .replace(".0,", ",")
        .replace(".0}", "}")
    )
    group = given["group"]
    return SimpleNamespace(
        id=f"id{at}",
        name=given["name"],
        state=state,
        config=config,
        summary={**summary, "_step": 7},
        group=group,
        job_type=given["job_type"],
        created_at=f"{at:04}",
    )


@pytest.fixture
def api(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    """A project with the trained runs, and a key."""
    FakeApi.served = [as_served(at, run) for at, run in enumerate(trained.told)]
    FakeApi.asked, FakeApi.problem = [], None
    monkeypatch.setattr("wandb.Api", FakeApi)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return FakeApi


def test_real_runs_and_their_teachers_seeds(trained: Trained, capsys: Capture) -> None:
    content = compare(capsys, *trained.folders)
    rows = table(content)
    assert list(rows) == [
        "augment=Jitter, model=ClassifierModule",
        "augment=none, model=DistillationModule",
    ]
    assert [len(values) for values in rows.values()] == [2, 2]
    assert {"test_errors", "test_accuracy", "test_nll"} <= {
        row["metric"] for row in content["rows"]
    }
    assert not [row for row in content["rows"] if row["metric"].startswith("val_")]


def test_wandb_gives_the_same_table(
    trained: Trained, api: type[FakeApi], capsys: Capture
) -> None:
    assert compare(capsys, "--wandb", "me/mine") == compare(capsys, *trained.folders)
    assert api.asked == [{"path": "me/mine", "filters": {}, "lazy": False}]


def test_another_machines_folders_do_the_same(
    trained: Trained, api: type[FakeApi], capsys: Capture
) -> None:
    """Teachers are found among the runs of the project, not on the disk."""
    for run in api.served:
        run.config["folder"] = run.config["folder"].replace(
            str(Path(trained.folders[0]).parent), "/far"
        )
        run.config["teacher"] = [
            {
                **s,
                "path": s["path"].replace(str(Path(trained.folders[0]).parent), "/far"),
            }
            for s in run.config["teacher"]
        ]
        if "checkpoint" in (
            teacher := run.config["model"]["init_args"]
            .get("teacher", {})
            .get("init_args", {})
        ):
            run.config["model"] = {
                **run.config["model"],
                "init_args": {**run.config["model"]["init_args"]},
            }
            path = teacher["checkpoint"].replace(
                str(Path(trained.folders[0]).parent), "/far"
            )
            run.config["model"]["init_args"]["teacher"] = {
                "class_path": "T",
                "init_args": {"checkpoint": path},
            }
    found = compare(capsys, "--wandb", "me/mine")
    assert table(found) == table(compare(capsys, *trained.folders))


def test_a_group_and_unfinished_and_foreign_runs(
    trained: Trained, api: type[FakeApi], capsys: Capture
) -> None:
    other = as_served(8, trained.told[0])
    other.group = "other"
    api.served += [as_served(9, trained.told[1], "crashed"), other]
    foreign = SimpleNamespace(
        id="f", name="f", state="finished", config={"lr": 1}, summary={}, group="pair"
    )
    api.served.append(foreign)
    found = compare(capsys, "--wandb", "me/mine", "--group", "pair")
    assert api.asked[-1]["filters"] == {"group": "pair"}
    assert [len(values) for values in table(found).values()] == [2, 2]
    assert found["notes"][0].startswith(
        "Skipped unfinished runs: me/mine/id9 (digits-mlp-distill) (crashed)."
    )
    assert "no runs of kd_lightning in the group 'none'" in refused(
        capsys, "--wandb", "me/mine", "--group", "none"
    )
    api.served = [foreign]
    assert "me/mine holds no runs of kd_lightning" in refused(
        capsys, "--wandb", "me/mine"
    )


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (ValueError("Could not find project mine"), "W&B has no project me/mine"),
        (
            RuntimeError("no route\nto host"),
            "W&B could not be read; check the network and the key: no route",
        ),
        (
            TimeoutError(),
            "W&B could not be read; check the network and the key: TimeoutError",
        ),
    ],
)
def test_what_wandb_raises_is_one_line(
    problem: Exception, line: str, api: type[FakeApi], capsys: Capture
) -> None:
    api.problem = problem
    assert line in refused(capsys, "--wandb", "me/mine")


def test_without_a_key_wandb_is_not_asked(
    api: type[FakeApi], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr("wandb.Api", None)  # calling it would be a TypeError
    assert "no W&B key is known" in refused(capsys, "--wandb", "me/mine")


def test_without_wandb(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(
        sys.modules, "wandb", None
    )  # `import wandb` now raises ImportError
    assert "W&B is not installed" in refused(capsys, "--wandb", "me/mine")


@pytest.mark.parametrize("path", ["mine", "me/", "/mine", "a/b/c", ""])
def test_a_path_is_an_entity_and_a_project(path: str, capsys: Capture) -> None:
    line = refused(capsys, "--wandb", path)
    assert "ENTITY/PROJECT" in line

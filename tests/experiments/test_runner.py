"""The runner trains what is missing, says why, and goes on where it was stopped."""

from __future__ import annotations

import copy
import io
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from kd_lightning.errors import UserError
from kd_lightning.experiments.planning import Job, RunnerOptions, by_run, plan
from kd_lightning.experiments.runner import Runner
from kd_lightning.experiments.spec import load
from kd_lightning.runs.launch import Interrupted, launch
from kd_lightning.training import BaseModule
from tests.experiments import HEAD, MINI, write

Launch = Callable[[list[str]], Any]


def pretend(argv: list[str]) -> None:
    """What a run leaves behind, without the training."""
    folder = Path(value_of("run.dir", argv))
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "run.json").write_text(
        json.dumps({"status": "finished", "metrics": {"test_errors": 70.0}})
    )


def value_of(key: str, argv: list[str]) -> str:
    return next(word.removeprefix(f"--{key}=") for word in argv if word.startswith(f"--{key}="))


class Bench:
    """A folder with the small experiment, its store and its output; counts what is trained."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.content = folder, copy.deepcopy(MINI)
        self.trained: list[str] = []
        self.said = ""

    def jobs(self) -> list[Job]:
        experiment = load(str(write(self.folder, self.content)))
        return plan(
            experiment,
            RunnerOptions(self.folder / "out", self.folder / "store", experiment.seeds, {}),
        )

    def run(self, start: Launch = pretend) -> list[Job]:
        """Run the experiment as it now stands."""
        self.trained, text = [], io.StringIO()
        jobs = self.jobs()
        names = {str(job.folder): f"{job.run}/{job.seed}" for job in jobs}

        def counted(argv: list[str]) -> Any:
            resumed = any(word.startswith("--ckpt_path=") for word in argv)
            self.trained.append(names[value_of("run.dir", argv)] + " resumed" * resumed)
            return start(argv)

        (self.folder / "out").mkdir(exist_ok=True)
        settings = RunnerOptions(self.folder / "out", self.folder / "store", 2, {})
        try:
            Runner(settings, counted, Console(file=text, width=500)).run(jobs)
        finally:
            self.said = text.getvalue()
        return jobs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small experiment, run once."""
    bench = Bench(tmp_path_factory.mktemp("mini"))
    bench.run()
    assert bench.trained == [f"{run}/{seed}" for run in MINI["runs"] for seed in (0, 1)]
    return bench.folder


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Bench:
    """A copy of the finished experiment, to be changed."""
    for name in ("store", "out"):
        shutil.copytree(trained / name, tmp_path / name)
    return Bench(tmp_path)


def test_the_second_time_trains_nothing(finished: Bench) -> None:
    jobs = finished.run()
    assert finished.trained == []
    assert "6 of 6 runs are finished already" in finished.said
    assert all(job.finished for job in jobs)
    assert {name: [job.seed for job in group] for name, group in by_run(jobs).items()} == {
        name: [0, 1] for name in MINI["runs"]
    }


def test_a_changed_override_trains_that_run_again_and_says_why(finished: Bench) -> None:
    finished.content["runs"]["distilled"]["overrides"] = {"model.losses.kd.temperature": 2.0}
    finished.run()
    assert finished.trained == ["distilled/0", "distilled/1"]
    [line] = [
        line for line in finished.said.splitlines() if "run again" in line and "distilled" in line
    ][:1]
    assert "temperature (4.0 -> 2.0)" in line
    finished.content["runs"]["distilled"].pop("overrides")
    finished.run()
    assert finished.trained == []  # the first runs are still in the store


def test_another_teacher_trains_its_students_again_and_no_other(finished: Bench) -> None:
    finished.content["runs"]["teacher"]["overrides"] = {"model.network.hidden": [32]}
    finished.run()
    assert sorted(finished.trained) == ["distilled/0", "distilled/1", "teacher/0", "teacher/1"]
    assert "model.teacher.checkpoint" in next(
        line for line in finished.said.splitlines() if line.startswith("distilled")
    )


def test_another_place_of_the_store_changes_no_address(finished: Bench) -> None:
    """What a run needs enters its key by address, never by path."""
    experiment = load(str(write(finished.folder, finished.content)))
    elsewhere = plan(experiment, RunnerOptions(Path("out"), Path("/elsewhere"), 2, {}))
    assert [job.folder.name for job in elsewhere] == [job.folder.name for job in finished.jobs()]
    assert len({job.folder.name for job in elsewhere}) == 6


def test_one_more_seed_trains_that_seed_alone(finished: Bench) -> None:
    finished.content["runs"]["teacher"]["seeds"] = [0, 1, 2]
    finished.run()
    assert finished.trained == ["teacher/2"]


def test_another_title_or_comparison_trains_nothing(finished: Bench) -> None:
    finished.content |= {"title": "Another title", "compare": [], "note": "a note"}
    finished.run()
    assert finished.trained == []


def test_an_interrupted_experiment_goes_on(finished: Bench) -> None:
    finished.content["overrides"]["data.batch_size"] = 32  # nothing is finished under these keys

    def stop_at_third(argv: list[str]) -> Any:
        if len(finished.trained) == 3:
            raise KeyboardInterrupt
        return pretend(argv)

    with pytest.raises(KeyboardInterrupt):
        finished.run(stop_at_third)
    first = finished.trained[:2]
    finished.run()
    assert len(finished.trained) == 4
    assert set(finished.trained).isdisjoint(first)
    assert "2 of 6 runs are finished already" in finished.said


def test_a_run_that_was_stopped_halfway_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_teacher(folder: Path) -> Bench:
        bench = Bench(folder)
        bench.content |= {
            "runs": {"teacher": MINI["runs"]["teacher"]},
            "seeds": 1,
            "compare": [],
            "paper": {},
        }
        bench.content["overrides"]["trainer.max_epochs"] = 3
        return bench

    stopped, whole = only_teacher(tmp_path / "stopped"), only_teacher(tmp_path / "whole")
    begin = BaseModule.on_train_epoch_start

    def interrupted(module: BaseModule) -> None:
        if module.current_epoch == 2:
            raise KeyboardInterrupt
        begin(module)

    with monkeypatch.context() as patch:
        patch.setattr(BaseModule, "on_train_epoch_start", interrupted)
        with pytest.raises(Interrupted, match="go on with"):
            stopped.run(launch)
    [job] = stopped.run(launch)
    assert stopped.trained == ["teacher/0 resumed"]
    [other] = whole.run(launch)
    assert job.finished
    assert job.record["metrics"] == other.record["metrics"]
    a, b = (load_file(j.folder / "predictions-test.safetensors")["logits"] for j in (job, other))
    assert torch.equal(a, b)


def test_what_was_left_without_a_checkpoint_is_begun_anew(finished: Bench) -> None:
    job = finished.jobs()[0]
    shutil.rmtree(job.folder / "checkpoints")
    (job.folder / "run.json").write_text('{"status": "runn')  # cut short
    finished.run()
    assert finished.trained == [f"{job.run}/{job.seed}"]
    assert job.checkpoint.is_file()


def test_jobs_come_after_what_they_need_and_their_commands_can_be_typed(finished: Bench) -> None:
    finished.content["runs"] = dict(reversed(list(MINI["runs"].items())))
    jobs = finished.jobs()
    for at, job in enumerate(jobs):
        assert all(need in jobs[:at] for need in job.needs)
        assert shlex.split(job.command)[1:] == job.argv
    distilled = next(job for job in jobs if (job.run, job.seed) == ("distilled", 1))
    [teacher] = distilled.needs
    assert (teacher.run, teacher.seed) == ("teacher", 1)
    assert f"--model.teacher.checkpoint={teacher.checkpoint}" in distilled.argv


def test_runs_that_need_each_other_are_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.content = {**HEAD, "runs": {"a": {"needs": {"x": "b"}}, "b": {"needs": {"x": "a"}}}}
    with pytest.raises(UserError, match="a -> b -> a"):
        bench.jobs()

"""The runner trains what is missing, says why, and goes on where it was stopped."""

from __future__ import annotations

import copy
import io
import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from kd_lightning.cli import main
from kd_lightning.errors import UserError
from kd_lightning.experiments import keys
from kd_lightning.experiments.planning import Job, RunnerOptions, by_run, plan
from kd_lightning.experiments.runner import Runner
from kd_lightning.experiments.spec import load
from kd_lightning.experiments.store import FinishedRuns, write_key
from kd_lightning.runs.configs import MOVED
from kd_lightning.runs.launch import Interrupted, launch
from kd_lightning.training import TrainingModule
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
    return next(
        word.removeprefix(f"--{key}=") for word in argv if word.startswith(f"--{key}=")
    )


class Bench:
    """A folder with the small experiment, its store and its output; counts what is trained."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.content = folder, copy.deepcopy(MINI)
        self.trained: list[str] = []
        self.said = ""

    def options(self, **more: Any) -> RunnerOptions:
        seeds = int(self.content["seeds"])
        return RunnerOptions(
            self.folder / "out", self.folder / "store", seeds, {}, **more
        )

    def jobs(self, **options: Any) -> list[Job]:
        experiment = load(str(write(self.folder, self.content)))
        return plan(experiment, self.options(**options))

    def run(self, start: Launch = pretend, **options: Any) -> list[Job]:
        """Run the experiment as it now stands."""
        self.trained, text = [], io.StringIO()
        jobs = self.jobs(**options)
        names = {str(job.folder): f"{job.run}/{job.seed}" for job in jobs}

        def counted(argv: list[str]) -> Any:
            resumed = any(word.startswith("--ckpt_path=") for word in argv)
            self.trained.append(names[value_of("run.dir", argv)] + " resumed" * resumed)
            return start(argv)

        (self.folder / "out").mkdir(exist_ok=True)
        try:
            Runner(self.options(**options), counted, Console(file=text, width=500)).run(
                jobs
            )
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
    assert {
        name: [job.seed for job in group] for name, group in by_run(jobs).items()
    } == {name: [0, 1] for name in MINI["runs"]}


def test_a_changed_override_trains_that_run_again_and_says_why(finished: Bench) -> None:
    finished.content["runs"]["distilled"]["overrides"] = {
        "model.losses.kd.temperature": 2.0
    }
    finished.run()
    assert finished.trained == ["distilled/0", "distilled/1"]
    [line] = [
        line
        for line in finished.said.splitlines()
        if "run again" in line and "distilled" in line
    ][:1]
    assert "temperature (4.0 -> 2.0)" in line
    finished.content["runs"]["distilled"].pop("overrides")
    finished.run()
    assert finished.trained == []  # the first runs are still in the store


def test_another_teacher_trains_its_students_again_and_no_other(
    finished: Bench,
) -> None:
    finished.content["runs"]["teacher"]["overrides"] = {"model.network.hidden": [32]}
    finished.run()
    assert sorted(finished.trained) == [
        "distilled/0",
        "distilled/1",
        "teacher/0",
        "teacher/1",
    ]
    assert "model.teacher.checkpoint" in next(
        line for line in finished.said.splitlines() if line.startswith("distilled")
    )


def test_another_place_of_the_store_changes_no_address(finished: Bench) -> None:
    """What a run needs enters its key by address, never by path."""
    experiment = load(str(write(finished.folder, finished.content)))
    elsewhere = plan(experiment, RunnerOptions(Path("out"), Path("/elsewhere"), 2, {}))
    assert [job.folder.name for job in elsewhere] == [
        job.folder.name for job in finished.jobs()
    ]
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
    finished.content["overrides"]["data.batch_size"] = (
        32  # nothing is finished under these keys
    )

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

    stopped, whole = (
        only_teacher(tmp_path / "stopped"),
        only_teacher(tmp_path / "whole"),
    )
    begin = TrainingModule.on_train_epoch_start

    def interrupted(module: TrainingModule) -> None:
        if module.current_epoch == 2:
            raise KeyboardInterrupt
        begin(module)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingModule, "on_train_epoch_start", interrupted)
        with pytest.raises(Interrupted, match="resume with"):
            stopped.run(launch)
    [job] = stopped.run(launch)
    assert stopped.trained == ["teacher/0 resumed"]
    [other] = whole.run(launch)
    assert job.finished
    assert job.record["metrics"] == other.record["metrics"]
    a, b = (
        load_file(j.folder / "predictions-test.safetensors")["logits"]
        for j in (job, other)
    )
    assert torch.equal(a, b)


def test_what_was_left_without_a_checkpoint_is_begun_anew(finished: Bench) -> None:
    job = finished.jobs()[0]
    shutil.rmtree(job.folder / "checkpoints")
    (job.folder / "run.json").write_text('{"status": "runn')  # cut short
    finished.run()
    assert finished.trained == [f"{job.run}/{job.seed}"]
    assert job.checkpoint.is_file()


def test_jobs_come_after_what_they_need_and_their_commands_can_be_typed(
    finished: Bench,
) -> None:
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
    bench.content = {
        **HEAD,
        "seeds": 1,
        "runs": {"a": {"needs": {"x": "b"}}, "b": {"needs": {"x": "a"}}},
    }
    with pytest.raises(UserError, match="a -> b -> a"):
        bench.jobs()


# -- --keep-finished ---------------------------------------------------------------------------------------------------


def other_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the code of the package and torch differ from those of all earlier runs."""
    monkeypatch.setattr(keys, "code_version", lambda path: "refactored")
    monkeypatch.setattr(torch, "__version__", "99.0")


def test_other_code_trains_again_and_names_the_option(
    finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_code(monkeypatch)
    finished.run()
    assert len(finished.trained) == 6
    [line] = [
        line for line in finished.said.splitlines() if line.startswith("teacher is run")
    ]
    assert "code.__init__" not in line
    assert line.endswith("; --keep-finished keeps finished runs of other code")


def test_finished_runs_of_other_code_are_kept_on_request(
    finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {job.name: job.folder for job in finished.jobs()}
    other_code(monkeypatch)
    jobs = finished.run(keep_finished=True)
    assert finished.trained == []
    assert "6 finished runs of other code are kept (--keep-finished)" in finished.said
    assert {job.name: job.folder for job in jobs} == folders
    finished.run(keep_finished=True)
    for job in jobs:
        assert job.address != job.folder.name
        [entry] = job.record["accepted"]  # once, although it was accepted twice
        assert entry["address"] == job.address
        assert {"version.torch", "code.types.py"} <= set(entry["changed"])


def test_new_runs_start_from_kept_ones(
    finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was not finished is trained by the code of today, from the teacher that was kept."""
    teacher, *_, distilled = finished.jobs()[::2]
    shutil.rmtree(distilled.folder)
    other_code(monkeypatch)
    jobs = finished.run(keep_finished=True)
    assert finished.trained == ["distilled/0"]
    trained = next(job for job in jobs if job.name == "distilled/0")
    assert trained.accepted_key is None
    assert trained.folder != distilled.folder
    assert f"--model.teacher.checkpoint={teacher.checkpoint}" in trained.argv
    finished.run(keep_finished=True)
    assert finished.trained == []


def test_another_setting_is_never_kept(
    finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished.content["runs"]["teacher"]["overrides"] = {"model.network.hidden": [32]}
    other_code(monkeypatch)
    finished.run(keep_finished=True)
    assert sorted(finished.trained) == [
        "distilled/0",
        "distilled/1",
        "teacher/0",
        "teacher/1",
    ]


def test_unfinished_runs_are_not_kept(
    finished: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job] = [job for job in finished.jobs() if job.name == "student-alone/1"]
    (job.folder / "run.json").write_text('{"status": "failed"}')
    other_code(monkeypatch)
    finished.run(keep_finished=True)
    assert finished.trained == ["student-alone/1"]


def test_runs_from_before_keys_named_all_code_are_kept(finished: Bench) -> None:
    """Their folders hold no key; `jobs.json` holds one without code, under moved class paths."""
    history = json.loads((finished.folder / "out" / "jobs.json").read_text())
    renamed = {
        entry["address"]: f"{at:016x}" for at, entry in enumerate(history.values())
    }
    for entry in history.values():
        old_key = {}
        for name, value in entry["key"].items():
            if not keys.is_code(name):
                old_key[name] = (
                    renamed.get(value, value) if isinstance(value, str) else value
                )
        old_key["code.losses/kd.py"] = "of then"
        (finished.folder / "store" / entry["address"] / "key.json").unlink()
        entry["key"] = old_key
        entry["address"] = renamed[entry["address"]]
    for new, old in renamed.items():
        (finished.folder / "store" / new).rename(finished.folder / "store" / old)
    (finished.folder / "out" / "jobs.json").write_text(json.dumps(history))
    jobs = finished.run(keep_finished=True)
    assert finished.trained == []
    assert sorted(job.folder.name for job in jobs) == sorted(renamed.values())


def test_moved_class_paths_are_the_same_settings(tmp_path: Path) -> None:
    old, new = next(iter(MOVED.items()))
    folder = tmp_path / "store" / "0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"status": "finished"}')
    write_key(folder, {"data.class_path": old, "seed": 0, "code.data/old.py": "1"})
    runs = FinishedRuns(tmp_path / "store", tmp_path / "out")
    found = runs.find({"data.class_path": new, "seed": 0, "version.torch": "99.0"})
    assert found is not None
    assert found.folder == folder
    assert runs.find({"data.class_path": new, "seed": 1}) is None


def test_the_last_of_several_finished_runs_is_kept(tmp_path: Path) -> None:
    for at, address in enumerate(("b", "c", "a")):
        folder = tmp_path / "store" / address
        folder.mkdir(parents=True)
        (folder / "run.json").write_text('{"status": "finished"}')
        os.utime(folder / "run.json", (at, at))
        write_key(folder, {"seed": 0, "code.types.py": address})
    found = FinishedRuns(tmp_path / "store", tmp_path / "out").find({"seed": 0})
    assert found is not None
    assert found.folder.name == "a"


def test_results_list_the_runs_that_were_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {**copy.deepcopy(MINI), "seeds": 1, "compare": [], "paper": {}}
    content["runs"] = {"teacher": MINI["runs"]["teacher"]}
    out, store = tmp_path / "out", tmp_path / "store"
    argv = [
        "reproduce",
        str(write(tmp_path, content)),
        f"--output={out}",
        f"--store={store}",
    ]
    assert main(argv) == 0
    before = json.loads((out / "results.json").read_text())
    assert "accepted" not in before
    other_code(monkeypatch)
    assert main([*argv, "--keep-finished", "--dry-run"]) == 0
    assert "teacher, seed 0 (finished by other code)" in capsys.readouterr().out
    assert main([*argv, "--keep-finished"]) == 0
    after = json.loads((out / "results.json").read_text())
    assert after["rows"] == before["rows"]
    [folder] = store.iterdir()
    [entry] = after["accepted"]
    assert (entry["run"], entry["seed"], entry["address"]) == (
        "teacher",
        0,
        folder.name,
    )
    assert entry["expected_address"] != folder.name
    assert "1 of 1 runs were finished by other code (--keep-finished)." in after["note"]
    assert "(--keep-finished)" in (out / "results.md").read_text()

"""Jobs that fail, runs that were changed, and workers that die, without training."""

from __future__ import annotations

import gc
import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from kd_lightning.cli import main
from kd_lightning.errors import UserError
from kd_lightning.experiments import results, runner, workers
from kd_lightning.experiments.execution import execute
from kd_lightning.experiments.planning import Job, RunnerOptions
from kd_lightning.experiments.runner import Failure, Runner, summary
from kd_lightning.experiments.spec import load
from kd_lightning.experiments.store import alteration, read_record
from kd_lightning.experiments.workers import Workers
from kd_lightning.runs.lock import locked
from tests.experiments import MINI, write
from tests.experiments.test_runner import Launch, pretend, value_of


def finish(argv: list[str], content: bytes = b"weights") -> None:
    """What a run leaves behind, with its teacher's checksum."""
    pretend(argv)
    folder = Path(value_of("run.dir", argv))
    (folder / "checkpoints" / "last.ckpt").write_bytes(content)
    teachers = [word for word in argv if word.startswith("--model.teacher.checkpoint=")]
    record = read_record(folder)
    if teachers:
        path = Path(teachers[0].partition("=")[2])
        sha256 = read_record(path.parents[1])["stored"]["checkpoint"]
        record["teacher"] = [{"path": str(path), "sha256": sha256}]
    (folder / "run.json").write_text(json.dumps(record))


class Bench:
    """Jobs of three runs with two seeds each, in folders of their own; nothing is planned."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trained: list[str] = []
        self.said = ""

    def jobs(self) -> list[Job]:
        jobs: list[Job] = []
        for run in ("teacher", "student-alone", "distilled"):
            for seed in (0, 1):
                folder = self.folder / f"{run}-{seed}"
                argv = ["fit", f"--run.dir={folder}", f"--run.name={run}"]
                argv.append(f"--seed_everything={seed}")
                needs = []
                if run == "distilled":
                    needs = [jobs[seed]]
                    argv.append(f"--model.teacher.checkpoint={needs[0].checkpoint}")
                jobs.append(
                    Job(run, seed, {"run": run, "seed": seed}, folder, argv, needs)
                )
        return jobs

    def run(self, launch: Launch, workers_count: int = 1) -> list[Job]:
        """Run all jobs; `trained` then lists those that were launched."""
        self.trained = []
        text = io.StringIO()
        jobs = self.jobs()

        def counted(argv: list[str]) -> None:
            name = f"{value_of('run.name', argv)}/{value_of('seed_everything', argv)}"
            resumed = any(word.startswith("--ckpt_path=") for word in argv)
            self.trained.append(name + " resumed" * resumed)
            launch(argv)

        options = RunnerOptions(self.folder, self.folder, 2, {}, workers=workers_count)
        Runner(options, counted, Console(file=text, width=500)).run(jobs)
        self.said = text.getvalue()
        return jobs


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """These jobs leave nothing behind, and collecting garbage after each takes long."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


@pytest.fixture
def empty(tmp_path: Path) -> Bench:
    """No job is finished."""
    return Bench(tmp_path)


@pytest.fixture
def bench(empty: Bench) -> Bench:
    """All jobs are finished."""
    empty.run(finish)
    assert len(empty.trained) == 6
    return empty


def job_of(bench: Bench, run: str, seed: int = 0) -> Job:
    return next(job for job in bench.jobs() if (job.run, job.seed) == (run, seed))


# -- failures --------------------------------------------------------------------------------------


def failing(run: str, error: Exception) -> Callable[[list[str]], None]:
    def launch(argv: list[str]) -> None:
        if value_of("run.name", argv) == run and "--seed_everything=0" in argv:
            raise error
        finish(argv)

    return launch


@pytest.mark.parametrize(
    "error", [UserError("the loss became nan"), ValueError("a [bug]")]
)
def test_a_failing_job_does_not_stop_the_others(error: Exception, empty: Bench) -> None:
    bench = empty
    jobs = bench.run(failing("student-alone", error))
    assert len(bench.trained) == 6
    assert [job.name for job in jobs if not job.finished] == ["student-alone/0"]
    assert (
        f"student-alone, seed 0 failed: {'' if isinstance(error, UserError) else 'Value'}"
        in (bench.said)
    )
    assert str(error) in bench.said


@pytest.mark.parametrize("workers_count", [1, 2])
def test_jobs_that_need_a_failed_one_are_not_run(
    workers_count: int, empty: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = empty
    launch = failing("teacher", UserError("the loss became nan"))
    monkeypatch.setattr(runner, "Workers", partial(FakeWorkers, launch))
    jobs = bench.run(launch, workers_count)
    assert "distilled/0" not in bench.trained
    assert (
        "distilled, seed 0 failed: not run, because teacher, seed 0 failed"
        in bench.said
    )
    assert sum(job.finished for job in jobs) == 4
    # The next call runs what is missing.
    bench.run(finish)
    assert bench.trained == ["teacher/0", "distilled/0"]


class FakeWorkers:
    """Stands for `Workers`: runs jobs in this process."""

    def __init__(self, launch: Launch, count: int) -> None:
        self.launch = launch
        self.running: list[Job] = []
        self.count = count

    def __enter__(self) -> FakeWorkers:
        return self

    def __exit__(self, *error: object) -> None: ...

    @property
    def has_idle(self) -> bool:
        return len(self.running) < self.count

    def start(self, job: Job) -> None:
        self.running.append(job)

    def wait(self, seconds: float) -> list[workers.Ended]:
        if not self.running:
            return []
        job = self.running.pop(0)
        try:
            return [workers.Ended(job, None, execute(job, self.launch))]
        except UserError as error:
            return [workers.Ended(job, str(error), [])]


def test_results_name_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = failing("student-alone", UserError("the loss became nan"))
    monkeypatch.setattr("kd_lightning.runs.command.execute", launch)
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, {**MINI, "paper": {}})
    code = main(["reproduce", str(path), "--output", "out", "--store", "store"])
    _, err = capsys.readouterr()
    assert code == 2
    assert err == "kd: 1 of 6 runs failed: student-alone, seed 0: the loss became nan\n"
    content = json.loads(Path("out/results.json").read_text())
    [failed] = content["failed"]
    assert failed == {"run": "student-alone", "seed": 0, "error": "the loss became nan"}
    assert (
        "Incomplete: 1 runs failed and are missing: student-alone (seed 0)."
        in content["note"]
    )
    values = {
        row["run"]: row["n"]
        for row in content["rows"]
        if row["metric"] == "test_errors"
    }
    assert values == {"teacher": 2, "student-alone": 1, "distilled": 2}
    assert "Incomplete" in Path("out/results.md").read_text()


def test_a_summary_is_one_line(bench: Bench) -> None:
    failures = [Failure(job, "why") for job in bench.jobs()]
    assert summary(failures, 6) == (
        "6 of 6 runs failed: teacher, seed 0: why; also teacher, seed 1; student-alone, seed 0; "
        "student-alone, seed 1 and 2 more"
    )


def test_values_that_are_not_finite_do_not_stop_the_results(bench: Bench) -> None:
    job = job_of(bench, "distilled")
    record = read_record(job.folder)
    record["metrics"]["test_errors"] = float("nan")
    record.pop("stored")
    (job.folder / "run.json").write_text(json.dumps(record))
    spec = {**MINI, "metrics": ["test_errors"]}
    experiment = load(str(write(bench.folder, spec)))
    content = results.collect(experiment, bench.jobs(), bench.folder)
    results.write(experiment, content, bench.folder)
    assert "not finite (1 of 2)" in (bench.folder / "results.md").read_text()


# -- changed runs ----------------------------------------------------------------------------------


def test_a_run_trained_further_by_hand_is_trained_again(bench: Bench) -> None:
    job = job_of(bench, "student-alone")
    job.checkpoint.write_bytes(b"trained further")
    assert "last.ckpt changed" in str(alteration(job.folder, job.record))
    bench.run(finish)
    assert bench.trained == ["student-alone/0"]
    assert (
        "student-alone, seed 0: last.ckpt changed after the run was finished"
        in bench.said
    )
    bench.run(finish)
    assert bench.trained == []


def test_changed_metrics_are_measured_again(bench: Bench) -> None:
    job = job_of(bench, "student-alone")
    record = job.record
    record["metrics"]["test_errors"] = 1.0
    (job.folder / "run.json").write_text(json.dumps(record))
    bench.run(finish)
    assert bench.trained == ["student-alone/0"]


def test_a_changed_teacher_is_trained_again(bench: Bench) -> None:
    job_of(bench, "teacher").checkpoint.write_bytes(b"zeros")
    bench.run(finish)
    # Its students still have the weights of the teacher that was trained again.
    assert bench.trained == ["teacher/0"]


def test_students_of_other_weights_are_trained_again(bench: Bench) -> None:
    job_of(bench, "teacher").checkpoint.write_bytes(b"zeros")

    def launch(argv: list[str]) -> None:
        finish(argv, b"of another machine")

    bench.run(launch)
    assert bench.trained == ["teacher/0", "distilled/0"]
    assert (
        "distilled, seed 0: it was made with other weights of teacher, seed 0"
        in bench.said
    )


def test_checkpoints_may_be_deleted(bench: Bench) -> None:
    for job in bench.jobs():
        job.checkpoint.unlink()
    bench.run(finish)
    assert bench.trained == []


def test_a_run_in_use_is_not_removed(bench: Bench) -> None:
    job = job_of(bench, "student-alone")
    job.checkpoint.write_bytes(b"trained further")
    with locked(job.folder):
        bench.run(finish)
    assert "is in use by another process" in bench.said
    assert job.checkpoint.read_bytes() == b"trained further"


@pytest.mark.parametrize("best", [True, False])
def test_a_damaged_checkpoint_is_not_a_dead_end(
    best: bool, bench: Bench, tmp_path: Path
) -> None:
    job = job_of(bench, "student-alone")
    (job.folder / "run.json").write_text('{"status": "running"}')
    job.checkpoint.write_bytes(b"cut")
    if best:
        torch.save({"epoch": 0}, job.checkpoint.with_name("best.ckpt"))
    bench.run(finish)
    if best:
        assert bench.trained == ["student-alone/0 resumed"]
        assert "last.ckpt cannot be read; the run resumes from best.ckpt" in bench.said
    else:
        assert bench.trained == ["student-alone/0"]
        assert "last.ckpt cannot be read; the run starts over" in bench.said


# -- workers ---------------------------------------------------------------------------------------


def job(folder: Path, name: str = "a") -> Job:
    return Job(name, 0, {}, folder / name, ["fit"], [])


def die(pipe: Any, threads: int, parent: int) -> None:
    """A worker whose process is killed when it gets a job."""
    pipe.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_named_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A forked worker starts at once.
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda kind: context)
    monkeypatch.setattr(workers, "_work", die)
    with Workers(1) as pool:
        for name in ("a", "b"):
            pool.start(job(tmp_path, name))
            ended: list[Any] = []
            while not ended:
                ended = pool.wait(seconds=10)
            [(failed, problem, _)] = ended
            assert failed.run == name
            assert "its process ended" in str(problem)
            assert pool.has_idle


def test_a_lost_connection_is_the_end_of_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost:
        def recv(self) -> None:
            raise ConnectionResetError

        def close(self) -> None: ...

    pool = Workers(0)
    pipe: Any = Lost()
    pool._jobs[pipe] = job(tmp_path)
    pool._processes[pipe] = subprocess.Popen([sys.executable, "-c", ""])  # type: ignore[assignment]
    monkeypatch.setattr(workers, "wait", lambda pipes, timeout: pipes)
    monkeypatch.setattr(Workers, "_add_process", lambda self: None)
    [ended] = pool.wait(seconds=1)
    assert "its process ended" in str(ended.problem)


ORPHAN = """
import os, signal, sys, threading, time
from kd_lightning.experiments import workers
# A shell lets commands in the background ignore this signal.
signal.signal(signal.SIGINT, signal.default_int_handler)
workers.WATCH_EVERY_S = 0.02
# Before the fork: the child may run only after its parent has ended.
parent = os.getpid()
child = os.fork()
if child:
    time.sleep(0.2)
    os._exit(0)  # the parent dies; the child has a job
threading.Thread(target=workers._watch_parent, args=(parent,), daemon=True).start()
try:
    time.sleep(30)
except KeyboardInterrupt:
    open(sys.argv[1], "w").write("interrupted")
"""


def test_a_worker_without_a_parent_ends(tmp_path: Path) -> None:
    path = tmp_path / "ended"
    subprocess.run([sys.executable, "-c", ORPHAN, str(path)], check=True)
    # A busy machine takes long to start a process.
    end = time.monotonic() + 120
    # The file is empty for a moment after it is created.
    while not (path.exists() and path.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    assert path.read_text() == "interrupted"


def test_execute_reports_nothing_of_a_plain_run(tmp_path: Path) -> None:
    new = Job("a", 0, {}, tmp_path / "a", ["fit", f"--run.dir={tmp_path / 'a'}"], [])
    assert execute(new, finish) == []
    assert new.finished

"""Changes one place of the package at a time, and counts the changes that no test notices.

    python benchmarks/mutation/run.py --mutants 240

Every change is made in a copy of the repository. The tests of the changed file run in a forked
child of one process that has imported torch and Lightning, so that a mutant takes seconds. Results
are added to a file of JSON lines; a second call continues where the first one stopped.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import report
from fitting import tests_for
from mutants import Mutant, in_turn

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results.jsonl"
FOLDERS = ("kd_lightning/losses", "kd_lightning/teachers")
COPIED = ("kd_lightning", "tests", "configs", "experiments", "pyproject.toml")
LIMIT_S = 400.0
"""What a mutant may take: many times what the tests of a file take on a busy machine."""

IMPORTED = (
    "torch",
    "torchvision",
    "torchmetrics",
    "lightning.pytorch",
    "jsonargparse",
    "sklearn.datasets",
    "scipy.stats",
    "pytest",
)
"""What the children need; nothing of the package itself, which each child reads anew."""


@dataclass(frozen=True)
class Ended:
    """How the tests of a changed file ended.

    Attributes:
        outcome: "killed", "survived" or "timeout".
        seconds: how long they took.
        by: the test that failed first; empty if there is none.
    """

    outcome: str
    seconds: float
    by: str


def copy_of_repository(folder: Path) -> Path:
    """Copy what the tests need, and return the copy's root."""
    tree = folder / "tree"
    tree.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, tree / name, ignore=ignored)
        else:
            shutil.copy(source, tree / name)
    return tree


def source_files(folders: Sequence[str]) -> list[str]:
    """The files below these folders, relative to the root."""
    paths = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.stem != "__init__":
                paths.append(path.relative_to(ROOT).as_posix())
    return paths


def run_tests(tree: Path, tests: Sequence[str], limit_s: float) -> Ended:
    """Run tests in a forked child, until the first failure.

    Args:
        tree: the copy of the repository.
        tests: arguments of pytest.
        limit_s: the time limit in seconds.
    """
    log = tree.parent / "log.txt"
    began = time.monotonic()
    process = os.fork()
    if process == 0:
        # Nothing of the parent may run on in the child, whatever happens here.
        code = 99
        try:
            code = _test(tree, tests, log)
        finally:
            os._exit(code)
    code = _wait(process, limit_s)
    seconds = round(time.monotonic() - began, 1)
    if code is None:
        return Ended("timeout", seconds, "")
    text = log.read_text(errors="replace")
    if code == 0:
        return Ended("survived", seconds, "")
    # 1: a test failed. 2: the package cannot be imported.
    if code not in (1, 2):
        raise RuntimeError(f"pytest ended with {code}: {text[-2000:]}")
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", text, re.MULTILINE)
    return Ended("killed", seconds, failed.group(1) if failed else "")


def _test(tree: Path, tests: Sequence[str], log: Path) -> int:
    """Run pytest in this process; returns its exit code."""
    import pytest

    os.setpgid(0, 0)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(tree)
    # Another copy of the package may be installed.
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    spec = importlib.util.find_spec("kd_lightning")
    if spec is None or not str(spec.origin).startswith(str(tree)):
        return 98
    options = ["-q", "-x", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist"]
    temporary = f"--basetemp={tree.parent / 'temporary'}"
    return int(pytest.main([*options, temporary, *tests]))


def _wait(process: int, limit_s: float) -> int | None:
    """The exit code of a child; None if it exceeded the limit and was killed."""
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        finished, status = os.waitpid(process, os.WNOHANG)
        if finished:
            # What the tests started and did not stop.
            _kill_group(process)
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    _kill_group(process)
    os.waitpid(process, 0)
    return None


def _kill_group(process: int) -> None:
    try:
        os.killpg(process, signal.SIGKILL)
    except ProcessLookupError:
        # Every process of the group has ended.
        return


def write_source(tree: Path, path: str, content: bytes) -> None:
    """Write a file of the copy, and remove its compiled form, which could pass for current."""
    target = tree / path
    target.write_bytes(content)
    for compiled in (target.parent / "__pycache__").glob(f"{target.stem}.*"):
        compiled.unlink()


def check_killers(tree: Path, rows: Sequence[report.Row]) -> None:
    """Run the tests that failed for a mutant without any change: they must pass.

    Raises:
        RuntimeError: if one of them fails, so that its mutants were not killed by it.
    """
    killers = sorted({row["by"] for row in rows if row["by"]})
    if not killers:
        return
    ended = run_tests(tree, killers, 60 * len(killers))
    if ended.outcome != "survived":
        raise RuntimeError(f"without a change: {ended.outcome} {ended.by}")
    print(f"{len(killers)} tests killed mutants; all of them pass without a change")


def finished_names(results: Path, again: Sequence[str]) -> set[str]:
    """The names of the mutants whose result is known, without those to run again."""
    names = set()
    for row in report.rows(results):
        if row["outcome"] not in again:
            names.add(row["name"])
    return names


def run(arguments: argparse.Namespace) -> None:
    """Run the mutants that have no result yet."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("WANDB_MODE", "disabled")
    for module in IMPORTED:
        importlib.import_module(module)
    paths = source_files(arguments.folder or FOLDERS)
    order = in_turn(ROOT, paths, arguments.seed)
    chosen = list(itertools.islice(order, arguments.mutants))
    known = finished_names(arguments.output, arguments.again)
    missing = [mutant for mutant in chosen if mutant.name not in known]
    ends = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as folder:
        tree = copy_of_repository(Path(folder))
        for number, mutant in enumerate(missing, 1):
            if time.monotonic() > ends:
                print("the time is over; call the same command again to continue")
                break
            ended = run_mutant(tree, mutant, arguments.golden)
            report.add(arguments.output, mutant, ended.outcome, ended.seconds, ended.by)
            place = f"{mutant.path}:{mutant.line} {mutant.kind}"
            count = f"[{number}/{len(missing)}]"
            print(f"{count} {ended.outcome} {ended.seconds} s: {place}", flush=True)
        names = {mutant.name for mutant in chosen}
        rows = [row for row in report.rows(arguments.output) if row["name"] in names]
        print(report.table(rows))
        check_killers(tree, rows)


def run_mutant(tree: Path, mutant: Mutant, golden: bool) -> Ended:
    """Run the tests of a changed file, and restore it.

    Args:
        tree: the copy of the repository.
        mutant: the change.
        golden: whether the recorded first steps of training count as tests of a loss.
    """
    original = (ROOT / mutant.path).read_bytes()
    write_source(tree, mutant.path, mutant.applied(original))
    try:
        return run_tests(tree, tests_for(tree, mutant.path, golden), LIMIT_S)
    finally:
        write_source(tree, mutant.path, original)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    options = argparse.ArgumentParser(description="Count the changes no test notices.")
    options.add_argument("--mutants", type=int, default=240, help="how many to run")
    options.add_argument(
        "--folder", action="append", choices=FOLDERS, help="default: both folders"
    )
    options.add_argument("--seed", type=int, default=0, help="chooses the mutants")
    options.add_argument(
        "--minutes", type=float, default=1e9, help="stop after this time"
    )
    options.add_argument(
        "--golden",
        action="store_true",
        help="also run the recorded first steps of training, which take seconds each",
    )
    options.add_argument(
        "--again",
        action="append",
        default=[],
        choices=("killed", "survived", "timeout"),
        help="run mutants with this result again; may be repeated",
    )
    options.add_argument(
        "--output", type=Path, default=RESULTS, help="the file of JSON lines"
    )
    return options


if __name__ == "__main__":
    run(parser().parse_args())

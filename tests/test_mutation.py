"""benchmarks/mutation: which changes it makes of a file, in which order, and that it sees a survivor."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "mutation"

SOURCE = b'''\
"""Text with 1 + 1."""
from typing import ClassVar
LIMIT = 4


class Loss:
    """A loss."""
    year: ClassVar[int] = 2015
    exact: ClassVar[bool] = True

    def value(self, a: "list[int]", b, weight: float = 0.5):
        # \xc3\xa4: columns are counted in bytes
        assert a is not None
        if a.sum(-1) < weight:
            raise ValueError(f"{weight + 1}")
        return -weight * distance(a.detach(), b) + b.mean(dim=1)
'''


@pytest.fixture
def mutants(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("mutants")


def changes(mutants: ModuleType) -> set[tuple[str, str, str]]:
    found = mutants.mutants_of("loss.py", SOURCE)
    return {(mutant.kind, mutant.before, mutant.after) for mutant in found}


def test_what_is_changed(mutants: ModuleType) -> None:
    total = "-weight * distance(a.detach(), b)"
    assert changes(mutants) == {
        ("constant", "4", "5"),
        ("constant", "True", "False"),
        ("constant", "0.5", "1.0"),
        ("dimension", "-1", "0"),
        ("comparison", "a.sum(-1) < weight", "(a.sum(-1) <= weight)"),
        ("raise", 'raise ValueError(f"{weight + 1}")', "pass"),
        ("plus/minus", f"{total} + b.mean(dim=1)", f"({total} - b.mean(dim=1))"),
        ("times/divide", total, "(-weight / distance(a.detach(), b))"),
        ("sign", "-weight", "(weight)"),
        ("arguments", "distance(a.detach(), b)", "(distance(b, a.detach()))"),
        ("detach", "a.detach()", "(a)"),
        ("dimension", "1", "0"),
    }


def test_every_mutant_of_the_package_is_python(mutants: ModuleType) -> None:
    path = "kd_lightning/losses/rkd.py"
    content = (ROOT / path).read_bytes()
    found = mutants.mutants_of(path, content)
    assert len(found) > 20
    for mutant in found:
        changed = mutant.applied(content)
        ast.parse(changed)
        assert changed != content


def test_beginnings_cover_files_and_kinds(mutants: ModuleType, tmp_path: Path) -> None:
    for name in ("one.py", "two.py"):
        (tmp_path / name).write_bytes(SOURCE)
    paths = ["one.py", "two.py"]
    order = list(mutants.in_turn(tmp_path, paths, seed=0))
    assert [mutant.path for mutant in order[:4]] == ["one.py", "two.py"] * 2
    # One mutant of each kind comes before the second one of any.
    kinds = [mutant.kind for mutant in order if mutant.path == "one.py"]
    assert len(set(kinds[: len(set(kinds))])) == len(set(kinds))
    assert len(order) == len(set(order)) == 24
    assert order == list(mutants.in_turn(tmp_path, paths, seed=0))
    assert order != list(mutants.in_turn(tmp_path, paths, seed=1))


def test_results_are_of_one_version_of_a_file(mutants: ModuleType) -> None:
    (before, *_) = mutants.mutants_of("loss.py", SOURCE)
    (after, *_) = mutants.mutants_of("loss.py", SOURCE + b"\n")
    assert before.name != after.name


def test_every_file_has_tests_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    fitting = importlib.import_module("fitting")
    for folder in ("losses", "teachers"):
        for path in (ROOT / "kd_lightning" / folder).rglob("*.py"):
            if path.stem == "__init__":
                continue
            name = path.relative_to(ROOT).as_posix()
            tests = fitting.tests_for(ROOT, name, golden=True)
            assert tests, name
            for test in tests:
                assert (ROOT / test.partition("::")[0]).is_file(), (name, test)


def test_the_table_counts_the_last_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    mutants = importlib.import_module("mutants")
    report = importlib.import_module("report")
    first, second, *_ = mutants.mutants_of("kd_lightning/losses/own.py", SOURCE)
    results = tmp_path / "results.jsonl"
    for mutant, outcome in (
        (first, "survived"),
        (second, "timeout"),
        (first, "killed"),
    ):
        report.add(results, mutant, outcome, 1.0, "")
    assert report.table(report.rows(results)).splitlines()[2:] == [
        "| losses/own.py | 2 | 1 | 0 | 1 |",
        "| all | 2 | 1 | 0 | 1 |",
    ]


@pytest.mark.slow
def test_a_run_is_continued(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    command = [
        sys.executable,
        str(FOLDER / "run.py"),
        "--folder=kd_lightning/losses",
        f"--output={results}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for count in (1, 2):
        subprocess.run(
            [*command, f"--mutants={count}"], check=True, env=environment, timeout=1200
        )
        lines = results.read_text().splitlines()
        assert len(lines) == count
    assert {json.loads(line)["outcome"] for line in lines} <= {"killed", "survived"}

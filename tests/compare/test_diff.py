"""`kd compare --diff A B`: settings, data, code and versions."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.cli import main
from tests.compare.comparing import SPEC, make_run, refused

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def differences(capsys: Capture, *runs: str) -> dict[tuple[str, str], list[str]]:
    """What `--format json` prints: the values of both runs by kind and name."""
    capsys.readouterr()
    assert main(["compare", "--diff", *runs, "--format", "json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["runs"] == list(runs)
    found = {}
    for entry in content["differences"]:
        found[entry["kind"], entry["name"]] = entry["values"]
    return found


def test_settings_and_seeds(place: Path, capsys: Capture) -> None:
    changed = {
        "model.losses.kd.temperature": 2.0,
        "model.optimizer.lr": 0.1,
        # These decide where a run lies and what it shows, not its result.
        "run.root": "elsewhere",
        "trainer.enable_progress_bar": False,
    }
    a = make_run(place / "a", 0)
    b = make_run(place / "b", 3, settings=changed)
    assert differences(capsys, a, b) == {
        ("setting", "model.losses.kd.temperature"): ["4", "2"],
        ("setting", "model.optimizer.lr"): ["0.05", "0.1"],
        ("setting", "seed"): ["0", "3"],
    }


def test_a_loss_that_one_run_lacks(place: Path, capsys: Capture) -> None:
    a = make_run(place / "a", 0)
    b = make_run(place / "b", 0, settings={"model.losses.kd": None})
    # The loss's own settings follow from it.
    assert differences(capsys, a, b) == {("setting", "model.losses"): ["ce+kd", "ce"]}


def test_data_versions_and_commits(place: Path, capsys: Capture) -> None:
    other: dict[str, Any] = {**SPEC, "samples": {**SPEC["samples"], "train": 500}}
    checksums = {"train": "a" * 64, "test": "c" * 64}
    a = make_run(
        place / "a",
        0,
        data_sha256=checksums,
        versions={"torch": "2.6", "numpy": "2.0"},
        commit="1" * 40,
    )
    b = make_run(
        place / "b",
        0,
        data=other,
        data_sha256={**checksums, "train": "b" * 64},
        versions={"torch": "2.7", "numpy": "2.0"},
        commit="2" * 40,
    )
    assert differences(capsys, a, b) == {
        ("data", "train samples"): ["1000", "500"],
        ("data", "train sha256"): ["a" * 12, "b" * 12],
        ("code", "commit"): ["1" * 40, "2" * 40],
        ("version", "torch"): ["2.6", "2.7"],
    }


def test_files_of_the_code_by_their_keys(place: Path, capsys: Capture) -> None:
    """The keys of an experiment's runs name the version of each file."""
    keys = {
        "a": {"code.losses/kd.py": "1" * 16, "code.types.py": "5" * 16},
        "b": {"code.losses/dkd.py": "2" * 16, "code.types.py": "6" * 16},
    }
    for name, key in keys.items():
        make_run(place / name, 0, commit=name * 40)
        (place / name / "key.json").write_text(json.dumps(key))
    assert differences(capsys, "a", "b") == {
        ("code", "losses/kd.py"): ["1" * 12, "not used"],
        ("code", "types.py"): ["5" * 12, "6" * 12],
        ("code", "losses/dkd.py"): ["not used", "2" * 12],
    }


def test_teachers_of_one_name(place: Path, capsys: Capture) -> None:
    """Both teachers are called the same, but were trained in other ways."""
    for name, width in (("one", 32), ("two", 64)):
        settings = {"model.student.hidden": [width], "run.name": "teacher"}
        make_run(place / name / "teacher", 0, settings=settings)
        source = {"path": f"{place}/{name}/teacher/checkpoints/last.ckpt"}
        checkpoint = {"model.teacher.checkpoint": source["path"]}
        sha256 = name[0] * 64
        teacher = [{**source, "sha256": sha256, "network": "MLP"}]
        make_run(place / f"of-{name}", 0, settings=checkpoint, teacher=teacher)
    found = differences(capsys, "of-one", "of-two")
    first, second = found["setting", "model.teacher.checkpoint"]
    assert first.startswith("teacher (")
    assert second.startswith("teacher (")
    assert first != second
    assert found["teacher", "sha256"] == ["o" * 12, "t" * 12]


def test_formats(place: Path, capsys: Capture) -> None:
    a = make_run(place / "a", 0)
    b = make_run(place / "b", 1)
    assert main(["compare", "--diff", a, b, "--output", "diff.csv"]) == 0
    lines = list(csv.reader(io.StringIO(Path("diff.csv").read_text())))
    assert lines == [["kind", "name", a, b], ["setting", "seed", "0", "1"]]
    assert main(["compare", "--diff", a, b, "--format", "markdown"]) == 0
    assert "| setting | seed | 0 | 1 |" in capsys.readouterr().out
    assert main(["compare", "--diff", a, b]) == 0
    assert "seed" in capsys.readouterr().out
    assert main(["compare", "--diff", a, a]) == 0
    out = capsys.readouterr().out
    assert out == "Settings, data and code of both runs are the same.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--diff", "a", "gone"], "gone is not a run: it has no run.json"),
        (["--diff", "a"], "argument --diff: expected 2 arguments"),
        (["a", "--diff", "a", "a"], "--diff A B stands alone; remove runs"),
        (["--diff", "a", "a", "--plot", "x.png"], "remove --plot"),
        (["--diff", "a", "a", "--format", "latex"], "--diff has no format latex"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, place: Path, capsys: Capture
) -> None:
    make_run(place / "a", 0)
    assert message in refused(capsys, *arguments)

"""`kd init` writes projects whose own tests pass, and writes over nothing."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kd_lightning.cli import main

ROOT = Path(__file__).parents[2]
Capture = pytest.CaptureFixture[str]


def write_images(folder: Path) -> Path:
    """Two classes of small images, bright and dark."""
    for split, count in (("train", 12), ("test", 4)):
        for name, level in (("dark", 60), ("bright", 180)):
            target = folder / split / name
            target.mkdir(parents=True)
            for number in range(count):
                generator = np.random.default_rng(number)
                pixels = generator.integers(
                    level, level + 60, (36, 40, 3), dtype=np.uint8
                )
                Image.fromarray(pixels).save(target / f"{number}.png")
    return folder


def run_own_test(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the test that `kd init` wrote, in this process, which has imported torch already."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_data", raising=False)
    monkeypatch.setenv("KD_CACHE", str(project / "cache"))
    spec = spec_from_file_location("test_project", project / "test_project.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.test_teacher_and_student_train(project / "test-runs", monkeypatch)


def test_the_project_of_a_datamodule_passes_its_own_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    project = tmp_path / "project"
    assert main(["init", str(project)]) == 0
    assert f"cd {project}" in capsys.readouterr().out
    names = {path.name for path in project.iterdir()}
    assert names == {
        "Makefile",
        "README.md",
        "data.yaml",
        "my_data.py",
        "student.yaml",
        "teacher.yaml",
        "test_project.py",
    }
    run_own_test(project, monkeypatch)


def test_the_project_of_images_passes_its_own_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    write_images(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    assert main(["init", "project", "--images", "photos"]) == 0
    project = tmp_path / "project"
    assert not (project / "my_data.py").exists()
    assert 'path: "../photos"' in (project / "data.yaml").read_text()
    run_own_test(project, monkeypatch)


def test_the_makefile_trains_with_the_files_that_are_there(
    tmp_path: Path, capsys: Capture
) -> None:
    assert main(["init", str(tmp_path)]) == 0
    done = subprocess.run(
        ["make", "--dry-run", "--no-print-directory"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    commands = done.stdout.replace("\\\n", " ").splitlines()
    configs = set()
    for command in commands:
        words = command.split()
        assert words[0] == "kd"
        for before, after in pairwise(words):
            if before == "-c":
                configs.add(after)
    own = {name for name in configs if "/" not in name}
    assert own == {"data.yaml", "teacher.yaml", "student.yaml"}
    assert all((tmp_path / name).is_file() for name in own)
    assert all((ROOT / name).is_file() for name in configs - own)
    assert commands[-1] == "kd compare runs/teacher runs/student-alone runs/student"


def test_hidden_files_are_not_in_the_way(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / ".git").mkdir()
    assert main(["init", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["full"], "already holds 'notes.txt'"),
        (["full/notes.txt"], "is a file"),
        (["new", "--images", "nowhere"], "there is no folder nowhere"),
        (["new", "--images", "full"], "needs train/CLASS/ and test/CLASS/"),
        (["new", "--image", "full"], "unrecognized arguments"),
    ],
)
def test_mistakes_write_nothing(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert main(["init", *words]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "notes.txt"]

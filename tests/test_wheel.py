"""The wheel holds all that the checkout offers to `kd`."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHIPPED = "kd_lightning/_shipped"


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files of a wheel that was built from this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--wheel-dir",
        str(folder),
    ]
    done = subprocess.run(
        [*command, str(ROOT)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def files(folder: str, *patterns: str) -> set[str]:
    """The files of a folder of the checkout."""
    found = set()
    for pattern in patterns:
        for path in (ROOT / folder).rglob(pattern):
            if "__pycache__" not in path.parts:
                found.add(path.relative_to(ROOT).as_posix())
    return found


@pytest.mark.slow
def test_a_wheel_holds_the_package_and_what_it_ships(names: set[str]) -> None:
    package = files("kd_lightning", "*.py", "*.pyi", "py.typed", "*.jinja", "*.css")
    assert "kd_lightning/py.typed" in package
    assert package - names == set()
    shipped = files("configs", "*.yaml") | files("experiments", "*.yaml", "*.py")
    assert {f"{SHIPPED}/{name}" for name in shipped} - names == set()


@pytest.mark.slow
def test_a_wheel_holds_nothing_else(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"kd_lightning"}
    for part in ("__pycache__", ".venv", "tests", "runs/store", ".ckpt"):
        assert [name for name in names if part in name] == []
    assert any(name.endswith("licenses/LICENSE") for name in names)

"""Functions that an experiment's YAML names, by a dotted path or by a file beside the YAML."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kd_lightning.analyses.ties import tie_groups
from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Row, analyse
from kd_lightning.experiments.functions import load_function, resolve_function
from kd_lightning.experiments.spec import load
from kd_lightning.paths import shipped_root
from tests.experiments import MINI, write

SHIPPED = sorted((shipped_root() / "experiments").rglob("*.yaml"))
WITH_ANALYSES = [
    path for path in SHIPPED if "analyses" in yaml.safe_load(path.read_text())
]

FILE = """
from __future__ import annotations
from dataclasses import dataclass
from kd_lightning.experiments.analysis import Row
from .sibling import VALUE

@dataclass
class Answer:
    value: float = VALUE

def answer(runs, output):
    return [Row("a", "b", [Answer().value])]
"""


def write_file(folder: Path, value: float) -> None:
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text(FILE)
    (folder / "sibling.py").write_text(f"VALUE = {value}")


def test_a_dotted_path_is_imported() -> None:
    name = "kd_lightning.analyses.ties.tie_groups"
    assert resolve_function(name, Path("anywhere")) == name
    assert load_function(name) is tie_groups


def test_files_of_the_same_name_do_not_collide(tmp_path: Path) -> None:
    for name, value in (("one", 1.0), ("two", 2.0)):
        write_file(tmp_path / name, value)
        function = resolve_function("mine.py:answer", tmp_path / name)
        assert analyse("label", {"function": function}, {}, tmp_path) == [
            Row("a", "b", [value])
        ]


def test_the_path_is_relative_to_the_yaml(tmp_path: Path) -> None:
    write_file(tmp_path / "own", 3.0)
    content = {**MINI, "analyses": {"label": {"function": "own/mine.py:answer"}}}
    experiment = load(str(write(tmp_path, content)))
    assert experiment.analyses["label"]["function"] == f"{tmp_path}/own/mine.py:answer"


def test_a_missing_file_is_reported_before_any_training(tmp_path: Path) -> None:
    content = {**MINI, "analyses": {"label": {"function": "own/mine.py:answer"}}}
    with pytest.raises(
        UserError, match=r"own/mine\.py:answer: there is no file .*own/mine\.py"
    ):
        load(str(write(tmp_path, content)))


def test_a_missing_function_is_reported(tmp_path: Path) -> None:
    write_file(tmp_path / "own", 3.0)
    function = resolve_function("own/mine.py:question", tmp_path)
    with pytest.raises(
        UserError, match=r"the analysis 'label': .* has no attribute 'question'"
    ):
        analyse("label", {"function": function}, {}, tmp_path)


def test_a_file_that_fails_can_be_loaded_once_it_is_mended(tmp_path: Path) -> None:
    write_file(tmp_path / "own", 3.0)
    (tmp_path / "own" / "broken.py").write_text("import no_such_module")
    function = resolve_function("own/broken.py:answer", tmp_path)
    with pytest.raises(ImportError, match="no_such_module"):
        load_function(function)
    (tmp_path / "own" / "broken.py").write_text("from .mine import answer  # mended")
    assert load_function(function)({}, tmp_path)[0].values == [3.0]


@pytest.mark.parametrize("path", WITH_ANALYSES, ids=lambda path: path.stem)
def test_every_shipped_analysis_can_be_loaded(path: Path) -> None:
    for analysis in load(str(path)).analyses.values():
        assert callable(load_function(analysis["function"]))

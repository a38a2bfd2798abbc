"""Who may import whom, and that every shipped config is one that works."""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import kd_lightning
from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.launch import launch
from kd_lightning.runs.parsing import parse_config
from tests.runs import COMMON, TEACHER

PACKAGE = Path(kd_lightning.__file__).parent
CONFIGS = PACKAGE.parent / "configs"

LAYERS = (
    {
        "__init__",
        "errors",
        "escaping",
        "masking",
        "files",
        "types",
        "row_chunks",
        "sparse",
        "trust",
        "limits",
        "paths",
        "randomness",
        "weights",
        "networks",
        "outputs",
        "spec",
        "catalog",
        "hub",
        "values",
        "yaml_files",
    },
    {"features", "metrics"},
    {"tasks"},
    {"losses", "models", "data"},
    {"teachers"},
    {"training"},
    {"specialists"},
    {"runs"},
    {"experiments"},
    {"export"},
    {"serving"},
    {"compare"},
    {"report"},
    {"analyses"},
    {"projects"},
    {"cli"},
    {"__main__"},
)
"""Each unit imports itself and units of earlier layers; those of the first layer also each other."""

LEVEL = {unit: level for level, units in enumerate(LAYERS) for unit in units}


def unit_of(path: Path) -> str:
    """The file or folder directly below the package that a source file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(source: str) -> Iterator[str]:
    """The dotted names that are imported, wherever in the file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_units(source: str) -> set[str]:
    """The units of this package that are imported; `from kd_lightning import name` is of `__init__`, if name is no unit."""
    parts = [name.split(".") for name in imported(source)]
    names = {
        part[1] if len(part) > 1 else "__init__"
        for part in parts
        if part[0] == "kd_lightning"
    }
    return {
        name if name in LEVEL or (PACKAGE / f"{name}.py").exists() else "__init__"
        for name in names
    }


def wrong(unit: str, source: str) -> set[str]:
    """The units that a unit must not import and does."""
    free = LAYERS[0] if unit in LAYERS[0] else set()
    return {
        other
        for other in own_units(source) - free - {unit}
        if LEVEL[other] >= LEVEL[unit]
    }


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_unit_has_its_layer() -> None:
    assert {unit_of(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    assert wrong(unit_of(path), path.read_text()) == set()


@pytest.mark.parametrize(
    ("unit", "source", "culprits"),
    [
        ("data", "def f():\n    from kd_lightning.losses.kd import KD", {"losses"}),
        ("data", "import kd_lightning.losses", {"losses"}),
        ("losses", "from kd_lightning import data, __version__", {"data"}),
        ("experiments", "from kd_lightning.cli import main", {"cli"}),
        (
            "teachers",
            "from kd_lightning.data import Jitter\nfrom kd_lightning.types import Batch",
            set(),
        ),
        ("__main__", "from kd_lightning.cli import entry", set()),
    ],
)
def test_the_check_itself(unit: str, source: str, culprits: set[str]) -> None:
    assert wrong(unit, source) == culprits


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "losses").glob("*.py")), ids=lambda path: path.stem
)
def test_losses_know_torch_alone(path: Path) -> None:
    source = path.read_text()
    assert {name.partition(".")[0] for name in imported(source)} <= {
        "torch",
        "kd_lightning",
        *sys.stdlib_module_names,
    }
    assert own_units(source) <= {"types", "errors", "spec", "losses", "randomness"}


# -- configs ----------------------------------------------------------------------------------------------------------


def files(folder: str) -> list[Path]:
    found = sorted((CONFIGS / folder).rglob("*.yaml"))
    assert found, folder
    return found


def ident(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


def parsed(*argv: str) -> dict[str, Any]:
    return parse_config(["fit", *argv])


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")  # whatever the run sets is undone
        result = launch(
            resolve_configs(
                [*TEACHER, f"--run.root={tmp_path_factory.mktemp('teacher')}"]
            )
        )
    return str(result.folder / "checkpoints" / "last.ckpt")


def test_every_method_has_a_config_of_its_name() -> None:
    losses = {path.stem for path in (PACKAGE / "losses").glob("[!_]*.py")} - {"base"}
    configs = {path.stem for path in files("methods")}
    assert losses <= configs
    assert {
        name.partition("_")[0] for name in configs
    } <= losses  # others are variants: crd_inbatch is one of crd


def roles(path: Path) -> set[str]:
    """The student's roles that a method's YAML reads."""
    found: set[str] = set()
    for entry in yaml.safe_load(path.read_text())["model"]["init_args"][
        "losses"
    ].values():
        module, _, name = entry["class_path"].rpartition(".")
        found |= getattr(import_module(module), name)(
            **entry.get("init_args", {})
        ).student_roles
    return found


IMAGES = [
    *(
        "-c",
        "configs/trainer.yaml",
        "-c",
        "configs/data/digits.yaml",
        "-c",
        "configs/loggers/csv.yaml",
    ),
    *("--data.channels=3", "--data.fraction=0.1", "--data.batch_size=32"),
    *(
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ),
]
MAPS = CONFIGS / "pairs" / "resnet20_resnet8.yaml"
MAPPED = set(yaml.safe_load(MAPS.read_text())["model"]["init_args"]["layers"])


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher with feature maps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        argv = [
            "fit",
            *IMAGES,
            "-c",
            "configs/teachers/cifar_resnet20.yaml",
            "--model.network.depth=8",
        ]
        result = launch(
            resolve_configs([*argv, f"--run.root={tmp_path_factory.mktemp('teacher')}"])
        )
    return str(result.folder / "checkpoints" / "last.ckpt")


REGRESSION = {"targetmse"}
"""Methods for real-valued targets; tests/runs/test_tabular.py trains with them."""

IMAGE_METHODS = [
    path
    for path in files("methods")
    if roles(path) <= MAPPED and path.stem not in REGRESSION
]


def marked(path: Path) -> object:
    """A method, with the slow tests if the tests of its loss train with its YAML themselves."""
    loss = path.stem.partition("_")[0]
    own = Path(__file__).parent / "losses" / f"test_{loss}.py"
    trains = "run_method(" in own.read_text()
    return pytest.param(path, marks=[pytest.mark.slow] if trains else [])


@pytest.mark.parametrize("path", map(marked, IMAGE_METHODS), ids=ident)
def test_every_method_trains_with_a_pair(
    path: Path, convolutional: str, tmp_path: Path
) -> None:
    pair = [
        "fit",
        *IMAGES,
        "-c",
        str(MAPS),
        "-c",
        str(path),
        f"--model.teacher.checkpoint={convolutional}",
    ]
    # A hint alone trains no weights behind its layer; the others reach all of the student.
    metrics = launch(resolve_configs([*pair, f"--run.root={tmp_path}"])).metrics
    assert math.isfinite(metrics["train_loss"])
    assert any(
        math.isfinite(metrics.get(f"train_loss_{name}", math.nan))
        for name in (path.stem, path.stem.partition("_")[0])
    )


@pytest.mark.parametrize("path", files("recipes"), ids=ident)
def test_every_recipe_trains_with_a_pair(
    path: Path, convolutional: str, tmp_path: Path
) -> None:
    before, after = IMAGES[:-3], IMAGES[-3:]
    assert after[0] == "--trainer.max_epochs=1"
    pair = ["-c", str(MAPS), "-c", str(path)]
    teacher = f"--model.teacher.checkpoint={convolutional}"
    argv = ["fit", *before, *pair, *after, teacher, f"--run.root={tmp_path}"]
    metrics = launch(resolve_configs(argv)).metrics
    assert math.isfinite(metrics["train_loss"])


@pytest.mark.parametrize("path", files("teachers"), ids=ident)
def test_every_teacher_is_understood(path: Path) -> None:
    own = next(
        (data for data in files("data") if path.stem.startswith(data.stem)),
        CONFIGS / "data" / "digits.yaml",
    )
    config = parsed("-c", str(own), "-c", str(path))
    assert config["model"]["class_path"] == "kd_lightning.ClassifierModule"
    assert config["run"]["job_type"] == "teacher"


@pytest.mark.parametrize("path", files("pairs"), ids=ident)
def test_every_pair_is_understood(path: Path) -> None:
    # Some pairs also set options of their data.
    sets_data = "data" in yaml.safe_load(path.read_text())
    config = parsed(
        "-c",
        "configs/data/books.yaml" if sets_data else "configs/data/digits.yaml",
        "-c",
        str(path),
        "-c",
        "configs/methods/kd.yaml",
    )
    names = ("kd_lightning.DistillationModule", "kd_lightning.training.OnPolicyModule")
    assert config["model"]["class_path"] in names
    assert {"student", "teacher", "losses"} <= set(config["model"]["init_args"])


@pytest.mark.parametrize("path", [*files("data"), *files("loggers")], ids=ident)
def test_every_other_config_is_understood(path: Path) -> None:
    needed = ["--data.generalist=last.ckpt"] if path.stem == "specialist" else []
    config = parsed(
        *COMMON, "-c", "configs/teachers/digits_mlp.yaml", "-c", str(path), *needed
    )
    assert config["data"]["init_args"]["batch_size"] > 0
    if path.parent.name == "data":
        assert (
            config["data"]["class_path"]
            == yaml.safe_load(path.read_text())["data"]["class_path"]
        )
    else:
        assert (
            config["run"]["wandb"]
            == {"csv": "off", "wandb": "auto", "tensorboard": "off"}[path.stem]
        )

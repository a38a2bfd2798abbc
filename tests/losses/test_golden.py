"""The losses of the first 20 steps of every method with its YAML, as they once were: whoever changes them means to.

In double precision, so that another processor or version of torch changes the last digits alone. `KD_GOLDEN=write pytest
tests/losses/test_golden.py` writes the curves of methods that have none yet; delete a line of golden.json to renew it.
"""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
import yaml

from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.launch import launch
from tests.sentences import write_sst2
from tests.test_architecture import MAPPED, REGRESSION, files, ident, roles
from tests.training.small import CONFIGS

STEPS = 20
CURVES = Path(__file__).with_name("golden.json")
COMMON_METHODS = {
    *("at", "ce", "crd", "dkd", "fitnets", "kd", "logitmse", "pkd", "rkd", "sskd"),
    *("taid", "vid"),
}
"""Methods of each kind, whose curves every run of the tests computes."""
COMMON = [
    *(
        "--data.batch_size=64",
        "--trainer.precision=64-true",
        "--trainer.accelerator=cpu",
    ),
    *("--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=0"),
]
IMAGES = [
    "-c",
    "configs/data/digits.yaml",
    "--data.channels=3",
    "--data.fraction=0.02",
    "--data.validation=0.0",
]
SEVERAL_TEACHERS = {"multiteacher": [], "camkd": ["--model.losses.camkd.teachers=2"]}
"""Methods that learn from an ensemble of two, and what they need to know of it."""

ENCODER = "{hidden_size: 16, intermediate_size: 16, num_attention_heads: 4, max_position_embeddings: 128, model_type: bert"


def curve(folder: Path, *argv: str) -> list[float]:
    """The loss of each step: there is one to an epoch."""
    launch(
        resolve_configs(
            [
                "fit",
                "-c",
                "configs/trainer.yaml",
                "-c",
                "configs/loggers/csv.yaml",
                *argv,
                *COMMON,
                f"--run.dir={folder}",
            ]
        )
    )
    with (folder / "metrics.csv").open() as lines:
        return [
            float(row["train_loss"])
            for row in csv.DictReader(lines)
            if row["train_loss"]
        ]


@pytest.fixture(scope="module", autouse=True)
def seeded() -> object:
    with pytest.MonkeyPatch.context() as patch:  # whatever the runs set is undone
        patch.setenv("PL_GLOBAL_SEED", "0")
        yield


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images") / "teacher"
    teacher = [
        "-c",
        "configs/teachers/cifar_resnet20.yaml",
        "--model.network.depth=8",
        "--trainer.max_epochs=5",
    ]
    curve(folder, *IMAGES, *teacher)
    pair = [
        "-c",
        "configs/pairs/resnet20_resnet8.yaml",
        f"--model.teacher.checkpoint={folder}/checkpoints/last.ckpt",
    ]
    return [*IMAGES, *pair]


@pytest.fixture(scope="module")
def two_heads(images: list[str]) -> list[str]:
    """The same data and teacher, and a student with a distillation token."""
    at = images.index("configs/pairs/resnet20_resnet8.yaml")
    return [*images[:at], "configs/pairs/resnet20_deit4.yaml", *images[at + 1 :]]


@pytest.fixture(scope="module")
def two_teachers(
    images: list[str], tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """The same data and student, and an ensemble of the same teacher and a younger one."""
    root = tmp_path_factory.mktemp("ensemble")
    younger = [
        "-c",
        "configs/teachers/cifar_resnet20.yaml",
        "--model.network.depth=8",
        "--trainer.max_epochs=3",
    ]
    curve(root / "teacher", *IMAGES, *younger)
    name = "--model.teacher.checkpoint="
    first = images[-1].removeprefix(name)
    pair = yaml.safe_load((CONFIGS / "pairs/resnet20_resnet8.yaml").read_text())
    layers = pair["model"]["init_args"]["teacher"]["init_args"]["layers"]
    members = []
    for checkpoint in (first, f"{root}/teacher/checkpoints/last.ckpt"):
        arguments = {"checkpoint": checkpoint, "layers": layers}
        members.append(
            {
                "class_path": "kd_lightning.teachers.ModelTeacher",
                "init_args": arguments,
            }
        )
    pair["model"]["init_args"]["teacher"] = {
        "class_path": "kd_lightning.teachers.EnsembleTeacher",
        "init_args": {"teachers": members},
    }
    (root / "pair.yaml").write_text(yaml.safe_dump(pair))
    return [*IMAGES, "-c", str(root / "pair.yaml")]


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")
    root = tmp_path_factory.mktemp("sentences")
    own = ["-c", "configs/data/sst2.yaml", f"--data.root={write_sst2(root)}"]
    deep = f"--model.network.architecture={ENCODER}, num_hidden_layers: 4}}"
    own_rate = [
        "--data.tokenizer.size=300",
        "--model.scheduler.max_lr=0.001",
    ]  # whatever the shipped one is
    teacher = ["-c", "configs/teachers/sst2_transformer.yaml", deep, *own_rate]
    curve(root / "teacher", *own, *teacher, "--trainer.max_epochs=10")
    pair = [
        "-c",
        "configs/text/pieces.yaml",
        "-c",
        "configs/pairs/transformer4_transformer2.yaml",
        *own_rate,
    ]
    student = f"--model.student.architecture={ENCODER}, num_hidden_layers: 2}}"
    return [
        *own,
        *pair,
        student,
        f"--model.teacher.checkpoint={root}/teacher/checkpoints/last.ckpt",
    ]


def test_no_curve_is_lost() -> None:
    """A new method may come without one; those that have one keep it."""
    kept = "at ce crd crd_inbatch distilbert dkd fitnets fitnets_hint kd logitmse logitstandardization pkd rkd sp tinybert vid"
    assert set(json.loads(CURVES.read_text())) >= set(kept.split())


def marked(path: Path) -> object:
    """The curve of a method; most of them run with the slow tests, because each takes seconds."""
    is_common = path.stem in COMMON_METHODS
    return pytest.param(path, marks=[] if is_common else pytest.mark.slow)


@pytest.mark.parametrize(
    "path",
    [marked(path) for path in files("methods") if path.stem not in REGRESSION],
    ids=ident,
)
def test_the_first_steps_are_as_they_were(
    path: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    known = json.loads(CURVES.read_text())
    writing = os.environ.get("KD_GOLDEN") == "write"
    if path.stem not in known and not writing:
        pytest.skip(
            f"no curve of {path.stem} yet: KD_GOLDEN=write pytest {Path(__file__).name} writes it"
        )
    fixture = "images" if roles(path) <= MAPPED else "sentences"
    if "distillation" in roles(path):
        fixture = "two_heads"
    several = SEVERAL_TEACHERS.get(path.stem.partition("_")[0])
    if several is not None:
        fixture = "two_teachers"
    pair = request.getfixturevalue(fixture)
    epochs = f"--trainer.max_epochs={STEPS}"
    more = several or []
    losses = curve(tmp_path / "run", *pair, "-c", str(path), epochs, *more)
    assert len(losses) == STEPS
    if path.stem not in known:
        known[path.stem] = losses
        lines = (
            f"{json.dumps(name)}: {json.dumps(values)}"
            for name, values in sorted(known.items())
        )
        CURVES.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    assert losses == pytest.approx(known[path.stem], rel=1e-6)


def test_curves_belong_to_methods() -> None:
    assert set(json.loads(CURVES.read_text())) <= {
        path.stem for path in (CONFIGS / "methods").glob("*.yaml")
    }

"""Every teacher, pair and data set under configs/ takes its first steps through the command line, on files in the true format.

Methods: tests/test_architecture.py, tests/losses/test_golden.py. Pairs of transformers: tests/runs/test_text.py.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from kd_lightning.data import CIFAR10DataModule, CIFAR100DataModule
from kd_lightning.errors import UserError
from kd_lightning.runs.configs import MOVED, resolve_configs
from kd_lightning.runs.launch import launch
from kd_lightning.runs.parsing import parse_config
from tests.data.corpus.texts import write_corpus
from tests.data.images.camvid import write_camvid
from tests.data.images.test_cifar import SmallCIFAR10, SmallCIFAR100, write_cifar
from tests.data.images.test_mnist import write_mnist
from tests.data.images.test_omniglot import write_omniglot
from tests.data.speech.spoken import spoken_digits
from tests.data.tabular.tables import lines_of
from tests.data.tabular.tables import write as write_table
from tests.sentences import save_bert, write_sst2
from tests.specialists.small import generalist
from tests.training.small import CONFIGS

pytest.importorskip("librosa", reason="pip install 'kd_lightning[speech]'")

TEACHERS = sorted(
    path.stem
    for path in (CONFIGS / "teachers").glob("*.yaml")
    if not path.stem.startswith("sst2_")
)
PAIRS = sorted(
    path.stem
    for path in (CONFIGS / "pairs").glob("*.yaml")
    if "transformer" not in path.stem
)
DATA = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml"))
OWN = {
    "mlp1200": "mnist_mlp1200",
    "digits": "digits_mlp",
    "spoken": "spoken_digits_dnn",
    "unet32": "camvid_unet",
    "table": "breast_cancer_mlp",
    "llama6": "books_llama",
    "language": "books_llama",
    "bert6": "masked_books_bert",
}
"""The teacher of a pair, by how the pair's name begins; of the others it is cifar_ and the name's first part."""


TWO_HEADS = {"resnet20_deit4": "harddistillation_token"}
"""Pairs whose student has a second head, with the method that trains it."""


LARGE = ("resnet50", "resnet32x4", "resnet110", "vgg13", "wrn40-2")
"""Networks whose first steps take seconds; those of a smaller one of their kind run each time."""


def marked(name: str) -> object:
    """A config, with the slow tests if its teacher is large."""
    is_large = name.removeprefix("cifar_").startswith(LARGE)
    return pytest.param(name, marks=[pytest.mark.slow] if is_large else [])


def write_images(root: Path) -> None:
    """A folder of images of two classes and zips of it, by the names that the shipped data sets have."""
    drawn = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for name in ("ant", "bee"):
            (root / "images" / split / name).mkdir(parents=True)
            for at in range(count):
                pixels = drawn.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(
                    root / "images" / split / name / f"{at}.png"
                )
    for archive in ("cifar10-jpeg", "tiny-imagenet-100-32"):
        shutil.make_archive(str(root / archive), "zip", root / "images")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("data")
    for write in (write_cifar, write_omniglot, write_sst2, spoken_digits, write_images):
        write(folder)
    write_camvid(folder / "camvid-240x180")
    write_corpus(folder / "books", repeats=200)
    write_table(folder / "table.csv", lines_of(60))
    write_mnist(folder, 60_000, 10_000)  # no other number passes for MNIST
    for split in ("train", "dev", "test"):
        shutil.copy(folder / "SST2" / f"{split}.tsv", folder / f"{split}.tsv")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10DataModule, "samples", SmallCIFAR10.samples)
        patch.setattr(CIFAR100DataModule, "samples", SmallCIFAR100.samples)
        patch.setenv("PL_GLOBAL_SEED", "0")  # whatever the runs set is undone
        patch.setenv("KD_CACHE", str(folder / "cache"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("KD_DATA_ROOT", str(folder))
        yield folder


def first_steps(
    folder: Path, data: str, *files: str, more: tuple[str, ...] = ()
) -> Path:
    """Train and validate a batch each; the checkpoint."""
    names = ["trainer", f"data/{data}", *files, "loggers/csv"]
    argv = [
        "fit",
        *(word for name in names for word in ("-c", str(CONFIGS / f"{name}.yaml"))),
    ]
    limits = [
        "--trainer.max_epochs=1",
        "--trainer.limit_train_batches=1",
        "--trainer.limit_val_batches=1",
    ]
    quiet = [
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--run.test=no",
        "--data.batch_size=4",
    ]
    run = launch([*argv, *limits, *quiet, *more, f"--run.dir={folder}"])
    assert math.isfinite(run.metrics["train_loss"])
    return folder / "checkpoints" / "last.ckpt"


def data_for(teacher: str) -> str:
    return next(
        (name for name in DATA if teacher.startswith(f"{name}_")), "cifar10_jpeg"
    )


@pytest.fixture(scope="module")
def checkpoints(root: Path) -> dict[str, Path]:
    """Teachers that have taken their first steps, by name."""
    return {}


def checkpoint(teacher: str, root: Path, checkpoints: dict[str, Path]) -> Path:
    if teacher not in checkpoints:
        checkpoints[teacher] = first_steps(
            root / "runs" / teacher, data_for(teacher), f"teachers/{teacher}"
        )
    return checkpoints[teacher]


@pytest.mark.parametrize("name", map(marked, TEACHERS))
def test_every_teacher_trains(
    name: str, root: Path, checkpoints: dict[str, Path]
) -> None:
    assert checkpoint(name, root, checkpoints).is_file()


@pytest.mark.parametrize("name", map(marked, PAIRS))
def test_every_pair_trains(
    name: str, root: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    first = name.partition("_")[0]
    teacher = OWN.get(first, f"cifar_{first}")
    path = checkpoint(teacher, root, checkpoints)
    given = (
        f"--model.teacher.checkpoints=[{path}]"
        if teacher == OWN["spoken"]
        else f"--model.teacher.checkpoint={path}"
    )
    first_steps(
        tmp_path / "run",
        data_for(teacher),
        f"pairs/{name}",
        f"methods/{TWO_HEADS.get(name, 'kd')}",
        more=(given,),
    )


@pytest.mark.parametrize("name", DATA)
def test_every_data_set_serves_a_network(name: str, root: Path, tmp_path: Path) -> None:
    teacher = {
        "sst2": "sst2_bilstm",
        "text": "sst2_bilstm",
        "spoken_digits": "spoken_digits_dnn",
        "camvid": "camvid_unet",
        "books": "books_llama",
        "masked_books": "masked_books_bert",
        "breast_cancer": "breast_cancer_mlp",
        "diabetes": "diabetes_mlp",
        "tabular": "breast_cancer_mlp",
    }.get(name, "digits_mlp")
    more = {
        "cifar100": ("--data.validation=0.0",),  # fewer than two images a class
        "text": ("--data.train_file=train.tsv", "--data.validation_file=dev.tsv"),
        "tabular": ("--data.target=species", "--data.categorical=[city]"),
        "specialist": (f"--data.generalist={generalist(tmp_path)}",),
    }
    first_steps(tmp_path / "run", name, f"teachers/{teacher}", more=more.get(name, ()))


@pytest.mark.parametrize("name", ["teacher_pieces", "teacher_pretrained"])
def test_a_student_of_words_learns_from_a_teacher_of_pieces(
    name: str, root: Path, tmp_path: Path
) -> None:
    """Pieces that the teacher learned from the sentences, or those of a pretrained folder."""
    if name == "teacher_pieces":
        teacher = first_steps(tmp_path / "teacher", "sst2", "teachers/sst2_transformer")
        more: tuple[str, ...] = ()
    else:
        bert = save_bert(tmp_path / "bert", root)
        own = (f"--model.network.pretrained={bert}", f"--data.tokenizer.name={bert}")
        teacher = first_steps(
            tmp_path / "teacher", "sst2", "teachers/sst2_bert", more=own
        )
        more = (f"--data.teacher_tokenizer.name={bert}",)
    files = (f"text/{name}", "pairs/transformer_bilstm", "methods/logitmse")
    first_steps(
        tmp_path / "run",
        "sst2",
        *files,
        more=(*more, f"--model.teacher.checkpoint={teacher}"),
    )


def test_configs_of_version_0_1_still_name_classes_that_moved(tmp_path: Path) -> None:
    old = {
        "data": {
            "class_path": "kd_lightning.data.spoken_digits.SpokenDigitsDataModule",
            "init_args": {"root": "x"},
        }
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(old))
    _, _, given = resolve_configs(["fit", "-c", str(path)])
    assert yaml.safe_load(given)["data"] == {
        "class_path": "kd_lightning.data.SpokenDigitsDataModule",
        "init_args": {"root": "x"},
    }


def test_configs_of_version_0_1_still_name_the_fraction_of_labels(
    tmp_path: Path,
) -> None:
    digits = {
        "class_path": "kd_lightning.data.DigitsDataModule",
        "init_args": {"labels": 0.1},
    }
    specialist = {
        "class_path": "kd_lightning.data.SpecialistDataModule",
        "init_args": {"data": digits, "generalist": "x"},
    }
    path = tmp_path / "config.yaml"
    for data in (digits, {"init_args": {"labels": 0.1}}, specialist):
        path.write_text(yaml.safe_dump({"data": data}))
        _, _, given = resolve_configs(["fit", "-c", str(path)])
        arguments = yaml.safe_load(given)["data"]["init_args"]
        inner = arguments["data"]["init_args"] if "data" in arguments else arguments
        assert inner == {"label_fraction": 0.1}
    assert (
        parse_config(["fit", *_base(path, digits)])["data"]["init_args"][
            "label_fraction"
        ]
        == 0.1
    )


def _base(path: Path, data: Mapping[str, object]) -> list[str]:
    """Arguments with a teacher for the digits and a config that holds this data."""
    path.write_text(yaml.safe_dump({"data": data}))
    teacher = CONFIGS / "teachers" / "digits_mlp.yaml"
    return ["-c", str(CONFIGS / "trainer.yaml"), "-c", str(path), "-c", str(teacher)]


def test_labels_of_texts_keep_their_name(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    data = {
        "class_path": "kd_lightning.data.TextDataModule",
        "init_args": {"labels": [0, 1]},
    }
    path.write_text(yaml.safe_dump({"data": data}))
    assert resolve_configs(["fit", "-c", str(path)]) == ["fit", "-c", str(path)]
    argv = ["fit", "--data.labels=[a, b]", "--data.labels", "[a]"]
    assert resolve_configs(argv) == argv


@pytest.mark.parametrize(
    "option",
    [["--data.labels=0.1"], ["--data.labels", "0.1"], ["--data.init_args.labels=0.1"]],
)
def test_the_old_option_of_labels_names_the_new_one(option: list[str]) -> None:
    with pytest.raises(UserError, match=r"label_fraction=0\.1"):
        resolve_configs(["fit", *option])


@pytest.mark.parametrize("class_path", MOVED.values())
def test_moved_classes_can_be_imported(class_path: str) -> None:
    module, _, name = class_path.rpartition(".")
    assert callable(getattr(import_module(module), name))

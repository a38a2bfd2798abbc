"""What decides a run's result: its key changes with that and with nothing else."""

from __future__ import annotations

from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import pytest
import torch

import kd_lightning.losses.kd
from kd_lightning.data import DigitsDataModule, Images
from kd_lightning.experiments import imports, keys
from kd_lightning.experiments.imports import PACKAGE, code_version
from kd_lightning.experiments.keys import address, config_key, difference, run_key
from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.parsing import parse_config
from kd_lightning.runs.settings import flat
from tests.runs import student


class OtherDigits(DigitsDataModule):
    """The digits, but for one pixel."""

    def load(self, split: str) -> Images:
        data = super().load(split)
        images = data.images.clone()
        images[0, 0, 0, 0] += 1
        return Images(images, data.target)


def key(*more: str) -> dict[str, Any]:
    return run_key(resolve_configs([*student("teacher.ckpt"), *more]))


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return key()


def test_where_a_run_is_kept_and_shown_does_not_matter(base: dict[str, Any]) -> None:
    other = key(
        *(
            "--run.name=other",
            "--run.root=/elsewhere",
            "--run.dir=/elsewhere/run",
            "--run.wandb=offline",
            "--run.tags=[a]",
        ),
        *(
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            "--trainer.default_root_dir=/elsewhere",
        ),
        *(
            "--data.resident=false",
            "--seed_everything=7",
            "--trainer.max_epochs=1",
        ),  # the last is as it was
    )
    assert difference(base, other) == ""
    assert address(other) == address(base)


@pytest.mark.parametrize(
    ("argument", "changed"),
    [
        ("--model.losses.kd.temperature=2", "temperature (4.0 -> 2.0)"),
        ("--model.losses.kd.weight=0.5", "weight (0.9 -> 0.5)"),
        ("--model.student.hidden=[8]", "hidden ([16] -> [8])"),
        ("--model.optimizer.lr=0.01", "lr (0.05 -> 0.01)"),
        ("--trainer.max_epochs=2", "trainer.max_epochs (1 -> 2)"),
        ("--trainer.precision=bf16-mixed", "trainer.precision (unset -> bf16-mixed)"),
        ("--data.batch_size=32", "batch_size (64 -> 32)"),
        ("--data.label_fraction=0.5", "label_fraction (1.0 -> 0.5)"),
        ("--data.split_seed=1", "split_seed (0 -> 1)"),
    ],
)
def test_what_is_trained_on_and_how_matters(
    argument: str, changed: str, base: dict[str, Any]
) -> None:
    other = key(argument)
    assert difference(base, other).endswith(changed)
    assert address(other) != address(base)


def test_files_count_by_content_not_by_path(
    base: dict[str, Any], tmp_path: Path
) -> None:
    first, second, folder = (
        tmp_path / "first.ckpt",
        tmp_path / "second.ckpt",
        tmp_path / "bert",
    )
    first.write_bytes(b"weights")
    second.write_bytes(b"weights")
    one, other = (key(f"--model.init_from={path}") for path in (first, second))
    assert address(one) == address(other) != address(base)
    second.write_bytes(b"other weights")
    assert difference(one, key(f"--model.init_from={second}")).startswith(
        "model.init_args.init_from (sha256:"
    )
    folder.mkdir()
    before = key(f"--model.teacher.checkpoint={folder}")
    (folder / "config.json").write_text("{}")
    assert key(f"--model.teacher.checkpoint={folder}") != before


def test_threads_matter(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    assert difference(base, key()) == f"threads ({threads} -> {threads + 1})"


def test_the_samples_matter(base: dict[str, Any]) -> None:
    other = key("--data=tests.experiments.test_keys.OtherDigits")
    assert other["data checksum"] != base["data checksum"]
    assert key("--data=DigitsDataModule")["data checksum"] == base["data checksum"]


def version(folder: Path, name: str, *changes: tuple[str, str]) -> str:
    """The version of kd.py with these words changed."""
    text = Path(str(kd_lightning.losses.kd.__file__)).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / f"{name}.py"  # versions are remembered by path
    path.write_text(text)
    return code_version(path)


def test_comments_docstrings_and_layout_do_not_change_the_code(tmp_path: Path) -> None:
    same = version(tmp_path, "same")
    line = "        self.temperature = positive("
    assert (
        version(tmp_path, "comment", (line, f"        # a comment\n\n{line}")) == same
    )
    assert (
        version(
            tmp_path, "module", ('"""Soft targets: Hinton', '"""Other words: Hinton')
        )
        == same
    )
    assert (
        version(tmp_path, "class", ("The weights belong to", "Other words about"))
        == same
    )
    assert (
        version(tmp_path, "function", ("A scalar; zero if both agree.", "Other words."))
        == same
    )


@pytest.mark.parametrize(
    "change",
    [
        ("* temperature**2", "* temperature**3"),
        ("temperature**2", "temperature*2"),
        ('"batchmean"', '"mean"'),
        ("4.0", "5.0"),
    ],
)
def test_another_operator_or_number_changes_the_code(
    change: tuple[str, str], tmp_path: Path
) -> None:
    assert version(tmp_path, "other", change) != version(tmp_path, "same")


def test_the_docstring_of_an_attribute_does_not_change_the_code(tmp_path: Path) -> None:
    line = '    family: ClassVar[str] = "response"\n'
    assert version(
        tmp_path, "with", (line, f'{line}    """Where it belongs."""\n')
    ) == version(tmp_path, "same")


def test_flat_names_every_leaf() -> None:
    nested: dict[str, Any] = {
        "a": {"b": 1, "c": [1, 2]},
        "d": [{"e": 3}, {"e": 4}],
        "f": {},
        "g": None,
    }
    assert dict(flat(nested)) == {
        "a.b": 1,
        "a.c": [1, 2],
        "d.0.e": 3,
        "d.1.e": 4,
        "f": {},
        "g": None,
    }


def test_a_difference_names_three_keys_and_counts_the_others() -> None:
    assert difference({"a": 1}, {"a": 1}) == ""
    assert difference({"a": 1}, {"b": 2}) == "a (1 -> unset), b (unset -> 2)"
    assert difference(dict.fromkeys("abcde", 1), dict.fromkeys("abcde", 2)).endswith(
        "c (1 -> 2) and 2 more"
    )


def test_an_address_is_16_hex_digits_whatever_the_order() -> None:
    assert (
        address({"a": 1, "b": 2})
        == address({"b": 2, "a": 1})
        != address({"a": 1, "b": 3})
    )
    assert len(address({})) == 16
    assert int(address({}), 16) >= 0


# -- code --------------------------------------------------------------------------------------------------------------

DECISIVE = (
    "data/datamodule.py",
    "data/images/datamodule.py",
    "data/images/digits.py",
    "data/images/source.py",
    "data/loader.py",
    "data/fetch.py",
    "data/schedule.py",
    "data/source.py",
    "data/subsets.py",
    "features.py",
    "losses/base.py",
    "losses/ce.py",
    "losses/kd.py",
    "metrics.py",
    "tasks/base.py",
    "tasks/classification.py",
    "models/mlp.py",
    "networks.py",
    "randomness.py",
    "runs/build.py",
    "runs/spec_arguments.py",
    "runs/launch.py",
    "spec.py",
    "teachers/base.py",
    "teachers/model.py",
    "training/checkpointing.py",
    "training/evaluated_module.py",
    "training/initial_weights.py",
    "training/learner.py",
    "training/lightning_compat.py",
    "training/module.py",
    "training/objective.py",
    "training/distillation.py",
    "training/means.py",
    "training/optimizers.py",
    "training/prepared_module.py",
    "training/quick_hooks.py",
    "types.py",
    "weights/fitting.py",
)
"""Files of each room that decide the result of distilling an MLP on the digits with KD."""

UNRELATED = (
    "__init__.py",
    "analyses/ties.py",
    "catalog.py",
    "cli.py",
    "compare/labels.py",
    "data/__init__.py",
    "data/images/mnist.py",
    "data/speech/hmm.py",
    "data/text/sentences.py",
    "experiments/keys.py",
    "experiments/results.py",
    "hub.py",
    "losses/__init__.py",
    "losses/_gather.py",
    "losses/crd.py",
    "models/__init__.py",
    "models/vgg.py",
    "runs/progress.py",
    "runs/machine.py",
    "runs/session_callback.py",
    "runs/wandb.py",
    "specialists/data.py",
    "teachers/cache/table.py",
    "tasks/segmentation.py",
    "teachers/ensemble.py",
    "training/capture_file.py",
    "training/classifier.py",
    "training/loss_measurements.py",
)
"""Files of each room that do not."""


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return parse_config(student("teacher.ckpt"))


def address_after_change(
    config: dict[str, Any],
    changed: str,
    monkeypatch: pytest.MonkeyPatch,
    **options: bool,
) -> str:
    """The address of a run after a change in one file of the package."""
    path = PACKAGE / changed
    assert path.is_file()

    def changed_version(other: Path) -> str:
        return "changed" if other == path else code_version(other)

    monkeypatch.setattr(keys, "code_version", changed_version)
    return address(config_key(config, **options))


@pytest.mark.parametrize("name", DECISIVE)
def test_a_change_in_a_file_that_the_run_uses_changes_its_address(
    name: str,
    config: dict[str, Any],
    base: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert address_after_change(config, name, monkeypatch) != address(base)


@pytest.mark.parametrize("name", UNRELATED)
def test_a_change_in_another_file_does_not(
    name: str,
    config: dict[str, Any],
    base: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert address_after_change(config, name, monkeypatch) == address(base)


def test_only_code_of_the_run_is_in_its_key(base: dict[str, Any]) -> None:
    """Rooms whose files are chosen by the config contribute only the files of that choice."""
    files = {name.removeprefix("code.") for name in base if name.startswith("code.")}
    chosen = {"losses": 3, "models": 1, "teachers": 4}
    for room, count in chosen.items():
        assert len([name for name in files if name.startswith(f"{room}/")]) == count
    assert not [name for name in files if name.startswith(("data/text", "data/speech"))]


@pytest.mark.parametrize(
    ("text", "same"),
    [("# a comment\n", True), ('"""A string"""\n', True), ("x = 1\n", False)],
)
def test_one_more_line_in_the_source_counts_if_it_does_something(
    text: str,
    same: bool,
    config: dict[str, Any],
    base: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = imports.read_source

    def edited(path: Path) -> str:
        return read(path) + (text if path == PACKAGE / "models" / "mlp.py" else "")

    imports.clear_caches()
    monkeypatch.setattr(imports, "read_source", edited)
    try:
        changed = difference(base, config_key(config))
    finally:
        imports.clear_caches()
    assert changed == "" if same else changed.startswith("code.models/mlp.py (")


def test_the_torch_version_matters_but_not_its_build(
    base: dict[str, Any], config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    public = torch.__version__.partition("+")[0]
    monkeypatch.setattr(torch, "__version__", f"{public}+other")
    assert address(config_key(config)) == address(base)
    monkeypatch.setattr(torch, "__version__", "99.0")
    assert difference(base, config_key(config)) == f"version.torch ({public} -> 99.0)"


def test_helpers_beside_a_loss_count() -> None:
    method = [
        "-c",
        "configs/methods/sp.yaml",
        "-c",
        "configs/pairs/digits_mlp256_mlp16.yaml",
    ]
    key = run_key(
        ["fit", "-c", "configs/trainer.yaml", "-c", "configs/data/digits.yaml", *method]
    )
    assert {
        "code.losses/sp.py",
        "code.losses/_gather.py",
        "code.losses/base.py",
    } <= set(key)


def test_a_cache_depends_on_the_code_that_writes_it(
    config: dict[str, Any], base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = config_key(config, caches=True)
    assert {"code.teachers/cache/writer.py", "code.teachers/cache/codec.py"} <= set(
        cache
    )
    assert "code.runs/launch.py" not in cache
    changed = address_after_change(
        config, "teachers/cache/codec.py", monkeypatch, caches=True
    )
    assert changed != address(cache)


def test_the_network_in_a_checkpoint_counts(
    config: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "teacher.ckpt"
    network = {"class_path": "kd_lightning.models.CIFARVGG", "init_args": {}}
    torch.save({"kd_lightning": {"network": network}}, path)
    assert "code.models/vgg.py" in key(f"--model.teacher.checkpoint={path}")


def test_modules_of_the_user_count(base: dict[str, Any]) -> None:
    other = key("--data=tests.experiments.test_keys.OtherDigits")
    assert "user code.tests/experiments/test_keys.py" in other
    assert "code.data/images/digits.py" in other  # the base class
    assert not [name for name in base if name.startswith("user code.")]


def test_imports_of_the_user_are_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absolute and relative imports, and names that a package re-exports."""
    package = tmp_path / "lab_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from .shapes import square\nfrom . import other\n"
    )
    (package / "shapes.py").write_text("def square(x):\n    return x * x\n")
    (package / "other.py").write_text("")
    (package / "unused.py").write_text("")
    (package / "loss.py").write_text(
        "import math\n\n"
        "import torch\n\n"
        "import helper_of_mine\n"
        "from lab_of_mine import square\n"
        "from . import other\n"
        "from kd_lightning.losses import KD\n\n\n"
        "class MyLoss(KD):\n    pass\n"
    )
    (tmp_path / "helper_of_mine.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = imports.class_file("lab_of_mine.loss.MyLoss")
    assert path is not None
    labels = {imports.label(file) for file in imports.reached_files([path])}
    assert labels == {
        "user code.helper_of_mine.py",
        "user code.lab_of_mine/loss.py",
        "user code.lab_of_mine/other.py",
        "user code.lab_of_mine/shapes.py",
        "code.errors.py",
        "code.losses/base.py",
        "code.losses/kd.py",
        "code.spec.py",
        "code.types.py",
        "code.values.py",
    }


def test_relative_imports_need_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder without `__init__.py` is a package, too."""
    folder = tmp_path / "namespace_of_mine" / "inner"
    folder.mkdir(parents=True)
    (folder / "loss.py").write_text(
        "from ..shapes import square\nfrom . import other\n"
    )
    (folder / "other.py").write_text("")
    (folder.parent / "shapes.py").write_text("")
    names = {file.name for file in imports.reached_files([folder / "loss.py"])}
    assert names == {"loss.py", "other.py", "shapes.py"}


def test_installed_packages_count_by_version() -> None:
    versions = keys.code_key(
        {"model.network.class_path": "torchvision.models.resnet18"}
    )
    assert (
        versions["version.torchvision"] == version_of("torchvision").partition("+")[0]
    )
    assert not [
        name for name in versions if "site-packages" in name or "resnet" in name
    ]


def test_the_files_named_by_the_key_exist() -> None:
    for name in (*keys._TRAINING, *keys._CACHING, *keys._REPORTING):
        assert (PACKAGE / name).is_file(), name

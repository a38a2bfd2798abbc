"""The configuration reference: the arguments of the classes that a config can name."""

from __future__ import annotations

import inspect
from importlib import import_module

from docs.generate.arguments import arguments_table, body_of
from docs.generate.markdown import table
from kd_lightning import catalog
from kd_lightning.runs.short_help import GROUPS

INTRODUCTION = """\
# Configuration reference

Generated from signatures and docstrings. A config names a class by `class_path` and its arguments
by `init_args`; on the command line, `--data.batch_size=64` sets one of them. The arguments of losses
are on the [pages of the methods](methods/index.md). `trainer.*` are the arguments of Lightning's
Trainer. `kd fit ... --print_config` prints the whole config of a command.
"""

SECTIONS: dict[str, tuple[str, ...]] = {
    "run: where a run is stored and how it is logged": (
        "kd_lightning.runs.options.RunOptions",
    ),
    "model: what is trained": (
        "kd_lightning.training.ClassifierModule",
        "kd_lightning.training.DistillationModule",
        "kd_lightning.training.MutualModule",
        "kd_lightning.training.DataFreeModule",
        "kd_lightning.training.OnPolicyModule",
    ),
    "model.teacher: what to learn from": (
        "kd_lightning.teachers.ModelTeacher",
        "kd_lightning.teachers.EnsembleTeacher",
        "kd_lightning.teachers.CachedTeacher",
        "kd_lightning.teachers.EMATeacher",
        "kd_lightning.specialists.SpecialistTeacher",
    ),
    "model.optimizer, model.scheduler, model.parameter_groups": (
        "kd_lightning.training.dot.DOT",
        "kd_lightning.training.schedulers.WarmupCosineLR",
        "kd_lightning.training.parameter_groups.ParameterGroup",
    ),
    "data.task: what is predicted": (
        "kd_lightning.tasks.Classification",
        "kd_lightning.tasks.MultilabelClassification",
        "kd_lightning.tasks.Regression",
        "kd_lightning.tasks.Segmentation",
    ),
    "trainer.callbacks of kd": (
        "kd_lightning.runs.fold.FoldTeachers",
        "kd_lightning.runs.compile.CompileNetworks",
    ),
}
"""The classes of each section; data, augmentations and networks follow from the catalog."""


def class_of(path: str) -> type:
    """The class of an import path.

    Raises:
        TypeError: if the path names something else.
    """
    module, _, name = path.rpartition(".")
    value = getattr(import_module(module), name)
    if not inspect.isclass(value):
        raise TypeError(f"{path} is not a class")
    return value


def reference_page() -> str:
    """The page."""
    lines = [INTRODUCTION, "## Common options of kd fit", "", *common_options(), ""]
    for title, paths in SECTIONS.items():
        lines += _section(title, paths)
    data = [str(row["class_path"]) for row in catalog.data()]
    lines += _section(
        "data: what is learned", ["kd_lightning.data.TensorDataModule", *data]
    )
    lines += _section("data.augment: augmentations", augmentations())
    networks = [str(row["class_path"]) for row in catalog.models()]
    lines += _section("model.network, model.student: networks", networks)
    return "\n".join(lines)


def common_options() -> list[str]:
    """The table of the options that `kd fit --help` shows."""
    rows = []
    for options in GROUPS["fit"].values():
        for option in options:
            name = f"`{option.name} {option.value}`".replace(" `", "`")
            rows.append([name, option.default, option.meaning])
    return table(["option", "default", "meaning"], rows)


def augmentations() -> list[str]:
    """The class paths of all augmentations that `kd_lightning.data` exports."""
    data = import_module("kd_lightning.data")
    base = class_of("kd_lightning.data.Augmentation")
    paths = []
    for name in dir(data):
        value = getattr(data, name)
        is_augmentation = inspect.isclass(value) and issubclass(value, base)
        if is_augmentation and value is not base:
            paths.append(f"kd_lightning.data.{name}")
    return paths


def _section(title: str, paths: tuple[str, ...] | list[str]) -> list[str]:
    """The lines of a section with one table per class."""
    lines = [f"## {title}", ""]
    for path in paths:
        cls = class_of(path)
        lines += [f"### {cls.__name__}", "", f"`{path}`", ""]
        # The first paragraph says what the class is for; its page in Python has the rest.
        lines += body_of(cls)[:2]
        lines += [*arguments_table(cls), ""]
    return lines

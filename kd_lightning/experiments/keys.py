"""A run's key: a flat mapping of everything that decides its result.

A hash of the key is the run's address in the store, so a finished run is reused only if its
settings, its data, the torch version, the number of threads and the code behind it are unchanged.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from kd_lightning.errors import UserError
from kd_lightning.experiments.imports import (
    PACKAGE,
    class_file,
    code_version,
    label,
    reached_files,
)
from kd_lightning.runs.parsing import parse_config
from kd_lightning.runs.settings import flat
from kd_lightning.trust import is_allowed
from kd_lightning.weights import KEY, read_file, sha256_of
from kd_lightning.yaml_files import YamlValue

Key = Mapping[str, Any]

_IRRELEVANT = (
    "run.",
    "ckpt_path",
    "seed_everything",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "trainer.default_root_dir",
    "data.init_args.root",
    "data.init_args.download",
    "data.init_args.resident",
)
"""Settings that change where a run is stored and how it is shown, but not its result.

The seed does change the result; the planner adds it to the key, so that all seeds share one parse.
"""

_TRAINING = ("runs/launch.py",)
"""Files that every training run starts from."""

_CACHING = ("runs/cache_command.py", "teachers/cache/teacher.py")
"""Files that `kd cache` starts from."""

_REPORTING = (
    "escaping.py",
    "files.py",
    "paths.py",
    "runs/config_errors.py",
    "runs/configs.py",
    "runs/csv_logger.py",
    "runs/fingerprint.py",
    "runs/folder.py",
    "runs/help.py",
    "runs/joined_lists.py",
    "runs/lock.py",
    "runs/machine.py",
    "runs/memory.py",
    "runs/options.py",
    "runs/pretrained.py",
    "runs/problems.py",
    "runs/profiler.py",
    "runs/progress.py",
    "runs/quiet.py",
    "runs/random_teacher.py",
    "runs/ranges.py",
    "runs/report.py",
    "runs/resume.py",
    "runs/session.py",
    "runs/session_callback.py",
    "runs/settings.py",
    "runs/suggestions.py",
    "runs/trainer_checks.py",
    "runs/wandb.py",
    "training/capture.py",
    "training/capture_file.py",
    "training/faults.py",
    "training/first_report.py",
    "training/loss_measurements.py",
    "training/measurements.py",
    "training/report_warnings.py",
    "trust.py",
    "yaml_files.py",
)
"""Files that read and check settings, name folders, log and report. A change in them changes no
result."""

_CODE_PREFIXES = ("code.", "user code.", "version.")


def is_relevant(name: str) -> bool:
    """Return whether a setting decides the result.

    Data may wrap other data; settings of the inner data are judged like those of the outer data.
    """
    while name.startswith("data.init_args.data."):
        name = name.removeprefix("data.init_args.")
    return not name.startswith(_IRRELEVANT)


def run_key(argv: list[str], caches: bool = False) -> dict[str, Any]:
    """Return the key of `kd fit` arguments, without the seed and the runs that this run needs.

    Args:
        argv: the arguments, starting with `fit`.
        caches: whether `kd cache` executes them.
    """
    return config_key(parse_config(argv), caches)


def config_key(config: Mapping[str, Any], caches: bool = False) -> dict[str, Any]:
    """Return the key of a resolved config; see `run_key`."""
    settings: dict[str, YamlValue] = {}
    leaves = dict(flat(config))
    for name, value in leaves.items():
        # A setting that is None has no effect, so that a new option does not retrain old runs.
        if is_relevant(name) and value is not None:
            settings[name] = value
    key: dict[str, Any] = {}
    for name, value in settings.items():
        key[name] = _by_content(name, value)
    # Which weights are tested: the last ones, or the best ones on the validation data.
    key["run.test"] = config["run"]["test"]
    key.update(code_key(settings, caches))
    key["data checksum"] = data_checksum(config["data"])
    # Sums over several threads round in another order.
    key["threads"] = torch.get_num_threads()
    return key


def code_key(settings: Mapping[str, YamlValue], caches: bool = False) -> dict[str, str]:
    """Return the versions of all code that decides the result of a run.

    Args:
        settings: the flat config, without irrelevant settings.
        caches: whether the run is a `kd cache`.

    Returns:
        `code.FILE` for each file of this package, `user code.FILE` for each file of the user and
        `version.PACKAGE` for each installed package that a class of the config is from.
    """
    entry_points = _CACHING if caches else _TRAINING
    start = [PACKAGE / name for name in entry_points]
    versions = {}
    for class_path in _class_paths(settings):
        path = class_file(class_path)
        if path is not None:
            start.append(path)
        else:
            package = class_path.partition(".")[0]
            versions.update(_installed_version(package))

    # Without the local part, such as "+cu126": builds of one version for a CPU and for a GPU
    # compute alike on the same device.
    versions["version.torch"] = _public(torch.__version__)

    files: dict[str, list[str]] = {}
    ignored = [PACKAGE / name for name in _REPORTING]
    for path in reached_files(start, ignored):
        files.setdefault(label(path), []).append(code_version(path))
    # Two packages of the user may hold files of the same name, so a label may have two versions.
    for name, file_versions in files.items():
        versions[name] = " ".join(sorted(file_versions))
    return versions


def is_code(name: str) -> bool:
    """Return whether an entry of a key is about code, not about settings or data."""
    return name.startswith(_CODE_PREFIXES)


def _class_paths(settings: Mapping[str, YamlValue]) -> set[str]:
    """Return the classes that a flat config names, also those in checkpoints that it names."""
    class_paths = set()
    for name, value in settings.items():
        if name.rpartition(".")[2] == "class_path":
            class_paths.add(str(value))
        elif isinstance(value, str) and value.endswith(".ckpt"):
            path = Path(value).expanduser()
            if path.is_file():
                modified = path.stat().st_mtime_ns
                class_paths.update(_checkpoint_classes(path, modified))
    return class_paths


@cache
def _checkpoint_classes(path: Path, modified: int) -> frozenset[str]:
    """Return the classes that a checkpoint's network is built from.

    `modified` is the file's modification time: a file that changed is read again.
    """
    try:
        content = read_file(path, str(path)).get(KEY)
    except UserError:
        # The run itself reports what is wrong with the file.
        return frozenset()
    # A checkpoint of another program has no such entry, and then names no classes.
    network = content.get("network") if isinstance(content, Mapping) else None
    class_paths = _class_paths(dict(flat(network)))
    # Finding the source of a class imports its module. The run refuses a class not trusted.
    return frozenset(name for name in class_paths if is_allowed(name))


def _installed_version(package: str) -> dict[str, str]:
    """Return the version of an installed package; nothing if the package has no version."""
    try:
        return {f"version.{package}": _public(version(package))}
    except PackageNotFoundError:
        return {}


def _public(package_version: str) -> str:
    """A version without its local part, which follows a plus sign."""
    return package_version.partition("+")[0]


def _by_content(name: str, value: YamlValue) -> YamlValue:
    """Replace the path of a file or of a pretrained model's folder with a hash of its content.

    The content decides the result, the location does not. Arguments of the data itself stay as
    they are, because a checksum of the samples is part of the key.
    """
    argument = name.removeprefix("data.init_args.")
    is_data_argument = argument != name and "." not in argument
    if is_data_argument or not isinstance(value, str) or not value:
        return value
    path = Path(value).expanduser()
    if path.is_file():
        return f"sha256:{_file_sha256(path)}"
    # Folders of the transformers library contain this file.
    if (path / "config.json").is_file():
        return f"sha256:{_folder_sha256(path)}"
    return value


def _folder_sha256(folder: Path) -> str:
    """A checksum over the names and contents of a folder's files."""
    sums = []
    for path in sorted(folder.iterdir()):
        if path.is_file():
            sums.append(f"{path.name} {_file_sha256(path)}")
    text = " ".join(sums)
    return hashlib.sha256(text.encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    """A checksum of a file, computed again if the file was modified."""
    return _cached_sha256(path, path.stat().st_mtime_ns)


@cache
def _cached_sha256(path: Path, modified: int) -> str:
    """The checksum of a file; `modified` only distinguishes entries of the cache."""
    return sha256_of(path)


def data_checksum(config: Mapping[str, Any]) -> str:
    """Return a checksum of the samples, computed once per process.

    Args:
        config: `class_path` and `init_args` of the data. If the data wraps other data, the
            samples of the inner data count.
    """
    init_args = config.get("init_args") or {}
    inner = init_args.get("data")
    if isinstance(inner, Mapping) and "class_path" in inner:
        return data_checksum(inner)
    # Arguments that the class passes on to a base class do not choose samples, nor do nested
    # objects such as augmentations.
    class_path = config["class_path"]
    arguments = {}
    for name in inspect.signature(_load_class(class_path)).parameters:
        if _is_plain(init_args.get(name)):
            arguments[name] = init_args[name]
    # As text, because a dictionary cannot be the key of the cache.
    return _data_checksum(class_path, json.dumps(arguments, sort_keys=True))


def _is_plain(value: YamlValue) -> bool:
    """Return whether an argument is given and holds no nested object."""
    if value is None:
        return False
    items: list[YamlValue] = [*value] if isinstance(value, list) else [value]
    return not _holds_mapping(items)


def _holds_mapping(items: list[YamlValue]) -> bool:
    """Whether one of the items is a nested object."""
    return any(isinstance(item, Mapping) for item in items)


@cache
def _data_checksum(class_path: str, arguments: str) -> str:
    """The checksum of the samples that a datamodule with these arguments, as JSON, serves."""
    data_class = _load_class(class_path)
    datamodule = data_class(**json.loads(arguments))
    samples = json.dumps(datamodule.fingerprint()["samples"], sort_keys=True)
    return hashlib.sha256(samples.encode()).hexdigest()[:16]


def _load_class(class_path: str) -> Any:
    """Import a class by its dotted path."""
    module, _, name = class_path.rpartition(".")
    return getattr(import_module(module), name)


def address(key: Key) -> str:
    """Return 16 hexadecimal digits that stand for a key, whatever the order of its entries."""
    # Values that JSON does not know, such as paths, count by their text.
    text = json.dumps(key, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def changed_names(old: Key, new: Key) -> list[str]:
    """Return the names of the entries that differ between two keys, settings before code."""
    all_names = {*old, *new}
    changed = []
    for name in all_names:
        if old.get(name) != new.get(name):
            changed.append(name)
    # False sorts before True.
    return sorted(changed, key=lambda name: (is_code(name), name))


def difference(old: Key, new: Key) -> str:
    """Describe the first three entries that differ, and count the others."""
    changed = changed_names(old, new)
    shown = []
    for name in changed[:3]:
        before = old.get(name, "unset")
        after = new.get(name, "unset")
        shown.append(f"{name} ({before} -> {after})")
    text = ", ".join(shown)
    if len(changed) > 3:
        text += f" and {len(changed) - 3} more"
    return text

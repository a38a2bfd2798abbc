"""Finds the config files that a command names, reads them and merges their losses and lists."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from kd_lightning.errors import UserError
from kd_lightning.paths import shipped
from kd_lightning.runs.joined_lists import JoinedLists
from kd_lightning.trust import check_config
from kd_lightning.values import Value, Values
from kd_lightning.yaml_files import read_yaml_file

MOVED = {
    "kd_lightning.data.SpecialistDataModule": "kd_lightning.specialists.SpecialistDataModule",
    "kd_lightning.data.spoken_digits.SpokenDigitsDataModule": (
        "kd_lightning.data.SpokenDigitsDataModule"
    ),
    "kd_lightning.teachers.SpecialistTeacher": "kd_lightning.specialists.SpecialistTeacher",
    "kd_lightning.teachers.SubsetTeacher": "kd_lightning.specialists.SubsetTeacher",
    # Configs may name a function or a class without arguments by its path alone.
    "kd_lightning.modules.optimizers.default_optimizer": (
        "kd_lightning.training.optimizers.default_optimizer"
    ),
}
"""Import paths of version 0.1 that have moved since; configs and run folders may still name them."""

Key: TypeAlias = "str | int | float | bool | None"
"""What YAML allows as a key."""

CONFIG_OPTIONS = ("-c", "--config")

SECTIONS = ("trainer", "model", "data", "run")
"""The keys of a config that hold other keys."""

_DIGITS = re.compile(r"[-+]?[0-9_]+")
_BASE_60 = re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")
_TIMES = ("time", "interval", "duration")
"""How the names of options end that may hold a time such as 00:12:00:00."""

_OLD_LABELS_OPTION = re.compile(r"--data\.(?:[\w.]+\.)?labels")
"""`--data.labels`, also of data that other data wraps."""


def with_current_names(config: Value) -> Any:
    """Translate the names of version 0.1 in a nested config.

    Args:
        config: as read from YAML.

    Returns:
        The same config with the current paths of moved classes. The fraction of labeled samples,
        once called `labels`, is called `label_fraction`.
    """
    if isinstance(config, list):
        return [with_current_names(item) for item in config]
    if isinstance(config, str):
        return MOVED.get(config, config)
    if not isinstance(config, dict):
        return config
    current = {key: with_current_names(value) for key, value in config.items()}
    arguments = current.get("init_args")
    # Text data has an argument `labels` too, but that one is a list.
    if isinstance(arguments, dict) and _is_number(arguments.get("labels")):
        current["init_args"] = _renamed(arguments, "labels", "label_fraction")
    return current


def _is_number(value: Value) -> bool:
    # A bool is an int to Python.
    return isinstance(value, int | float) and not isinstance(value, bool)


def _renamed(arguments: Values, old: str, new: str) -> dict[str, Value]:
    """Rename a key; the order of the keys stays."""
    renamed = {}
    for name, value in arguments.items():
        current = new if name == old else name
        renamed[current] = value
    return renamed


def read_config(path: Path, name: str) -> dict[str, Any]:
    """Read a config file.

    Args:
        path: the file.
        name: what an error message calls it.

    Raises:
        UserError: if the file does not hold keys with values.
    """
    content = read_yaml_file(path, f"the config file {name}")
    if not content:
        raise UserError(f"the config file {name} is empty")
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"the config file {name} holds a {kind}, not keys with values")
    check_sections(content, f"the config file {name}")
    return content


def check_sections(content: Mapping[Key, Value], place: str) -> None:
    """Check the top level of a config, and the arguments of its classes.

    Args:
        content: as read from YAML.
        place: what an error message calls the config.

    Raises:
        UserError: for a key that is not text, or a section or `init_args` without keys.
    """
    for key, value in content.items():
        if not isinstance(key, str):
            raise UserError(f"{place}: the key {key!r} must be text")
        # A model or data may be a class path alone.
        is_class_path = key in ("model", "data") and isinstance(value, str)
        if key in SECTIONS and not isinstance(value, dict) and not is_class_path:
            raise UserError(f"{place}: {_without_keys(key, value)}")
        _check_arguments(value, place, key)


def _check_arguments(value: Value, place: str, key: str) -> None:
    """Check the texts and the arguments of classes below a key."""
    if isinstance(value, str):
        _check_text(value, f"{place}: {key}")
    if isinstance(value, list):
        for number, item in enumerate(value):
            _check_arguments(item, place, f"{key}[{number}]")
    if not isinstance(value, dict):
        return
    for name, item in value.items():
        inner = f"{key}.{name}"
        if name in ("init_args", "dict_kwargs") and not isinstance(item, dict):
            raise UserError(f"{place}: {_without_keys(inner, item)}")
        _check_arguments(item, place, inner)


def _without_keys(key: str, value: Value) -> str:
    """What is wrong with a value that should be a mapping."""
    if value is None:
        return f"{key} is empty; remove it, or write its keys below it"
    return f"{key} must hold keys with values, got {repr(value)[:60]}"


def _check_text(text: str, key: str) -> None:
    """Refuse texts that the parser would take for strange numbers.

    Raises:
        UserError: for a number that is too long, or one to base 60 where no time belongs.
    """
    shown = text if len(text) <= 30 else f"{text[:27]}..."
    if len(text) > 30 and _DIGITS.fullmatch(text) is not None:
        raise UserError(f"{key}: the number {shown} is out of range")
    # The options of a run are names and folders, not numbers.
    option = key.rpartition(" ")[2]
    is_plain = key.endswith(_TIMES) or option.startswith(("run.", "--run."))
    if is_plain and len(text) <= 30:
        return
    if _BASE_60.fullmatch(text) is not None:
        raise UserError(
            f"{key} cannot be {shown}, which YAML takes for a number to base 60"
        )


def losses_of(content: Values) -> dict[str, Value]:
    """The losses of a config by name; empty if it has none.

    Args:
        content: of the config file.
    """
    node: Value = content
    for key in ("model", "init_args", "losses"):
        if not isinstance(node, dict):
            return {}
        node = node.get(key)
    if not isinstance(node, dict):
        return {}
    return node


def resolve_configs(argv: list[str]) -> list[str]:
    """Find and read the config files among the arguments of a command.

    A path that does not exist is looked up among the shipped configs. The parser would replace the
    losses of one file with those of the next. Here they are merged; if two files configure a loss
    of the same name, the later file wins. The lists of callbacks, loggers and augmentations are
    joined; see `JoinedLists`. The argument of `-c` is then the merged content as YAML, which the
    parser accepts instead of a path.

    Args:
        argv: the command's name and its arguments.

    Returns:
        The arguments for the parser.

    Raises:
        UserError: if a file is missing or damaged, or an option has a new name.
    """
    earlier = _Earlier()
    resolved = []
    expects_config = False
    for position, argument in enumerate(argv):
        if expects_config:
            resolved.append(_resolve_config(argument, earlier))
            expects_config = False
        elif argument.startswith("--config="):
            name = argument.removeprefix("--config=")
            resolved.append(f"--config={_resolve_config(name, earlier)}")
        else:
            _refuse_old_option(argument, argv[position + 1 : position + 2])
            _check_argument(argument, argv[position - 1] if position else "")
            resolved.append(argument)
            expects_config = argument in CONFIG_OPTIONS
    return resolved


@dataclass
class _Earlier:
    """What the config files before the current one hold.

    Attributes:
        losses: by name.
        lists: those that are joined.
    """

    losses: dict[str, Value] = field(default_factory=dict)
    lists: JoinedLists = field(default_factory=JoinedLists)


def _resolve_config(name: str, earlier: _Earlier) -> str:
    """The path of a config file, or its content as YAML if the content had to be changed.

    Args:
        name: as given on the command line.
        earlier: the files before this one; updated in place.
    """
    import yaml

    path = _config_path(name)
    written = read_config(path, name)
    content = with_current_names(written)
    changed = content != written
    own_losses = losses_of(content)
    # Losses of the same name are not mixed: their arguments may be of different classes.
    if own_losses and earlier.losses:
        content["model"]["init_args"]["losses"] = {**earlier.losses, **own_losses}
        changed = True
    earlier.losses.update(own_losses)
    if earlier.lists.join(content):
        changed = True
    # The path keeps the line numbers in the parser's messages right.
    if changed:
        return yaml.safe_dump(content, sort_keys=False)
    return str(path)


def _config_path(name: str) -> Path:
    """The path of a config file: as given, or below the shipped files."""
    try:
        path = Path(name) if Path(name).is_file() else shipped(name)
    except OSError as error:
        # For example a name that is too long.
        raise UserError(
            f"there is no config file {name:.200}: {error.strerror}"
        ) from None
    if path is None:
        raise UserError(f"there is no config file {name}")
    return path


def _check_argument(argument: str, previous: str) -> None:
    """Check the value in `--OPTION=VALUE`, or in `VALUE` after `--OPTION`."""
    option, has_value, value = argument.partition("=")
    if not argument.startswith("--"):
        _check_text(argument, previous)
    elif has_value:
        _check_text(value, option)


def _refuse_old_option(argument: str, following: list[str]) -> None:
    """Raise a UserError for `--data.labels=NUMBER`, the name in version 0.1."""
    option, has_value, value = argument.partition("=")
    if _OLD_LABELS_OPTION.fullmatch(option) is None:
        return
    if not has_value:
        value = following[0] if following else ""
    try:
        float(value)
    except ValueError:
        # The labels of text data.
        return
    current = option.removesuffix("labels") + "label_fraction"
    raise UserError(f"{option} has a new name; use {current}={value}")


def with_own_config(argv: list[str]) -> list[str]:
    """Add the config of the run that a checkpoint belongs to, if the arguments name no config.

    Raises:
        UserError: if they name no config and a checkpoint that does not exist, or if that config
            names classes of a package that is not trusted. The user names only the checkpoint,
            which may come from a stranger.
    """
    for argument in argv:
        if argument in CONFIG_OPTIONS or argument.startswith("--config="):
            return argv
    for position, argument in enumerate(argv):
        checkpoint = ""
        if argument.startswith("--ckpt_path="):
            checkpoint = argument.removeprefix("--ckpt_path=")
        elif argument == "--ckpt_path" and position + 1 < len(argv):
            checkpoint = argv[position + 1]
        if not checkpoint:
            continue
        if not _is_file(Path(checkpoint)):
            # The config that the parser would miss lies next to the checkpoint.
            raise UserError(f"--ckpt_path: there is no file {checkpoint}")
        config = Path(checkpoint).parent.parent / "config.yaml"
        if config.is_file():
            check_config(read_config(config, str(config)), str(config))
            return [argv[0], "-c", str(config), *argv[1:]]
    return argv


def _is_file(path: Path) -> bool:
    """Whether there is such a file; also answers for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False

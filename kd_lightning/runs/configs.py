"""Finds the config files that a command names, reads them and merges their losses."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kd_lightning.errors import UserError
from kd_lightning.paths import shipped
from kd_lightning.trust import check_config

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

CONFIG_OPTIONS = ("-c", "--config")

_OLD_LABELS_OPTION = re.compile(r"--data\.(?:[\w.]+\.)?labels")
"""`--data.labels`, also of data that other data wraps."""


def with_current_names(config: Any) -> Any:
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


def _is_number(value: object) -> bool:
    # A bool is an int to Python.
    return isinstance(value, int | float) and not isinstance(value, bool)


def _renamed(arguments: Mapping[str, Any], old: str, new: str) -> dict[str, Any]:
    """Rename a key; the order of the keys stays."""
    return {new if name == old else name: value for name, value in arguments.items()}


def read_config(path: Path, name: str) -> dict[str, Any]:
    """Read a config file.

    Args:
        path: the file.
        name: what an error message calls it.

    Raises:
        UserError: if the file does not hold keys with values.
    """
    import yaml

    # The C loader is much faster, but PyYAML is not always built with it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the config file {name} is not YAML: {error}") from error
    if not content:
        raise UserError(f"the config file {name} is empty")
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"the config file {name} holds a {kind}, not keys with values")
    return content


def losses_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The losses of a config by name; empty if it has none."""
    node: Any = content
    for key in ("model", "init_args", "losses"):
        if not isinstance(node, dict):
            return {}
        node = node.get(key)
    return node if isinstance(node, dict) else {}


def resolve_configs(argv: list[str]) -> list[str]:
    """Find and read the config files among the arguments of a command.

    A path that does not exist is looked up among the shipped configs. The parser would replace the
    losses of one file with those of the next. Here they are merged; if two files configure a loss
    of the same name, the later file wins. The argument of `-c` is then the merged content as YAML,
    which the parser accepts instead of a path.

    Args:
        argv: the command's name and its arguments.

    Returns:
        The arguments for the parser.

    Raises:
        UserError: if a file is missing or damaged, or an option has a new name.
    """
    losses: dict[str, Any] = {}
    resolved = []
    expects_config = False
    for position, argument in enumerate(argv):
        if expects_config:
            resolved.append(_resolve_config(argument, losses))
            expects_config = False
        elif argument.startswith("--config="):
            name = argument.removeprefix("--config=")
            resolved.append(f"--config={_resolve_config(name, losses)}")
        else:
            _refuse_old_option(argument, argv[position + 1 : position + 2])
            resolved.append(argument)
            expects_config = argument in CONFIG_OPTIONS
    return resolved


def _resolve_config(name: str, losses: dict[str, Any]) -> str:
    """The path of a config file, or its content as YAML if the content had to be changed.

    Args:
        name: as given on the command line.
        losses: those of the files before this one; updated in place.
    """
    import yaml

    path = Path(name) if Path(name).is_file() else shipped(name)
    if path is None or not path.is_file():
        raise UserError(f"there is no config file {name}")
    written = read_config(path, name)
    content = with_current_names(written)
    changed = content != written
    own_losses = losses_of(content)
    if own_losses and losses:
        content["model"]["init_args"]["losses"] = {**losses, **own_losses}
        changed = True
    losses.update(own_losses)
    return yaml.safe_dump(content, sort_keys=False) if changed else str(path)


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
        UserError: if that config names classes of a package that is not trusted. The user names
            only the checkpoint, which may come from a stranger.
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
        config = Path(checkpoint).parent.parent / "config.yaml"
        if checkpoint and config.is_file():
            check_config(read_config(config, str(config)), str(config))
            return [argv[0], "-c", str(config), *argv[1:]]
    return argv

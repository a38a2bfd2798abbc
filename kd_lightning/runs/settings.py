"""A resolved config as flat settings, and the options that set them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, TypeAlias

from kd_lightning.errors import UserError
from kd_lightning.masking import missing_secret

if TYPE_CHECKING:
    from jsonargparse import Namespace

    from kd_lightning.values import Value

Node: TypeAlias = "Namespace | Value"
"""A part of a parsed config: the parser nests namespaces in plain values."""


def flat(config: Value, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `("a.b.c", value)` for every leaf of a nested config."""
    if isinstance(config, Mapping) and config:
        for name, value in config.items():
            yield from flat(value, f"{prefix}{name}.")
    elif isinstance(config, list) and _holds_mappings(config):
        for position, item in enumerate(config):
            yield from flat(item, f"{prefix}{position}.")
    else:
        yield prefix.rstrip("."), config


def _holds_mappings(items: list[Value]) -> bool:
    """Whether a list has entries with settings of their own, as that of callbacks has."""
    return any(isinstance(item, Mapping) for item in items)


def option_of(name: str) -> str:
    """The option that sets a setting: `--model.losses.kd.weight`, without the syntax of YAML."""
    parts = []
    for part in name.split("."):
        if part not in ("init_args", "class_path"):
            parts.append(part)
    option = ".".join(parts)
    return f"--{option}"


def check_secrets(config: Mapping[str, Value]) -> None:
    """Check that every secret is given: config.yaml of a run's folder holds none.

    Args:
        config: in builtins.

    Raises:
        UserError: for the first secret that is masked, with the option that gives it again.
    """
    name = missing_secret(config)
    if name is not None:
        raise UserError(
            f"--{name} is a secret, which a run's config.yaml does not store; give it again with "
            f"--{name}=VALUE"
        )


def find_files(node: Node, start: Path) -> None:
    """Find relative paths of a run's config from where the run was started.

    Args:
        node: a part of a parsed config, changed in place: a path that leads nowhere from the
            current folder, but to a file from `start`, becomes absolute.
        start: the folder in which the run was started.
    """
    items: Any = node
    if not isinstance(node, dict | list):
        items = getattr(node, "__dict__", None)
    if items is None:
        return
    # Copied, because the loop replaces values.
    pairs = enumerate(items) if isinstance(items, list) else items.items()
    for key, value in list(pairs):
        if isinstance(value, str):
            items[key] = _from_start(value, start)
        else:
            find_files(value, start)


def _from_start(value: str, start: Path) -> str:
    """The absolute path if only the start's folder has such a file, else the value."""
    # Text without a folder or a suffix is a name, such as that of a class.
    if not value or len(value) > 4096 or PurePath(value).is_absolute():
        return value
    if "/" not in value and not PurePath(value).suffix:
        return value
    try:
        if not Path(value).exists() and (start / value).exists():
            return str(start / value)
    except (OSError, ValueError):
        pass
    return value

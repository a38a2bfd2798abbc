"""A resolved config as flat settings, and the options that set them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from kd_lightning.errors import UserError
from kd_lightning.escaping import is_masked


def flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield `("a.b.c", value)` for every leaf of a nested config."""
    if isinstance(config, Mapping) and config:
        for name, value in config.items():
            yield from flat(value, f"{prefix}{name}.")
    elif isinstance(config, list) and any(isinstance(item, Mapping) for item in config):
        for position, item in enumerate(config):
            yield from flat(item, f"{prefix}{position}.")
    else:
        yield prefix.rstrip("."), config


def option_of(name: str) -> str:
    """The option that sets a setting: `--model.losses.kd.weight`, without the syntax of YAML."""
    parts = [
        part for part in name.split(".") if part not in ("init_args", "class_path")
    ]
    return f"--{'.'.join(parts)}"


def check_secrets(config: Mapping[str, Any]) -> None:
    """Check that every secret is given: config.yaml of a run's folder holds none.

    Args:
        config: in builtins.

    Raises:
        UserError: for the first secret that is masked, with the option that gives it again.
    """
    for name, value in flat(config):
        values = value if isinstance(value, list) else [value]
        if any(map(is_masked, values)):
            raise UserError(
                f"{option_of(name)} is a secret, which a run's config.yaml does not store; give it "
                f"again with {option_of(name)}=VALUE"
            )


def find_files(node: Any, start: Path) -> None:
    """Find relative paths of a run's config from where the run was started.

    Args:
        node: a part of a parsed config, changed in place: a path that leads nowhere from the
            current folder, but to a file from `start`, becomes absolute.
        start: the folder in which the run was started.
    """
    items = node if isinstance(node, dict | list) else getattr(node, "__dict__", None)
    if items is None:
        return
    pairs = list(enumerate(items)) if isinstance(items, list) else list(items.items())
    for key, value in pairs:
        if isinstance(value, str):
            items[key] = _found(value, start)
        else:
            find_files(value, start)


def _found(value: str, start: Path) -> str:
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

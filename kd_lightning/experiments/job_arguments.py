"""Turns the overrides of an experiment into the arguments of a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from kd_lightning.values import Values
from kd_lightning.yaml_files import YamlValue


def format_override(name: str, value: YamlValue) -> str:
    """Return the argument `--name=value`, with the value in YAML on one line."""
    if isinstance(value, str):
        return f"--{name}={value}"
    # Wide enough that YAML breaks no line.
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    # YAML ends a bare scalar with the line "...".
    text = text.removesuffix("\n").removesuffix("\n...")
    return f"--{name}={text}"


def format_overrides(overrides: Mapping[str, YamlValue]) -> list[str]:
    """Return one argument per override; see `format_override`."""
    arguments = []
    for name, value in overrides.items():
        arguments.append(format_override(name, value))
    return arguments


def with_inner_root(overrides: Values) -> dict[str, Any]:
    """Return the overrides with `data.root` moved to the inner data if the data wraps other data."""
    data = overrides.get("data")
    arguments = data.get("init_args") if isinstance(data, dict) else None
    if not isinstance(arguments, dict) or not arguments.get("data"):
        return dict(overrides)
    # The wrapped data reads the files, so the root belongs to it.
    moved = {}
    for name, value in overrides.items():
        key = "data.data.root" if name == "data.root" else name
        moved[key] = value
    return moved

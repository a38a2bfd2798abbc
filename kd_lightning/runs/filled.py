"""Arguments of a config that come from the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

FILLED = ("num_classes", "input_shape", "spec")
"""Arguments that nobody types: they come from the data."""


def teacher_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The data as its teacher sees it, which may read other tokens than its student."""
    own = {
        name.removeprefix("teacher_"): value
        for name, value in spec.items()
        if name.startswith("teacher_")
    }
    return {**spec, **own}


def fill_from_spec(node: Any, spec: Mapping[str, Any]) -> None:
    """Set class counts and input shapes, wherever a class in the config takes them, to those of the data."""
    if isinstance(node, Namespace | dict):
        items = vars(node) if isinstance(node, Namespace) else node
        arguments = items.get("init_args") if "class_path" in items else None
        for name in FILLED:
            if arguments is not None and name in arguments:
                arguments[name] = dict(spec) if name == "spec" else spec[name]
        for key, value in items.items():
            if key != "spec":
                fill_from_spec(value, teacher_spec(spec) if key == "teacher" else spec)
    elif isinstance(node, list):
        for item in node:
            fill_from_spec(item, spec)

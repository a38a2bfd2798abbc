"""Fills in the arguments of a config that come from the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from jsonargparse import Namespace

from kd_lightning.runs.settings import Node
from kd_lightning.spec import Spec
from kd_lightning.values import Value

SPEC_ARGUMENTS = ("num_classes", "input_shape", "spec")
"""Arguments that users never type, because they come from the data."""


def fill_from_spec(node: Node, spec: Spec) -> None:
    """Set class counts, input shapes and specs wherever a class of a config takes them.

    Args:
        node: a part of a parsed config, changed in place.
        spec: of the data.
    """
    if isinstance(node, list):
        for item in node:
            fill_from_spec(item, spec)
        return
    if not isinstance(node, Namespace | dict):
        return
    items = vars(node) if isinstance(node, Namespace) else node
    _fill_arguments(items, spec)
    for key, value in items.items():
        # A spec is filled in as a whole; it has an entry `num_classes` of its own.
        if key == "spec":
            continue
        # A teacher may read other inputs than the student.
        fill_from_spec(value, spec.for_teacher() if key == "teacher" else spec)


def _fill_arguments(items: Mapping[str, Node], spec: Spec) -> None:
    """Set the arguments of one class, if these are the items of one."""
    if "class_path" not in items:
        return
    arguments = cast("Namespace | dict[str, Value] | None", items.get("init_args"))
    if arguments is None:
        return
    plain = spec.to_dict()
    for name in SPEC_ARGUMENTS:
        if name in arguments:
            arguments[name] = plain if name == "spec" else plain.get(name)

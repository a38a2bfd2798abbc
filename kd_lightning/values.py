"""The type of plain values: what JSON, YAML and hyperparameters hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

Value: TypeAlias = (
    "Mapping[str, Value] | Sequence[Value] | str | int | float | bool | None"
)
"""A plain value. Read-only, so that `dict[str, int]` is one, too."""

Values: TypeAlias = "Mapping[str, Value]"
"""Plain values by name, such as a config or a record."""


def mapping_at(values: Values, key: str) -> Values:
    """The values by name under a key; empty if it is missing or null.

    Args:
        values: whose form is known.
        key: of a mapping in it.
    """
    return cast(Values, values.get(key) or {})

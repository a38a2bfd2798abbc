"""Reads the settings of a codec from a cache's manifest; each function raises SchemaError."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

from kd_lightning.teachers.cache import schema
from kd_lightning.teachers.cache.schema import Json, SchemaError


def top_k(settings: Mapping[str, Json]) -> int | None:
    """How many logits of a row are stored; `None`: all."""
    if settings.get("top_k") is None:
        return None
    return schema.integer(settings, "top_k", "settings")


def positions(settings: Mapping[str, Json]) -> int:
    """Rows per sample."""
    # Caches from before there were maps do not state it.
    if "positions" not in settings:
        return 1
    return schema.integer(settings, "positions", "settings")


def names(settings: Mapping[str, Json], key: str) -> tuple[str, ...]:
    """A list of texts."""
    texts = schema.sequence(settings, key, "settings")
    if not all(isinstance(name, str) for name in texts):
        raise SchemaError(f"settings.{key} is no list of names")
    return tuple(cast(list[str], texts))


def numbers(settings: Mapping[str, Json], key: str) -> tuple[float, ...] | None:
    """A list of finite positive numbers; `None` if there is none."""
    if settings.get(key) is None:
        return None
    values = []
    for value in schema.sequence(settings, key, "settings"):
        problem = SchemaError(f"settings.{key} is no list of positive numbers")
        # A bool is an int to Python.
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise problem
        if not 0 < value < math.inf:
            raise problem
        values.append(float(value))
    return tuple(values)

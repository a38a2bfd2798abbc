"""Checks of plain values read from a file: each names the first value that has another form."""

from __future__ import annotations

from collections.abc import Callable, Mapping

Check = Callable[[object, str], str | None]
"""From a value and its name to one phrase about the first problem in it; `None` if it is right."""


def kind_of(value: object) -> str:
    """What a message calls a value's type."""
    return "missing" if value is None else f"a {type(value).__name__}"


def is_a(kind: type, what: str) -> Check:
    """The value is of a type; a bool is no number.

    Args:
        kind: the type.
        what: what a message calls it.
    """

    def check(value: object, name: str) -> str | None:
        # In Python, True is an instance of int.
        is_wrong_bool = isinstance(value, bool) and kind is not bool
        if isinstance(value, kind) and not is_wrong_bool:
            return None
        return f"{name} is {kind_of(value)} instead of {what}"

    return check


TEXT = is_a(str, "text")
INTEGER = is_a(int, "an integer")
MAPPING = is_a(Mapping, "a mapping")


def anything(value: object, name: str) -> str | None:
    """Every value is right."""
    return None


def number(value: object, name: str) -> str | None:
    """The value is an integer or a float."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return None
    return f"{name} is {kind_of(value)} instead of a number"


def count(value: object, name: str) -> str | None:
    """The value is an integer that is not negative."""
    problem = INTEGER(value, name)
    if problem is None and isinstance(value, int) and value < 0:
        return f"{name} is {value}"
    return problem


def optional(check: Check) -> Check:
    """The value is `None`, or as another check wants it."""

    def checked(value: object, name: str) -> str | None:
        if value is None:
            return None
        return check(value, name)

    return checked


def list_of(check: Check) -> Check:
    """The value is a list or a tuple whose items pass a check."""

    def checked(value: object, name: str) -> str | None:
        if not isinstance(value, list | tuple):
            return f"{name} is {kind_of(value)} instead of a list"
        for position, item in enumerate(value):
            problem = check(item, f"{name}[{position}]")
            if problem is not None:
                return problem
        return None

    return checked


def mapping_of(check: Check) -> Check:
    """The value is a mapping from texts to values that pass a check."""

    def checked(value: object, name: str) -> str | None:
        if not isinstance(value, Mapping):
            return MAPPING(value, name)
        for key, item in value.items():
            problem = TEXT(key, f"a key of {name}") or check(item, f"{name}.{key}")
            if problem is not None:
                return problem
        return None

    return checked


def record(
    required: Mapping[str, Check], others: Mapping[str, Check] | None = None
) -> Check:
    """The value is a mapping with certain entries; those that no check names are ignored.

    Args:
        required: a check for each entry that must exist.
        others: a check for each entry that may be missing or `None`.
    """

    def checked(value: object, name: str) -> str | None:
        if not isinstance(value, Mapping):
            return MAPPING(value, name)
        for key, check in required.items():
            problem = check(value.get(key), f"{name}.{key}")
            if problem is not None:
                return problem
        # An entry that is None counts as missing.
        for key, check in (others or {}).items():
            problem = optional(check)(value.get(key), f"{name}.{key}")
            if problem is not None:
                return problem
        return None

    return checked

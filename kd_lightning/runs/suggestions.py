"""Adds "did you mean" to messages about options that do not exist."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable

_UNRECOGNIZED = re.compile(r"^unrecognized arguments: (--[\w.+]+)")
_NOT_IN_GROUP = re.compile(r"Group '([\w.]+)' does not accept option '([\w.]+)'")
_NOT_ACCEPTED = re.compile(r"Option '([\w.]+)' is not accepted")
_CLASS_PATH = re.compile(r"(?:^|: )([A-Za-z_]\w*(?:\.\w+)+): (?:Option|Group)")


def with_suggestion(message: str, options: Iterable[str]) -> str:
    """A message about an option that does not exist, with the most similar option that does.

    Args:
        message: one line.
        options: the options of the parser, such as "--trainer.max_epochs".

    Returns:
        The message; unchanged if it is about something else or nothing is similar.
    """
    names = [option.removeprefix("--") for option in options if option.startswith("--")]
    # The parser words the same mistake in three ways, depending on the level of the option.
    unrecognized = _UNRECOGNIZED.match(message)
    if unrecognized is not None:
        given = unrecognized[1].removeprefix("--").removesuffix("+")
        return _extended(message, given, names, prefix="--")
    in_group = _NOT_IN_GROUP.search(message)
    if in_group is not None:
        group = f"{in_group[1]}."
        members = [name.removeprefix(group) for name in names if name.startswith(group)]
        return _extended(message, in_group[2], members)
    not_accepted = _NOT_ACCEPTED.search(message)
    if not_accepted is None:
        return message
    class_path = _class_path(message)
    if class_path is None:
        return _extended(message, not_accepted[1], names)
    return _extended(message, not_accepted[1], argument_names(class_path))


def closest(given: str, names: Iterable[str]) -> str | None:
    """The name that is most similar to a misspelt one, or None.

    Args:
        given: the misspelt name.
        names: all valid names.
    """
    matches = difflib.get_close_matches(given, list(names), n=1, cutoff=0.7)
    if not matches:
        return None
    return matches[0]


def _extended(message: str, given: str, names: Iterable[str], prefix: str = "") -> str:
    """The message with the name that is most similar, if one is."""
    match = closest(given, names)
    if match is None:
        return message
    return f"{message}; did you mean {prefix}{match}?"


def _class_path(message: str) -> str | None:
    """The class that does not accept an option."""
    named = _CLASS_PATH.search(message)
    if named is None:
        return None
    return named[1]


def argument_names(class_path: str) -> list[str]:
    """The arguments of a class's constructor, and those that it passes on to its base classes.

    Args:
        class_path: of a class or function that a config names and the parser has imported already.
    """
    module_name, _, name = class_path.rpartition(".")
    try:
        target = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError):
        return []
    functions = [target]
    if inspect.isclass(target):
        functions = []
        for base in target.__mro__:
            if "__init__" in vars(base):
                functions.append(vars(base)["__init__"])
    names: list[str] = []
    for function in functions:
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            continue
        passes_on = False
        for parameter in parameters:
            if parameter.name != "self":
                names.append(parameter.name)
            if parameter.kind is parameter.VAR_KEYWORD:
                passes_on = True
        # Without **kwargs, the constructor of the base takes no argument of the user's.
        if not passes_on:
            break
    return names

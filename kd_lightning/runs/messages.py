"""Other libraries' errors in one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from jsonargparse import ArgumentError
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from kd_lightning.errors import UserError

_KEY = re.compile(r'Parser key "([^"]+)":?\s*(.*)')
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_TYPE = re.compile(r"Expected an? <class '([\w.]+)'>")
_CHOICE = re.compile(r"Expected a typing\.Literal\[(.*)\]")
_GIVEN = re.compile(r"^Given value: (.{1,60})$")
_NESTED = re.compile(r"NestedArg\(key='([^']+)', val=(.*)\)$")
_NOISE = re.compile(
    r"^(Subtypes:|Given value|Does not validate|Errors:|Expected a path but|Traceback|File )"
)


def one_line(message: str) -> str:
    """What is wrong, with the key and the class that it is about in front.

    jsonargparse nests an error as deep as the config and tells of every type that was tried; the innermost line of the
    first branch says what is wrong.
    """
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    lines = [line for line in lines if line]
    keyed = [m for line in lines if (m := _KEY.match(line))]
    classes = [m[1] for line in lines if (m := _CLASS.match(line))]
    leaves = [m[2] for m in keyed if m[2]]
    leaves += [
        line for line in lines if not (_NOISE.match(line) or _KEY.match(line) or _CLASS.match(line))
    ]
    given = next((m[1] for line in lines if (m := _GIVEN.match(line))), None)
    keys = [m[1] for m in keyed]
    if given and (nested := _NESTED.match(given)):  # the whole path stands in the given value alone
        keys, given = [*keys[:1], nested[1]], nested[2].strip("'")
    return ": ".join(
        [*[".".join(keys)] * bool(keys), *classes[-1:], _leaf(leaves, given, bool(keys))]
    )


def _leaf(leaves: list[str], given: str | None, keyed: bool) -> str:
    """What is wrong, of all that was said."""
    types = [m[1] for line in leaves if (m := _TYPE.match(line)) and m[1] != "NoneType"]
    choices = [
        choice for line in leaves if (m := _CHOICE.match(line)) for choice in m[1].split(", ")
    ]
    other = [line for line in leaves if not _TYPE.match(line) or "Got value" in line]
    got = f", got {given!r}" if given else ""
    if len(choices) > 0 and all(_CHOICE.match(line) for line in other):
        text = f"expected one of {', '.join(dict.fromkeys(choices))}" + (
            got or other[0].rpartition("]")[2]
        )
    elif other:
        text = other[0] if keyed else " ".join(other)
    elif types:
        text = f"expected {' or '.join(types)}{got}"
    else:
        text = "unknown error"
    return _TYPE.sub(r"expected \1", text).replace(". Got value: ", ", got ")


@contextmanager
def config_errors() -> Iterator[None]:
    """What other libraries say of a wrong setting, in one line."""
    try:
        yield
    except UserError:
        raise
    except (ArgumentError, ValueError, TypeError, MisconfigurationException, OSError) as error:
        raise UserError(one_line(str(error))) from error

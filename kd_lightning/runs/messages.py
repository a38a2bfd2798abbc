"""Other libraries' errors in one line."""

from __future__ import annotations

import re

_KEY = re.compile(r'Parser key "([^"]+)"')
_CLASS = re.compile(r"Problem with given class_path '([^']+)'")
_TYPE = re.compile(r"Expected an? <class '([\w.]+)'>")
_GIVEN = re.compile(r"^Given value: (.{1,60})$")
_NOISE = re.compile(r"^(Subtypes:|Given value|Does not validate|Errors:|Expected a path but|Traceback|File )")


def one_line(message: str) -> str:
    """What is wrong, with the key and the class that it is about in front.

    jsonargparse nests an error as deep as the config and tells of every type that was tried; the innermost line of the
    first branch says what is wrong.
    """
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    lines = [line for line in lines if line]
    keys = [m[1] for line in lines if (m := _KEY.match(line))]
    classes = [m[1] for line in lines if (m := _CLASS.match(line))]
    leaves = [line for line in lines if not (_NOISE.match(line) or _KEY.match(line) or _CLASS.match(line))]
    types = [m[1] for line in leaves if (m := _TYPE.match(line)) and m[1] != "NoneType"]
    other = [line for line in leaves if not _TYPE.match(line) or "Got value" in line]
    if other:
        leaf = " ".join(other) if not keys else other[0]
    elif types:
        given = next((m[1] for line in lines if (m := _GIVEN.match(line))), None)
        leaf = f"expected {' or '.join(types)}" + (f", got {given!r}" if given else "")
    else:
        leaf = "unknown error"
    leaf = _TYPE.sub(r"expected \1", leaf).replace(". Got value: ", ", got ")
    where = [".".join(keys)] * bool(keys) + classes[-1:]
    return ": ".join([*where, leaf])

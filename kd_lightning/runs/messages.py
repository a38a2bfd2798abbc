"""Other libraries' errors in one line."""

from __future__ import annotations

import re

_NOISE = re.compile(r"^\s*(Subtypes:|Given value|Does not validate against any|Errors:|Traceback|File )")


def one_line(message: str) -> str:
    """The line of an error message that names what is wrong, with the key that it is about in front."""
    lines = [line.strip(" -\t") for line in message.splitlines() if line.strip() and not _NOISE.match(line)]
    if not lines:
        return "unknown error"
    return lines[0]

"""Shows texts that come from files and command lines without letting them act on the reader.

Names of runs, folders, classes and experiments may come from strangers. A terminal would obey the
escape sequences in them, rich their markup, and a browser their HTML. Every writer passes such
texts through one of these functions; `errors.printable` is the one for plain `print`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kd_lightning.errors import printable

if TYPE_CHECKING:
    from rich.text import Text

MASK = "***"
"""Stands for a secret."""

_MARKDOWN = re.compile(r"([\\`|*]|\](?=[(\[:]))")
"""Characters that end a cell of a table, delimit code or emphasis, or make brackets a link.

The brackets of an interval such as `[1, 2]` stay readable.
"""

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
}
"""Characters that mean something to LaTeX, or that its default fonts lack."""

_SECRET = r"(?:token|key|apikey|password|passwd|secret|secrets|credential|credentials)"
_SECRET_OPTION = re.compile(rf"--(?:.*[._-])?{_SECRET}", re.IGNORECASE)
_SECRET_ENTRY = re.compile(
    # A key of a mapping such as {api_key: abc}, then its value up to the next separator.
    rf"""((?<![A-Za-z])(?:[\w-]*[_-])?{_SECRET}["']?\s*[:=]\s*)("[^"]*"|'[^']*'|[^\s,"'}}\]]+)""",
    re.IGNORECASE,
)
_URL_LOGIN = re.compile(r"(://)[^/\s@]+@")
_NO_SECRETS = frozenset({"", "true", "false", "null", "none"})


def plain(text: str, style: str = "") -> Text:
    """The text for a rich console or table: without control characters, markup and emoji codes.

    Args:
        text: any text; line breaks and tabs become spaces.
        style: of the whole text, such as "bold".
    """
    from rich.text import Text

    # Word by word, so that spaces keep their number: they align columns.
    shown = " ".join(printable(word) for word in text.split(" "))
    return Text(shown, style=style)


def markdown(text: str) -> str:
    """The text as Markdown that shows it: no table ends, and no HTML, link or image begins.

    Args:
        text: any text; white space of any length becomes one space.
    """
    without_html = html.escape(printable(text), quote=False)
    return _MARKDOWN.sub(r"\\\1", without_html)


def latex(text: str) -> str:
    """The text as LaTeX that shows it: no command and no formula begins.

    Args:
        text: any text; white space of any length becomes one space.
    """
    return "".join(_LATEX.get(character, character) for character in printable(text))


def masked_command(argv: Sequence[str]) -> list[str]:
    """A command line without secrets, to be stored.

    Masks the values of options and of keys in mappings whose names end with a word such as token,
    key, password or secret, and the logins of URLs.

    Args:
        argv: words such as `--model.network.api_key=abc`, or `--token` and `abc`.
    """
    masked = []
    follows_secret = False
    for word in argv:
        option, equals, value = word.partition("=")
        is_value = follows_secret and not word.startswith("--")
        is_secret_option = _SECRET_OPTION.fullmatch(option) is not None
        if is_value:
            masked.append(_masked_value(word))
        elif is_secret_option and equals:
            masked.append(f"{option}={_masked_value(value)}")
        else:
            masked.append(
                _URL_LOGIN.sub(rf"\1{MASK}@", _SECRET_ENTRY.sub(_masked_entry, word))
            )
        follows_secret = is_secret_option and not equals
    return masked


def masked_config(config: Any) -> Any:
    """A nested config without secrets, to be stored.

    Masks the texts under keys whose names end with a word such as token, key, password or secret,
    and the logins of URLs, as `masked_command` does for the command that sets them.

    Args:
        config: in builtins; it is not changed.
    """
    if isinstance(config, str):
        return _URL_LOGIN.sub(rf"\1{MASK}@", config)
    if isinstance(config, list):
        return [masked_config(item) for item in config]
    if not isinstance(config, dict):
        return config
    masked = {}
    for key, value in config.items():
        is_secret = _SECRET_OPTION.fullmatch(f"--{key}") is not None
        if is_secret and isinstance(value, str):
            masked[key] = _masked_value(value)
        else:
            masked[key] = masked_config(value)
    return masked


def is_masked(value: object) -> bool:
    """Whether a value of a config stands for a secret that was not stored."""
    return isinstance(value, str) and (value == MASK or f"://{MASK}@" in value)


def _masked_value(value: str) -> str:
    """The mask; a flag or a null is no secret, and tells what the command did."""
    if value.lower() in _NO_SECRETS:
        return value
    return MASK


def _masked_entry(entry: re.Match[str]) -> str:
    return entry[1] + _masked_value(entry[2])

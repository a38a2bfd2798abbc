"""Shows texts that come from files and command lines without letting them act on the reader.

Names of runs, folders, classes and experiments may come from strangers. A terminal would obey the
escape sequences in them, rich their markup, and a browser their HTML. Every writer passes such
texts through one of these functions; `errors.printable` is the one for plain `print`.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from kd_lightning.errors import printable

if TYPE_CHECKING:
    from rich.text import Text

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

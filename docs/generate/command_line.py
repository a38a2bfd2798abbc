"""The page of the command line, from the help of each command."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

from kd_lightning.cli import COMMANDS, main, usage

COLUMNS = "100"
"""The width of the help."""

INTRODUCTION = """\
# Command line

Generated from `kd --help` and `kd COMMAND --help`. `--help` shows the common options in one screen;
`kd fit --help-all`, and the same of `validate`, `test` and `predict`, shows all of them, the
Trainer's included.
"""


def command_line_page() -> str:
    """The help of `kd` and of each command."""
    lines = [INTRODUCTION, "```text", usage().rstrip(), "```", ""]
    for command in COMMANDS:
        text = help_of(command)
        lines += [f"## kd {command}", "", "```text", text.rstrip(), "```", ""]
    return "\n".join(lines)


def help_of(command: str, option: str = "--help") -> str:
    """What a command prints for an option.

    Args:
        command: such as "fit".
        option: `--help` or `--help-all`.
    """
    output = io.StringIO()
    with (
        _fixed_width(),
        contextlib.redirect_stdout(output),
        contextlib.suppress(SystemExit),
    ):
        main([command, option])
    return output.getvalue()


@contextlib.contextmanager
def _fixed_width() -> Iterator[None]:
    """A terminal of a fixed width, whatever this process runs in."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before

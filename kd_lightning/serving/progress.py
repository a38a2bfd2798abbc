"""What a command reports about its inputs while it predicts them, and afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from kd_lightning.errors import UserError

_Predicted = TypeVar("_Predicted")

SHOWN_PROBLEMS = 5
"""Skipped inputs that are named; the others are counted."""


class Skipped:
    """The inputs that cannot be predicted.

    Args:
        allowed: whether to go on after one.
    """

    def __init__(self, allowed: bool) -> None:
        self.allowed = allowed
        self.number = 0
        self.lines: list[str] = []

    @property
    def nothing_left(self) -> str:
        """What is wrong if no input was predicted."""
        if not self.lines:
            return "the inputs hold no samples"
        return f"none of the {self.number:,} inputs can be predicted; {self.lines[0]}"

    def add(self, line: str) -> None:
        """Count an input.

        Args:
            line: its name and problem.

        Raises:
            UserError: with the line, if no input may be skipped.
        """
        if not self.allowed:
            raise UserError(line)
        self.number += 1
        if len(self.lines) < SHOWN_PROBLEMS:
            self.lines.append(line)

    def report(self, written: int) -> None:
        """Print on standard error how many were skipped, and the first of them."""
        if self.number == 0:
            return
        for line in self.lines:
            print(f"kd: skipped {line}", file=sys.stderr)
        total = self.number + written
        print(f"kd: skipped {self.number:,} of {total:,} inputs", file=sys.stderr)


def with_progress(predictions: Iterable[_Predicted]) -> Iterator[_Predicted]:
    """The same predictions; counts them on standard error if it is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from predictions
        return
    columns = (TextColumn("{task.completed:,.0f} inputs"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None)
        for prediction in predictions:
            progress.advance(task)
            yield prediction

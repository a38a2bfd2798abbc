"""Writes predictions as CSV or as JSON lines, one at a time."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO, cast

from kd_lightning.errors import UserError
from kd_lightning.files import remove_leftovers
from kd_lightning.serving.results import Result
from kd_lightning.values import Value, Values


class Writer(ABC):
    """Writes one result after the other.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    @abstractmethod
    def write(self, result: Result) -> None:
        """Write a result."""


class JsonLines(Writer):
    """One JSON object per line."""

    def write(self, result: Result) -> None:
        """Write a result; JSON escapes control characters itself."""
        self.stream.write(json.dumps(result) + "\n")


class Csv(Writer):
    """One row per result; the first row names the columns.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        # Python's default is the line end of Windows.
        self._rows = csv.writer(stream, lineterminator="\n")
        self._has_heading = False

    def write(self, result: Result) -> None:
        """Write a row, and before the first row the names of the columns."""
        cells = _cells(result)
        if not self._has_heading:
            self._rows.writerow([name for name, _ in cells])
            self._has_heading = True
        self._rows.writerow([text for _, text in cells])


def _cells(result: Result) -> list[tuple[str, str]]:
    """The columns of a result with their texts; what is nested gets columns, too."""
    cells: list[tuple[str, str]] = []
    for name, value in result.items():
        # Probabilities and values come by the name of the class or column.
        if isinstance(value, Mapping):
            for inner, number in value.items():
                text = _text(number)
                if name == "values" and isinstance(number, float):
                    # Real values have any size, and probabilities six decimal places.
                    text = f"{number:.9g}"
                cells.append((_visible(inner), text))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for number, alternative in enumerate(value, 1):
                described = cast(Values, alternative)
                cells.append((f"alternative_{number}", _text(described["class"])))
                cells.append((f"probability_{number}", _text(described["probability"])))
        else:
            cells.append((name, _text(value)))
    return cells


def _text(value: Value) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    return _visible(str(value))


def _visible(text: str) -> str:
    """A text without control characters, which could rewrite what a terminal shows."""
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape").decode()
        for character in text
    )


@contextlib.contextmanager
def opened(output: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears under its name once it is complete.

    Args:
        output: path of the file; `None` for standard output.

    Raises:
        UserError: if the file cannot be written.
    """
    if output is None:
        yield sys.stdout
        return
    remove_leftovers(output)
    unfinished = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        stream = unfinished.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(
            f"--output: cannot write {output} ({error.strerror})"
        ) from error
    try:
        with stream:
            yield stream
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)


def writer_of(name: str, stream: TextIO) -> Writer:
    """The writer of a format, "csv" or "jsonl"."""
    return Csv(stream) if name == "csv" else JsonLines(stream)

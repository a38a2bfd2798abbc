"""How the fields of a CSV or TSV file are separated and quoted: given, or detected."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kd_lightning.errors import UserError

Row = tuple[int, list[str]]
"""The number of a line, from 1, and its fields."""

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""The delimiters that are detected, with their names in messages."""

_SAMPLE = 100
"""Lines that are read to detect a delimiter."""

_WELL_QUOTED = re.compile(r'(?:^|(?<=[\t\n]))"(?:[^"]|"")*"(?=[\t\n]|\r\n|$)')
"""A field of a TSV file within quotation marks; those within it are doubled."""


@dataclass(frozen=True)
class Dialect:
    """The format of a CSV or TSV file; `None` stands for what the file itself suggests.

    Attributes:
        delimiter: between fields: one character, or "tab".
        quoted: whether quotation marks enclose fields, or are part of the text.

    Raises:
        UserError: if the delimiter is not one character that can separate fields.
    """

    delimiter: str | None = None
    quoted: bool | None = None

    def __post_init__(self) -> None:
        delimiter = self.delimiter
        if delimiter in (None, "tab"):
            return
        if len(delimiter) != 1 or delimiter in '"\r\n\0':
            raise UserError(
                f"data.delimiter must be one character such as ';', or 'tab', got {delimiter!r}"
            )

    def rows(self, path: Path, text: str, report: bool) -> Iterator[Row]:
        """Yield each line that is not blank.

        Args:
            path: of the file. Without other evidence, files that end in `.csv` are quoted and have
                commas; others have tabs and no quotation marks.
            text: its content.
            report: print in one line what was detected, if it is something else.

        Raises:
            UserError: if quotation marks are unbalanced.
        """
        is_csv = path.suffix.lower() == ".csv"
        usual = "," if is_csv else "\t"
        delimiter = "\t" if self.delimiter == "tab" else self.delimiter
        if delimiter is None:
            delimiter = _detect_delimiter(text, usual, is_csv)
        quoted = self.quoted
        if quoted is None:
            quoted = delimiter != "\t" or is_csv or _has_quoted_fields(text)
        if report:
            findings = []
            if self.delimiter is None and delimiter != usual:
                findings.append(
                    f"{DELIMITERS[delimiter]} between fields (data.delimiter)"
                )
            if self.quoted is None and quoted != is_csv:
                findings.append("quotation marks around fields (data.quoted)")
            if findings:
                print(f"data: {path}: detected {' and '.join(findings)}")
        if quoted:
            yield from _quoted_rows(path, text, delimiter)
        else:
            yield from _unquoted_rows(text, delimiter)


def _quoted_rows(path: Path, text: str, delimiter: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    try:
        with _long_fields():
            for row in reader:
                if any(row):
                    rows.append((reader.line_num, row))
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error}; if quotation marks are part of the text, "
            "set data.quoted=false"
        ) from error
    yield from rows


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let fields have any length; Python's limit of 131,072 characters holds for the process."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _unquoted_rows(text: str, delimiter: str) -> Iterator[Row]:
    # As in GLUE's files, a quotation mark is part of the sentence. `splitlines` would also split at
    # rare marks such as U+2028, which occur within sentences.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.rstrip("\r").split(delimiter)


def _detect_delimiter(text: str, usual: str, quoted: bool) -> str:
    """The delimiter that divides the first lines into equal numbers of fields.

    Args:
        text: of the file.
        usual: the delimiter that the file's suffix stands for; it takes precedence.
        quoted: whether the suffix stands for quoted fields.
    """
    if _num_fields(text, usual, quoted) > 1:
        return usual
    others = [other for other in DELIMITERS if other != usual]
    fitting = [other for other in others if _num_fields(text, other, quoted=True) > 1]
    # Several candidates would be a guess.
    if len(fitting) == 1:
        return fitting[0]
    return usual


def _num_fields(text: str, delimiter: str, quoted: bool) -> int:
    """The number of fields of the first lines, 0 if it differs between them."""
    lines = text.split("\n", _SAMPLE)
    is_cut = len(lines) > _SAMPLE
    if is_cut:
        lines.pop()
    rows: list[list[str]] = []
    try:
        with _long_fields():
            if quoted:
                rows += csv.reader(lines, delimiter=delimiter)
            else:
                rows += [line.split(delimiter) for line in lines]
    except csv.Error:
        return 0
    counts = [len(row) for row in rows if any(row)]
    if is_cut and quoted and len(counts) > 1:
        # The sample may end within a quoted field.
        counts.pop()
    if counts and len(set(counts)) == 1:
        return counts[0]
    return 0


def _has_quoted_fields(text: str) -> bool:
    """Whether quotation marks enclose fields of a TSV file instead of being part of sentences.

    They do if each of them belongs to a field that begins and ends with one, and if marks within
    fields are doubled or each line has such a field.
    """
    if '"' not in text or '"' in _WELL_QUOTED.sub("", text):
        return False
    fields = _WELL_QUOTED.findall(text)
    if any('""' in field[1:-1] for field in fields):
        return True
    lines = [line for line in text.split("\n") if line.strip()]
    # A field of several lines may have joined lines that do not belong together.
    is_single_line = not any("\n" in field for field in fields)
    return is_single_line and all('"' in line for line in lines[1:])

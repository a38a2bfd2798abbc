"""Reads the documents of a corpus from text files and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_lightning.errors import UserError

SUFFIXES = (".txt", ".jsonl")
"""The files that a folder contributes to a corpus."""


@dataclass(frozen=True)
class Document:
    """One text.

    Attributes:
        text: what a language model learns to predict.
        prompt: what precedes the text; a model reads it, and no loss counts its tokens.
    """

    text: str
    prompt: str = ""


def find_files(root: Path, patterns: Sequence[str], option: str) -> list[Path]:
    """The files that some patterns name, each once, in the order of the patterns.

    Args:
        root: folder of the corpus.
        patterns: files, folders, or patterns such as `train/*.txt`, below `root`.
        option: what a message calls the patterns.

    Raises:
        UserError: if a pattern names no file.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        matches = _matches(root, pattern)
        if not matches:
            raise UserError(
                f"{option}: {root / pattern} names no file that ends in "
                f"{' or '.join(SUFFIXES)}"
            )
        files.update(dict.fromkeys(matches))
    return list(files)


def _matches(root: Path, pattern: str) -> list[Path]:
    """The files that one pattern names, sorted by name."""
    path = root / pattern
    if path.is_dir():
        candidates = path.iterdir()
    elif path.is_file():
        return [path]
    elif Path(pattern).is_absolute():
        # `Path.glob` takes relative patterns alone.
        anchor = Path(pattern).anchor
        candidates = Path(anchor).glob(str(Path(pattern).relative_to(anchor)))
    else:
        candidates = root.glob(pattern)
    # Sorted, because file systems list their files in different orders.
    return sorted(file for file in candidates if file.suffix in SUFFIXES)


def read_documents(file: Path) -> Iterator[Document]:
    """The documents of a file: a text file is one, a file of JSON lines has one per line.

    A line of JSON has the field `text`, or the fields `prompt` and `completion`.

    Args:
        file: to read, in UTF-8.

    Raises:
        UserError: if the file cannot be read, or a line is not valid.
    """
    text = read_utf8(file)
    if file.suffix == ".jsonl":
        # Not `splitlines`, which also splits at characters that JSON allows in strings.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield _parse_line(line, f"{file}, line {number}")
        return
    if text.strip():
        yield Document(text)


def read_utf8(file: Path) -> str:
    """The text of a file.

    Raises:
        UserError: if it cannot be read, or is not UTF-8.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    try:
        # The mark that some editors write before a text is no part of it.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 (at byte {error.start}); convert it, for example with "
            "iconv -f ISO-8859-1 -t UTF-8"
        ) from error


def _parse_line(line: str, place: str) -> Document:
    """The document in a line of JSON.

    Raises:
        UserError: if the line is no JSON, or has other fields.
    """
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON") from error
    if isinstance(content, Mapping):
        text = content.get("text")
        prompt = content.get("prompt")
        completion = content.get("completion")
        if isinstance(text, str):
            return Document(text)
        if isinstance(prompt, str) and isinstance(completion, str):
            return Document(completion, prompt)
    raise UserError(
        f"{place} needs the field text, or the fields prompt and completion, as strings"
    )

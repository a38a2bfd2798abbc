"""Reads the documents of a corpus from text files and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kd_lightning.data.corpus.datasets_on_disk import is_dataset, read_rows
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

    A folder that `save_to_disk` of the package datasets wrote counts as a file.

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
    if is_dataset(path):
        return [path]
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

    A line of JSON has the field `text`, or the fields `prompt` and `completion`. Lines are read one
    at a time, so that such a file may be larger than the memory. A data set of the package datasets
    has one document per row, with the same fields.

    Args:
        file: to read, in UTF-8; or the folder of a data set.

    Raises:
        UserError: if the file cannot be read, or a line is not valid.
    """
    if file.is_dir():
        for number, row in enumerate(read_rows(file), start=1):
            yield _document_of(row, f"{file}, row {number}")
        return
    if file.suffix == ".jsonl":
        for number, line in _lines(file):
            if line.strip():
                yield _parse_line(line, f"{file}, line {number}")
        return
    text = read_utf8(file)
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
        raise _unreadable(file, error) from error
    return _decoded(content, file)


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers from 1; one at a time is in memory."""
    start = 0
    try:
        # Bytes, because text files also end lines at characters that JSON allows in strings.
        with file.open("rb") as stream:
            for number, content in enumerate(stream, start=1):
                yield number, _decoded(content, file, start)
                start += len(content)
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> UserError:
    return UserError(f"{file} cannot be read: {error.strerror}")


def _decoded(content: bytes, file: Path, start: int = 0) -> str:
    """The text that bytes of a file stand for.

    Args:
        content: of the file.
        file: that messages name.
        start: where in the file the content begins.

    Raises:
        UserError: if it is not UTF-8.
    """
    # Some editors write a mark before a text, which is no part of it.
    encoding = "utf-8-sig" if start == 0 else "utf-8"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 (at byte {start + error.start}); convert it, for example with "
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
    return _document_of(content, place)


def _document_of(content: object, place: str) -> Document:
    """The document that fields by name describe.

    Raises:
        UserError: if there are other fields, or none.
    """
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

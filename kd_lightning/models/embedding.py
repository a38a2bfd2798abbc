"""Word embeddings, random or from a file of word vectors, and helpers of the networks for text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError, printable

INITIAL_RANGE = 0.25
"""Bound of the initial weights: random vectors are then about as long as word2vec's (Kim 2014)."""


class WordEmbedding(nn.Embedding):
    """A vector per word: uniform in [-0.25, 0.25] (Kim 2014), or read from a file.

    Args:
        words: number of words.
        width: size of a vector.
        pad: id of the padding token, whose vector stays zero.
        vectors: text file in the format of GloVe or fastText, with a word and its numbers per line.
            It is read when training starts (`use_words`).

    Shapes:
        Input int64 of any shape `(*)`; output `(*, width)`.

    Raises:
        UserError: if the file is missing.
    """

    def __init__(
        self,
        words: int,
        width: int,
        pad: int = 0,
        vectors: str | None = None,
    ) -> None:
        super().__init__(words, width, padding_idx=pad)
        # Checked here, although the file is read later: a typo is reported before any training.
        if vectors is not None and not Path(vectors).expanduser().is_file():
            raise UserError(f"there is no file {vectors} with word vectors")
        self.vectors = vectors
        with torch.no_grad():
            self.weight.uniform_(-INITIAL_RANGE, INITIAL_RANGE)
            # nn.Embedding keeps the gradient of this row at zero, so it stays zero.
            self.weight[pad] = 0

    def use_words(self, vocabulary: Mapping[str, int]) -> None:
        """Load the vectors of these words from the file; other words stay random.

        Without a file, this does nothing.

        Args:
            vocabulary: the id of each word.

        Raises:
            UserError: if the file cannot be read, or if it has none of the words.
        """
        if self.vectors is None:
            return
        path = Path(self.vectors).expanduser()
        count = 0
        with torch.no_grad():
            for word, vector in read_vectors(path, vocabulary, self.embedding_dim):
                # One row at a time: files of word vectors can exceed the memory.
                self.weight[vocabulary[word]] = torch.tensor(vector)
                count += 1
        if not count:
            raise UserError(
                f"{self.vectors} has none of the {len(vocabulary):,} words of the vocabulary; "
                f"use a file of the same language with {self.embedding_dim} numbers per word"
            )
        words = f"{count:,} of {len(vocabulary):,} words"
        print(printable(f"vectors: {words} are in {self.vectors}"))


def read_vectors(
    path: Path,
    vocabulary: Mapping[str, int],
    width: int,
) -> Iterator[tuple[str, list[float]]]:
    """Yield the known words of a GloVe or fastText file with their vectors.

    If the file lists a word twice, the first vector counts.

    Args:
        path: the file.
        vocabulary: the known words.
        width: numbers per word.

    Raises:
        UserError: if the file is missing or not UTF-8, or if a vector is not `width` numbers.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path} with word vectors")
    seen: set[str] = set()
    # Bytes: most words of such a file are unknown, and decoding all of it would take longer.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            fields = line.rstrip().split(b" ")
            # fastText's first line holds the number of words and the width of a vector.
            is_header = number == 1 and len(fields) == 2
            is_blank = not line.strip()
            if is_header or is_blank:
                continue
            place = f"{path}, line {number}"
            word = _word(place, fields, width)
            if word in vocabulary and word not in seen:
                seen.add(word)
                yield word, _vector(place, fields, width)


def _word(place: str, fields: list[bytes], width: int) -> str:
    """The word of a line: all fields but the last `width`; UserError if there is none."""
    if len(fields) <= width:
        raise UserError(
            f"{place}: {len(fields) - 1} numbers instead of {width}, the width of the embedding"
        )
    try:
        # A few words of GloVe contain spaces.
        return b" ".join(fields[:-width]).decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{place}: the word is not UTF-8; convert the file to UTF-8"
        ) from error


def _vector(place: str, fields: list[bytes], width: int) -> list[float]:
    """The last `width` fields as numbers; UserError if they are not numbers."""
    try:
        return [float(field) for field in fields[-width:]]
    except ValueError as error:
        raise UserError(f"{place}: the last {width} fields are not numbers") from error


def vocabulary_of(
    owner: str,
    spec: Mapping[str, Any] | None,
    size: int | None,
) -> tuple[int, int]:
    """The number of tokens and the id of the padding token.

    Args:
        owner: name of the network, for messages.
        spec: spec of the data, if there is data.
        size: number of tokens; `None`: that of the data.

    Raises:
        UserError: if neither gives the number of tokens.
    """
    described = spec or {}
    vocabulary = described.get("vocabulary", {})
    # The argument comes first: it is the only source outside of `kd`.
    if size is None:
        size = vocabulary.get("size")
    if size is None:
        raise UserError(
            f"{owner} reads tokens: set vocabulary, or train it under kd on text data"
        )
    pad = vocabulary.get("pad", 0)
    return int(size), int(pad)


def check_shares(owner: str, **values: float) -> None:
    """Check that arguments are in [0, 1).

    Raises:
        UserError: if one is not.
    """
    for name, value in values.items():
        if not 0 <= value < 1:
            raise UserError(f"{owner}: {name} must be in [0, 1), got {value}")


def check_counts(owner: str, **values: int) -> None:
    """Check that arguments are at least 1.

    Raises:
        UserError: if one is not.
    """
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{owner}: {name} must be at least 1, got {value}")


def masked_max(states: Tensor, mask: Tensor) -> Tensor:
    """The maximum of each feature over the positions that count.

    Args:
        states: `(B, L, F)`.
        mask: bool `(B, L)`, true at the positions that count.

    Returns:
        `(B, F)`.
    """
    # Padding must not win the maximum.
    is_padding = ~mask[..., None]
    candidates = states.masked_fill(is_padding, float("-inf"))
    return candidates.amax(1)

"""Word embeddings, random or from a file of word vectors, and pooling over a sentence's own words alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError


class WordEmbedding(nn.Embedding):
    """A vector for each word: uniform in [-0.25, 0.25], about as long as word2vec's (Kim 2014), or read from a file.

    Args:
        words: how many.
        width: numbers a word.
        pad: the number that fills up; its vector stays zero.
        vectors: text file in the format of GloVe or fastText, a word and its numbers a line. It is read when training starts
            (`use_words`).

    Raises:
        UserError: where there is no such file.
    """

    def __init__(self, words: int, width: int, pad: int = 0, vectors: str | None = None) -> None:
        super().__init__(words, width, padding_idx=pad)
        if vectors is not None and not Path(vectors).expanduser().is_file():
            raise UserError(f"there is no file {vectors} with word vectors")
        self.vectors = vectors
        with torch.no_grad():
            self.weight.uniform_(-0.25, 0.25)
            self.weight[pad] = 0

    def use_words(self, vocabulary: Mapping[str, int]) -> None:
        """Take the vectors of these words from the file, where there is one; the others keep their random start."""
        if self.vectors is None:
            return
        found = 0
        with torch.no_grad():
            for word, vector in read_vectors(
                Path(self.vectors).expanduser(), vocabulary, self.embedding_dim
            ):
                self.weight[vocabulary[word]] = torch.tensor(vector)
                found += 1
        if not found:
            raise UserError(
                f"{self.vectors} has a vector for none of the {len(vocabulary):,} words; it is of another language, or its "
                f"width is not {self.embedding_dim} numbers a word"
            )
        print(f"vectors: {found:,} of {len(vocabulary):,} words are in {self.vectors}")


def read_vectors(
    path: Path, vocabulary: Mapping[str, int], width: int
) -> Iterator[tuple[str, list[float]]]:
    """The vectors of known words in a GloVe or fastText text file; of a word that stands there twice, the first.

    Raises:
        UserError: where the file is missing, is not UTF-8, or its vectors are not `width` numbers.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path} with word vectors")
    seen = set()
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            fields = line.rstrip().split(b" ")
            if (number == 1 and len(fields) == 2) or not line.strip():
                continue  # fastText's first line: how many words, how many numbers; or a blank one
            if len(fields) <= width:
                raise UserError(
                    f"{path}, line {number}: {len(fields) - 1} numbers, and the embedding has {width}"
                )
            try:
                word = b" ".join(fields[:-width]).decode()  # a few of GloVe's words have spaces
                if word in vocabulary and word not in seen:
                    seen.add(word)
                    yield word, [float(field) for field in fields[-width:]]
            except ValueError as error:
                what = (
                    "the word is not UTF-8"
                    if isinstance(error, UnicodeDecodeError)
                    else f"not {width} numbers"
                )
                raise UserError(f"{path}, line {number}: {what}") from error


def vocabulary_of(owner: str, spec: Mapping[str, Any] | None, size: int | None) -> tuple[int, int]:
    """How many tokens there are and which fills up: as given, or as the data says.

    Raises:
        UserError: where neither says so.
    """
    described = (spec or {}).get("vocabulary", {})
    if size is None and "size" not in described:
        raise UserError(f"{owner} reads tokens: give vocabulary, or train it under kd on text data")
    return int(described.get("size", 0) if size is None else size), int(described.get("pad", 0))


def check_shares(owner: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < 1:
            raise UserError(f"{owner}: {name} must be in [0, 1), got {value}")


def check_counts(owner: str, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise UserError(f"{owner}: {name} must be at least 1, got {value}")


def masked_max(states: Tensor, mask: Tensor) -> Tensor:
    """The largest value of each feature over the places that count: `(B, L, F)` and bool `(B, L)` to `(B, F)`."""
    return states.masked_fill(~mask[..., None], float("-inf")).amax(1)

"""Cuts documents into blocks of tokens: which tokens a block holds, and of which documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.data.corpus.token_file import TokenFile

Boundaries = Literal["reset", "ignore"]
"""What happens where a block crosses from one document to the next; see `Blocks`."""

NO_DOCUMENT = -1
"""The document of a place that only fills up a block."""


@dataclass(frozen=True)
class BlockTokens:
    """Blocks of L tokens, and the token after each block.

    What a model reads of them and what it predicts is up to a `TokenPrediction`.

    Attributes:
        ids: int64 `(B, L + 1)`.
        documents: int64 `(B, L + 1)`, the document of each token, from 0 in each block;
            `NO_DOCUMENT` for padding. All tokens have document 0 if the documents are one text.
        places: int64 `(B, L + 1)`, the distance of each token from the start of its document's part
            in the block.
        counts: bool `(B, L + 1)`, whether a token may be predicted: padding and prompts may not.
    """

    ids: Tensor
    documents: Tensor
    places: Tensor
    counts: Tensor


class Blocks:
    """The blocks of a split.

    Packed blocks follow each other without a gap, across documents, so that every token but the
    first is predicted once. With `boundaries="reset"`, a token sees its own document alone, and no
    model predicts the first token of a document, for which it has no context. With "ignore", the
    documents are one text. Without packing, a block holds tokens of one document, and a document
    longer than a block is cut into several.

    Args:
        tokens: of the split.
        length: L, tokens that a model reads in a block.
        packed: whether a block may hold several documents.
        boundaries: "reset" or "ignore".
        end: the id that fills up a short block.
    """

    def __init__(
        self,
        tokens: TokenFile,
        length: int,
        packed: bool,
        boundaries: Boundaries,
        end: int,
    ) -> None:
        self.tokens = tokens
        self.length = length
        self.boundaries = boundaries
        self.end = end
        self.starts, self.stops = _spans(tokens, length, packed)

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.starts)

    def read(self, rows: Tensor) -> BlockTokens:
        """The tokens of some blocks.

        Args:
            rows: int64 `(B,)` on the CPU.
        """
        starts = self.starts[rows.numpy()][:, None]
        stops = self.stops[rows.numpy()][:, None]
        # One more than a model reads: what follows the last of them.
        places = starts + np.arange(self.length + 1)
        exists = places < stops
        # A place beyond the end reads any token, and is overwritten.
        last_token = len(self.tokens.ids) - 1
        safe = np.minimum(places, last_token)
        ids = np.where(exists, self.tokens.ids[safe], self.end).astype(np.int64)
        # The document of each place is the last one that starts at or before it.
        number = np.searchsorted(self.tokens.starts, safe, side="right") - 1
        is_completion = safe - self.tokens.starts[number] >= self.tokens.prompts[number]
        # A document that began before the block has its first place at the block's start.
        first = np.maximum(self.tokens.starts[number], starts)
        document = number - number[:, :1]
        if self.boundaries == "ignore":
            document = np.zeros_like(document)
        return BlockTokens(
            ids=torch.from_numpy(ids),
            documents=torch.from_numpy(np.where(exists, document, NO_DOCUMENT)),
            places=torch.from_numpy(safe - first),
            counts=torch.from_numpy(exists & is_completion),
        )


def _spans(
    tokens: TokenFile,
    length: int,
    packed: bool,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first token of each block, and the end of its targets, int64 `(n,)` each."""
    total = len(tokens.ids)
    if packed:
        # The last token is a target alone.
        starts = np.arange(0, max(total - 1, 1), length, dtype=np.int64)
        return starts, np.minimum(starts + length + 1, total)
    all_starts = []
    all_stops = []
    for start, stop, prompt in zip(
        tokens.starts.tolist(),
        tokens.stops.tolist(),
        tokens.prompts.tolist(),
        strict=True,
    ):
        for first in range(start, stop - 1, length):
            last = min(first + length + 1, stop)
            # A block inside the prompt has nothing to predict.
            if last > start + prompt:
                all_starts.append(first)
                all_stops.append(last)
    return np.array(all_starts, dtype=np.int64), np.array(all_stops, dtype=np.int64)

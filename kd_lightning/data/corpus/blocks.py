"""Cuts documents into blocks of tokens: which tokens a block holds, and which of them count."""

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
    """Blocks of L tokens and what follows each of them.

    Attributes:
        inputs: int64 `(B, L)`, what a model reads.
        targets: int64 `(B, L)`, the token after each input: the one shift of the whole project.
        documents: int64 `(B, L)`, the document of each input, from 0 in each block; `NO_DOCUMENT`
            for padding.
        places: int64 `(B, L)`, the distance of each input from the start of its document's part in
            the block.
        counts: bool `(B, L)`, whether the target is to be predicted.
    """

    inputs: Tensor
    targets: Tensor
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
        blocks = rows.numpy()
        starts = self.starts[blocks][:, None]
        stops = self.stops[blocks][:, None]
        # One more than a model reads: the target of the last input.
        places = starts + np.arange(self.length + 1)
        exists = places < stops
        # A place beyond the end reads any token, and is overwritten.
        last_token = len(self.tokens.ids) - 1
        safe = np.minimum(places, last_token)
        ids = np.where(exists, self.tokens.ids[safe], self.end).astype(np.int64)
        # The document of each place is the last one that starts at or before it.
        number = np.searchsorted(self.tokens.starts, safe, side="right") - 1
        counts = exists[:, 1:] & self._is_predicted(number, safe)
        # A document that began before the block has its first place at the block's start.
        first = np.maximum(self.tokens.starts[number], starts)
        offsets = safe - first
        # Counted from the first document of the block.
        relative_number = number - number[:, :1]
        documents = np.where(exists, relative_number, NO_DOCUMENT)
        # Copies, because torch needs arrays that own consecutive memory.
        return BlockTokens(
            inputs=torch.from_numpy(ids[:, :-1].copy()),
            targets=torch.from_numpy(ids[:, 1:].copy()),
            documents=torch.from_numpy(documents[:, :-1].copy()),
            places=torch.from_numpy(offsets[:, :-1].copy()),
            counts=torch.from_numpy(counts),
        )

    def _is_predicted(
        self, number: NDArray[np.int64], places: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Whether each place but the first is a target, bool `(B, L)`.

        Args:
            number: the document of each place, `(B, L + 1)`.
            places: in the split, `(B, L + 1)`.
        """
        own = number[:, 1:]
        offset = places[:, 1:] - self.tokens.starts[own]
        is_completion = offset >= self.tokens.prompts[own]
        if self.boundaries == "ignore":
            return is_completion
        # The first token of a document does not follow from the document before it.
        same_document: NDArray[np.bool_] = number[:, 1:] == number[:, :-1]
        return is_completion & same_document


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

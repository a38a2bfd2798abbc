"""Blocks of tokens as samples: one prediction per token that is to be predicted."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.data.corpus.blocks import Blocks, BlockTokens
from kd_lightning.data.corpus.prediction import TokenPrediction
from kd_lightning.data.source import Source
from kd_lightning.types import CLEAN, Batch


class CorpusSource(Source):
    """Some blocks of a source split.

    The inputs are those of the prediction, int64 `(B, L)` each, and for blocks of several documents
    that must not see each other also `documents` and `position_ids`; see `BlockTokens`.

    Args:
        blocks: of the whole source split.
        rows: int64 `(n,)`, the blocks of this source.
        split: name of the source split.
        separates: whether the inputs say which document each token belongs to.
        prediction: what is predicted of a block.
    """

    def __init__(
        self,
        blocks: Blocks,
        rows: Tensor,
        split: str,
        separates: bool,
        prediction: TokenPrediction,
    ) -> None:
        self.blocks = blocks
        self.rows = rows
        self.split = split
        self.separates = separates
        self.prediction = prediction

    @property
    def target(self) -> Tensor:  # type: ignore[override]
        """The target of each input of the source split, int64 `(N, L)`."""
        index = torch.arange(len(self.blocks))
        return self.prediction.read(self.blocks.read(index), index, CLEAN).target

    def batch(self, rows: Tensor, view: int) -> Batch:
        """Blocks at some positions of this source.

        Args:
            rows: int64 `(B,)`, positions in this source.
            view: which draw of the masks, if there are any.
        """
        index = self.rows[rows]
        tokens = self.blocks.read(index)
        predicted = self.prediction.read(tokens, index, view)
        counts = predicted.counts
        # Where every token counts, no index needs to be made and applied.
        positions = None
        if not bool(counts.all()):
            positions = counts.flatten().nonzero().flatten()
        return Batch(
            inputs={**predicted.inputs, **self._places(tokens)},
            target=predicted.target,
            index=index,
            view=view,
            split=self.split,
            positions=positions,
        )

    def _places(self, tokens: BlockTokens) -> dict[str, Tensor]:
        """The document of each input and its place there, if documents are separate."""
        if not self.separates:
            return {}
        return {
            "documents": tokens.documents[:, :-1].contiguous(),
            "position_ids": tokens.places[:, :-1].contiguous(),
        }

"""Blocks of tokens as samples: one prediction per token."""

from __future__ import annotations

import torch
from torch import Tensor

from kd_lightning.data.corpus.blocks import Blocks, BlockTokens
from kd_lightning.data.source import Source
from kd_lightning.types import Batch


class CorpusSource(Source):
    """Some blocks of a source split.

    The inputs are `input_ids` int64 `(B, L)`, and for blocks of several documents that must not see
    each other also `documents` and `position_ids`; see `BlockTokens`.

    Args:
        blocks: of the whole source split.
        rows: int64 `(n,)`, the blocks of this source.
        split: name of the source split.
        separates: whether the inputs say which document each token belongs to.
    """

    def __init__(
        self,
        blocks: Blocks,
        rows: Tensor,
        split: str,
        separates: bool,
    ) -> None:
        self.blocks = blocks
        self.rows = rows
        self.split = split
        self.separates = separates

    @property
    def target(self) -> Tensor:  # type: ignore[override]
        """The next token of each input of the source split, int64 `(N, L)`."""
        return self.blocks.read(torch.arange(len(self.blocks))).targets

    def batch(self, rows: Tensor, view: int) -> Batch:
        """Blocks at some positions of this source; all views are the same.

        Args:
            rows: int64 `(B,)`, positions in this source.
            view: ignored.
        """
        index = self.rows[rows]
        tokens = self.blocks.read(index)
        counts = tokens.counts
        # Where every token counts, no index needs to be made and applied.
        positions = None
        if not bool(counts.all()):
            positions = counts.flatten().nonzero().flatten()
        return Batch(
            inputs=self._inputs(tokens),
            target=tokens.targets,
            index=index,
            view=view,
            split=self.split,
            positions=positions,
        )

    def _inputs(self, tokens: BlockTokens) -> dict[str, Tensor]:
        inputs = {"input_ids": tokens.inputs}
        if self.separates:
            inputs["documents"] = tokens.documents
            inputs["position_ids"] = tokens.places
        return inputs

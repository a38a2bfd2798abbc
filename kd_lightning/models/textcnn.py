"""The convolutional sentence classifier of Kim 2014."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.models.embedding import (
    WordEmbedding,
    check_counts,
    check_shares,
    masked_max,
    vocabulary_of,
)


class TextCNN(nn.Module):
    """Word vectors, convolutions of several widths, the largest value of each filter, classes (Kim 2014, arXiv 1408.5882).

    Sentences are padded with zero vectors by a filter's width less one at both ends, so that the shortest has a place for
    each filter; a sentence's logits do not depend on how far its batch is padded.

    Args:
        embedding: numbers a word.
        widths: words that a filter sees.
        filters: of each width.
        dropout: on the pooled values.
        vectors: file of word vectors to start from, in the text format of GloVe or fastText; random where left out.
        vocabulary: how many tokens there are, filled in from the data under `kd`.
        num_classes: K, filled in from the data under `kd`.
        spec: filled in from the data under `kd`.

    Shapes:
        `input_ids` and `attention_mask` int64 `(B, L)`, padded at the end; output logits `(B, K)`.

    Raises:
        UserError: where an argument is out of range, or the data is not text.
    """

    def __init__(
        self,
        embedding: int = 300,
        widths: list[int] | None = None,
        filters: int = 100,
        dropout: float = 0.5,
        vectors: str | None = None,
        vocabulary: int | None = None,
        num_classes: int | None = None,
        spec: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        widths = [3, 4, 5] if widths is None else widths
        if num_classes is None:
            raise UserError("TextCNN: num_classes is needed; under kd it comes from the data")
        if not widths or min(widths) < 1:
            raise UserError(
                f"TextCNN: widths must list at least one width of at least 1, got {widths}"
            )
        check_counts("TextCNN", embedding=embedding, filters=filters)
        check_shares("TextCNN", dropout=dropout)
        size, pad = vocabulary_of("TextCNN", spec, vocabulary)
        self.embedding = WordEmbedding(size, embedding, pad, vectors)
        self.filters = nn.ModuleList(
            nn.Conv1d(embedding, filters, width, padding=width - 1) for width in widths
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(filters * len(widths), num_classes)

    def without_files(self) -> dict[str, Any]:
        """Arguments that make this network, but for its weights, where the file that it started from is not at hand."""
        return {"vectors": None}

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        words = (self.embedding(input_ids) * attention_mask[..., None]).transpose(1, 2)
        pooled = []
        for convolution in self.filters:
            found = F.relu(convolution(words)).transpose(1, 2)
            # A filter of width w has a place for each word and w - 1 more.
            mask = F.pad(
                attention_mask, (found.shape[1] - attention_mask.shape[1], 0), value=1
            ).bool()
            pooled.append(masked_max(found, mask))
        logits: Tensor = self.head(self.dropout(torch.cat(pooled, 1)))
        return logits

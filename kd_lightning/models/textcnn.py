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
    """Word vectors, convolutions of several widths and max pooling (Kim 2014, arXiv 1408.5882).

    Both ends of a sentence are padded with zero vectors by the width of a filter minus one, so that
    every filter fits the shortest sentence. The logits of a sentence do not depend on the padding
    of its batch.

    Args:
        embedding: size of a word vector.
        widths: number of words that a filter spans, per group of filters; default: 3, 4 and 5.
        filters: number of filters per width.
        dropout: dropout of the pooled values.
        vectors: file of initial word vectors in the text format of GloVe or fastText; default:
            random vectors.
        vocabulary: number of tokens; `kd` fills it in from the data.
        num_classes: K; `kd` fills it in from the data.
        spec: description of the data; `kd` fills it in.

    Shapes:
        `input_ids` and `attention_mask` int64 `(B, L)`, padded at the end; output logits `(B, K)`.

    Raises:
        UserError: if an argument is out of range, or if the data is not text.
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
        if widths is None:
            widths = [3, 4, 5]
        if num_classes is None:
            raise UserError(
                "TextCNN: num_classes is missing; under kd it comes from the data"
            )
        if not widths or min(widths) < 1:
            raise UserError(
                f"TextCNN: widths must be one or more numbers of at least 1, got {widths}"
            )
        check_counts("TextCNN", embedding=embedding, filters=filters)
        check_shares("TextCNN", dropout=dropout)
        size, pad = vocabulary_of("TextCNN", spec, vocabulary)
        self.embedding = WordEmbedding(size, embedding, pad, vectors)
        self.filters = nn.ModuleList()
        for width in widths:
            # With this padding, a filter also sees each word at the edge in all its places.
            convolution = nn.Conv1d(embedding, filters, width, padding=width - 1)
            self.filters.append(convolution)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(filters * len(widths), num_classes)

    def without_files(self) -> dict[str, Any]:
        """Arguments that rebuild this network, except its weights, without the vector file."""
        return {"vectors": None}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Classify sentences.

        Args:
            input_ids: int64 `(B, L)`.
            attention_mask: int64 `(B, L)`, 1 for tokens and 0 for padding.
            token_type_ids: ignored.

        Returns:
            Logits `(B, K)`.
        """
        # Zero vectors at the padding of the batch, as at the padding of the convolutions.
        vectors = self.embedding(input_ids) * attention_mask[..., None]
        words = vectors.transpose(1, 2)
        pooled: list[Tensor] = []
        for convolution in self.filters:
            activations = F.relu(convolution(words)).transpose(1, 2)
            # A filter of width w has w - 1 more positions than the sentence has words, and all of
            # the first w - 1 positions see a word.
            extra = activations.shape[1] - attention_mask.shape[1]
            mask = F.pad(attention_mask, (extra, 0), value=1).bool()
            pooled.append(masked_max(activations, mask))
        features = self.dropout(torch.cat(pooled, 1))
        logits: Tensor = self.head(features)
        return logits

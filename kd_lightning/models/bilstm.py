"""The student of Tang et al. 2019: a bidirectional LSTM over word vectors."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.models.embedding import (
    WordEmbedding,
    check_counts,
    check_shares,
    masked_max,
    vocabulary_of,
)


class BiLSTMClassifier(nn.Module):
    """Word vectors, one bidirectional LSTM layer, a hidden layer with ReLU, classes (Tang et al. 2019, section 3.1).

    A sentence's logits do not depend on how far its batch is padded: each direction starts at its own first word, and only
    words are pooled.

    Args:
        embedding: numbers a word.
        hidden: units of each direction.
        head: units of the hidden layer.
        pooling: "max" of each unit over all words, or the "last" state of each direction.
        dropout: on word vectors and on both sides of the hidden layer.
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
        hidden: int = 256,
        head: int = 128,
        pooling: Literal["max", "last"] = "max",
        dropout: float = 0.0,
        vectors: str | None = None,
        vocabulary: int | None = None,
        num_classes: int | None = None,
        spec: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if num_classes is None:
            raise UserError(
                "BiLSTMClassifier: num_classes is needed; under kd it comes from the data"
            )
        if pooling not in ("max", "last"):
            raise UserError(f"BiLSTMClassifier: pooling must be 'max' or 'last', got {pooling!r}")
        check_counts("BiLSTMClassifier", embedding=embedding, hidden=hidden, head=head)
        check_shares("BiLSTMClassifier", dropout=dropout)
        size, pad = vocabulary_of("BiLSTMClassifier", spec, vocabulary)
        self.pooling = pooling
        self.embedding = WordEmbedding(size, embedding, pad, vectors)
        self.onward, self.backward_ = (
            nn.LSTM(embedding, hidden, batch_first=True) for _ in range(2)
        )
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Sequential(nn.Linear(2 * hidden, head), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(head, num_classes)

    def without_files(self) -> dict[str, Any]:
        """Arguments that make this network, but for its weights, where the file that it started from is not at hand."""
        return {"vectors": None}

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        mask = attention_mask.bool()
        last = attention_mask.sum(1, keepdim=True) - 1
        # Reading backwards is reading the words in reverse order, padding left where it is.
        place = torch.arange(input_ids.shape[1], device=input_ids.device)
        reverse = torch.where(mask, last - place, place)
        both = []
        for lstm, ids in ((self.onward, input_ids), (self.backward_, input_ids.gather(1, reverse))):
            states, _ = lstm(self.dropout(self.embedding(ids)))
            both.append(
                masked_max(states, mask) if self.pooling == "max" else self._at(states, last)
            )
        logits: Tensor = self.head(self.hidden(self.dropout(torch.cat(both, 1))))
        return logits

    @staticmethod
    def _at(states: Tensor, place: Tensor) -> Tensor:
        """Each sentence's state at its place `(B, 1)`."""
        return states.gather(1, place[..., None].expand(-1, -1, states.shape[2])).squeeze(1)

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
    """A bidirectional LSTM over word vectors, and a hidden layer (Tang et al. 2019, section 3.1).

    The logits of a sentence do not depend on the padding of its batch: each direction starts at its
    own first word, and the pooling skips padding.

    Args:
        embedding: size of a word vector.
        hidden: units per direction.
        head: units of the hidden layer, which has a ReLU.
        pooling: "max": the maximum of each unit over all words; "last": the last state of each
            direction.
        dropout: dropout of the word vectors, and before and after the hidden layer.
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
                "BiLSTMClassifier: num_classes is missing; under kd it comes from the data"
            )
        if pooling not in ("max", "last"):
            raise UserError(
                f"BiLSTMClassifier: pooling must be 'max' or 'last', got {pooling!r}"
            )
        check_counts("BiLSTMClassifier", embedding=embedding, hidden=hidden, head=head)
        check_shares("BiLSTMClassifier", dropout=dropout)
        size, pad = vocabulary_of("BiLSTMClassifier", spec, vocabulary)
        self.pooling = pooling
        self.embedding = WordEmbedding(size, embedding, pad, vectors)
        # Two LSTMs instead of a bidirectional one: torch's would read padding first in reverse.
        self.onward = nn.LSTM(embedding, hidden, batch_first=True)
        self.backward_ = nn.LSTM(embedding, hidden, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        # Both directions are concatenated, hence twice the units.
        self.hidden = nn.Sequential(
            nn.Linear(2 * hidden, head),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        self.head = nn.Linear(head, num_classes)

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
        mask = attention_mask.bool()
        # Sentences are padded at the end, so the number of tokens gives the last one's position.
        last = attention_mask.sum(1, keepdim=True) - 1
        # The backward direction reads the words in reverse order; padding stays at the end.
        position = torch.arange(input_ids.shape[1], device=input_ids.device)
        source = torch.where(mask, last - position, position)
        reversed_ids = input_ids.gather(1, source)
        onward = self._direction(self.onward, input_ids, mask, last)
        backward = self._direction(self.backward_, reversed_ids, mask, last)
        states = torch.cat([onward, backward], 1)
        hidden = self.hidden(self.dropout(states))
        logits: Tensor = self.head(hidden)
        return logits

    def _direction(
        self,
        lstm: nn.Module,
        ids: Tensor,
        mask: Tensor,
        last: Tensor,
    ) -> Tensor:
        """The pooled states of one direction.

        Args:
            lstm: the direction.
            ids: int64 `(B, L)`, in the order of the direction.
            mask: bool `(B, L)`, true for words.
            last: int64 `(B, 1)`, position of each sentence's last word.

        Returns:
            `(B, hidden)`.
        """
        words = self.dropout(self.embedding(ids))
        states, _ = lstm(words)
        if self.pooling == "max":
            return masked_max(states, mask)
        # The last word of each direction, not the last column, which may be padding.
        units = states.shape[2]
        index = last[..., None].expand(-1, -1, units)
        last_states: Tensor = states.gather(1, index).squeeze(1)
        return last_states

"""Tokenized samples, stored one after the other and padded per batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Pieces = tuple[list[int], list[int]]
"""The token ids of one sample, and for each token the number of its text (0 or 1)."""


@dataclass
class Tokens:
    """Tokenized samples in flat tensors: N samples with T tokens in total.

    Attributes:
        ids: int32 `(T,)`, the token ids of all samples.
        types: int8 `(T,)`, the number of the text (0 or 1) that each token belongs to; `None` if
            the network does not read token types.
        starts: int64 `(N,)`, position of each sample's first token.
        lengths: int64 `(N,)`, number of tokens per sample.
        pad: id of the padding token.
        cut: number of samples that were truncated.
    """

    ids: Tensor
    types: Tensor | None
    starts: Tensor
    lengths: Tensor
    pad: int
    cut: int

    @classmethod
    def join(cls, pieces: Sequence[Pieces], pad: int, typed: bool, cut: int) -> Tokens:
        """Concatenate the tokens of all samples.

        Args:
            pieces: the tokens of each sample.
            pad: id of the padding token.
            typed: store the token types.
            cut: number of samples that were truncated.
        """
        all_ids: list[int] = []
        all_types: list[int] = []
        sizes: list[int] = []
        for ids, types in pieces:
            all_ids.extend(ids)
            all_types.extend(types)
            sizes.append(len(ids))
        lengths = torch.tensor(sizes)
        # Small integers save memory; `inputs` widens them per batch.
        return cls(
            ids=torch.tensor(all_ids, dtype=torch.int32),
            types=torch.tensor(all_types, dtype=torch.int8) if typed else None,
            starts=lengths.cumsum(0) - lengths,
            lengths=lengths,
            pad=pad,
            cut=cut,
        )

    def inputs(self, index: Tensor) -> dict[str, Tensor]:
        """The network inputs of the samples at `index`, padded at the end to the longest of them.

        Args:
            index: int64 `(B,)`.

        Returns:
            Tensors of int64 `(B, L)`: `input_ids`; `attention_mask`, 1 for tokens and 0 for
            padding; and `token_type_ids` if the network reads them.
        """
        lengths = self.lengths[index, None]
        longest = int(lengths.max()) if len(index) else 1
        column = torch.arange(longest)
        mask = column < lengths
        # Padding columns of the last samples point past the end; the mask hides what they read.
        position = self.starts[index, None] + column
        position.clamp_(max=len(self.ids) - 1)
        inputs = {
            "input_ids": torch.where(mask, self.ids[position], self.pad).long(),
            "attention_mask": mask.long(),
        }
        if self.types is not None:
            inputs["token_type_ids"] = torch.where(mask, self.types[position], 0).long()
        return inputs

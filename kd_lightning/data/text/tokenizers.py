"""Tokenizers: from sentences to numbers, once; and what a word is, the same for all of them and for augmentation."""

from __future__ import annotations

import inspect
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.hub import vocabulary_sha256
from kd_lightning.weights import KEY, read_file

MASK = "\ue000"
"""Stands for a masked word in a sentence; each tokenizer puts its own mask (or unknown) token in its place."""

_WORD = re.compile(r"n't|'(?:s|re|ve|ll|d|m)\b|\w+|[^\w\s]", re.IGNORECASE)
_NOT = re.compile(r"(?<=\w)(n't)\b", re.IGNORECASE)


def words(text: str, plain: bool = True) -> list[str]:
    """The words of a text: punctuation marks and clitics stand alone, as in the Penn Treebank and so in SST.

    `words("It isn't Amélie's!")` is `["it", "is", "n't", "amelie", "'s", "!"]`; what is split already stays as it is.

    Args:
        text: any text.
        plain: in lower case and without accents.
    """
    text = text.replace("\u2019", "'")
    if plain:
        decomposed = unicodedata.normalize("NFKD", text.lower())
        text = "".join(c for c in decomposed if not unicodedata.combining(c))
    return _WORD.findall(_NOT.sub(r" \1", text))


Pieces = tuple[list[int], list[int]]
"""The tokens of a sample, and which of its texts (0 or 1) each belongs to."""


@dataclass
class Tokens:
    """Tokenized samples, one after the other.

    Attributes:
        ids: int32 `(T,)`, all tokens.
        types: int8 `(T,)`, which of a pair's texts each token belongs to; None where the network is not told.
        starts, lengths: int64 `(N,)`, where each sample's tokens lie.
        pad: what fills a batch up.
        cut: how many samples were longer than the limit.
    """

    ids: Tensor
    types: Tensor | None
    starts: Tensor
    lengths: Tensor
    pad: int
    cut: int

    @classmethod
    def join(cls, pieces: Sequence[Pieces], pad: int, typed: bool, cut: int) -> Tokens:
        lengths = torch.tensor([len(ids) for ids, _ in pieces])
        ids, types = (
            torch.tensor([n for piece in pieces for n in piece[at]], dtype=torch.int32)
            for at in (0, 1)
        )
        return cls(
            ids,
            types.to(torch.int8) if typed else None,
            lengths.cumsum(0) - lengths,
            lengths,
            pad,
            cut,
        )

    def inputs(self, index: Tensor) -> dict[str, Tensor]:
        """The samples at `index` `(B,)`, padded at the end to the longest of them: int64 `(B, L)` each.

        Returns:
            `input_ids`; `attention_mask`, 1 on tokens and 0 on padding; `token_type_ids`, where the network reads them.
        """
        lengths = self.lengths[index, None]
        place = torch.arange(int(lengths.max()) if len(index) else 1)
        mask = place < lengths
        at = (self.starts[index, None] + place).clamp_(max=len(self.ids) - 1)
        found = {
            "input_ids": torch.where(mask, self.ids[at], self.pad).long(),
            "attention_mask": mask.long(),
        }
        if self.types is not None:
            found["token_type_ids"] = torch.where(mask, self.types[at], 0).long()
        return found


class Tokenizer:
    """Base of the tokenizers. What it takes from the training sentences it takes in `learn`; then `encode` is a function.

    A checkpoint keeps the vocabulary that its network reads, and what is run with the checkpoint takes it from there.

    Args:
        max_length: tokens of a sample, those that the tokenizer adds included; longer samples are cut and counted.
        checkpoint: of a network that reads the tokens; its vocabulary is taken instead of one from the training sentences.
    """

    typed: bool = False
    """Whether the network is told which of a pair's texts a token belongs to."""

    known: bool = False
    """Whether there is a vocabulary already: nothing is then learnt."""

    def __init__(self, max_length: int = 128, checkpoint: str | None = None) -> None:
        if max_length < 4:
            raise UserError(
                f"{type(self).__name__}: max_length must be at least 4, got {max_length}"
            )
        self.max_length = max_length
        self._arguments = {
            n: getattr(self, n)
            for n in inspect.signature(type(self)).parameters
            if hasattr(self, n)
        }
        self._checkpoint = checkpoint

    def learn(self, texts: Sequence[tuple[str, ...]]) -> None:
        """Take the vocabulary from the checkpoint or the training sentences, where it is not known.

        Raises:
            UserError: where the checkpoint cannot be read, or is not one of a network for text with such a tokenizer.
        """
        if self.known:
            return
        if self._checkpoint is None:
            self._learn(texts)
            return
        ours = read_file(self._checkpoint, "the tokenizer's checkpoint").get(KEY) or {}
        if (kept := (ours.get("data") or {}).get("tokenizer")) is None:
            raise UserError(
                f"the tokenizer's checkpoint {self._checkpoint} keeps no vocabulary; is its network one for text?"
            )
        self.restore(kept)

    def _learn(self, texts: Sequence[tuple[str, ...]]) -> None:
        raise NotImplementedError

    def keep(self) -> dict[str, Any]:
        """What `restore` needs to encode as this tokenizer does, in builtins."""
        return {"name": type(self).__name__, **self._keep()}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Encode as the tokenizer did that `kept` is of; UserError where it was of another kind."""
        if kept["name"] != type(self).__name__:
            raise UserError(
                f"the checkpoint's network reads the tokens of a {kept['name']}, the data has a {type(self).__name__}; "
                "give the checkpoint with its own config"
            )
        self._restore(kept)
        self.known = True

    def _keep(self) -> dict[str, Any]:
        raise NotImplementedError

    def _restore(self, kept: Mapping[str, Any]) -> None:
        raise NotImplementedError

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Each token's number."""
        raise NotImplementedError

    @property
    def pad(self) -> int:
        raise NotImplementedError

    def pieces(self, texts: Sequence[tuple[str, ...]]) -> tuple[list[Pieces], int]:
        """The tokens of each sample, at most `max_length`, and how many samples were cut."""
        raise NotImplementedError

    def encode(self, texts: Sequence[tuple[str, ...]]) -> Tokens:
        pieces, cut = self.pieces(texts)
        return Tokens.join(pieces, self.pad, self.typed, cut)

    def describe(self) -> dict[str, Any]:
        """What networks need to know: how many tokens there are, which they are, and how many a sample has at most."""
        size = max(self.vocabulary.values()) + 1
        return {
            "size": size,
            "pad": self.pad,
            "max_length": self.max_length,
            "sha256": vocabulary_sha256(self.vocabulary),
        }

    def fingerprint(self) -> dict[str, Any]:
        """What decides how a sentence is encoded."""
        return {
            "name": type(self).__name__,
            **self._arguments,
            "vocabulary": vocabulary_sha256(self.vocabulary),
        }


class WordTokenizer(Tokenizer):
    """The words of the training sentences; a word that is not among them, or is masked, is the unknown word.

    Args:
        min_count: rarer words are unknown.
        max_length: words of a sample, over both texts of a pair; longer samples are cut and counted.
        checkpoint: see Tokenizer.
    """

    special = ("[PAD]", "[UNK]", "[SEP]")

    def __init__(
        self, min_count: int = 1, max_length: int = 128, checkpoint: str | None = None
    ) -> None:
        if min_count < 1:
            raise UserError(f"WordTokenizer: min_count must be at least 1, got {min_count}")
        self.min_count = min_count
        self._numbers: dict[str, int] = {}
        super().__init__(max_length, checkpoint)

    def _learn(self, texts: Sequence[tuple[str, ...]]) -> None:
        counts = Counter(word for sample in texts for text in sample for word in words(text))
        kept = sorted(
            (word for word, count in counts.items() if count >= self.min_count),
            key=lambda w: (-counts[w], w),
        )
        self._numbers = {word: number for number, word in enumerate([*self.special, *kept])}

    def _keep(self) -> dict[str, Any]:
        return {"words": list(self._numbers)}

    def _restore(self, kept: Mapping[str, Any]) -> None:
        self._numbers = {word: number for number, word in enumerate(kept["words"])}

    @property
    def vocabulary(self) -> Mapping[str, int]:
        return self._numbers

    @property
    def pad(self) -> int:
        return 0

    def pieces(self, texts: Sequence[tuple[str, ...]]) -> tuple[list[Pieces], int]:
        found, cut = [], 0
        for sample in texts:
            first, *rest = ([self._numbers.get(word, 1) for word in words(text)] for text in sample)
            second = [2, *rest[0]] if rest else []
            cut += len(first) + len(second) > self.max_length
            ids = (first + second)[: self.max_length] or [
                1
            ]  # a sample without a word is one unknown word
            found.append((ids, [int(at >= len(first)) for at in range(len(ids))]))
        return found, cut

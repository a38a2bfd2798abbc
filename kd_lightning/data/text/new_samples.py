"""Reads texts that a user brings, tokenized like the training sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.data.new_samples import Content, InputReader, NewSample
from kd_lightning.data.text.files import read_text
from kd_lightning.data.text.tokenizers import Tokenizer
from kd_lightning.errors import UserError
from kd_lightning.values import Values


@dataclass(frozen=True)
class TextReader(InputReader):
    """Tokenizes lines of text to int64 `(B, L)`.

    Attributes:
        tokenizer: of the network, with its vocabulary.
        pairs: each line holds two texts, separated by a tab.
        whole_length: pad to the tokenizer's largest length, as exported graphs need it,
            and not to the longest text of a batch.
    """

    tokenizer: Tokenizer
    pairs: bool
    whole_length: bool = False

    kind: ClassVar[str] = "texts"
    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".tsv")

    def samples(self, path: Path) -> Iterator[NewSample]:
        """The lines of a UTF-8 file that are not blank.

        Args:
            path: of the file.

        Raises:
            UserError: if the file cannot be read.
        """
        # `splitlines` would also split at rare marks that occur within sentences.
        yield from self.lines(str(path), read_text(path).split("\n"))

    def lines(
        self, owner: str, lines: Iterator[str] | Sequence[str]
    ) -> Iterator[NewSample]:
        """The lines that are not blank, by their numbers.

        Args:
            owner: where they come from.
            lines: as they are read.
        """
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if text:
                parts = text.split("\t", 1) if self.pairs else [text]
                content = tuple(part.strip() for part in parts)
                yield NewSample(f"{owner}:{number}", content)

    def encode(self, contents: Sequence[Content]) -> Mapping[str, Tensor]:
        """Token ids and masks, int64 `(B, L)`.

        Args:
            contents: B texts, or pairs of texts.

        Raises:
            UserError: if a pair lacks one of its texts, or a single text is a pair.
        """
        expected = 2 if self.pairs else 1
        texts: list[tuple[str, ...]] = []
        for content in contents:
            if not isinstance(content, tuple) or len(content) != expected:
                remedy = "two texts, separated by a tab" if self.pairs else "one text"
                raise UserError(f"this network reads {remedy}")
            texts.append(tuple(str(text) for text in content))
        tokens = self.tokenizer.encode(texts)
        inputs = tokens.inputs(torch.arange(len(texts)))
        if self.whole_length:
            return self._padded(inputs)
        return inputs

    def _padded(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Token ids and masks `(B, L)` at the tokenizer's largest length."""
        padded = {}
        for name, tensor in inputs.items():
            missing = self.tokenizer.max_length - tensor.shape[1]
            value = self.tokenizer.pad if name == "input_ids" else 0
            padded[name] = F.pad(tensor, (0, missing), value=value)
        return padded

    def describe(self) -> Values:
        """The whole tokenizer with its vocabulary."""
        return {
            "kind": self.kind,
            "pairs": self.pairs,
            "tokenizer": self.tokenizer.rebuilt_from(),
        }

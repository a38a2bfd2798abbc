"""Prompts that a user brings to a language model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from kd_lightning.data.corpus.documents import read_utf8
from kd_lightning.data.corpus.tokenizers import LanguageTokenizer
from kd_lightning.data.new_samples import Content, InputReader, NewSample
from kd_lightning.errors import UserError
from kd_lightning.values import Values


@dataclass(frozen=True)
class PromptReader(InputReader):
    """Reads prompts, tokenized as the training texts are.

    A file that ends in `.jsonl` holds an object with the field `prompt` per line;
    further fields are ignored. Any other file holds one prompt per line, and blank
    lines are skipped.

    Attributes:
        tokenizer: of the network, with its vocabulary.
    """

    tokenizer: LanguageTokenizer

    kind: ClassVar[str] = "prompts"
    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".jsonl")

    def samples(self, path: Path) -> Iterator[NewSample]:
        """The prompts of a UTF-8 file.

        Args:
            path: of the file.

        Raises:
            UserError: if the file cannot be read.
        """
        # Not `splitlines`, which also splits at rare marks that occur within a text.
        lines = read_utf8(path).split("\n")
        if path.suffix.lower() == ".jsonl":
            yield from _json_lines(str(path), lines)
        else:
            yield from self.lines(str(path), lines)

    def lines(self, owner: str, lines: Iterable[str]) -> Iterator[NewSample]:
        """The lines that are not blank, by their numbers, with all of their spaces.

        Args:
            owner: where they come from.
            lines: as they are read.
        """
        for number, line in enumerate(lines, 1):
            text = line.rstrip("\r\n")
            if text.strip():
                yield NewSample(f"{owner}:{number}", (text,))

    def token_ids(self, text: str) -> Tensor:
        """The tokens of a prompt, int64 `(n,)`."""
        (ids,) = self.tokenizer.encode([text])
        return torch.tensor(ids, dtype=torch.int64)

    def encode(self, contents: Sequence[Content]) -> Mapping[str, Tensor]:
        """The tokens of prompts of one length, int64 `(B, L)`.

        Args:
            contents: B texts.

        Raises:
            UserError: if the prompts differ in their lengths.
        """
        rows = []
        for content in contents:
            assert isinstance(content, tuple)
            rows.append(self.token_ids(str(content[0])))
        if len({len(row) for row in rows}) > 1:
            raise UserError("prompts of one batch differ in their lengths")
        return {"input_ids": torch.stack(rows)}

    def describe(self) -> Values:
        """The tokenizer, in plain values."""
        return {"kind": self.kind, "tokenizer": self.tokenizer.keep()}


def _json_lines(owner: str, lines: Sequence[str]) -> Iterator[NewSample]:
    """The prompt of each line that is not blank; a line without one has a problem."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        name = f"{owner}:{number}"
        prompt = _prompt_of(line)
        if prompt is None:
            problem = "needs JSON with the field prompt, as a string that is not empty"
            yield NewSample(name, None, UserError(problem))
        else:
            yield NewSample(name, (prompt,))


def _prompt_of(line: str) -> str | None:
    """The prompt in a line of JSON; `None` if there is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, Mapping):
        return None
    prompt = content.get("prompt")
    return prompt if isinstance(prompt, str) and prompt else None

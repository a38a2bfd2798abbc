"""The base class of the tokenizers, and the tokenizer that reads whole words."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_lightning.data.text.tokens import Pieces, Tokens
from kd_lightning.data.text.words import Sample, words
from kd_lightning.errors import UserError
from kd_lightning.hub import vocabulary_sha256
from kd_lightning.spec import Vocabulary
from kd_lightning.values import Values
from kd_lightning.weights import KEY, read_file

MIN_LENGTH = 4
"""The smallest `max_length`: two texts need three special tokens, and one token of text."""


class Tokenizer(ABC):
    """Base class of the tokenizers.

    `learn` takes a vocabulary from the training sentences; after that, `encode` is a pure function.
    A checkpoint stores the vocabulary that its network reads, and restores it when it is loaded.

    Args:
        max_length: maximum number of tokens per sample, special tokens included; longer samples
            are truncated and counted.
        checkpoint: checkpoint of a network for text. Its vocabulary replaces one learned from the
            training sentences.
    """

    typed: bool = False
    """Whether the network reads the number of the text (0 or 1) that each token belongs to."""

    known: bool = False
    """Whether the vocabulary has been restored; `learn` then does nothing."""

    def __init__(self, max_length: int = 128, checkpoint: str | None = None) -> None:
        if max_length < MIN_LENGTH:
            raise UserError(
                f"{type(self).__name__}: max_length must be at least {MIN_LENGTH}, got {max_length}"
            )
        self.max_length = max_length
        self._checkpoint = checkpoint
        # Subclasses set their own arguments first; these belong to the fingerprint, too.
        self._arguments: dict[str, Any] = {}
        for name in inspect.signature(type(self)).parameters:
            if hasattr(self, name):
                self._arguments[name] = getattr(self, name)

    def learn(self, texts: Sequence[Sample]) -> None:
        """Take the vocabulary from the checkpoint or the training sentences, unless it is known.

        Raises:
            UserError: if the checkpoint cannot be read, or if its network does not read the tokens
                of such a tokenizer.
        """
        if self.known:
            return
        if self._checkpoint is None:
            self._learn(texts)
            return
        content = read_file(self._checkpoint, "the tokenizer's checkpoint")
        metadata = content.get(KEY) or {}
        state = (metadata.get("data") or {}).get("tokenizer")
        if state is None:
            raise UserError(
                f"the tokenizer's checkpoint {self._checkpoint} has no vocabulary; "
                "give a checkpoint of a network for text"
            )
        self.restore(state)

    def keep(self) -> dict[str, Any]:
        """The state that `restore` needs to encode as this tokenizer does, in builtins."""
        return {"name": type(self).__name__, **self._keep()}

    def rebuilt_from(self) -> Values:
        """The class, arguments and state from which an export builds this tokenizer."""
        cls = type(self)
        arguments = {**self._arguments, "max_length": self.max_length}
        for name, value in arguments.items():
            # The path of a folder is private, and the state holds what was read there.
            if isinstance(value, str) and Path(value).expanduser().is_dir():
                arguments[name] = Path(value).name
        return {
            "class_path": f"{cls.__module__}.{cls.__qualname__}",
            "init_args": arguments,
            "state": self.keep(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Encode as the tokenizer did that returned `state` from `keep`.

        Raises:
            UserError: if that tokenizer was of another class.
        """
        if state["name"] != type(self).__name__:
            raise UserError(
                f"the checkpoint's network reads the tokens of a {state['name']}, "
                f"the data has a {type(self).__name__}; use the checkpoint with its own config"
            )
        self._restore(state)
        self.known = True

    @abstractmethod
    def _learn(self, texts: Sequence[Sample]) -> None:
        """Take the vocabulary from the training sentences."""

    @abstractmethod
    def _keep(self) -> dict[str, Any]:
        """The state of this class, without its name."""

    @abstractmethod
    def _restore(self, state: Mapping[str, Any]) -> None:
        """Load the state that `_keep` returned."""

    @property
    @abstractmethod
    def vocabulary(self) -> Mapping[str, int]:
        """The id of each token."""

    @property
    @abstractmethod
    def pad(self) -> int:
        """The id of the padding token."""

    @abstractmethod
    def pieces(self, texts: Sequence[Sample]) -> tuple[list[Pieces], int]:
        """Tokenize samples.

        Returns:
            At most `max_length` tokens per sample, and the number of truncated samples.
        """

    def encode(self, texts: Sequence[Sample]) -> Tokens:
        """Tokenize samples into flat tensors."""
        pieces, cut = self.pieces(texts)
        return Tokens.join(pieces, self.pad, self.typed, cut)

    def describe(self) -> Vocabulary:
        """The facts that networks need: number of tokens, padding, length limit and checksum."""
        return Vocabulary(
            # Ids may have gaps, and an embedding needs a row for the largest one.
            size=max(self.vocabulary.values()) + 1,
            pad=self.pad,
            max_length=self.max_length,
            sha256=vocabulary_sha256(self.vocabulary),
        )

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides how a sentence is encoded."""
        return {
            "name": type(self).__name__,
            **self._arguments,
            "vocabulary": vocabulary_sha256(self.vocabulary),
        }


class WordTokenizer(Tokenizer):
    """Reads whole words; rare, new and masked words become the unknown word.

    Args:
        min_count: words that occur less often in the training sentences are unknown.
        max_length: maximum number of words per sample, over both texts of a pair; longer samples
            are truncated and counted.
        checkpoint: see Tokenizer.
    """

    special = ("[PAD]", "[UNK]", "[SEP]")

    def __init__(
        self,
        min_count: int = 1,
        max_length: int = 128,
        checkpoint: str | None = None,
    ) -> None:
        if min_count < 1:
            raise UserError(
                f"WordTokenizer: min_count must be at least 1, got {min_count}"
            )
        self.min_count = min_count
        self._ids: dict[str, int] = {}
        super().__init__(max_length, checkpoint)

    def _learn(self, texts: Sequence[Sample]) -> None:
        counts: Counter[str] = Counter()
        for sample in texts:
            for text in sample:
                counts.update(words(text))
        frequent: list[str] = []
        for word, count in counts.items():
            if count >= self.min_count:
                frequent.append(word)
        # The alphabet breaks ties, so that the ids do not depend on the order of the sentences.
        frequent.sort(key=lambda word: (-counts[word], word))
        self._number([*self.special, *frequent])

    def _keep(self) -> dict[str, Any]:
        return {"words": list(self._ids)}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self._number(state["words"])

    def _number(self, vocabulary: Sequence[str]) -> None:
        # A word's place in the list is its id.
        self._ids = {word: number for number, word in enumerate(vocabulary)}

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The id of each word, special tokens first, then by frequency."""
        return self._ids

    @property
    def pad(self) -> int:
        """The id of the padding token."""
        return self.special.index("[PAD]")

    def pieces(self, texts: Sequence[Sample]) -> tuple[list[Pieces], int]:
        """Tokenize samples; `[SEP]` precedes the second text of a pair."""
        pieces: list[Pieces] = []
        cut = 0
        for sample in texts:
            first = self._word_ids(sample[0])
            second: list[int] = []
            if len(sample) > 1:
                separator = self.special.index("[SEP]")
                second = [separator, *self._word_ids(sample[1])]
            if len(first) + len(second) > self.max_length:
                cut += 1
            ids = (first + second)[: self.max_length]
            if not ids:
                # A network cannot pool over nothing: a sample without words is one unknown word.
                ids = [self.special.index("[UNK]")]
            # The separator counts as a part of the second text.
            types = [int(position >= len(first)) for position in range(len(ids))]
            pieces.append((ids, types))
        return pieces, cut

    def _word_ids(self, text: str) -> list[int]:
        unknown = self.special.index("[UNK]")
        return [self._ids.get(word, unknown) for word in words(text)]

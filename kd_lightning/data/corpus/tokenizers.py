"""Tokenizers of language models: learned from a corpus, or pretrained."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kd_lightning.data.corpus.documents import Document
from kd_lightning.errors import UserError
from kd_lightning.hub import (
    BackendTokenizer,
    library,
    pretrained_tokenizer,
    vocabulary_sha256,
)
from kd_lightning.values import Value

END = "<|endoftext|>"
"""The token that ends a document, in a vocabulary learned here."""

MASK = "<|mask|>"
"""The token that stands for a masked one, in a vocabulary learned here."""

BYTES = 256
"""Every vocabulary learned here holds all bytes."""

SPACE_MARK = "\u2581"
"""What stands for a space in the tokens of SentencePiece."""


class Loaded(NamedTuple):
    """A tokenizer of the library, and the ids of two tokens.

    Attributes:
        backend: the tokenizer.
        end: the token that ends a document.
        mask: the token that stands for a masked one; `None` if there is none.
    """

    backend: BackendTokenizer
    end: int
    mask: int | None = None


class LanguageTokenizer(ABC):
    """Base class of the tokenizers of language models.

    Unlike the tokenizers of sentences, it adds no token and cuts no text.
    """

    _backend: BackendTokenizer | None = None
    _end: int = 0
    _mask: int | None = None

    @abstractmethod
    def _load(self, documents: Iterable[Document]) -> Loaded:
        """The tokenizer of the library, and the ids of its special tokens.

        Args:
            documents: of the training split.
        """

    def learn(self, documents: Iterable[Document]) -> None:
        """Load the vocabulary, or learn it from the training documents, unless it is known."""
        if self._backend is None:
            loaded = self._load(documents)
            self._backend = loaded.backend
            self._end = loaded.end
            self._mask = loaded.mask

    @property
    def is_known(self) -> bool:
        """Whether the vocabulary is loaded, learned or restored."""
        return self._backend is not None

    @property
    def backend(self) -> BackendTokenizer:
        """The tokenizer of the library; `learn` or `restore` comes first."""
        assert self._backend is not None, "learn() comes first"
        return self._backend

    @property
    def end(self) -> int:
        """The id of the token that ends a document."""
        return self._end

    @property
    def mask(self) -> int | None:
        """The id of the token that stands for a masked one; `None` if there is none."""
        return self._mask

    @property
    def size(self) -> int:
        """The number of token ids."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, without special tokens."""
        encodings = self.backend.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode_after(self, prompt: Sequence[int], completion: Sequence[int]) -> str:
        """The text of a completion, without special tokens.

        Args:
            prompt: token ids that precede the completion.
            completion: token ids.
        """
        before = self.backend.decode(prompt, skip_special_tokens=True)
        whole = self.backend.decode([*prompt, *completion], skip_special_tokens=True)
        # Some tokenizers drop a space at the start of what they decode.
        if whole.startswith(before):
            return whole[len(before) :]
        return self.backend.decode(completion, skip_special_tokens=True)

    def token_bytes(self) -> Tensor:
        """How many bytes of UTF-8 each token stands for, int64 `(V,)`; 0 for special tokens.

        The bytes of a text's tokens add up to those of the text.
        """
        state = json.loads(self.backend.to_str())
        special = self.special_ids()
        # Byte-level vocabularies write each byte as one character.
        is_byte_level = "ByteLevel" in json.dumps(state["decoder"])
        counts = torch.zeros(self.size, dtype=torch.int64)
        for token, number in self.backend.get_vocab(with_added_tokens=True).items():
            if number not in special:
                counts[number] = _bytes_of(token, is_byte_level)
        return counts

    def special_ids(self) -> frozenset[int]:
        """The ids of the tokens that stand for no text."""
        added = json.loads(self.backend.to_str())["added_tokens"]
        return frozenset(token["id"] for token in added if token["special"])

    def sha256(self) -> str:
        """A checksum of the tokens and their ids."""
        return vocabulary_sha256(self.backend.get_vocab(with_added_tokens=True))

    def keep(self) -> dict[str, Value]:
        """The state that `restore` needs to encode as this tokenizer does."""
        return {
            "name": type(self).__name__,
            "backend": self.backend.to_str(),
            "end": self.end,
            "mask": self.mask,
        }

    def restore(self, state: Mapping[str, Value]) -> None:
        """Encode as the tokenizer did that returned `state` from `keep`."""
        backend = library("tokenizers").Tokenizer.from_str(str(state["backend"]))
        self._backend = backend
        self._end = int(str(state["end"]))
        # Checkpoints of earlier versions know no masks.
        mask = state.get("mask")
        self._mask = None if mask is None else int(str(mask))

    def fingerprint(self) -> dict[str, Value]:
        """Everything that decides how a text is encoded."""
        # Tokenizers with the same vocabulary can still split words differently.
        encoding = hashlib.sha256(self.backend.to_str().encode()).hexdigest()
        return {"encoding": encoding, "end": self.end}


def _bytes_of(token: str, is_byte_level: bool) -> int:
    """The bytes of UTF-8 that a token stands for."""
    if is_byte_level:
        return len(token)
    # SentencePiece writes bytes that no token covers as <0x0A>.
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return 1
    return len(token.replace(SPACE_MARK, " ").encode())


class BytePairTokenizer(LanguageTokenizer):
    """Reads byte pairs learned from the training documents (Sennrich et al. 2016).

    Every text can be encoded, because all single bytes are tokens. Needs the package tokenizers.

    Args:
        size: number of tokens, special tokens included: at least 257, and 258 with a mask token.
        mask: whether the vocabulary has a mask token, which masked language models need.

    Raises:
        UserError: if `size` is too small.
    """

    def __init__(self, size: int = 8192, mask: bool = False) -> None:
        self._special = [END, MASK] if mask else [END]
        smallest = BYTES + len(self._special)
        if size < smallest:
            raise UserError(
                f"BytePairTokenizer: size must be at least {smallest}, got {size}"
            )
        self._size = size

    def _load(self, documents: Iterable[Document]) -> Loaded:
        tokenizers = library("tokenizers")
        byte_level = tokenizers.pre_tokenizers.ByteLevel
        backend = tokenizers.Tokenizer(tokenizers.models.BPE())
        backend.pre_tokenizer = byte_level(add_prefix_space=False)
        backend.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=self._size,
            special_tokens=self._special,
            initial_alphabet=sorted(byte_level.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(_lines(documents), trainer)
        vocabulary = backend.get_vocab(with_added_tokens=True)
        return Loaded(backend, vocabulary[END], vocabulary.get(MASK))


def _lines(documents: Iterable[Document]) -> Iterator[str]:
    """The lines of all documents; the trainer counts words, which do not span lines."""
    for document in documents:
        yield from document.prompt.splitlines(keepends=True)
        yield from document.text.splitlines(keepends=True)


class PretrainedLanguageTokenizer(LanguageTokenizer):
    """The tokenizer of a pretrained language model.

    Args:
        name: name of a model on the hub, or path of a folder.
        gguf_file: name of a GGUF file in it that holds the tokenizer. Needs the package gguf.
    """

    def __init__(self, name: str, gguf_file: str | None = None) -> None:
        self.name = name
        self.gguf_file = gguf_file

    def _load(self, documents: Iterable[Document]) -> Loaded:
        tokenizer = pretrained_tokenizer(self.name, self.gguf_file)
        end = tokenizer.eos_token_id
        if end is None:
            # BERT and its relatives put this token after each text.
            end = tokenizer.sep_token_id
        if end is None:
            raise UserError(
                f"the tokenizer {self.name} has no token that ends a document; use that of a "
                "language model"
            )
        backend = tokenizer.backend_tokenizer
        # Tokenizers may have been saved with limits of their own.
        backend.no_padding()
        backend.no_truncation()
        return Loaded(backend, int(end), tokenizer.mask_token_id)

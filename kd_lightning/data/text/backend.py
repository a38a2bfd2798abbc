"""The base class of tokenizers that are backed by the tokenizers library."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from kd_lightning.data.text.tokenizers import Tokenizer
from kd_lightning.data.text.tokens import Pieces
from kd_lightning.data.text.words import MASK, Sample
from kd_lightning.hub import BackendTokenizer, library

NO_LIMIT = 2**30
"""The `_longest` of tokenizers that do not limit the length of a sample."""


class LibraryTokenizer(Tokenizer):
    """Reads pieces of words through a `tokenizers.Tokenizer`, which is created on first use."""

    mask_token: str
    _backend: BackendTokenizer | None = None
    _pad: int = 0
    _longest: int = NO_LIMIT

    @abstractmethod
    def _load(self) -> BackendTokenizer:
        """Create the tokenizer of the library."""

    @property
    def backend(self) -> BackendTokenizer:
        """The tokenizer of the library."""
        if self._backend is None:
            return self._use(self._load())
        return self._backend

    def _use(self, backend: BackendTokenizer) -> BackendTokenizer:
        # A pretrained network has a limit of its own.
        self.max_length = min(self.max_length, self._longest)
        # Batches are padded later, so that one encoding serves all of them.
        backend.no_padding()
        backend.enable_truncation(self.max_length)
        self._backend = backend
        return backend

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """The id of each piece, special tokens included."""
        return self.backend.get_vocab(with_added_tokens=True)

    @property
    def pad(self) -> int:
        """The id of the padding token."""
        self._load_once()
        return self._pad

    def _load_once(self) -> None:
        """Create the backend, which also sets `typed`, `mask_token`, `_pad` and `max_length`."""
        _ = self.backend

    def _keep(self) -> dict[str, Any]:
        self._load_once()
        # Checkpoints store these names; the underscores are part of their format.
        return {
            "backend": self.backend.to_str(),
            "mask_token": self.mask_token,
            "typed": self.typed,
            "_pad": self._pad,
            "_longest": self._longest,
        }

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.mask_token = state["mask_token"]
        self.typed = state["typed"]
        self._pad = state["_pad"]
        self._longest = state["_longest"]
        self._use(library("tokenizers").Tokenizer.from_str(state["backend"]))

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides how a sentence is encoded.

        The folder of a pretrained tokenizer does not count. Its whole state does: tokenizers with
        the same vocabulary can still split words differently.
        """
        state = json.dumps(self._keep(), sort_keys=True)
        return {
            "name": type(self).__name__,
            "max_length": self.max_length,
            "encoding": hashlib.sha256(state.encode()).hexdigest(),
        }

    def pieces(self, texts: Sequence[Sample]) -> tuple[list[Pieces], int]:
        """Tokenize samples with the tokenizer's own special tokens."""
        self._load_once()
        inputs: list[str | Sample] = []
        for sample in texts:
            masked = [text.replace(MASK, self.mask_token) for text in sample]
            # The backend takes a single text as a string, and a pair as a tuple.
            inputs.append(masked[0] if len(masked) == 1 else tuple(masked))
        pieces: list[Pieces] = []
        cut = 0
        for encoding in self.backend.encode_batch(inputs):
            pieces.append((encoding.ids, encoding.type_ids))
            if encoding.overflowing:
                cut += 1
        return pieces, cut

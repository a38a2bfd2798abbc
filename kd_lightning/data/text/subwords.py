"""Tokenizers that read pieces of words: learnt from the training sentences, or those of a pretrained model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from kd_lightning.data.text.tokenizers import MASK, Pieces, Tokenizer, Tokens
from kd_lightning.errors import UserError
from kd_lightning.hub import library, pretrained_tokenizer


class _BackendTokenizer(Tokenizer):
    """What a `tokenizers.Tokenizer` does, with truncation that is counted."""

    mask_token: str
    _backend: Any = None
    _pad: int = 0
    _longest: int = 2**30
    _kept = ("mask_token", "typed", "_pad", "_longest")

    def _load(self) -> Any:
        raise NotImplementedError

    @property
    def backend(self) -> Any:
        if self._backend is None:
            self._use(self._load())
        return self._backend

    def _use(self, backend: Any) -> None:
        self.max_length = min(self.max_length, self._longest)
        backend.no_padding()
        backend.enable_truncation(self.max_length)
        self._backend = backend

    @property
    def pad(self) -> int:
        assert self.backend is not None
        return self._pad

    def _keep(self) -> dict[str, Any]:
        return {
            "backend": self.backend.to_str(),
            **{name: getattr(self, name) for name in self._kept},
        }

    def fingerprint(self) -> dict[str, Any]:
        # Where a pretrained tokenizer lies does not matter; two of one vocabulary may still differ in how they split.
        encoding = hashlib.sha256(json.dumps(self._keep(), sort_keys=True).encode()).hexdigest()
        return {"name": type(self).__name__, "max_length": self.max_length, "encoding": encoding}

    def _restore(self, kept: Mapping[str, Any]) -> None:
        for name in self._kept:
            setattr(self, name, kept[name])
        self._use(library("tokenizers").Tokenizer.from_str(kept["backend"]))

    @property
    def vocabulary(self) -> Mapping[str, int]:
        found: dict[str, int] = self.backend.get_vocab(with_added_tokens=True)
        return found

    def pieces(self, texts: Sequence[tuple[str, ...]]) -> tuple[list[Pieces], int]:
        masked = [tuple(text.replace(MASK, self.mask_token) for text in sample) for sample in texts]
        encoded = self.backend.encode_batch(
            [sample[0] if len(sample) == 1 else sample for sample in masked]
        )
        return [(e.ids, e.type_ids) for e in encoded], sum(bool(e.overflowing) for e in encoded)


class SubwordTokenizer(_BackendTokenizer):
    """Pieces of words learnt from the training sentences (byte pairs, Sennrich et al. 2016), in lower case.

    `[CLS]` stands in front of a sample and `[SEP]` behind each text, as in BERT. Needs the package tokenizers.

    Args:
        size: pieces in the vocabulary, special ones included.
        max_length: pieces of a sample; longer ones are cut and counted.
        checkpoint: see Tokenizer.
    """

    typed = True
    mask_token = "[MASK]"
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

    def __init__(
        self, size: int = 8000, max_length: int = 128, checkpoint: str | None = None
    ) -> None:
        if size < 300:
            raise UserError(f"SubwordTokenizer: size must be at least 300, got {size}")
        self.size = size
        self._sentences: list[str] = []
        super().__init__(max_length, checkpoint)

    def _learn(self, texts: Sequence[tuple[str, ...]]) -> None:
        self._sentences, self._backend = [text for sample in texts for text in sample], None

    def _load(self) -> Any:
        made = library("tokenizers")
        backend = made.Tokenizer(made.models.BPE(unk_token="[UNK]"))
        backend.normalizer = made.normalizers.BertNormalizer(lowercase=True)
        # Pieces of bytes, a space in front of a word being one of them: the trainer numbers pieces with a prefix such as
        # WordPiece's ## in an order that differs from process to process.
        backend.pre_tokenizer = made.pre_tokenizers.ByteLevel(add_prefix_space=True)
        special = list(self.special)
        tokens = [
            made.AddedToken(token, special=True, lstrip=token == "[MASK]") for token in special
        ]
        trainer = made.trainers.BpeTrainer(
            vocab_size=self.size,
            min_frequency=2,
            special_tokens=tokens,
            initial_alphabet=sorted(made.pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(self._sentences, trainer)
        backend.post_processor = made.processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, special.index(token)) for token in ("[CLS]", "[SEP]")],
        )
        return backend


class PretrainedTokenizer(_BackendTokenizer):
    """The tokenizer of a model of the transformers library, by its name on the hub or its folder.

    Args:
        name: such as `bert-base-uncased`, or the path of a folder.
        max_length: pieces of a sample; longer ones are cut and counted. At most what the tokenizer says the model reads.
    """

    def __init__(self, name: str, max_length: int = 128) -> None:
        self.name = name
        super().__init__(max_length)

    def _learn(self, texts: Sequence[tuple[str, ...]]) -> None:
        """It is learnt already."""

    def _load(self) -> Any:
        tokenizer = pretrained_tokenizer(self.name)
        self._longest = min(tokenizer.model_max_length, self._longest)
        self.typed = "token_type_ids" in tokenizer.model_input_names
        if tokenizer.pad_token_id is None:
            raise UserError(
                f"the tokenizer {self.name} has no padding token; take an encoder's, such as bert-base-uncased"
            )
        self.mask_token, self._pad = (
            tokenizer.mask_token or tokenizer.unk_token,
            int(tokenizer.pad_token_id),
        )
        return tokenizer.backend_tokenizer

    def encode(self, texts: Sequence[tuple[str, ...]]) -> Tokens:
        assert self.backend is not None  # which says whether the network is told of types
        return super().encode(texts)

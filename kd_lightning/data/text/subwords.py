"""Tokenizers that read pieces of words: learned from the training sentences, or pretrained."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.data.text.backend import LibraryTokenizer
from kd_lightning.data.text.tokens import Tokens
from kd_lightning.data.text.words import Sample
from kd_lightning.errors import UserError
from kd_lightning.hub import BackendTokenizer, library, pretrained_tokenizer

MIN_SIZE = 300
"""The smallest vocabulary: it holds all 256 bytes and the special tokens."""


class SubwordTokenizer(LibraryTokenizer):
    """Reads byte pairs learned from the training sentences (Sennrich et al. 2016), in lower case.

    As in BERT, `[CLS]` precedes a sample and `[SEP]` follows each text. Needs the package
    tokenizers.

    Args:
        size: number of pieces in the vocabulary, special tokens included.
        max_length: maximum number of pieces per sample; longer samples are truncated and counted.
        checkpoint: see Tokenizer.
    """

    typed = True
    mask_token = "[MASK]"
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

    def __init__(
        self,
        size: int = 8000,
        max_length: int = 128,
        checkpoint: str | None = None,
    ) -> None:
        if size < MIN_SIZE:
            raise UserError(
                f"SubwordTokenizer: size must be at least {MIN_SIZE}, got {size}"
            )
        self.size = size
        self._sentences: list[str] = []
        super().__init__(max_length, checkpoint)

    def _learn(self, texts: Sequence[Sample]) -> None:
        self._sentences = []
        for sample in texts:
            self._sentences.extend(sample)
        # The next use of the backend trains it on these sentences.
        self._backend = None

    def _load(self) -> BackendTokenizer:
        tokenizers = library("tokenizers")
        backend = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
        backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        # Byte-level pieces, with the space before a word as one of the bytes. Pieces with a prefix,
        # such as WordPiece's ##, are no alternative: their trainer numbers them in an order that
        # differs from process to process.
        byte_level = tokenizers.pre_tokenizers.ByteLevel
        backend.pre_tokenizer = byte_level(add_prefix_space=True)
        special_tokens = []
        for token in self.special:
            # The mask replaces a word together with the space before it.
            is_mask = token == self.mask_token
            special_tokens.append(
                tokenizers.AddedToken(token, special=True, lstrip=is_mask)
            )
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=self.size,
            min_frequency=2,
            special_tokens=special_tokens,
            initial_alphabet=sorted(byte_level.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(self._sentences, trainer)
        # `:1` is the token type of the second text.
        special_ids = [
            (token, self.special.index(token)) for token in ("[CLS]", "[SEP]")
        ]
        backend.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=special_ids,
        )
        trained: BackendTokenizer = backend
        return trained


class PretrainedTokenizer(LibraryTokenizer):
    """Loads the tokenizer of a transformers model by its name on the hub or its folder.

    Args:
        name: name of a model, such as `bert-base-uncased`, or path of a folder.
        max_length: maximum number of pieces per sample; longer samples are truncated and counted.
            The limit of the model applies if it is lower.
    """

    def __init__(self, name: str, max_length: int = 128) -> None:
        self.name = name
        super().__init__(max_length)

    def _learn(self, texts: Sequence[Sample]) -> None:
        """Do nothing: the vocabulary is pretrained."""

    def _load(self) -> BackendTokenizer:
        tokenizer = pretrained_tokenizer(self.name)
        if tokenizer.pad_token_id is None:
            raise UserError(
                f"the tokenizer {self.name} has no padding token; "
                "use an encoder's tokenizer, such as that of bert-base-uncased"
            )
        self._longest = min(tokenizer.model_max_length, self._longest)
        self.typed = "token_type_ids" in tokenizer.model_input_names
        self.mask_token = tokenizer.mask_token or tokenizer.unk_token
        self._pad = int(tokenizer.pad_token_id)
        return tokenizer.backend_tokenizer

    def encode(self, texts: Sequence[Sample]) -> Tokens:
        """Tokenize samples into flat tensors."""
        # `typed`, which decides whether token types are stored, is known after loading only.
        self._load_once()
        return super().encode(texts)

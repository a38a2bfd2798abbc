"""Text files as training data of language models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast, get_args

import torch
from torch import Tensor

from kd_lightning.data.corpus.blocks import Blocks, Boundaries
from kd_lightning.data.corpus.documents import Document, find_files
from kd_lightning.data.corpus.prediction import NextToken, TokenPrediction
from kd_lightning.data.corpus.prompts import PromptReader
from kd_lightning.data.corpus.source import CorpusSource
from kd_lightning.data.corpus.token_file import TokenFile, documents_of, tokenized
from kd_lightning.data.corpus.tokenizers import BytePairTokenizer, LanguageTokenizer
from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.files import data_root
from kd_lightning.data.source import Source
from kd_lightning.data.subsets import check_fraction, stratified_rank
from kd_lightning.errors import UserError
from kd_lightning.spec import InputSpec, Spec, Vocabulary
from kd_lightning.values import Value

Patterns = str | list[str]
"""Files, folders, or patterns such as `train/*.txt`."""


class TextCorpusDataModule(DataModule):
    """Text for language models: blocks of tokens, of which the next or the masked ones are predicted.

    Files that end in `.txt` are one document each, those that end in `.jsonl` hold one document per
    line: `{"text": ...}`, or `{"prompt": ..., "completion": ...}`, of which only the completion is
    predicted. A folder that `save_to_disk` of the package datasets wrote holds one document per
    row, with the same fields. All files are tokenized once, into a cache that all runs share.

    The targets are shifted or masked here and nowhere else. Only tokens to predict are positions.
    Tokens of prompts, padding, and a document's first token if it has no context are not, so no
    loss or metric counts them.

    Args:
        root: folder of the files; default: `KD_DATA_ROOT`, else `./data`.
        train: files, folders or patterns below `root`.
        validation: the same, or the fraction of the training blocks to hold out.
        test: the same as `train`.
        tokenizer: of the teacher and the student.
        prediction: what is predicted: `NextToken`, the default, for causal language models;
            `MaskedTokens` for masked ones.
        views: number of different masks of each training block: epoch e uses view `e mod views`.
            `None`: new ones in every epoch. `NextToken` has no views.
        length: tokens that a model reads in a block.
        packed: whether a block may hold several documents; otherwise short documents are padded.
        boundaries: of the documents in a block. "reset": a token sees its own document alone, and
            its position counts from the start of the document. "ignore": the documents are one
            text, separated by the tokenizer's token for the end of a document.
        batch_size: blocks per training batch, on each device.
        eval_batch_size: blocks per batch in validation and test.
        fraction: fraction of the training blocks to use.
        split_seed: of the held-out blocks and the fraction; the same for all seeds of a run.
        cache: folder of the tokens; default: `KD_CACHE`, else `~/.cache/kd_lightning`.
        prefetch: batches to make ahead of time, in a thread.

    Raises:
        UserError: for an option out of range, or files that cannot be read.
    """

    name = "corpus"

    def __init__(
        self,
        root: str | None = None,
        train: Patterns = "train",
        validation: Patterns | float = "validation",
        test: Patterns = "test",
        tokenizer: LanguageTokenizer | None = None,
        length: int = 256,
        packed: bool = True,
        boundaries: Boundaries = "reset",
        batch_size: int = 16,
        eval_batch_size: int = 16,
        fraction: float = 1.0,
        split_seed: int = 0,
        cache: str | None = None,
        prefetch: int = 0,
        prediction: TokenPrediction | None = None,
        views: int | None = None,
    ) -> None:
        super().__init__()
        self.root = data_root(root)
        self.tokenizer = tokenizer or BytePairTokenizer()
        self.prediction = prediction or NextToken()
        self.views = views
        self.length = length
        self.packed = packed
        self.boundaries = boundaries
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.fraction = fraction
        self.split_seed = split_seed
        self.cache = cache
        self.prefetch = prefetch
        # A number is a share of the training blocks; anything else names files.
        self.held_out = validation if isinstance(validation, int | float) else 0.0
        self._patterns: dict[str, list[str]] = {
            "train": _as_list(train),
            "test": _as_list(test),
        }
        if not isinstance(validation, int | float):
            self._patterns["validation"] = _as_list(validation)
        self._check_options()
        self._tokens: dict[str, TokenFile] = {}
        self._blocks: dict[str, Blocks] = {}
        self._sources: dict[str, Source] = {}
        self._restored_spec: Spec | None = None
        self._is_prepared = False
        self.task = self.prediction.task(self.tokenizer)

    def _check_options(self) -> None:
        check_fraction("data.fraction", self.fraction)
        if not 0 <= self.held_out < 1:
            raise UserError(
                "data.validation must be files or a fraction in [0, 1), got "
                f"{self.held_out}"
            )
        if self.length < 2:
            raise UserError(f"data.length must be at least 2 tokens, got {self.length}")
        if self.boundaries not in get_args(Boundaries):
            raise UserError(
                f"data.boundaries must be reset or ignore, got {self.boundaries!r}"
            )
        if self.batch_size < 1 or self.eval_batch_size < 1 or self.prefetch < 0:
            raise UserError(
                "data.batch_size and data.eval_batch_size must be at least 1, and "
                "data.prefetch at least 0"
            )
        if self.views is not None and self.views < 1:
            raise UserError(f"data.views must be at least 1, got {self.views}")

    @property
    def augmented(self) -> bool:
        """Whether training blocks are masked in another way in each view."""
        return self.prediction.has_views

    # -- tokens and blocks ------------------------------------------------------------------------

    def _files(self, split: str) -> list[Path]:
        return find_files(self.root, self._patterns[split], f"data.{split}")

    def learn(self) -> None:
        """Load the tokenizer, or let it learn its vocabulary from the training files.

        Raises:
            UserError: if it cannot be loaded, the files cannot be read, or the vocabulary lacks a
                token that the prediction needs.
        """
        if not self.tokenizer.is_known:
            # A generator: a pretrained tokenizer reads no documents.
            self.tokenizer.learn(self.documents("train"))
        if not self._is_prepared:
            self.prediction.prepare(self.tokenizer)
            self._is_prepared = True

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of the source split "train", "validation" or "test", one at a time."""
        yield from documents_of(self._files(split))

    def tokens(self, split: str) -> TokenFile:
        """The tokens of the source split "train", "validation" or "test"."""
        if split not in self._tokens:
            self.learn()
            files = self._files(split)
            self._tokens[split] = tokenized(files, self.tokenizer, self.cache)
        return self._tokens[split]

    def blocks(self, split: str) -> Blocks:
        """All blocks of a source split.

        Raises:
            UserError: if the split has no token to predict.
        """
        if split not in self._blocks:
            tokens = self.tokens(split)
            blocks = Blocks(
                tokens, self.length, self.packed, self.boundaries, self.tokenizer.end
            )
            if len(blocks) == 0:
                raise UserError(f"data.{split}: the files hold no token to predict")
            self._blocks[split] = blocks
        return self._blocks[split]

    def count(self, split: str) -> int:
        """The number of samples of a source split: its blocks.

        Raises:
            UserError: if there are none.
        """
        return len(self.blocks(split))

    @property
    def separates(self) -> bool:
        """Whether the inputs say which document each token belongs to."""
        return self.packed and self.boundaries == "reset"

    # -- sources ----------------------------------------------------------------------------------

    def source(self, stage: str) -> Source:
        """The blocks of "train", "validation" or "test"."""
        if stage not in self._sources:
            has_own_files = stage in self._patterns and stage != "train"
            if has_own_files:
                rows = torch.arange(self.count(stage))
                self._sources[stage] = self._source(stage, rows)
            else:
                self._divide_training_blocks()
        return self._sources[stage]

    def _source(self, split: str, rows: Tensor) -> Source:
        blocks = self.blocks(split)
        return CorpusSource(blocks, rows, split, self.separates, self.prediction)

    def _divide_training_blocks(self) -> None:
        """Make the training source, and the validation source if it has no files."""
        index = torch.arange(self.count("train"))
        is_held_out = self._rank(index, "validation") < self.held_out
        rows = index[~is_held_out]
        chosen = rows[self._rank(rows, "fraction") < self.fraction]
        if len(chosen) == 0:
            raise UserError(
                "data: no block is left to train on; lower data.validation or data.length, or "
                "raise data.fraction"
            )
        self._sources["train"] = self._source("train", chosen)
        if "validation" not in self._patterns:
            self._sources["validation"] = self._source("train", index[is_held_out])

    def _rank(self, rows: Tensor, purpose: str) -> Tensor:
        """The place of each row in [0, 1), in an order that is a function of (split_seed, row)."""
        # Blocks have no class to stratify by.
        one_stratum = torch.zeros(len(rows), dtype=torch.int64)
        return stratified_rank(one_stratum, rows, self.split_seed, purpose)

    # -- description ------------------------------------------------------------------------------

    @property
    def spec(self) -> Spec:
        """The shapes of blocks, the vocabulary, and the sizes of the splits."""
        if self._restored_spec is not None:
            return self._restored_spec
        self.learn()
        shape = (self.length,)
        inputs = {"input_ids": InputSpec(shape, self.tokenizer.end)}
        for name, value in self.prediction.blanks().items():
            inputs[name] = InputSpec(shape, value)
        if self.separates:
            inputs["documents"] = InputSpec(shape, 0)
            inputs["position_ids"] = InputSpec(shape, 0)
        vocabulary = Vocabulary(
            size=self.tokenizer.size,
            pad=self.tokenizer.end,
            max_length=self.length,
            sha256=self.tokenizer.sha256(),
        )
        return Spec(
            data=self.name,
            task=self.task.name,
            input_shape=shape,
            num_classes=self.tokenizer.size,
            samples=self._samples_per_stage(),
            source_samples=self.count("train"),
            target_shape=shape,
            inputs=inputs,
            vocabulary=vocabulary,
        )

    def fingerprint(self) -> dict[str, object]:
        """What decides a teacher's inputs: the texts, the tokenizer, and how blocks are cut."""
        samples = {split: self.tokens(split).sha256 for split in self._patterns}
        return {
            "data": self.name,
            "samples": samples,
            "tokenizer": self.tokenizer.fingerprint(),
            "length": self.length,
            "packed": self.packed,
            "boundaries": self.boundaries if self.packed else None,
            **self.prediction.fingerprint(),
        }

    def input_reader(self) -> PromptReader:
        """Reads prompts, which a language model completes."""
        self.learn()
        return PromptReader(self.tokenizer)

    # -- checkpoints ------------------------------------------------------------------------------

    def checkpoint_state(self) -> dict[str, object]:
        """The tokenizer, which gives a network's inputs and outputs their meaning."""
        self.learn()
        return {"tokenizer": self.tokenizer.keep()}

    def restore(self, state: Mapping[str, object], spec: Spec) -> None:
        """Encode texts as the data of a checkpoint did, even if its training files are missing.

        Args:
            state: what `checkpoint_state` returned.
            spec: the spec of that data.
        """
        self.tokenizer.restore(cast(Mapping[str, Value], state["tokenizer"]))
        # Another vocabulary may have another mask token.
        self._is_prepared = False
        if not self._has_training_files():
            self._restored_spec = spec

    def _has_training_files(self) -> bool:
        try:
            self._files("train")
        except UserError:
            return False
        return True


def _as_list(patterns: Patterns) -> list[str]:
    if isinstance(patterns, str):
        return [patterns]
    return list(patterns)

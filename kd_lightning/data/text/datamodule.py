"""Reads any CSV or TSV files of labeled sentences; the base of the text datamodules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_lightning.data.files import data_root
from kd_lightning.data.predictions import write_prediction_table
from kd_lightning.data.subsets import split_training_rows
from kd_lightning.data.text.dialect import Dialect
from kd_lightning.data.text.files import (
    Column,
    Texts,
    read_sentences,
    read_table,
)
from kd_lightning.data.text.labels import read_labels
from kd_lightning.data.text.new_samples import TextReader
from kd_lightning.data.text.options import (
    check_fractions,
    check_labels,
    check_sizes,
    checked_views,
)
from kd_lightning.data.text.sentence_datamodule import SentenceDataModule
from kd_lightning.data.text.sentences import PREDICTS, TextSource
from kd_lightning.data.text.synthetic import SyntheticSentences
from kd_lightning.data.text.tokenizers import Tokenizer, WordTokenizer
from kd_lightning.errors import UserError
from kd_lightning.randomness import run_seed
from kd_lightning.spec import InputSpec, Spec
from kd_lightning.types import CLEAN, UNLABELLED

BLANK_TOKENS = 32
"""Tokens of a blank sample: sentences of SST average 19 words, or about 25 pieces of words."""


class TextDataModule(SentenceDataModule):
    """Labeled sentences, or pairs of texts, from CSV or TSV files.

    Files that end in `.csv` are quoted CSV; others are split at tabs, without quoting. If a file
    looks different, the format that was detected is printed and used. Everything is read and
    tokenized once.

    Args:
        root: folder of the files; default: `KD_DATA_ROOT`, else `./data`.
        train_file: path below `root`.
        validation_file: path below `root`; `None`: validate on a part of the training samples.
        test_file: path below `root`.
        text: column of the text: its name in the first line of the files, or its number from 0 if
            the first line is a sample.
        label: column of the label.
        second: column of the second text of a pair.
        labels: the values of the label column, class 0 first; default: those of the training file.
        names: names of the classes; default: `labels`.
        tokenizer: tokenizer of the student, or of the only network; default: words.
        teacher_tokenizer: tokenizer of the teacher, if it differs from the student's.
        augment: synthetic sentences for training, which the teacher labels.
        views: number of views; epoch e trains on view `e mod views`. Default: as many as it takes
            to show every variant once.
        batch_size: number of training samples per batch and device.
        eval_batch_size: number of evaluation samples per batch and device.
        pool: number of training batches that are sorted by length together; 1: no sorting.
        validation: fraction of the training samples, stratified, to validate on if there is no
            `validation_file`; 0: no validation, even if there is a `validation_file`.
        fraction: fraction of the training samples to use, stratified.
        label_fraction: fraction of these that are labeled; the target of the others is -100.
        split_seed: seed of the validation split and of the fractions.
        augmentation_seed: seed of `augment`; `None`: the seed of the run. Set it if runs with
            several seeds share a teacher cache.
        predict_file: raw sentences for `kd predict`, one per line (pairs separated by a tab);
            default: the test set.
        delimiter: between the fields of all files: one character, or "tab"; default: detected.
        quoted: whether quotation marks enclose fields (or are part of the text); default: detected.
    """

    name = "text"

    def __init__(
        self,
        root: str | None = None,
        train_file: str = "train.tsv",
        validation_file: str | None = None,
        test_file: str = "test.tsv",
        text: Column = 0,
        label: Column = 1,
        second: Column | None = None,
        labels: list[str | int] | None = None,
        names: list[str] | None = None,
        tokenizer: Tokenizer | None = None,
        teacher_tokenizer: Tokenizer | None = None,
        augment: SyntheticSentences | None = None,
        views: int | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        pool: int = 32,
        validation: float = 0.1,
        fraction: float = 1.0,
        label_fraction: float = 1.0,
        split_seed: int = 0,
        augmentation_seed: int | None = None,
        predict_file: str | None = None,
        delimiter: str | None = None,
        quoted: bool | None = None,
    ) -> None:
        check_fractions(fraction, label_fraction, validation)
        check_sizes(batch_size, eval_batch_size, pool)
        if augmentation_seed is None:
            augmentation_seed = run_seed()
        super().__init__(
            tokenizer or WordTokenizer(), teacher_tokenizer, augment, augmentation_seed
        )
        self.root = data_root(root)
        self.files: dict[str, str | None] = {
            "train": train_file,
            "validation": validation_file,
            "test": test_file,
        }
        self.text = text
        self.label = label
        self.second = second
        # YAML reads labels such as 0 and 1 as numbers.
        self.labels = list(map(str, labels)) if labels else None
        check_labels(self.labels or [])
        self.dialect = Dialect(delimiter, quoted)
        self.names = names
        self.views = checked_views(views, augment)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.pool = pool
        self.validation = validation
        self.fraction = fraction
        self.label_fraction = label_fraction
        self.split_seed = split_seed
        self.predict_file = predict_file
        self._raw: dict[str, Texts] = {}
        self._sources: dict[str, TextSource] = {}
        self._restored_spec: Spec | None = None

    # -- files and labels ----------------------------------------------------------------------

    def load(self, split: str) -> Texts:
        """Read all samples of a source split.

        Raises:
            UserError: if the samples cannot be read.
        """
        # New texts have no labels, and no columns to choose from.
        if split == PREDICTS:
            path = Path(str(self.predict_file)).expanduser()
            return read_sentences(path, pairs=self.second is not None)
        path = self.root / str(self.files[split])
        labels = self.class_labels
        return read_table(
            path, self.text, self.label, self.second, labels, self.dialect
        )

    def raw(self, split: str) -> Texts:
        """All samples of a source split, read once."""
        if split not in self._raw:
            self._raw[split] = self.load(split)
        return self._raw[split]

    @property
    def class_labels(self) -> list[str]:
        """The values of the label column, class 0 first."""
        if self.labels is None:
            path = self.root / str(self.files["train"])
            self.labels = read_labels(path, self.label, self.dialect)
        return self.labels

    @property
    def classes(self) -> list[str]:
        """The names of the classes."""
        # Labels are values of the file, such as 0 and 1; names are for people.
        names = self.names or self.class_labels
        expected = len(self.class_labels)
        if len(names) != expected:
            raise UserError(
                f"data.names must name the {expected} classes of data.labels, got {len(names)}"
            )
        return names

    @property
    def has_validation_file(self) -> bool:
        """Whether the validation samples have a file of their own."""
        return self.files["validation"] is not None

    # -- checkpoints ---------------------------------------------------------------------------

    def checkpoint_state(self) -> dict[str, object]:
        """The labels and tokenizers, which give a network's inputs and outputs their meaning."""
        self.learn()
        state: dict[str, object] = {"labels": self.class_labels}
        for name, tokenizer in self._tokenizers().items():
            state[name] = tokenizer.keep()
        return state

    def restore(self, state: Mapping[str, Any], spec: Spec) -> None:
        """Read texts as the data of a checkpoint did, even if its training file is missing.

        Args:
            state: what `checkpoint_state` returned.
            spec: the spec of that data.

        Raises:
            UserError: if the tokenizers are of another class, or if the classes differ.
        """
        for name, tokenizer in self._tokenizers().items():
            if name in state:
                tokenizer.restore(state[name])
        labels = list(state["labels"])
        if self.labels not in (None, labels):
            raise UserError(
                f"the checkpoint's classes are the labels {', '.join(labels)}, in this order; "
                f"data.labels has {', '.join(self.labels or [])}"
            )
        self.labels = labels
        # Without the training file the data cannot describe itself.
        if self.predict_file or not (self.root / str(self.files["train"])).is_file():
            self._restored_spec = spec

    # -- sources -------------------------------------------------------------------------------

    def source(self, stage: str) -> TextSource:
        """The samples of "train", "validation", "test" or "predict"."""
        if stage not in self._sources:
            is_held_out = stage == "validation" and not self.has_validation_file
            if stage == "train" or is_held_out:
                # One division of the training samples yields both sources.
                self._add_training_sources()
            else:
                self._sources[stage] = self._evaluation_source(stage)
        return self._sources[stage]

    def _evaluation_source(self, stage: str) -> TextSource:
        """All samples of an evaluation file; none if validation is switched off."""
        target = self.raw(stage).target
        # `validation=0` switches validation off, even if there is a file.
        is_unused = stage == "validation" and not self.validation
        rows = torch.arange(0 if is_unused else len(target))
        return self._source(stage, rows, target)

    def _add_training_sources(self) -> None:
        """Create the training source, and the validation source if it has no file."""
        target = self.raw("train").target
        rows = split_training_rows(
            target,
            self.split_seed,
            0.0 if self.has_validation_file else self.validation,
            self.fraction,
            self.label_fraction,
        )
        if not self.has_validation_file:
            self._sources["validation"] = self._source("train", rows.validation, target)
        # Change a copy: validation samples share this target and keep their labels.
        visible = target.clone()
        visible[rows.withheld] = UNLABELLED
        self._sources["train"] = self._source("train", rows.train, visible)

    # -- description ---------------------------------------------------------------------------

    @property
    def spec(self) -> Spec:
        """The text as the network sees it, with the vocabulary and the sizes of the splits."""
        if self._restored_spec is not None:
            return self._restored_spec
        own = self.tokenizer
        other = self.teacher_tokenizer
        return Spec(
            data=self.name,
            task=self.task.name,
            input_shape=(BLANK_TOKENS,),
            num_classes=len(self.classes),
            classes=tuple(self.classes),
            samples=self._samples_per_stage(),
            source_samples=len(self.raw("train")),
            inputs=_blank_inputs(own),
            teacher_inputs=None if other is None else _blank_inputs(other),
            vocabulary=own.describe(),
            teacher_vocabulary=None if other is None else other.describe(),
            cut=self._truncated(own),
            teacher_cut=None if other is None else self._truncated(other),
        )

    def _truncated(self, tokenizer: Tokenizer) -> dict[str, int]:
        """How many samples of each source split are longer than the tokenizer allows."""
        truncated = {}
        for split in ("train", "test"):
            tokens = self.sentences(split).tokens(tokenizer, CLEAN)
            truncated[split] = tokens.cut
        return truncated

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides a teacher's inputs: sentences, encoding and augmentation."""
        self.learn()
        # Subsets and batch sizes do not count: one cache of teacher outputs serves all of them.
        samples = {}
        for split, file in self.files.items():
            if file is not None:
                samples[split] = self.raw(split).checksum()
        return {
            "data": self.name,
            "samples": samples,
            "tokenizer": (self.teacher_tokenizer or self.tokenizer).fingerprint(),
            "augment": self.augment.fingerprint() if self.augment else None,
            "augmentation_seed": self.augmentation_seed if self.augment else None,
        }

    def input_reader(self) -> TextReader:
        """Tokenizes lines of text."""
        self.learn()
        return TextReader(self.tokenizer, pairs=self.second is not None)

    def write_predictions(
        self, predictions: Mapping[str, Tensor], folder: Path
    ) -> Path:
        """Write `predictions.tsv`: per sample its label, the probability of each class, its texts.

        Args:
            predictions: `index` `(N,)` and `logits` `(N, K)`.
            folder: of the run.
        """
        texts = self.raw(PREDICTS if self.predict_file else "test").texts
        per_sample = len(texts[0])
        names = ["text"]
        if per_sample > 1:
            names = [f"text{number}" for number in range(1, per_sample + 1)]
        path = folder / "predictions.tsv"
        return write_prediction_table(path, predictions, self.classes, texts, names)


def _blank_inputs(tokenizer: Tokenizer) -> dict[str, InputSpec]:
    """The tensors of a blank sample."""
    shape = (min(BLANK_TOKENS, tokenizer.max_length),)
    inputs = {"input_ids": InputSpec(shape, 1), "attention_mask": InputSpec(shape, 1)}
    if tokenizer.typed:
        inputs["token_type_ids"] = InputSpec(shape, 0)
    return inputs

"""Any CSV or TSV files of sentences with labels: the base of the text datamodules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_lightning.data.files import data_root
from kd_lightning.data.subsets import check_fraction, stratified_rank
from kd_lightning.data.text.files import Column, Texts, read_labels, read_sentences, read_table
from kd_lightning.data.text.sentences import PREDICTS, Sentences, TextSource, _SentenceDataModule
from kd_lightning.data.text.synthetic import SyntheticSentences
from kd_lightning.data.text.tokenizers import Tokenizer, WordTokenizer
from kd_lightning.errors import UserError
from kd_lightning.randomness import run_seed
from kd_lightning.types import CLEAN, UNLABELLED

BLANK_TOKENS = 32
"""Tokens of a blank sample: SST's sentences have 19 words on average, and some 25 pieces."""


class TextDataModule(_SentenceDataModule):
    """Sentences, or pairs of texts, with a label each, from CSV or TSV files.

    Files ending in .csv are quoted CSV; others are split at tabs, without quoting. All is read and tokenized once.

    Args:
        root: folder of the files; else `KD_DATA_ROOT`, else `./data`.
        train_file, test_file: paths below `root`.
        validation_file: path below `root`; `None`: a part of the training samples is held out.
        text, label: columns, by name where the files' first line names them, by number (from 0) where it does not.
        second: column of the second text of a pair.
        labels: what stands in the label column, class 0 first; read from the training file where left out.
        names: names of the classes; their labels where left out.
        tokenizer: what the student reads (or whichever network is trained); the training sentences' words where left out.
        teacher_tokenizer: what the teacher reads, where it reads something else.
        augment: synthetic sentences for training, which the teacher labels.
        views: number of views; epoch e trains on view `e mod views`. Where left out, as many as show every variant once.
        batch_size, eval_batch_size: samples a batch, on each device.
        pool: how many training batches are sorted by length together; 1: no sorting.
        validation: fraction of the training samples held out, stratified, where there is no `validation_file`; 0: none, and
            a `validation_file` is not read.
        fraction: of the training samples kept, stratified.
        label_fraction: of these, how many keep their label; the others are served unlabelled (-100).
        split_seed: of the validation split and the subsets.
        augmentation_seed: `None`: the run's seed. Fix it where one cache serves several seeds.
        predict_file: raw sentences, one a line (pairs with a tab between), for `kd predict`; else the test set.
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
    ) -> None:
        super().__init__()
        check_fraction("data.fraction", fraction)
        check_fraction("data.label_fraction", label_fraction, zero=True)
        if not 0 <= validation < 1:
            raise UserError(
                f"data.validation must be a fraction in [0, 1), got {validation}; 0 holds nothing out"
            )
        if min(batch_size, eval_batch_size, pool) < 1:
            raise UserError(
                "data.batch_size, data.eval_batch_size and data.pool must be at least 1"
            )
        if views is not None and not 1 <= views <= (augment.variants if augment else 1):
            most = augment.variants if augment else 1
            raise UserError(
                f"data.views must be 1 to {most}, all variants of a sentence, got {views}"
            )
        self.root = data_root(root)
        self.files: dict[str, str | None] = {
            "train": train_file,
            "validation": validation_file,
            "test": test_file,
        }
        self.text, self.label, self.second = text, label, second
        self.labels, self.names = [str(label) for label in labels] if labels else None, names
        self.tokenizer, self.teacher_tokenizer = tokenizer or WordTokenizer(), teacher_tokenizer
        self.augment = augment
        self.views = views if views is not None or augment is None else augment.variants
        self.batch_size, self.eval_batch_size, self.pool = batch_size, eval_batch_size, pool
        self.validation, self.fraction, self.label_fraction = validation, fraction, label_fraction
        self.split_seed, self.predict_file = split_seed, predict_file
        self.augmentation_seed = run_seed() if augmentation_seed is None else augmentation_seed
        self._raw: dict[str, Texts] = {}
        self._sentences: dict[str, Sentences] = {}
        self._sources: dict[str, TextSource] = {}
        self._kept_spec: dict[str, Any] | None = None
        self._learnt = False

    # -- what is read --------------------------------------------------------------------------------------------------

    def load(self, split: str) -> Texts:
        """All samples of a source split; raises UserError where they cannot be had."""
        if split == PREDICTS:
            return read_sentences(
                Path(str(self.predict_file)).expanduser(), self.second is not None
            )
        return read_table(
            self.root / str(self.files[split]),
            self.text,
            self.label,
            self.second,
            self.class_labels,
        )

    @property
    def class_labels(self) -> list[str]:
        """What stands in the label column, class 0 first."""
        if self.labels is None:
            self.labels = read_labels(self.root / str(self.files["train"]), self.label)
        return self.labels

    @property
    def classes(self) -> list[str]:
        names = self.names or self.class_labels
        if len(names) != len(self.class_labels):
            raise UserError(
                f"data.names must name the {len(self.class_labels)} classes of data.labels, got {len(names)}"
            )
        return names

    def raw(self, split: str) -> Texts:
        if split not in self._raw:
            self._raw[split] = self.load(split)
        return self._raw[split]

    def sentences(self, split: str) -> Sentences:
        """A source split with its tokens."""
        self.learn()
        if split not in self._sentences:
            augment = self.augment if split == "train" else None
            if augment is not None:
                augment.learn(self.raw(split).texts)
            self._sentences[split] = Sentences(
                split, self.raw(split), augment, self.augmentation_seed
            )
        return self._sentences[split]

    def learn(self) -> None:
        """Vocabularies come from the training sentences alone, or with a checkpoint."""
        if not self._learnt:
            self._learnt = True
            for tokenizer in self._tokenizers().values():
                if not tokenizer.known:
                    tokenizer.learn(self.raw("train").texts)

    def _tokenizers(self) -> dict[str, Tokenizer]:
        both = {"tokenizer": self.tokenizer, "teacher_tokenizer": self.teacher_tokenizer}
        return {name: tokenizer for name, tokenizer in both.items() if tokenizer is not None}

    def keep(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data, in builtins: what its network's inputs and outputs mean."""
        self.learn()
        return {
            "labels": self.class_labels,
            **{name: tokenizer.keep() for name, tokenizer in self._tokenizers().items()},
        }

    def restore(self, kept: dict[str, Any], spec: dict[str, Any]) -> None:
        """Read as the data did that a checkpoint was made with; its training file need not be there.

        Args:
            kept: what `keep` gave.
            spec: what that data's `spec` was.

        Raises:
            UserError: where the tokenizers are of another kind, or the classes others.
        """
        for name, tokenizer in self._tokenizers().items():
            if name in kept:
                tokenizer.restore(kept[name])
        if self.labels not in (None, kept["labels"]):
            raise UserError(
                f"the checkpoint's classes are the labels {', '.join(kept['labels'])}, in this order; data.labels has "
                f"{', '.join(self.labels or [])}"
            )
        self.labels = list(kept["labels"])
        if self.predict_file or not (self.root / str(self.files["train"])).is_file():
            self._kept_spec = spec

    # -- what is served ------------------------------------------------------------------------------------------------

    @property
    def has_validation_file(self) -> bool:
        return self.files["validation"] is not None

    def _train_rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows that are trained on, rows whose label is withheld, and rows held out for validation."""
        target = self.raw("train").target
        index = torch.arange(len(target))
        # Samples without a label are a class of their own here.
        kind = target - target.min()
        held_out = stratified_rank(kind, index, self.split_seed, "validation") < self.validation
        if self.has_validation_file:
            held_out[:] = False
        rows = index[~held_out]
        rank = stratified_rank(kind[rows], rows, self.split_seed, "fraction")
        if not bool((rank < self.fraction).any()):
            raise UserError("data: no training sample is left after validation and fraction")
        unlabelled = rows[rank >= self.fraction * self.label_fraction]
        return rows[rank < self.fraction], unlabelled, index[held_out]

    def _source(self, split: str, rows: Tensor, target: Tensor) -> TextSource:
        return TextSource(
            self.sentences(split), target, rows, self.tokenizer, self.teacher_tokenizer
        )

    def source(self, stage: str) -> TextSource:
        """The samples of "train", "validation", "test" or "predict", as they are trained on or evaluated."""
        if stage not in self._sources:
            if stage in ("test", PREDICTS) or (stage == "validation" and self.has_validation_file):
                target = self.raw(stage).target
                kept = len(target) if stage != "validation" or self.validation else 0
                self._sources[stage] = self._source(stage, torch.arange(kept), target)
            else:
                target = self.raw("train").target
                rows, unlabelled, held_out = self._train_rows()
                if not self.has_validation_file:
                    self._sources["validation"] = self._source("train", held_out, target)
                shown = target.clone()
                shown[unlabelled] = UNLABELLED
                self._sources["train"] = self._source("train", rows, shown)
        return self._sources[stage]

    @property
    def spec(self) -> dict[str, Any]:
        """What networks, teachers and checkpoints need to know of the data, in builtins."""
        if self._kept_spec is not None:
            return dict(self._kept_spec)
        found: dict[str, Any] = {
            "data": self.name,
            "input_shape": [BLANK_TOKENS],
            "num_classes": len(self.classes),
            "classes": list(self.classes),
            "samples": {
                stage: len(self.source(stage)) for stage in ("train", "validation", "test")
            },
            "source_samples": len(self.raw("train")),
        }
        for prefix, tokenizer in (("", self.tokenizer), ("teacher_", self.teacher_tokenizer)):
            if tokenizer is not None:
                found[f"{prefix}vocabulary"] = tokenizer.describe()
                found[f"{prefix}inputs"] = self._blank(tokenizer)
                cut = {
                    split: self.sentences(split).tokens(tokenizer, CLEAN).cut
                    for split in ("train", "test")
                }
                found[f"{prefix}cut"] = cut
        return found

    def _blank(self, tokenizer: Tokenizer) -> dict[str, Any]:
        shape = [min(BLANK_TOKENS, tokenizer.max_length)]
        values = {
            "input_ids": 1,
            "attention_mask": 1,
            **({"token_type_ids": 0} if tokenizer.typed else {}),
        }
        return {name: {"shape": shape, "value": value} for name, value in values.items()}

    def fingerprint(self) -> dict[str, Any]:
        """What decides the inputs of a teacher: the sentences, their encoding and their augmentation."""
        self.learn()
        splits = [split for split, file in self.files.items() if file is not None]
        return {
            "data": self.name,
            "samples": {split: self.raw(split).checksum() for split in splits},
            "tokenizer": (self.teacher_tokenizer or self.tokenizer).fingerprint(),
            "augment": self.augment.fingerprint() if self.augment else None,
            "augmentation_seed": self.augmentation_seed if self.augment else None,
        }

    def write_predictions(self, said: dict[str, Tensor], folder: Path) -> Path:
        """`predictions.tsv` in a run's folder: for each sample its label, the probability of each class, and its texts.

        Args:
            said: `index` `(N,)` and `logits` `(N, K)`.
            folder: where the file is written.
        """
        texts = self.raw(PREDICTS if self.predict_file else "test").texts
        probs = said["logits"].float().softmax(-1)
        names = [f"text{at + 1}" for at in range(len(texts[0]))] if len(texts[0]) > 1 else ["text"]
        lines = ["\t".join(["label", *self.classes, *names])]
        for index, row in zip(said["index"].tolist(), probs, strict=True):
            numbers = (f"{p:.6f}" for p in row.tolist())
            # A text's own tabs and line ends would be the table's.
            said_of = (" ".join(text.split()) for text in texts[index])
            lines.append("\t".join([self.classes[int(row.argmax())], *numbers, *said_of]))
        path = folder / "predictions.tsv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

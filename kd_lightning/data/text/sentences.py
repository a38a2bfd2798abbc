"""Tokenized sentences in padded batches of similar length."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.loader import BatchLoader
from kd_lightning.data.text.files import Texts
from kd_lightning.data.text.synthetic import SyntheticSentences
from kd_lightning.data.text.tokenizers import Tokenizer, Tokens
from kd_lightning.randomness import permutation, run_seed, seed_from
from kd_lightning.types import CLEAN, UNLABELLED, Batch

PREDICTS = "predict"
"""The split of the raw sentences of `predict_file`."""


@dataclass
class Sentences:
    """One source split, and its tokens as they are needed: each view is tokenized once, for each tokenizer.

    Attributes:
        name: of the split.
        texts: the samples.
        augment: what views other than `CLEAN` show; `None`: the same.
        seed: of the augmentation.
    """

    name: str
    texts: Texts
    augment: SyntheticSentences | None = None
    seed: int = 0
    _tokens: dict[tuple[int, int], Tokens] = field(default_factory=dict, repr=False)

    def tokens(self, tokenizer: Tokenizer, view: int) -> Tokens:
        if self.augment is None:
            view = CLEAN
        if (id(tokenizer), view) not in self._tokens:
            texts = self.texts.texts
            if self.augment is not None and view != CLEAN:
                texts = self.augment.sentences(view, self.seed, texts)
            tokens = self._tokens[id(tokenizer), view] = tokenizer.encode(texts)
            if tokens.cut and (view == CLEAN or self.augment is None):
                print(
                    f"data: {tokens.cut:,} of {len(texts):,} {self.name} samples are longer than {tokenizer.max_length} tokens "
                    f"({type(tokenizer).__name__}) and are cut"
                )
        return self._tokens[id(tokenizer), view]


@dataclass
class TextSource:
    """Some rows of a source split, a batch at a time.

    Attributes:
        sentences: the whole source split; subsets share it.
        target: int64 `(N,)`, of the whole source split.
        rows: int64 `(n,)`, the rows that take part: position i of this source is `rows[i]`.
        tokenizer: what the student reads.
        teacher_tokenizer: what the teacher reads, where it reads something else.
    """

    sentences: Sentences
    target: Tensor
    rows: Tensor
    tokenizer: Tokenizer
    teacher_tokenizer: Tokenizer | None

    @property
    def split(self) -> str:
        return self.sentences.name

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self, view: int) -> Tensor:
        """The tokens of each sample, `(n,)`."""
        return self.sentences.tokens(self.tokenizer, view).lengths[self.rows]

    def batch(self, rows: Tensor, view: int) -> Batch:
        index = self.rows[rows]
        target, augment = self.target[index], self.sentences.augment
        if augment is not None and view != CLEAN:
            target = target.where(augment.variant(index, view) == 0, UNLABELLED)
        inputs = self.sentences.tokens(self.tokenizer, view).inputs(index)
        other = self.teacher_tokenizer
        teacher = None if other is None else self.sentences.tokens(other, view).inputs(index)
        return Batch(inputs, target, index, view, self.split, teacher)


class BucketLoader(BatchLoader):
    """Serves sentences of similar length together, so that little is spent on padding.

    Each epoch's order is a function of (seed, epoch): a permutation, cut into pools of `pool` batches; each pool is sorted by
    length and cut into batches, and the batches of all pools are shuffled. Without shuffling, the whole source is one pool.
    The short batch, where there is one, comes last.

    Args:
        pool: how many batches are sorted together; 1: random batches.
        source, batch_size, base: see BatchLoader.
    """

    source: TextSource

    def __init__(self, source: TextSource, batch_size: int, *, pool: int = 32, **base: Any) -> None:
        super().__init__(source, batch_size, **base)
        self.pool = pool

    def steps(self) -> Iterator[Tensor]:
        """The rows of each batch of all processes together."""
        n, step = len(self.source), self.batch_size * self.world_size
        lengths = self.source.lengths(self.view)
        if not self.shuffle:
            yield from torch.argsort(lengths, stable=True).split(step)
            return
        order = permutation(n, self.seed, self.epoch)
        whole = n // step * step
        batches = []
        for pool in order[:whole].split(step * self.pool) if whole else ():
            batches += pool[torch.argsort(lengths[pool], stable=True)].split(step)
        yield from (
            batches[at]
            for at in permutation(len(batches), self.seed, self.epoch, "batches").tolist()
        )
        if whole < n:
            yield order[whole:]

    def __iter__(self) -> Iterator[Batch]:
        if not len(self.source):
            return
        view = self.view
        for rows in itertools.islice(self.steps(), self.skipped(), None):
            share = rows[self.rank :: self.world_size]
            batch = self.source.batch(share if len(share) else rows[:1], view)
            batch.ghost = not len(share)  # this process has no sample in the last, short step
            yield batch


class _SentenceDataModule(DataModule):
    """What a text datamodule does beside reading: its loaders, and word vectors. As a base it is part of a run's key."""

    tokenizer: Tokenizer
    augment: SyntheticSentences | None
    pool: int
    predict_file: str | None

    def source(self, stage: str) -> TextSource:
        raise NotImplementedError

    def learn(self) -> None:
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Networks that start from word vectors are told the words before training starts, and never a teacher."""
        module = getattr(self.trainer, "lightning_module", None)
        started = (
            getattr(module, "init_from", None) is not None
        )  # from weights that have learnt their vectors
        if (
            stage == "fit"
            and not started
            and isinstance(getattr(module, "net", None), torch.nn.Module)
        ):
            self.learn()
            for part in cast(Any, module).net.modules():
                if callable(use_words := getattr(part, "use_words", None)):
                    use_words(self.tokenizer.vocabulary)

    def loader(self, stage: str) -> BucketLoader:
        """Batches of a stage, for the process that asks."""
        train, (rank, world_size) = stage == "train", self.place
        return BucketLoader(
            self.source(stage),
            self.batch_size if train else self.eval_batch_size,
            pool=self.pool,
            shuffle=train,
            seed=seed_from(run_seed(), "train"),
            views=self.views if train and self.augment else 0,
            rank=rank,
            world_size=world_size,
        )

    def predict_dataloader(self) -> BucketLoader:
        return self.loader(PREDICTS if self.predict_file else "test")

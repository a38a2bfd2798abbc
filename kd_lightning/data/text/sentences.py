"""Sources of tokenized sentences."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from kd_lightning.data.source import Source
from kd_lightning.data.text.files import Texts
from kd_lightning.data.text.synthetic import SyntheticSentences
from kd_lightning.data.text.tokenizers import Tokenizer
from kd_lightning.data.text.tokens import Tokens
from kd_lightning.errors import printable
from kd_lightning.types import CLEAN, UNLABELLED, Batch

PREDICTS = "predict"
"""The split of the raw sentences of `predict_file`."""


@dataclass
class Sentences:
    """One source split, tokenized on demand, once per view and tokenizer.

    Attributes:
        name: name of the split.
        texts: the samples.
        augment: synthetic sentences for views other than `CLEAN`; `None`: all views are the same.
        seed: seed of the augmentation.
    """

    name: str
    texts: Texts
    augment: SyntheticSentences | None = None
    seed: int = 0
    _tokens: dict[tuple[int, int], Tokens] = field(default_factory=dict, repr=False)

    def tokens(self, tokenizer: Tokenizer, view: int) -> Tokens:
        """All samples of the split, as a view shows them."""
        if self.augment is None:
            view = CLEAN
        # By identity: the datamodule holds its tokenizers as long as it holds its sentences.
        key = (id(tokenizer), view)
        if key not in self._tokens:
            self._tokens[key] = self._encode(tokenizer, view)
        return self._tokens[key]

    def _encode(self, tokenizer: Tokenizer, view: int) -> Tokens:
        texts = self.texts.texts
        if self.augment is not None and view != CLEAN:
            texts = self.augment.sentences(view, self.seed, texts)
        tokens = tokenizer.encode(texts)
        # Report the real sentences only: a report per view would be noise.
        if tokens.cut and view == CLEAN:
            notice = (
                f"data: {tokens.cut:,} of {len(texts):,} {self.name} samples are longer than "
                f"{tokenizer.max_length} tokens ({type(tokenizer).__name__}) and are truncated"
            )
            print(printable(notice))
        return tokens


@dataclass
class TextSource(Source):
    """Some rows of a source split, served in batches.

    Attributes:
        sentences: the whole source split; subsets share it.
        target: int64 `(N,)`, the classes of the whole source split.
        rows: int64 `(n,)`, the rows of this source: its position i is row `rows[i]` of the split.
        tokenizer: tokenizer of the student.
        teacher_tokenizer: tokenizer of the teacher, if it differs from the student's.
    """

    sentences: Sentences
    target: Tensor
    rows: Tensor
    tokenizer: Tokenizer
    teacher_tokenizer: Tokenizer | None

    split: str = field(init=False)

    def __post_init__(self) -> None:
        self.split = self.sentences.name

    def lengths(self, view: int = CLEAN) -> Tensor:
        """The number of tokens per sample in a view, int64 `(n,)`."""
        return self.sentences.tokens(self.tokenizer, view).lengths[self.rows]

    def batch(self, rows: Tensor, view: int) -> Batch:
        """The samples at some positions of this source, as a view shows them.

        Args:
            rows: int64 `(B,)`, positions in this source.
            view: the view. Synthetic sentences have no label.
        """
        index = self.rows[rows]
        target = self.target[index]
        augment = self.sentences.augment
        if augment is not None and view != CLEAN:
            target = target.where(augment.variant(index, view) == 0, UNLABELLED)
        teacher_inputs = None
        if self.teacher_tokenizer is not None:
            teacher_inputs = self._inputs(self.teacher_tokenizer, index, view)
        return Batch(
            inputs=self._inputs(self.tokenizer, index, view),
            target=target,
            index=index,
            view=view,
            split=self.split,
            teacher_inputs=teacher_inputs,
        )

    def _inputs(
        self,
        tokenizer: Tokenizer,
        index: Tensor,
        view: int,
    ) -> dict[str, Tensor]:
        return self.sentences.tokens(tokenizer, view).inputs(index)

"""Synthetic sentences that enlarge a transfer set (Tang et al. 2019, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kd_lightning.data.text.corpus import Corpus
from kd_lightning.data.text.tagger import tagger_version
from kd_lightning.data.text.words import Sample
from kd_lightning.errors import UserError
from kd_lightning.randomness import hashed, integers, uniform


class SyntheticSentences:
    """Synthetic variants of each sentence, for a teacher to label.

    Each word is masked with probability `mask`, or replaced with probability `replace` by a word
    with the same part of speech, drawn in proportion to its frequency in the training sentences.
    Then, with probability `ngram`, the sentence is cut to a run of 1 to `longest` words. For pairs,
    the variants change the first text, the second text, or both, in turn.

    Variant 0 of a sentence is the sentence itself, with its label; variants 1 to `copies` are
    synthetic and have no label. A view shows one variant of each sentence. The variants are shifted
    from sentence to sentence, so that each view is a fair sample of the enlarged set, and views 0
    to `copies` together show every variant of every sentence once. Each draw is a function of
    (seed, row, variant). Unlike in the paper, duplicates remain.

    Args:
        mask: probability of masking a word.
        replace: probability of replacing a word.
        ngram: probability of cutting a sentence to a run of words.
        longest: maximum number of words in a run.
        copies: number of synthetic sentences per real sentence.
    """

    def __init__(
        self,
        mask: float = 0.1,
        replace: float = 0.1,
        ngram: float = 0.25,
        longest: int = 5,
        copies: int = 20,
    ) -> None:
        if min(mask, replace, ngram) < 0 or mask + replace > 1 or ngram > 1:
            raise UserError(
                "SyntheticSentences: mask, replace and ngram must be probabilities, "
                f"and mask + replace at most 1; got {mask}, {replace} and {ngram}"
            )
        if longest < 1 or copies < 1:
            raise UserError(
                "SyntheticSentences: longest and copies must be at least 1, "
                f"got {longest} and {copies}"
            )
        self.mask = mask
        self.replace = replace
        self.ngram = ngram
        self.longest = longest
        self.copies = copies
        self._corpus: Corpus | None = None

    @property
    def variants(self) -> int:
        """The number of variants per sentence, and of views that show all of them once."""
        return self.copies + 1

    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the variants of a sentence, except the seed."""
        public = {}
        for name, value in vars(self).items():
            if not name.startswith("_"):
                public[name] = value
        return {"name": type(self).__name__, **public, "tags": tagger_version()}

    def variant(self, row: Tensor, view: int) -> Tensor:
        """The variant of each row that a view shows; 0 is the sentence itself.

        Args:
            row: int64, of any shape.
            view: the view.

        Returns:
            int64 of `row`'s shape.
        """
        return (hashed(row, "variant") + view) % self.variants

    def learn(self, texts: Sequence[Sample]) -> None:
        """Take the words and their parts of speech from the training sentences."""
        self._corpus = Corpus.from_texts(texts)

    def sentences(self, view: int, seed: int, texts: Sequence[Sample]) -> list[Sample]:
        """The samples that a view shows.

        Args:
            view: the view.
            seed: seed of the draws.
            texts: the samples that `learn` received.
        """
        assert self._corpus is not None, "learn comes first"
        variant = self.variant(torch.arange(len(texts)), view)
        sides = len(texts[0])
        columns: list[list[str]] = []
        for side in range(sides):
            unchanged = variant == 0
            if sides > 1:
                # Of three synthetic pairs, one keeps its first text and one its second.
                unchanged |= variant % 3 == 2 - side
            synthetic = self._column(self._corpus, side, variant, seed)
            column: list[str] = []
            for sample, keep, text in zip(
                texts, unchanged.tolist(), synthetic, strict=True
            ):
                column.append(sample[side] if keep else text)
            columns.append(column)
        return list(zip(*columns, strict=True))

    def _column(
        self,
        corpus: Corpus,
        side: int,
        variant: Tensor,
        seed: int,
    ) -> list[str]:
        """The synthetic first (`side` 0) or second text of each sample.

        Args:
            corpus: the words of all samples.
            side: which text of a sample.
            variant: int64 `(N,)`, the variant of each sample.
            seed: seed of the draws.
        """
        starts, lengths = self._runs(corpus, side, variant, seed)
        # Lay the remaining words of all texts end to end: `text` is the text of each word, and
        # `position` is the position of the word in the corpus.
        text = torch.repeat_interleave(lengths)
        ends = lengths.cumsum(0)
        begins = ends - lengths
        offset = torch.arange(len(text)) - begins[text]
        position = offset + starts[text]
        draw = position * self.variants + variant[text]
        new = self._words(corpus, position, draw, seed).tolist()
        spelled = [corpus.words[number] for number in new]
        column: list[str] = []
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            column.append(" ".join(spelled[begin:end]))
        return column

    def _runs(
        self,
        corpus: Corpus,
        side: int,
        variant: Tensor,
        seed: int,
    ) -> tuple[Tensor, Tensor]:
        """The part of each text that remains: first position and number of words, `(N,)` each."""
        starts = corpus.starts[:, side]
        lengths = corpus.lengths[:, side]
        # One number per row, variant and side, so that no two draws are equal.
        row = torch.arange(len(variant))
        number_of_variant = row * self.variants + variant
        draw = number_of_variant * 2 + side
        drawn = integers(draw, 1, self.longest, seed, "length")
        run = torch.minimum(drawn, lengths)
        is_cut = uniform(draw, seed, "ngram") < self.ngram
        # Every start is possible from which the run ends within the text.
        shift = hashed(draw, seed, "start") % (lengths - run + 1)
        first = starts + torch.where(is_cut, shift, 0)
        return first, torch.where(is_cut, run, lengths)

    def _words(
        self,
        corpus: Corpus,
        position: Tensor,
        draw: Tensor,
        seed: int,
    ) -> Tensor:
        """The words at some positions, partly masked or replaced.

        Args:
            corpus: the words of all samples.
            position: int64 `(n,)`, positions in the corpus.
            draw: int64 `(n,)`, a number per position and variant, from which each draw follows.
            seed: seed of the draws.

        Returns:
            int64 `(n,)`, indices into `corpus.words`.
        """
        # One draw decides between masking, replacing and keeping a word.
        chance = uniform(draw, seed, "word")
        is_masked = chance < self.mask
        is_changed = chance < self.mask + self.replace
        # A uniform draw among the positions with this part of speech follows word frequencies.
        choice = hashed(draw, seed, "other") % corpus.count[position]
        place = corpus.by_tag[corpus.first[position] + choice]
        other = corpus.ids[place]
        own = corpus.ids[position]
        new = torch.where(is_changed, other, own)
        # The mask is the last word of the corpus.
        mask = len(corpus.words) - 1
        return torch.where(is_masked, mask, new)

"""Synthetic sentences that enlarge a transfer set (Tang et al. 2019, section 3.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kd_lightning.data.text.tokenizers import MASK, words
from kd_lightning.errors import UserError
from kd_lightning.hub import library
from kd_lightning.randomness import hashed, integers, uniform

Sample = tuple[str, ...]


@dataclass
class _Corpus:
    """All words of all texts, one after the other.

    Attributes:
        words: distinct words; the last is the mask.
        ids: int64 `(T,)`, each occurrence's word.
        like: int64 `(T,)`, occurrences sorted by part of speech; those like occurrence t lie at first[t], count[t] many.
        first, count: int64 `(T,)`.
        starts, lengths: int64 `(N, texts a sample)`, where each text lies.
    """

    words: list[str]
    ids: Tensor
    like: Tensor
    first: Tensor
    count: Tensor
    starts: Tensor
    lengths: Tensor


class SyntheticSentences:
    """Synthetic variants of each sentence, for a teacher to label.

    Each word is masked with probability `mask`, or replaced with probability `replace` by a word of the same part of speech
    (drawn as often as it occurs in the training sentences); then, with probability `ngram`, the sentence is cut to a run of
    1 to `longest` of its words. Of a pair's texts the first, the second, or both are changed, in turn.

    Variant 0 of a sentence is itself, with its label; variants 1 to `copies` are synthetic and have none. View v shows of
    each sentence a variant, shifted from sentence to sentence, so that each view is a fair sample of the enlarged set, and
    views 0 to `copies` together show every variant of every sentence once. What is drawn is a function of (seed, row,
    variant). Unlike in the paper, duplicates are kept.

    Parts of speech are those of TextBlob, whose wheel carries the lexicon and rules of the library pattern (Penn Treebank
    tags, English): nothing is downloaded.

    Args:
        mask, replace, ngram: probabilities.
        longest: words of the longest run.
        copies: synthetic sentences for each real one.
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
                "SyntheticSentences: mask, replace and ngram are probabilities, mask + replace at most 1; "
                f"got {mask}, {replace} and {ngram}"
            )
        if longest < 1 or copies < 1:
            raise UserError(
                f"SyntheticSentences: longest and copies must be at least 1, got {longest} and {copies}"
            )
        self.mask, self.replace, self.ngram, self.longest, self.copies = (
            mask,
            replace,
            ngram,
            longest,
            copies,
        )
        self._corpus: _Corpus | None = None

    @property
    def variants(self) -> int:
        """How many views show all variants of all sentences once."""
        return self.copies + 1

    def fingerprint(self) -> dict[str, Any]:
        known = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {"name": type(self).__name__, **known, "tags": tagger_version()}

    def variant(self, row: Tensor, view: int) -> Tensor:
        """Which variant of each row a view shows, int64 of `row`'s shape; 0 is the sentence itself."""
        return (hashed(row, "variant") + view) % self.variants

    def learn(self, texts: Sequence[Sample]) -> None:
        """Take words and parts of speech from the training sentences, whose row numbers `sentences` is then given."""
        split = [words(text, plain=False) for sample in texts for text in sample]
        lengths = torch.tensor([len(text) for text in split])
        flat = [word for text in split for word in text]
        numbers = {word: number for number, word in enumerate(dict.fromkeys(flat))}
        tags = part_of_speech(split)
        kinds = {tag: number for number, tag in enumerate(sorted(set(tags)))}
        kind = torch.tensor([kinds[tag] for tag in tags], dtype=torch.int64)
        count = torch.bincount(kind, minlength=len(kinds))
        first = count.cumsum(0) - count
        sides = len(texts[0])
        self._corpus = _Corpus(
            [*numbers, MASK],
            torch.tensor([numbers[word] for word in flat], dtype=torch.int64),
            torch.argsort(kind, stable=True),
            first[kind],
            count[kind],
            (lengths.cumsum(0) - lengths).view(-1, sides),
            lengths.view(-1, sides),
        )

    def sentences(self, view: int, seed: int, texts: Sequence[Sample]) -> list[Sample]:
        """What a view shows of the sentences that `learn` was given."""
        assert self._corpus is not None, "learn comes first"
        variant = self.variant(torch.arange(len(texts)), view)
        columns = [self._column(side, variant, seed) for side in range(len(texts[0]))]
        # One synthetic sample in three keeps its first text, one its second; single texts are always changed.
        kept = [
            (variant % 3 == 2 - side) & (len(columns) > 1) | (variant == 0)
            for side in range(len(columns))
        ]
        shown = [
            [
                sample[side] if keep else new
                for sample, keep, new in zip(texts, kept[side].tolist(), column, strict=True)
            ]
            for side, column in enumerate(columns)
        ]
        return list(zip(*shown, strict=True))

    def _column(self, side: int, variant: Tensor, seed: int) -> list[str]:
        """The synthetic first or second text of each sample."""
        corpus = self._corpus
        assert corpus is not None
        starts, lengths = corpus.starts[:, side], corpus.lengths[:, side]
        draw = (torch.arange(len(variant)) * self.variants + variant) * 2 + side
        run = torch.minimum(integers(draw, 1, self.longest, seed, "length"), lengths)
        cut = uniform(draw, seed, "ngram") < self.ngram
        starts = starts + torch.where(cut, hashed(draw, seed, "start") % (lengths - run + 1), 0)
        lengths = torch.where(cut, run, lengths)
        # The words of all texts that are left, one after the other: at[i] is a place in the corpus, of text[i].
        text = torch.repeat_interleave(lengths)
        ends = lengths.cumsum(0)
        at = torch.arange(len(text)) - (ends - lengths)[text] + starts[text]
        new = self._words(corpus, at, at * self.variants + variant[text], seed).tolist()
        spelled = [corpus.words[number] for number in new]
        return [
            " ".join(spelled[end - length : end])
            for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
        ]

    def _words(self, corpus: _Corpus, at: Tensor, draw: Tensor, seed: int) -> Tensor:
        """The words at these places, some masked or replaced."""
        chance = uniform(draw, seed, "word")
        other = corpus.ids[
            corpus.like[corpus.first[at] + hashed(draw, seed, "other") % corpus.count[at]]
        ]
        new = torch.where(chance < self.mask + self.replace, other, corpus.ids[at])
        return torch.where(chance < self.mask, len(corpus.words) - 1, new)


def part_of_speech(texts: Sequence[Sequence[str]]) -> list[str]:
    """The Penn Treebank tag of each word, all texts one after the other; needs the package textblob."""
    library("textblob")
    tag = library("textblob.en").tag
    found = []
    for text in texts:
        tags = [kind for _, kind in tag(" ".join(text), tokenize=False)]
        # It reads a few characters as marks of its own; a text in which a tag went missing is tagged word by word.
        found += (
            tags
            if len(tags) == len(text)
            else [(tag(word, tokenize=False) or [(word, "NN")])[0][1] for word in text]
        )
    return found


def tagger_version() -> str:
    """A checksum of the tagger's lexicon and rules."""
    from pathlib import Path

    folder = Path(library("textblob.en").__file__).parent
    digest = hashlib.sha256()
    for name in ("en-lexicon.txt", "en-morphology.txt", "en-context.txt"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]

"""The words of all training sentences in flat tensors, grouped by part of speech."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_lightning.data.text.tagger import part_of_speech
from kd_lightning.data.text.words import MASK, Sample, words


@dataclass
class Corpus:
    """All T words of N samples, one text after the other.

    The words with the part of speech of position t are at the `count[t]` positions
    `by_tag[first[t]]`, `by_tag[first[t] + 1]`, ...

    Attributes:
        words: the distinct words; the last one is the mask.
        ids: int64 `(T,)`, index into `words` per position.
        by_tag: int64 `(T,)`, positions sorted by part of speech.
        first: int64 `(T,)`, start in `by_tag` of the part of speech of each position.
        count: int64 `(T,)`, number of positions with that part of speech.
        starts: int64 `(N, texts per sample)`, position of each text's first word.
        lengths: int64 `(N, texts per sample)`, number of words per text.
    """

    words: list[str]
    ids: Tensor
    by_tag: Tensor
    first: Tensor
    count: Tensor
    starts: Tensor
    lengths: Tensor

    @classmethod
    def from_texts(cls, texts: Sequence[Sample]) -> Corpus:
        """Split and tag the texts of all samples."""
        # As written: the tagger and cased tokenizers read upper case and accents.
        split: list[list[str]] = []
        flat: list[str] = []
        for sample in texts:
            for text in sample:
                text_words = words(text, plain=False)
                split.append(text_words)
                flat.extend(text_words)
        ids, distinct = _numbered(flat)
        tags = part_of_speech(split)
        # Sorted, so that the numbers do not depend on the order of the sentences.
        distinct_tags = sorted(set(tags))
        tag_numbers = {tag: number for number, tag in enumerate(distinct_tags)}
        kinds = [tag_numbers[tag] for tag in tags]
        kind = torch.tensor(kinds, dtype=torch.int64)
        count = torch.bincount(kind, minlength=len(tag_numbers))
        first = count.cumsum(0) - count
        lengths = torch.tensor(list(map(len, split)))
        starts = lengths.cumsum(0) - lengths
        sides = len(texts[0])
        return cls(
            words=[*distinct, MASK],
            ids=ids,
            by_tag=torch.argsort(kind, stable=True),
            first=first[kind],
            count=count[kind],
            starts=starts.view(-1, sides),
            lengths=lengths.view(-1, sides),
        )


def _numbered(flat: Sequence[str]) -> tuple[Tensor, list[str]]:
    """The number of each word, int64 `(T,)`, in order of first occurrence; and the words."""
    distinct = list(dict.fromkeys(flat))
    numbers = {word: number for number, word in enumerate(distinct)}
    ids = [numbers[word] for word in flat]
    return torch.tensor(ids, dtype=torch.int64), distinct

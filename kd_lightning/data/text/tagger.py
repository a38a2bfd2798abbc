"""Part-of-speech tags from TextBlob.

Its wheel contains the English lexicon and rules of the library pattern, so nothing is downloaded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from kd_lightning.hub import library

_DATA_FILES = ("en-lexicon.txt", "en-morphology.txt", "en-context.txt")


def part_of_speech(texts: Sequence[Sequence[str]]) -> list[str]:
    """The Penn Treebank tag of each word of each text, in one list; needs the package textblob.

    Args:
        texts: the words of each text.
    """
    library("textblob")
    tags: list[str] = []
    for text in texts:
        tags.extend(_tags_of(text))
    return tags


def _tags_of(text: Sequence[str]) -> list[str]:
    tag = library("textblob.en").tag
    tags = [kind for _, kind in tag(" ".join(text), tokenize=False)]
    if len(tags) == len(text):
        return tags
    # The tagger consumes a few characters as markup and then returns too few tags. Tagged one by
    # one, the words keep their places; a word without any tag counts as a noun.
    tags = []
    for word in text:
        pairs = tag(word, tokenize=False)
        tags.append(pairs[0][1] if pairs else "NN")
    return tags


def tagger_version() -> str:
    """A checksum of the tagger's lexicon and rules, 16 hex digits."""
    folder = Path(str(library("textblob.en").__file__)).parent
    digest = hashlib.sha256()
    for name in _DATA_FILES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:16]

"""Splits texts into words, in the same way for the word tokenizer and for the augmentation."""

from __future__ import annotations

import re
import unicodedata

Sample = tuple[str, ...]
"""The texts of one sample: one text, or two for a pair."""

MASK = "\ue000"
"""Placeholder for a masked word; each tokenizer replaces it with its mask or unknown token."""

_WORD = re.compile(r"n't|'(?:s|re|ve|ll|d|m)\b|\w+|[^\w\s]", re.IGNORECASE)
_NEGATION = re.compile(r"(?<=\w)(n't)\b", re.IGNORECASE)


def words(text: str, plain: bool = True) -> list[str]:
    """Split a text into words.

    Punctuation marks and clitics are words of their own, as in the Penn Treebank and in SST:
    `words("It isn't Amélie's!")` is `["it", "is", "n't", "amelie", "'s", "!"]`. Splitting a text
    that is already split changes nothing.

    Args:
        text: any text.
        plain: convert to lower case and remove accents.
    """
    # Typographic apostrophes would hide the clitics.
    text = text.replace("\u2019", "'")
    if plain:
        text = _without_accents(text.lower())
    # Detach "n't" first: the word pattern would split "isn't" into "isn", "'" and "t".
    return _WORD.findall(_NEGATION.sub(r" \1", text))


def _without_accents(text: str) -> str:
    # The normal form NFKD writes an accent as a character of its own, after the letter.
    decomposed = unicodedata.normalize("NFKD", text)
    letters = [char for char in decomposed if not unicodedata.combining(char)]
    return "".join(letters)

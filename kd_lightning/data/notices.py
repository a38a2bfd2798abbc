"""Lines that tell the user what was done with the data."""

from __future__ import annotations

from functools import cache

from lightning.pytorch.utilities import rank_zero_only


@cache
@rank_zero_only
def notice(message: str) -> None:
    """Print one line that starts with `data:`, once per process and only in the first process.

    Args:
        message: may name files; characters that a terminal would act on are replaced by `?`.
    """
    characters = []
    for character in message:
        characters.append(character if character.isprintable() else "?")
    print(f"data: {''.join(characters)}")

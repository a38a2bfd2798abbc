"""The keys that an experiment's YAML may hold, and the kind of each value."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from kd_lightning.errors import UserError
from kd_lightning.limits import MAX_VIEWS
from kd_lightning.yaml_files import YamlValue

MAX_SEEDS = 1000
"""The most seeds of one run."""

MAX_JOBS = 10_000
"""The most jobs (runs times seeds) of an experiment."""

_FUNCTION = re.compile(r"(?:[^:\x00-\x1f]+\.py:\w+|\w+(?:\.\w+)+)")
"""A dotted path, or a function of a file."""


@dataclass(frozen=True)
class Check:
    """What a value must be.

    Attributes:
        accepts: whether a value is of that kind.
        kind: the kind in words, such as "a list of texts".
    """

    accepts: Callable[[YamlValue], bool]
    kind: str


def check_keys(where: str, content: YamlValue, schema: Mapping[str, Check]) -> None:
    """Check that a mapping holds only known keys, each with a value of the right kind or null.

    Args:
        where: the place in the YAML, for the error message.
        content: what the YAML holds there.
        schema: the check of each valid key.

    Raises:
        UserError: for the first key or value that is wrong.
    """
    if not isinstance(content, dict):
        raise UserError(f"{where} must be keys with values, got {_shown(content)}")
    for name in content:
        if not isinstance(name, str):
            raise UserError(f"{where}: the key {_shown(name)} must be text")
    unknown = sorted(set(content) - set(schema))
    if unknown:
        valid = ", ".join(sorted(schema))
        raise UserError(f"{where}: unknown key {unknown[0]!r}; valid keys: {valid}")
    for name, value in content.items():
        check = schema[name]
        if value is not None and not check.accepts(value):
            raise UserError(
                f"{where}: {name} must be {check.kind}, got {_shown(value)}"
            )


def check_run_names(where: str, names: Iterable[YamlValue]) -> None:
    """Check that runs have names that can be referred to and printed.

    Raises:
        UserError: for the first name that is no text, is empty, or holds `@` or a control
            character.
    """
    for name in names:
        if not _is_line(name) or not str(name).strip():
            raise UserError(
                f"{where}: the run name {_shown(name)} must be a line of text"
            )
        if "@" in str(name):
            raise UserError(
                f"{where}: the run name {name!r} must not hold @, which precedes a seed in needs"
            )


def _shown(value: YamlValue) -> str:
    """A value as a message shows it, cut if it is long."""
    text = repr(value)
    if len(text) > 100:
        return f"{text[:97]}..."
    return text


def _is_text(value: YamlValue) -> bool:
    return isinstance(value, str)


def _is_line(value: YamlValue) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_paragraph(value: YamlValue) -> bool:
    if not isinstance(value, str):
        return False
    # Line ends are white space, but terminal escapes are not.
    visible = "".join(value.split())
    return visible.isprintable()


def _is_flag(value: YamlValue) -> bool:
    return isinstance(value, bool)


def _is_mapping(value: YamlValue) -> bool:
    return isinstance(value, dict) and _are_all(value, str)


def _is_number(value: YamlValue) -> bool:
    # In Python, true and false are numbers.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _is_whole(value: YamlValue, low: int, high: int) -> bool:
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    return low <= value <= high


def _is_seed_count(value: YamlValue) -> bool:
    return _is_whole(value, 1, MAX_SEEDS)


def _is_list_of(value: YamlValue, kind: type) -> bool:
    return isinstance(value, list) and _are_all(value, kind)


def _is_texts(value: YamlValue) -> bool:
    return _is_list_of(value, str)


def _is_filled_texts(value: YamlValue) -> bool:
    return _is_texts(value) and bool(value)


def _is_seeds(value: YamlValue) -> bool:
    if not isinstance(value, list):
        return False
    if not 1 <= len(value) <= MAX_SEEDS:
        return False
    # Numpy's generators take 32 bits.
    highest = 2**32 - 1
    return all(_is_whole(seed, 0, highest) for seed in value)


def _is_mapping_of(value: YamlValue, kind: type) -> bool:
    return isinstance(value, dict) and _are_all(value.values(), kind)


def _are_all(items: Iterable[YamlValue], kind: type) -> bool:
    return all(isinstance(item, kind) for item in items)


def _is_mapping_of_texts(value: YamlValue) -> bool:
    return _is_mapping_of(value, str)


def _is_grid(value: YamlValue) -> bool:
    if not _is_mapping_of(value, list) or not _is_mapping(value):
        return False
    # Without a value, there would be no run.
    grid = cast(Mapping[str, YamlValue], value)
    return all(grid.values())


def _is_choices(value: YamlValue) -> bool:
    return _is_mapping(value) and _is_mapping_of(value, list)


def _is_paper(value: YamlValue) -> bool:
    if not isinstance(value, dict):
        return False
    for metrics in value.values():
        if not isinstance(metrics, dict):
            return False
        if not all(map(_is_number, metrics.values())):
            return False
    return True


def _is_needs(value: YamlValue) -> bool:
    if not isinstance(value, dict) or not _is_mapping(value):
        return False
    for needed in value.values():
        # A setting may need one run or several.
        names = needed if isinstance(needed, list) else [needed]
        if not names or not all(map(_is_reference, names)):
            return False
    return True


def _is_reference(value: YamlValue) -> bool:
    """Whether a value is NAME, NAME@SEED, NAME@+STEP or NAME@*."""
    if not isinstance(value, str):
        return False
    _, at, seed = value.partition("@")
    if not at or seed == "*":
        return True
    number = seed.removeprefix("+")
    # Other alphabets have digits, too; ten digits may be more than 32 bits.
    return number.isascii() and number.isdigit() and len(number) < 10


def _is_cache(value: YamlValue) -> bool:
    if not isinstance(value, dict):
        return False
    if not set(value) <= {"views", "top_k", "dtype"}:
        return False
    # What is not given has a valid default.
    has_views = _is_whole(value.get("views", 1), 1, MAX_VIEWS)
    has_top_k = _is_whole(value.get("top_k", 1), 1, 10**9)
    has_dtype = value.get("dtype", "fp32") in ("fp32", "fp16")
    return has_views and has_top_k and has_dtype


def _is_quick(value: YamlValue) -> bool:
    if not isinstance(value, dict):
        return False
    if not set(value) <= {"seeds", "overrides"}:
        return False
    has_seeds = _is_seed_count(value.get("seeds", 1))
    has_overrides = _is_mapping(value.get("overrides", {}))
    return has_seeds and has_overrides


def _is_pairs(value: YamlValue) -> bool:
    if not isinstance(value, list):
        return False
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2:
            return False
        if not _is_texts(pair):
            return False
    return True


def _is_equivalences(value: YamlValue) -> bool:
    if not isinstance(value, list):
        return False
    for pair in value:
        if not isinstance(pair, dict) or set(pair) != {"a", "b", "margin"}:
            return False
        has_names = _is_text(pair["a"]) and _is_text(pair["b"])
        margin = pair["margin"]
        if not has_names or not _is_number(margin):
            return False
        # Nothing is equal within a margin of 0.
        if cast(float, margin) <= 0:
            return False
    return True


def _is_analyses(value: YamlValue) -> bool:
    if not isinstance(value, dict):
        return False
    for analysis in value.values():
        if not isinstance(analysis, dict) or not _is_mapping(analysis):
            return False
        function = analysis.get("function")
        if not isinstance(function, str) or _FUNCTION.fullmatch(function) is None:
            return False
    return True


_TEXT = Check(_is_paragraph, "a text without control characters")
_LINE = Check(_is_line, "one line of text")
_TEXTS = Check(_is_texts, "a list of texts")
_KEYS = Check(_is_mapping, "keys (texts) with values")
_FLAG = Check(_is_flag, "true or false")

RUN = {
    "cache": Check(
        _is_cache,
        f"views (1 to {MAX_VIEWS:,}), top_k (at least 1) and dtype (fp32 or fp16)",
    ),
    "configs": _TEXTS,
    "grid": Check(_is_grid, "config keys with lists of one or more values"),
    "may_fail": _FLAG,
    "needs": Check(
        _is_needs,
        "config keys with names of runs (NAME, NAME@SEED, NAME@+STEP or NAME@*)",
    ),
    "overrides": _KEYS,
    "seeds": Check(
        _is_seeds, f"a list of 1 to {MAX_SEEDS:,} whole numbers, from 0 to 2^32 - 1"
    ),
}
"""The keys of a run, with the fields of `RunSpec`."""

EXPERIMENT = {
    "alike": Check(
        _is_equivalences, "a list of pairs with the names a and b, and a margin above 0"
    ),
    "analyses": Check(
        _is_analyses,
        "labels with a function (module.name or file.py:name) and its options",
    ),
    "choices": Check(_is_choices, "settings with lists of their valid values"),
    "claim": _TEXT,
    "compare": Check(_is_pairs, "a list of pairs of runs"),
    "compare_metric": _LINE,
    "configs": _TEXTS,
    "costs": _FLAG,
    "instead": Check(_is_mapping_of_texts, "settings with names of experiments"),
    "metrics": Check(_is_filled_texts, "a list of one or more names of metrics"),
    "note": _TEXT,
    "overrides": _KEYS,
    "paper": Check(_is_paper, "runs with metrics with numbers"),
    "quick": Check(_is_quick, "seeds (a whole number of at least 1) and overrides"),
    "runs": Check(
        lambda value: isinstance(value, dict), "names of runs with their keys"
    ),
    "seeds": Check(_is_seed_count, f"a whole number from 1 to {MAX_SEEDS:,}"),
    "settings": _KEYS,
    "time": _LINE,
    "title": _LINE,
}
"""The keys of an experiment, with the fields of `Experiment`."""

"""The keys that an experiment's YAML may hold, and the kind of each value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from kd_lightning.errors import UserError

YamlValue = bool | int | float | str | list["YamlValue"] | dict[str, "YamlValue"] | None
"""What a YAML file may hold."""


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
        raise UserError(f"{where} must be keys with values, got {content!r}")
    unknown = sorted(set(content) - set(schema))
    if unknown:
        valid = ", ".join(sorted(schema))
        raise UserError(f"{where}: unknown key {unknown[0]!r}; valid keys: {valid}")
    for name, value in content.items():
        check = schema[name]
        if value is not None and not check.accepts(value):
            raise UserError(f"{where}: {name} must be {check.kind}, got {value!r}")


def _is_text(value: YamlValue) -> bool:
    return isinstance(value, str)


def _is_flag(value: YamlValue) -> bool:
    return isinstance(value, bool)


def _is_mapping(value: YamlValue) -> bool:
    return isinstance(value, dict)


def _is_count(value: YamlValue) -> bool:
    # In Python, true and false are whole numbers.
    if isinstance(value, bool):
        return False
    return isinstance(value, int) and value >= 1


def _is_list_of(value: YamlValue, kind: type) -> bool:
    return isinstance(value, list) and _are_all(value, kind)


def _is_texts(value: YamlValue) -> bool:
    return _is_list_of(value, str)


def _is_seeds(value: YamlValue) -> bool:
    return _is_list_of(value, int)


def _is_mapping_of(value: YamlValue, kind: type) -> bool:
    return isinstance(value, dict) and _are_all(value.values(), kind)


def _are_all(items: Iterable[YamlValue], kind: type) -> bool:
    return all(isinstance(item, kind) for item in items)


def _is_mapping_of_texts(value: YamlValue) -> bool:
    return _is_mapping_of(value, str)


def _is_mapping_of_lists(value: YamlValue) -> bool:
    return _is_mapping_of(value, list)


def _is_mapping_of_mappings(value: YamlValue) -> bool:
    return _is_mapping_of(value, dict)


def _is_needs(value: YamlValue) -> bool:
    if not isinstance(value, dict):
        return False
    for needed in value.values():
        # A setting may need one run or several.
        is_valid = _is_text(needed) or _is_texts(needed)
        if not is_valid:
            return False
    return True


def _is_cache(value: YamlValue) -> bool:
    return isinstance(value, dict) and set(value) <= {"views", "top_k", "dtype"}


def _is_pairs(value: YamlValue) -> bool:
    if not isinstance(value, list):
        return False
    for pair in value:
        if not isinstance(pair, list) or len(pair) != 2 or not _is_texts(pair):
            return False
    return True


def _is_equivalences(value: YamlValue) -> bool:
    if not isinstance(value, list):
        return False
    for pair in value:
        if not isinstance(pair, dict) or set(pair) != {"a", "b", "margin"}:
            return False
    return True


def _is_analyses(value: YamlValue) -> bool:
    if not isinstance(value, dict):
        return False
    for analysis in value.values():
        if not isinstance(analysis, dict) or not _is_text(analysis.get("function")):
            return False
    return True


_TEXT = Check(_is_text, "a text")
_TEXTS = Check(_is_texts, "a list of texts")
_KEYS = Check(_is_mapping, "keys with values")
_FLAG = Check(_is_flag, "true or false")

RUN = {
    "cache": Check(_is_cache, "views, top_k and dtype"),
    "configs": _TEXTS,
    "grid": Check(_is_mapping_of_lists, "config keys with lists of values"),
    "may_fail": _FLAG,
    "needs": Check(_is_needs, "config keys with names of runs"),
    "overrides": _KEYS,
    "seeds": Check(_is_seeds, "a list of whole numbers"),
}
"""The keys of a run, with the fields of `RunSpec`."""

EXPERIMENT = {
    "alike": Check(_is_equivalences, "a list of pairs with a, b and margin"),
    "analyses": Check(_is_analyses, "labels with a function and its options"),
    "claim": _TEXT,
    "compare": Check(_is_pairs, "a list of pairs of runs"),
    "compare_metric": _TEXT,
    "configs": _TEXTS,
    "costs": _FLAG,
    "instead": Check(_is_mapping_of_texts, "settings with names of experiments"),
    "metrics": _TEXTS,
    "note": _TEXT,
    "overrides": _KEYS,
    "paper": Check(_is_mapping_of_mappings, "runs with metrics with numbers"),
    "quick": _KEYS,
    "runs": _KEYS,
    "seeds": Check(_is_count, "a number of at least 1"),
    "settings": _KEYS,
    "time": _TEXT,
    "title": _TEXT,
}
"""The keys of an experiment, with the fields of `Experiment`."""

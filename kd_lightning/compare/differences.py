"""The settings in which groups of runs differ."""

from __future__ import annotations

from collections.abc import Sequence

from kd_lightning.compare.settings import Settings, SettingValue, format_value


def differing_settings(groups: Sequence[Settings]) -> dict[str, list[str]]:
    """Find the settings in which groups differ.

    A setting that follows from another one is skipped: the arguments of a class if the class itself
    differs. The entries of a list of classes, or of `losses`, become one setting with their names.

    Args:
        groups: the settings of each group.

    Returns:
        For each name, the value of each group as text; empty if the setting does not apply to it.
    """
    all_names: set[str] = set()
    for group in groups:
        all_names.update(group)
    # Sorted, because W&B and config.yaml have different orders.
    names = sorted(all_names)
    class_names = []
    for name in names:
        if name.endswith(".class"):
            class_names.append(name)

    differences = {}
    for name in names:
        values = _values_of(name, groups)
        # Values can be lists, which no set can hold.
        are_equal = values.count(values[0]) == len(values)
        if are_equal:
            continue
        collection = _collection_of(name, groups, class_names)
        if collection is None:
            key = name
            texts = [_format_setting(name, group) for group in groups]
            follows = _follows_from_class(name, values, groups, class_names)
        else:
            # Several entries lead to the same collection and to the same texts.
            key = collection
            texts = [_format_entries(collection, group) for group in groups]
            follows = _follows_from_class(name, texts, groups, class_names)
        if not follows:
            differences[key] = texts
    return differences


def _values_of(name: str, groups: Sequence[Settings]) -> list[SettingValue]:
    """The value of each group; None if the group does not have the setting."""
    return [group.get(name) for group in groups]


def _collection_of(
    name: str,
    groups: Sequence[Settings],
    class_names: Sequence[str],
) -> str | None:
    """The list or the `losses` whose entry this is, if some group has no such entry."""
    if not name.endswith(".class"):
        return None
    owner, _, entry = name.removesuffix(".class").rpartition(".")
    # An argument of a class is no entry of a collection.
    if f"{owner}.class" in class_names:
        return None
    # If all groups have the entry, only its own value differs.
    if all(name in group for group in groups):
        return None
    is_entry = entry.isdigit() or owner.endswith("losses")
    if not is_entry:
        return None
    return owner


def _format_entries(collection: str, group: Settings) -> str:
    """The entries that a group has: their names, or their classes if they are in a list."""
    depth = collection.count(".") + 2
    entries = []
    for name in group:
        inside = name.startswith(f"{collection}.") and name.endswith(".class")
        if inside and name.count(".") == depth:
            entries.append(name)
    # By length first, so that entry 10 of a list comes after entry 9.
    entries.sort(key=lambda name: (len(name), name))
    texts = []
    for name in entries:
        entry = name.split(".")[-2]
        # The position in a list tells a reader nothing.
        if entry.isdigit():
            texts.append(format_value(name, group[name]))
        else:
            texts.append(entry)
    return "+".join(texts) or "none"


def _format_setting(name: str, group: Settings) -> str:
    """The value of a setting; empty if the group lacks the object that the setting belongs to."""
    owner = name.removesuffix(".class").rpartition(".")[0]
    if owner:
        prefix = f"{owner}."
        has_owner = any(key.startswith(prefix) for key in group)
        if not has_owner:
            return ""
    return format_value(name, group.get(name))


def _follows_from_class(
    name: str,
    values: Sequence[SettingValue],
    groups: Sequence[Settings],
    class_names: Sequence[str],
) -> bool:
    """Whether the class of an object above a setting determines its value in all groups."""
    for class_name in class_names:
        owner = class_name.removesuffix(".class")
        # No class explains itself.
        if name == class_name or not name.startswith(f"{owner}."):
            continue
        classes = _values_of(class_name, groups)
        if _determines(classes, values):
            return True
    return False


def _determines(
    classes: Sequence[SettingValue], values: Sequence[SettingValue]
) -> bool:
    """Whether groups of equal class always have equal values."""
    value_of_class: dict[str, SettingValue] = {}
    for class_path, value in zip(classes, values, strict=True):
        first_value = value_of_class.setdefault(str(class_path), value)
        if first_value != value:
            return False
    return True

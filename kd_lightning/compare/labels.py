"""Short labels for groups of runs, from their names and from the settings in which they differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from kd_lightning.compare.differences import differing_settings
from kd_lightning.compare.settings import Settings, short_names

MAX_LABEL_SETTINGS = 3
"""A label with more settings than this would be too long to read."""


def make_labels(
    groups: Sequence[Settings], run_names: Sequence[Sequence[str]]
) -> tuple[list[str], str]:
    """Label each group by the settings in which groups differ.

    If there are too many such settings, the label is the name of the group's runs, followed by the
    settings that tell groups of the same name apart.

    Args:
        groups: the settings of each group.
        run_names: the names of each group's runs.

    Returns:
        One unique label per group, and a note on differences that the labels do not show.
    """
    known: list[str] = []
    for group in groups:
        known += group
    base_names = [_base_name(names) for names in run_names]
    differences = differing_settings(groups)
    if len(differences) <= MAX_LABEL_SETTINGS:
        labels = _format_labels(differences, list(differences), known, len(groups))
        for index, base in enumerate(base_names):
            # A single group differs from nothing.
            if not labels[index]:
                labels[index] = base
        return _number_duplicates(labels), ""

    labels, shown = _labels_by_name(groups, base_names, known)
    endings = short_names(differences, known)
    hidden = []
    for name in differences:
        if name not in shown:
            hidden.append(endings[name])
    note = ""
    if hidden:
        also = "also " if shown else ""
        note = f"The rows {also}differ in {join_first(hidden)}."
    return _number_duplicates(labels), note


def _labels_by_name(
    groups: Sequence[Settings],
    base_names: Sequence[str],
    known: Sequence[str],
) -> tuple[list[str], set[str]]:
    """Label groups by name, and groups of one name also by the settings in which they differ.

    Returns:
        The labels, and the settings that some label shows.
    """
    indices_of_name: dict[str, list[int]] = {}
    for index, base in enumerate(base_names):
        indices_of_name.setdefault(base, []).append(index)

    labels = list(base_names)
    shown: set[str] = set()
    for base, indices in indices_of_name.items():
        same_name = [groups[index] for index in indices]
        differences = differing_settings(same_name)
        chosen = list(differences)
        if len(chosen) > MAX_LABEL_SETTINGS:
            chosen = _distinguishing_settings(differences)
        shown.update(chosen)
        suffixes = _format_labels(differences, chosen, known, len(indices))
        for index, suffix in zip(indices, suffixes, strict=True):
            if suffix:
                labels[index] = f"{base}, {suffix}"
    return labels, shown


def _base_name(names: Sequence[str]) -> str:
    """The common name of a group's runs without the number of the seed, or the first name."""
    # Seeds are named `kd-seed1` or `kd-s1`; a repeated name gets a number, as in `kd-2`.
    without_seed = set()
    for name in names:
        without_seed.add(re.sub(r"[-_. ]+(seed|s)?[-_= ]?\d+$", "", name))
    if len(names) == 1 or len(without_seed) > 1:
        return names[0]
    return without_seed.pop()


def _format_labels(
    differences: Mapping[str, Sequence[str]],
    chosen: Sequence[str],
    known: Iterable[str],
    count: int,
) -> list[str]:
    """`name=value, ...` of the chosen settings for each of `count` groups."""
    endings = short_names(differences, known)
    labels = []
    for index in range(count):
        parts = []
        for name in chosen:
            value = differences[name][index]
            # Empty if the setting does not apply to this group, as KD's temperature without KD.
            if value:
                parts.append(f"{endings[name]}={value}")
        labels.append(", ".join(parts))
    return labels


def _distinguishing_settings(differences: Mapping[str, Sequence[str]]) -> list[str]:
    """Few settings that tell groups apart as well as all settings do, chosen greedily."""

    def distinct_groups(names: Sequence[str]) -> int:
        if not names:
            return 1
        # From the values of each setting to the values of each group.
        columns = [differences[name] for name in names]
        texts_per_group = zip(*columns, strict=True)
        return len(set(texts_per_group))

    chosen: list[str] = []

    def usefulness(name: str) -> tuple[int, int]:
        # The setting that separates most groups; of equals, the one nearest to the top.
        depth = name.count(".")
        return distinct_groups([*chosen, name]), -depth

    most = distinct_groups(list(differences))
    while distinct_groups(chosen) < most:
        rest = [name for name in differences if name not in chosen]
        chosen.append(max(rest, key=usefulness))
    return chosen


def _number_duplicates(labels: Sequence[str]) -> list[str]:
    """The labels, with a number after each repetition."""
    counts: dict[str, int] = {}
    unique = []
    for label in labels:
        count = counts.get(label, 0) + 1
        counts[label] = count
        if count > 1:
            label = f"{label} #{count}"
        unique.append(label)
    return unique


def join_first(items: Sequence[str], at_most: int = 8, separator: str = ", ") -> str:
    """Join the first items, and say how many more there are.

    Args:
        items: in the order in which they are shown.
        at_most: the number that is shown.
        separator: between two items.
    """
    text = separator.join(items[:at_most])
    if len(items) > at_most:
        text += f" and {len(items) - at_most} more"
    return text

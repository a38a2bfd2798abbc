"""What sets groups of runs apart, in words: settings as flat keys, the keys that differ, and a short label a group."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kd_lightning.errors import UserError

SHOWN_KEYS = 3
"""A label of more keys than this would be no label."""


@dataclass(frozen=True)
class Reference:
    """A value that stands for another run: equal for all seeds of that run."""

    key: str
    shown: str = field(compare=False)


Settings = Mapping[str, Any]
"""`model.losses.kd.temperature: 4.0`; where a class was named, its name is the value of `....class`."""


def text(name: str, value: Any) -> str:
    """A setting's value for a person."""
    if value is None:
        return "none"
    if isinstance(value, Reference):
        return value.shown
    if isinstance(value, list):
        shown = [text("", item) for item in value]
        return ",".join(
            dict.fromkeys(shown) if all(isinstance(item, Reference) for item in value) else shown
        )
    if isinstance(value, bool | dict):
        return json.dumps(value, default=str)
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).rpartition(".")[2] if name.endswith(".class") else str(value)


def differing(groups: Sequence[Settings]) -> dict[str, list[str]]:
    """The keys in which groups differ, and each group's value in words.

    What follows from another key is left out: the arguments of a class where the class itself differs, and the entries of a
    list or of `losses`, which become one key with their names.
    """
    names = sorted(
        {name for group in groups for name in group}
    )  # W&B keeps another order than config.yaml
    varying = [n for n in names if any(group.get(n) != groups[0].get(n) for group in groups)]
    classes = {n.removesuffix(".class") for n in names if n.endswith(".class")}
    found: dict[str, list[str]] = {}
    for name in varying:
        owner, _, entry = name.removesuffix(".class").rpartition(".")
        holds = (
            name.endswith(".class")
            and owner not in classes
            and any(name not in group for group in groups)
        )
        held = holds and (entry.isdigit() or owner.endswith("losses"))
        shown = [_entries(owner, group) if held else _value(name, group) for group in groups]
        above = [f"{c}.class" for c in classes if name.startswith(f"{c}.") and name != f"{c}.class"]
        values: Sequence[Any] = shown if held else [group.get(name) for group in groups]
        if not any(_explains([group.get(key) for group in groups], values) for key in above):
            found[owner if held else name] = shown
    return found


def _value(name: str, group: Settings) -> str:
    """Empty where the group has nothing that the name could belong to."""
    owner = name.removesuffix(".class").rpartition(".")[0]
    return (
        text(name, group.get(name))
        if not owner or any(key.startswith(f"{owner}.") for key in group)
        else ""
    )


def _entries(owner: str, group: Settings) -> str:
    held = [
        n
        for n in group
        if n.startswith(f"{owner}.")
        and n.endswith(".class")
        and n.count(".") == owner.count(".") + 2
    ]
    shown = [
        text(n, group[n]) if (entry := n.split(".")[-2]).isdigit() else entry
        for n in sorted(held, key=lambda n: (len(n), n))
    ]
    return "+".join(shown) or "none"


def _explains(classes: Sequence[Any], values: Sequence[Any]) -> bool:
    """Whether groups of one class (or of none) have one value."""
    seen: dict[Any, Any] = {}
    return all(
        seen.setdefault(one, value) == value for one, value in zip(classes, values, strict=True)
    )


def short(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """The shortest ending of each name that no other known name has."""
    bare = {name.removesuffix(".class") for name in known} | {
        name.removesuffix(".class") for name in names
    }
    found = {}
    for name in names:
        parts = name.removesuffix(".class").split(".")
        endings = (".".join(parts[at:]) for at in range(len(parts) - 1, -1, -1))
        found[name] = next(
            (e for e in endings if sum(b == e or b.endswith(f".{e}") for b in bare) <= 1), name
        )
    return found


def selected(keys: Sequence[str], known: Iterable[str]) -> set[str]:
    """The known names at or below keys that a user wrote in full or by their ending.

    Raises:
        UserError: where no setting, or more than one, has that name.
    """
    known = list(dict.fromkeys(known))
    nodes = {name.rsplit(".", cut)[0] for name in known for cut in range(name.count(".") + 1)}
    chosen: set[str] = set()
    for key in keys:
        wanted = ".".join(
            part for part in key.split(".") if part not in ("init_args", "class_path", "class")
        )
        found = (
            [wanted] if wanted in nodes else sorted(n for n in nodes if n.endswith(f".{wanted}"))
        )
        if not found:
            raise UserError(
                f"--by {key}: no run has such a setting; name one of config.yaml, such as model.optimizer.lr"
            )
        if len(found) > 1:
            raise UserError(f"--by {key} could be {' or '.join(found)}; write more of it")
        chosen |= {name for name in known if name == found[0] or name.startswith(f"{found[0]}.")}
    return chosen


def labels(groups: Sequence[Settings], names: Sequence[Sequence[str]]) -> tuple[list[str], str]:
    """A label for each group, and a note on what the labels do not tell.

    A few keys are the label; where groups differ in more, it is their runs' name, with keys where groups share that.

    Args:
        groups: their settings.
        names: of each group's runs.
    """
    known = [name for group in groups for name in group]
    bases = [_common(of_group) for of_group in names]
    found = differing(groups)
    if len(found) <= SHOWN_KEYS:
        return _unique(
            [
                told or base
                for told, base in zip(_keyed(found, list(found), known), bases, strict=True)
            ]
        ), ""
    made, used = list(bases), set()
    for base in set(bases):
        alike = [at for at, other in enumerate(bases) if other == base]
        inner = differing([groups[at] for at in alike])
        chosen = list(inner) if len(inner) <= SHOWN_KEYS else _fewest(inner)
        used |= set(chosen)
        for at, told in zip(alike, _keyed(inner, chosen, known), strict=True):
            made[at] = ", ".join(filter(None, [base, told]))
    rest = [ending for name, ending in short(found, known).items() if name not in used]
    return _unique(
        made
    ), f"The rows differ {'also ' if used else ''}in {listing(rest)}." if rest else ""


def _keyed(
    found: Mapping[str, Sequence[str]], chosen: Sequence[str], known: Iterable[str]
) -> list[str]:
    """`key=value, ...` of the chosen keys for each group."""
    shown = short(found, known)
    columns = [[f"{shown[key]}={value}" if value else "" for value in found[key]] for key in chosen]
    groups = max((len(values) for values in found.values()), default=1)
    return [", ".join(filter(None, (column[at] for column in columns))) for at in range(groups)]


def listing(items: Sequence[str], at_most: int = 8, between: str = ", ") -> str:
    """The first items, and how many more there are."""
    more = f" and {len(items) - at_most} more" if len(items) > at_most else ""
    return between.join(items[:at_most]) + more


def _common(names: Sequence[str]) -> str:
    """The name of a group's runs without the number of the seed, or the first one's."""
    bare = {re.sub(r"[-_. ]+(seed|s)?[-_= ]?\d+$", "", name) for name in names}
    return names[0] if len(names) == 1 or len(bare) > 1 else bare.pop()


def _fewest(found: Mapping[str, Sequence[str]]) -> list[str]:
    """Keys that tell all groups apart, taken one by one, those first that tell the most apart."""
    chosen: list[str] = []

    def told(keys: list[str]) -> int:
        return len(set(zip(*(found[key] for key in keys), strict=True)))

    while told([*chosen, *found]) > (told(chosen) if chosen else 1):
        chosen.append(
            max(
                (key for key in found if key not in chosen),
                key=lambda key: (told([*chosen, key]), -key.count(".")),
            )
        )
    return chosen


def _unique(made: Sequence[str]) -> list[str]:
    seen: dict[str, int] = {}
    result = []
    for label in made:
        seen[label] = seen.get(label, 0) + 1
        result.append(label if seen[label] == 1 else f"{label} #{seen[label]}")
    return result

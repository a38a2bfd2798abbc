"""The settings that decide a run's result, as flat keys with values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kd_lightning.errors import UserError
from kd_lightning.experiments.keys import is_relevant
from kd_lightning.runs.settings import flat
from kd_lightning.runs.spec_arguments import SPEC_ARGUMENTS


@dataclass(frozen=True)
class Reference:
    """The value of a setting that is another run, for example the student's teacher.

    Attributes:
        key: a digest of that run's settings, equal for all of its seeds.
        label: how tables show that run.
    """

    key: str
    label: str = field(compare=False)


SettingValue = (
    bool
    | int
    | float
    | str
    | Reference
    | list["SettingValue"]
    | dict[str, "SettingValue"]
    | None
)
Settings = Mapping[str, SettingValue]
"""`model.losses.kd.temperature: 4`; the key of a class ends in `.class`."""

Config = Mapping[str, Any]
"""A resolved config."""


def deciding_settings(config: Config) -> dict[str, SettingValue]:
    """Flatten a resolved config to the settings that decide its result.

    The seed and the arguments that come from the data are excluded.

    Args:
        config: of a run.
    """
    settings = {}
    for name, value in flat(config):
        short_name, parts = _without_syntax(name)
        # run.test is relevant here, because it selects the weights that are tested.
        relevant = name == "run.test" or is_relevant(name)
        comes_from_data = not parts.isdisjoint(SPEC_ARGUMENTS)
        # A setting that is off must equal one that config.yaml does not list.
        is_off = value in (None, {})
        if relevant and not comes_from_data and not is_off:
            settings[short_name] = _whole_numbers_as_int(value)
    return settings


def _without_syntax(name: str) -> tuple[str, set[str]]:
    """A key of config.yaml without `init_args`, and its parts."""
    parts = [part for part in name.split(".") if part != "init_args"]
    # Shorter, and what --by accepts, too.
    if parts[-1:] == ["class_path"]:
        parts[-1] = "class"
    return ".".join(parts), set(parts)


def _whole_numbers_as_int(value: SettingValue) -> SettingValue:
    """The value with every float that is a whole number as an integer."""
    # W&B returns 4.0 as 4, so a run must look the same from its folder.
    if isinstance(value, list):
        return [_whole_numbers_as_int(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def digest(content: SettingValue | Settings) -> str:
    """A short hash that is the same for equal settings.

    Args:
        content: a value, or settings by name, in any order.
    """
    text = json.dumps(content, sort_keys=True, default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_json(value: SettingValue) -> str:
    """What JSON stores for a value of a type that it does not know."""
    if isinstance(value, Reference):
        return value.key
    return str(value)


def format_value(name: str, value: SettingValue) -> str:
    """The value of a setting as labels show it; a class is shown without its module.

    Args:
        name: of the setting.
        value: of the setting.
    """
    if value is None:
        return "none"
    if isinstance(value, Reference):
        return value.label
    if isinstance(value, list):
        return _format_list(value)
    if isinstance(value, bool | dict):
        return json.dumps(value, default=str)
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    if name.endswith(".class"):
        return text.rpartition(".")[2]
    return text


def _format_list(items: Sequence[SettingValue]) -> str:
    """The values of a list setting; an ensemble of one teacher's seeds is shown as that teacher."""
    texts = []
    are_references = True
    for item in items:
        texts.append(format_value("", item))
        if not isinstance(item, Reference):
            are_references = False
    if are_references:
        texts = list(dict.fromkeys(texts))
    return ",".join(texts)


def short_names(names: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """The shortest ending of each name that no other name has.

    Args:
        names: keys of settings.
        known: the keys of all settings, which the endings must tell apart.
    """
    names = list(names)
    all_names = set()
    for name in [*known, *names]:
        all_names.add(name.removesuffix(".class"))
    endings = {}
    for name in names:
        endings[name] = _shortest_ending(name, all_names)
    return endings


def _shortest_ending(name: str, all_names: Iterable[str]) -> str:
    """The shortest ending of a name that no other name has."""
    parts = name.removesuffix(".class").split(".")
    for start in range(len(parts) - 1, -1, -1):
        ending = ".".join(parts[start:])
        # The name itself always matches.
        matches = sum(_ends_with(other, ending) for other in all_names)
        if matches <= 1:
            return ending
    return name


def _ends_with(name: str, ending: str) -> bool:
    """Whether the last parts of a name are `ending`."""
    return name == ending or name.endswith(f".{ending}")


def select_settings(keys: Sequence[str], known: Iterable[str]) -> set[str]:
    """The names of settings that a user selected.

    Args:
        keys: names in full or by their ending; a key also selects everything below it.
        known: the names of all settings.

    Raises:
        UserError: if a key matches no setting, or several.
    """
    names = set(known)
    nodes = set()
    for name in names:
        nodes.add(name)
        # The objects above a setting can be selected too, such as `model.optimizer`.
        while "." in name:
            name = name.rpartition(".")[0]
            nodes.add(name)

    selected = set()
    for key in keys:
        node = _match_key(key, nodes)
        for name in names:
            if name == node or name.startswith(f"{node}."):
                selected.add(name)
    return selected


def _match_key(key: str, nodes: set[str]) -> str:
    """The setting, or the object above settings, that a key names."""
    # Users copy keys from config.yaml, where they contain words that settings do not have.
    syntax = ("init_args", "class_path", "class")
    parts = [part for part in key.split(".") if part not in syntax]
    ending = ".".join(parts)
    # A full name is never ambiguous, even if other names end in it.
    if ending in nodes:
        return ending
    matches = []
    for node in sorted(nodes):
        if _ends_with(node, ending):
            matches.append(node)
    if not matches:
        raise UserError(
            f"--by {key}: no run has such a setting; "
            "name one of config.yaml, such as model.optimizer.lr"
        )
    if len(matches) > 1:
        listed = " or ".join(matches)
        raise UserError(f"--by {key} could be {listed}; write more of the name")
    return matches[0]

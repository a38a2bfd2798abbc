"""Which part of what a network returns holds the logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from kd_lightning.errors import UserError

LOGIT_NAMES = ("logits", "out")
"""Under which names networks return logits: transformers say `logits`, torchvision's `out`."""


MOST_NAMED = 8
"""How many candidates a message lists."""


@runtime_checkable
class HasLogits(Protocol):
    """An output object with logits, such as those of the transformers library."""

    logits: Tensor


@dataclass(frozen=True)
class Reading:
    """How a network is read, and how messages about it name it and its options.

    Attributes:
        entry: which entry of the network's output holds the logits: the index in a tuple, or the
            key or attribute. `None`: the output is a tensor, or has an entry `logits`.
        owner: "the student", "the teacher" or "the network".
        option: the command-line option that describes the network, such as `--model`.
    """

    entry: int | str | None = None
    owner: str = "the network"
    option: str = ""

    def setting(self, name: str, value: str) -> str:
        """How to set an option of the network, as a command line or Python spells it.

        Args:
            name: of the option.
            value: to set it to.
        """
        if not self.option:
            return f"{name}={value}"
        return f"{self.option}.{name}={value}"


PLAIN_READING = Reading()


def entries_of(output: object) -> dict[int | str, object]:
    """The entries of an output of several parts, by index or name; empty for anything else.

    Args:
        output: a tuple, list, named tuple, mapping (such as Hugging Face's ModelOutput), dataclass
            or plain object.
    """
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple | list):
        # A named tuple has names beside its positions.
        names = getattr(output, "_fields", range(len(output)))
        return dict(zip(names, output, strict=True))
    if is_dataclass(output):
        entries: dict[int | str, object] = {}
        for field in fields(output):
            entries[field.name] = getattr(output, field.name)
        return entries
    return dict(getattr(output, "__dict__", {}))


def as_logits(output: object, reading: Reading = PLAIN_READING) -> Tensor:
    """Logits from what a network returned.

    With `reading.entry`, that entry of a tuple, mapping or object; a plain tensor is taken as it is,
    since a network may return more in training than in evaluation. Without it: a tensor, the entry
    `logits` (or torchvision's `out`), or the only entry of a tuple that holds logits.

    Args:
        output: what the network returned.
        reading: which entry holds the logits, and how messages name the network.

    Raises:
        UserError: if there are no logits in it, or several entries could be them.
    """
    if isinstance(output, Tensor):
        return output
    # The entry may itself be an output object with logits.
    if reading.entry is not None:
        return as_logits(_named_entry(output, reading), replace(reading, entry=None))
    # The attribute of transformers' outputs, which are mappings as well.
    if isinstance(output, HasLogits) and isinstance(output.logits, Tensor):
        return output.logits
    if isinstance(output, Mapping):
        for name in LOGIT_NAMES:
            logits = output.get(name)
            if isinstance(logits, Tensor):
                return logits
    if isinstance(output, tuple | list):
        holding = [item for item in output if _holds_logits(item)]
        if len(holding) == 1:
            return as_logits(holding[0], reading)
        # Which of several heads is meant is the user's decision.
        if len(holding) > 1:
            raise UserError(
                f"{reading.owner} returned {len(holding)} entries that may be logits "
                f"({_describe(output)}); name one with {reading.setting('outputs', 'ENTRY')}"
            )
    raise _no_logits(output, reading)


def _no_logits(output: object, reading: Reading) -> UserError:
    """The error for an output in which nothing looks like logits."""
    problem = f"{reading.owner} returned {type(output).__name__}, which holds no logits"
    choices = _describe(output)
    if choices:
        setting = reading.setting("outputs", "NAME")
        problem += f"; name the entry with {setting}: {choices}"
    return UserError(problem)


def _named_entry(output: object, reading: Reading) -> object:
    """The entry that the setting `outputs` names."""
    name = reading.entry
    entries = entries_of(output)
    if name in entries:
        return entries[name]
    # An index may be negative, or count the entries of a mapping.
    values = list(entries.values())
    if isinstance(name, int) and -len(values) <= name < len(values):
        return values[name]
    raise UserError(
        f"{reading.setting('outputs', str(name))}: {reading.owner} returned "
        f"{type(output).__name__} without this entry; its tensors are {_describe(output) or 'none'}"
    )


def _holds_logits(value: object) -> bool:
    """Whether an entry of a tuple is a tensor, or has logits."""
    if isinstance(value, Tensor):
        return True
    if isinstance(value, Mapping):
        return any(isinstance(value.get(name), Tensor) for name in LOGIT_NAMES)
    return isinstance(value, HasLogits) and isinstance(value.logits, Tensor)


def _describe(output: object) -> str:
    """The tensors among the entries of an output, with the shape per sample."""
    described = []
    for name, value in entries_of(output).items():
        if isinstance(value, Tensor):
            described.append(f"{name} {list(value.shape[1:])}")
    return ", ".join(described[:MOST_NAMED])

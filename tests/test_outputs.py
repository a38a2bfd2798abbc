"""Which entry of a network's output holds the logits."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from kd_lightning.outputs import Reading, as_logits
from tests.test_features import complaint

LOGITS = torch.arange(6.0).view(2, 3)
OTHER = torch.zeros(2, 3)
WIDE = torch.zeros(2, 7)

Inception = namedtuple("Inception", ["logits", "aux_logits"])
Heads = namedtuple("Heads", ["main", "aux"])


@dataclass
class Heard:
    """An output as a dataclass, with a name of its own for the logits."""

    scores: Tensor
    states: Tensor


BY_RULE = {
    "tensor": LOGITS,
    "mapping": OrderedDict(loss=None, logits=LOGITS, hidden=OTHER),
    "torchvision's maps": {"out": LOGITS},
    "named tuple": Inception(LOGITS, OTHER),
    "object": SimpleNamespace(logits=LOGITS, states=OTHER),
    "tuple with one tensor": (None, LOGITS, (OTHER, OTHER)),
    "mapping in a tuple": ({"logits": LOGITS}, None),
}


@pytest.mark.parametrize("kind", BY_RULE)
def test_without_a_setting(kind: str) -> None:
    assert as_logits(BY_RULE[kind]) is LOGITS


NAMED = {
    "tuple": ((OTHER, LOGITS), 1),
    "from the end of a list": ([OTHER, LOGITS], 1),
    "mapping": ({"logits": OTHER, "scores": LOGITS}, "scores"),
    "mapping by index": ({"loss": OTHER, "scores": LOGITS}, 1),
    "dataclass": (Heard(LOGITS, WIDE), "scores"),
    "named tuple": (Heads(OTHER, LOGITS), "aux"),
    "tensor, as in evaluation": (LOGITS, 1),
    "mapping in a tuple": ((OTHER, {"logits": LOGITS}), 1),
}


@pytest.mark.parametrize("kind", NAMED)
def test_with_a_setting(kind: str) -> None:
    output, entry = NAMED[kind]
    assert isinstance(entry, int | str)
    assert as_logits(output, Reading(entry)) is LOGITS


@pytest.mark.parametrize("output", [(LOGITS, OTHER), [LOGITS, WIDE]])
def test_several_candidates_are_refused(output: object) -> None:
    reading = Reading(owner="the teacher", option="--model.teacher")
    message = complaint(lambda: as_logits(output, reading))
    assert message.startswith(
        "the teacher returned 2 entries that may be logits (0 [3], 1 ["
    )
    assert message.endswith("--model.teacher.outputs=ENTRY")


@pytest.mark.parametrize("entry", [2, "aux"])
def test_an_entry_that_is_missing(entry: int | str) -> None:
    message = complaint(lambda: as_logits((LOGITS, OTHER), Reading(entry)))
    assert f"outputs={entry}" in message
    assert message.endswith("0 [3], 1 [3]")


def test_an_output_without_logits_lists_its_tensors() -> None:
    message = complaint(lambda: as_logits(Heard(LOGITS, WIDE)))
    assert message.endswith("outputs=NAME: scores [3], states [7]")

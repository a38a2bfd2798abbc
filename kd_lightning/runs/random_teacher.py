"""Refuses a teacher whose weights nobody has trained, before it teaches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from kd_lightning.errors import UserError
from kd_lightning.networks import build_network
from kd_lightning.teachers.model import ModelTeacher
from kd_lightning.values import Value, Values, mapping_at

_CLASS_PATHS = (
    f"kd_lightning.teachers.{ModelTeacher.__name__}",
    f"{ModelTeacher.__module__}.{ModelTeacher.__name__}",
)


def check_teachers_are_trained(config: Values) -> None:
    """Refuse a teacher that a config gives as a network alone, if building it draws weights.

    A network is built twice from different seeds. What differs was drawn at random: all of a new
    network, or the head that a pretrained encoder gets. Networks that load all their weights
    themselves, as with `weights=` of torchvision or `pretrained=true` of timm, are equal.

    Args:
        config: of a module, in plain values; teachers may be nested, as in an ensemble.

    Raises:
        UserError: if a teacher's network has random weights.
    """
    for arguments in _teachers(config):
        network = arguments.get("network")
        is_alone = not arguments.get("checkpoint") and not arguments.get("weights")
        if not is_alone or not isinstance(network, Mapping):
            continue
        name = _random_tensor(network)
        if name is not None:
            raise UserError(
                f"the teacher's network has random weights ({name!r} is drawn from the seed); "
                "give --model.teacher.checkpoint"
            )


def _teachers(node: Value) -> Iterator[Values]:
    """The arguments of each teacher that is one network."""
    if isinstance(node, list):
        for item in node:
            yield from _teachers(item)
    if not isinstance(node, Mapping):
        return
    if node.get("class_path") in _CLASS_PATHS:
        yield mapping_at(node, "init_args")
    for value in node.values():
        yield from _teachers(value)


def _random_tensor(network: Values) -> str | None:
    """The first tensor that depends on the seed; `None` if none does."""
    # What both seeds agree on is loaded, or a constant such as a bias of zero.
    states = []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            states.append(build_network(network).state_dict())
    first, second = states
    for name, tensor in first.items():
        if not torch.equal(tensor, second[name]):
            return name
    return None

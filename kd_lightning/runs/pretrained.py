"""Networks of a config that download their weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from jsonargparse import Namespace

from kd_lightning.errors import UserError
from kd_lightning.hub import reachable
from kd_lightning.runs.settings import Node


def timm_models(node: Node) -> list[str]:
    """The names of the timm models that a config builds with pretrained weights.

    Args:
        node: a part of a parsed config.
    """
    return list(_names(node))


def _names(node: Node) -> Iterator[str]:
    """The names of these models at and below a part of a config."""
    if isinstance(node, list):
        for item in node:
            yield from _names(item)
        return
    items = vars(node) if isinstance(node, Namespace) else node
    if not isinstance(items, Mapping):
        return
    arguments = _arguments(items)
    if str(items.get("class_path")).startswith("timm.") and arguments.get("pretrained"):
        yield str(arguments.get("model_name"))
    for value in items.values():
        yield from _names(value)


def _arguments(items: Mapping[str, Node]) -> Mapping[str, Node]:
    """The arguments of a class in a config; empty if there are none."""
    arguments = items.get("init_args")
    if isinstance(arguments, Namespace):
        return vars(arguments)
    if not isinstance(arguments, Mapping):
        return {}
    return arguments


@contextlib.contextmanager
def timm_weights(models: Sequence[str]) -> Iterator[None]:
    """Report in one line that timm's pretrained weights cannot be had.

    Without a network, the hub would try each file several times, for a minute in all.

    Args:
        models: names of the timm models that are built with pretrained weights, if any.

    Raises:
        UserError: if the weights are not in the cache and there is no network.
    """
    # With a network, the hub's own messages are the best ones.
    if not models or reachable():
        yield
        return
    # The client reads this constant when a file is requested, not when it is imported.
    constants: Any = import_module("huggingface_hub.constants")
    was_offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except Exception as error:
        if not _comes_from_hub(error):
            raise
        raise UserError(
            f"timm: the pretrained weights of {', '.join(models)} are not in the cache of the hub "
            "and there is no network; run once with a network, or set pretrained to false and give "
            "a file as --model.init_from"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def _comes_from_hub(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is one of the hub's client."""
    # Timm raises an error of its own from that of the hub.
    while error is not None:
        if type(error).__module__.startswith("huggingface_hub"):
            return True
        error = error.__cause__ or error.__context__
    return False

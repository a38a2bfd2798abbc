"""Builds the network that a checkpoint describes by class path and arguments."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from kd_lightning.errors import UserError


@runtime_checkable
class SelfContained(Protocol):
    """A network that can be built again without the files it was first built from."""

    def without_files(self) -> dict[str, Any]:
        """Arguments that replace those which name files."""


@runtime_checkable
class UsesVocabulary(Protocol):
    """A module that learns before training which token has which id, such as an embedding."""

    def use_words(self, vocabulary: Mapping[str, int]) -> None:
        """Receive the id of each token."""


def _is_network_factory(factory: Any) -> bool:
    if isinstance(factory, type):
        return issubclass(factory, nn.Module)
    returns = typing.get_type_hints(factory).get("return") if callable(factory) else None
    return isinstance(returns, type) and issubclass(returns, nn.Module)


def resolve_network(class_path: str) -> Any:
    """The class or function of that path, if it makes an nn.Module; nothing else is ever called from a checkpoint."""
    module, _, name = class_path.rpartition(".")
    try:
        factory = getattr(import_module(module), name)
        fits = _is_network_factory(factory)
    except Exception as error:
        raise UserError(
            f"the network {class_path!r} cannot be imported ({error}); is its package on the path?"
        ) from error
    if not fits:
        raise UserError(
            f"{class_path!r} is not an nn.Module class, nor a function annotated to return one"
        )
    return factory


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """The network that a checkpoint describes as `class_path` and `init_args`; the global random state is left as it was."""

    def built(value: Any) -> Any:
        if isinstance(value, list):
            return [built(item) for item in value]
        return (
            build_network(value) if isinstance(value, Mapping) and "class_path" in value else value
        )

    arguments = {name: built(value) for name, value in (config.get("init_args") or {}).items()}
    factory = resolve_network(str(config.get("class_path")))
    try:
        with torch.random.fork_rng():
            network: nn.Module = factory(**arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the network {config['class_path']} cannot be made from {arguments}: {error}"
        ) from error
    return network

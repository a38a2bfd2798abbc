"""Builds the network that a checkpoint describes by class path and arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.trust import check_class_path, import_factory

NetworkFactory = Callable[..., nn.Module]


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


def resolve_network(class_path: str) -> NetworkFactory:
    """Import the nn.Module class, or the function annotated to return one, at a class path.

    A checkpoint names the class path, so nothing else is imported or called; see
    `kd_lightning.trust`.

    Raises:
        UserError: if the package is not trusted, the path cannot be imported, or it names
            anything else.
    """
    check_class_path(class_path, "the checkpoint")
    return import_factory(class_path, nn.Module, "network")


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """Build the network described by `class_path` and `init_args`.

    Arguments with a `class_path` of their own are built first. The global random state is left
    unchanged.

    Raises:
        UserError: if the network cannot be imported, or rejects its arguments.
    """
    arguments = {}
    for name, value in (config.get("init_args") or {}).items():
        arguments[name] = _build_argument(value)
    factory = resolve_network(str(config.get("class_path")))
    try:
        with torch.random.fork_rng():
            return factory(**arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the network {config['class_path']} cannot be built from {arguments}: {error}"
        ) from error


def _build_argument(value: Any) -> Any:
    """A plain argument as it is, and the networks that it describes, at any depth of lists."""
    if isinstance(value, list):
        return [_build_argument(item) for item in value]
    if isinstance(value, Mapping) and "class_path" in value:
        return build_network(value)
    return value

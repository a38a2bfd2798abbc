"""Builds the network that a checkpoint describes by class path and arguments."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.masking import masked_config, missing_secret
from kd_lightning.spec import Spec
from kd_lightning.trust import check_class_path, import_factory
from kd_lightning.values import mapping_at

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


@runtime_checkable
class KnowsItsClasses(Protocol):
    """A pretrained network that knows what it predicts, such as a classifier of transformers."""

    def trained_on(self, data: Spec) -> Spec:
        """The spec of the data that the network was trained on, as far as it is known.

        Args:
            data: the spec of the data that the network will read.

        Raises:
            UserError: if the network does not read the tokens of the data.
        """


@runtime_checkable
class ReadsFolders(Protocol):
    """A network whose class reads weights from a folder, such as those of transformers."""

    @classmethod
    def from_pretrained(cls, name: str, **options: bool) -> Any:
        """The network with the weights in a folder, and a report if it is asked for."""


def weights_in_folder(network: nn.Module, folder: Path) -> dict[str, Tensor] | None:
    """The weights in a folder by the names that the running network has for them.

    The files may name tensors as older versions of transformers did.

    Args:
        network: any network.
        folder: written by `save_pretrained` of transformers.

    Returns:
        The weights; `None` if the network's class does not read folders.

    Raises:
        UserError: if the folder does not hold all weights of such a network.
    """
    # Only transformers knows how its older files name tensors.
    if not isinstance(network, ReadsFolders):
        return None
    try:
        # From safetensors files alone, because pickles can run code.
        loaded, report = type(network).from_pretrained(
            str(folder),
            use_safetensors=True,
            output_loading_info=True,
            local_files_only=True,
        )
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0]
        raise UserError(
            f"{folder} has no readable {type(network).__name__}: {reason}"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"{folder} has no {missing[0]!r} for {type(network).__name__}")
    weights: dict[str, Tensor] = loaded.state_dict()
    return weights


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
    """Build the network described by `class_path`, `init_args` and `dict_kwargs`.

    `dict_kwargs` holds the arguments of a function or class that takes any keywords, such as
    `timm.create_model`. Arguments with a `class_path` of their own are built first. The global
    random state is left unchanged.

    Args:
        config: as a checkpoint holds it.

    Raises:
        UserError: if the network cannot be imported, rejects its arguments, or needs a secret.
    """
    secret = missing_secret(config)
    if secret is not None:
        raise UserError(
            f"the network {config.get('class_path')} was built with the secret {secret!r}, which "
            "checkpoints do not store; name the network with all its arguments, such as "
            "--model.teacher.network=CLASS, or pass the network itself in Python"
        )
    arguments = {}
    for part in ("init_args", "dict_kwargs"):
        for name, value in mapping_at(config, part).items():
            arguments[name] = _build_argument(value)
    factory = resolve_network(str(config.get("class_path")))
    # Initial weights are drawn even if others are loaded afterwards.
    try:
        with torch.random.fork_rng(), _no_pickles():
            return factory(**arguments)
    except UserError:
        raise
    except Exception as error:
        # Secrets that were typed here must not reach the record of a failed run.
        shown = masked_config(arguments)
        raise UserError(
            f"the network {config['class_path']} cannot be built from {shown}: {error}"
        ) from error


@contextmanager
def _no_pickles() -> Iterator[None]:
    """Let `torch.load` read weights alone, whatever its caller asks for.

    A stranger's checkpoint may name a function of a trusted package that reads a file, such as
    `timm.create_model` with a `checkpoint_path`, which older versions of timm unpickle.
    """
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _build_argument(value: Any) -> Any:
    """A plain argument as it is, and the networks that it describes, at any depth of lists."""
    if isinstance(value, list):
        return [_build_argument(item) for item in value]
    if isinstance(value, Mapping) and "class_path" in value:
        return build_network(value)
    return value

"""Creates language models of transformers: random, pretrained, or with fewer layers."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.hub import (
    HubLanguageModel,
    from_pretrained,
    gguf_options,
    library,
)


@dataclass(frozen=True)
class LanguageModelKind:
    """A kind of language model.

    Attributes:
        owner: name of our network, for messages.
        auto_class: the class of transformers that creates such models.
        description: what a message calls such a model.
        examples: types of such models, for messages.
    """

    owner: str
    auto_class: str
    description: str
    examples: str


def make_language_model(
    kind: LanguageModelKind, settings: Mapping[str, Any]
) -> HubLanguageModel:
    """A language model with random weights.

    Args:
        kind: of the model.
        settings: arguments of its configuration.

    Raises:
        UserError: if arguments are missing or wrong.
    """
    transformers = library("transformers")
    if settings.get("vocab_size") is None:
        raise UserError(
            f"{kind.owner}: architecture needs vocab_size; under kd it comes from the "
            "data"
        )
    if "model_type" not in settings:
        raise UserError(
            f"{kind.owner}: architecture needs a model_type, such as {kind.examples}"
        )
    try:
        config = transformers.AutoConfig.for_model(**settings)
        factory = getattr(transformers, kind.auto_class)
        return cast(HubLanguageModel, factory.from_config(config))
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        # Configurations check their arguments in ways of their own, and some explain
        # over many lines.
        reason = str(error).splitlines()[0]
        raise UserError(f"{kind.owner}: architecture: {reason}") from error


def load_language_model(
    kind: LanguageModelKind, name: str, gguf_file: str | None
) -> HubLanguageModel:
    """A pretrained language model, in single precision.

    Args:
        kind: of the model.
        name: of a model on the hub, or path of a folder.
        gguf_file: name of a GGUF file in it; `None`: the weights are in safetensors
            files.

    Raises:
        UserError: if it cannot be loaded, or if some of its weights are missing.
    """
    options = gguf_options(gguf_file)
    if gguf_file is None:
        options["use_safetensors"] = True
    model, report = from_pretrained(
        kind.auto_class,
        name,
        output_loading_info=True,
        # Weights stored in half precision are still trained in single precision.
        dtype=torch.float32,
        **options,
    )
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"{name} has no {missing[0]!r}, so that part of the model would have "
            f"random weights; give the folder of {kind.description}"
        )
    return cast(HubLanguageModel, model)


def with_layers(
    kind: LanguageModelKind, model: HubLanguageModel, kept: Sequence[int]
) -> HubLanguageModel:
    """A shallower model that starts from some layers of a deeper one.

    It starts from all other weights of the deeper model, too.

    Args:
        kind: of both models.
        model: the deeper model.
        kept: its layers, from 0, in the order in which the new model has them.

    Raises:
        UserError: if a layer does not exist.
    """
    count = model.config.num_hidden_layers
    if not kept or not all(0 <= number < count for number in kept):
        raise UserError(
            f"{kind.owner}: layers must be numbers from 0 to {count - 1}, got "
            f"{list(kept)}"
        )
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(kept)
    # Models with layers of several kinds list the kind of each.
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        kept_kinds = [kinds[number] for number in kept]
        config.layer_types = kept_kinds  # type: ignore[attr-defined]
    factory = getattr(library("transformers"), kind.auto_class)
    with torch.random.fork_rng():
        shallow: HubLanguageModel = factory.from_config(config)
    prefix = _prefix_of_layers(model, count)
    source = model.state_dict()
    for name, tensor in shallow.state_dict().items():
        tensor.copy_(source[_source_name(name, prefix, kept)])
    return shallow


def _prefix_of_layers(model: nn.Module, count: int) -> str:
    """The prefix of the layers' parameters, such as `model.layers.`.

    Raises:
        UserError: if the model has no list of its layers.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return f"{name}."
    raise UserError(
        f"{type(model).__name__} has no list of its layers; leave out layers"
    )


def _source_name(name: str, prefix: str, kept: Sequence[int]) -> str:
    """The name in the deeper model of a tensor of the shallow one."""
    if not name.startswith(prefix):
        return name
    number, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{kept[int(number)]}.{rest}"

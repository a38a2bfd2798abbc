"""Starts an encoder from some layers of a deeper one (Sanh et al. 2019, section 3)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.hub import Encoder
from kd_lightning.spec import Spec, check_vocabulary
from kd_lightning.weights import KEY, network_weights, read_file


def copy_encoder_layers(
    path: Path,
    chosen: list[int] | None,
    encoder: Encoder,
    layers: nn.ModuleList,
    spec: dict[str, Any] | None,
) -> None:
    """Copy the embeddings and some layers of a checkpoint into an encoder.

    Args:
        path: checkpoint of a TransformerClassifier of the same width.
        chosen: layers of the checkpoint, from 0, one per layer of the encoder; `None`: evenly
            spaced layers, including the last one.
        encoder: the encoder to change.
        layers: its layers.
        spec: spec of the data, if there is data.

    Raises:
        UserError: if the checkpoint reads other tokens, has too few layers, or has another width.
    """
    content = read_file(path, "copy_from")
    described = content.get(KEY) or {}
    # Equal sizes do not mean equal tokens: the weights would load and mean other words.
    if spec is not None and described.get("spec"):
        data_spec = Spec.from_dict(spec)
        trained_on = Spec.from_dict(described["spec"])
        check_vocabulary(
            f"copy_from {path}", trained_on, data_spec, data_spec.vocabulary
        )
    # The checkpoint holds a classifier, whose encoder has a prefix; its head has no counterpart.
    source: dict[str, Tensor] = {}
    for key, tensor in network_weights(content).items():
        source[key.removeprefix("encoder.")] = tensor
    prefix = _prefix_of(encoder, layers)
    available = _layer_numbers(source, prefix)
    if chosen is None:
        chosen = _evenly_spaced(len(layers), len(available))
    all_exist = set(chosen) <= available
    if len(chosen) != len(layers) or not all_exist:
        raise UserError(
            f"copy_from: {path} has {len(available)} layers; "
            f"choose {len(layers)} of them, not {chosen}"
        )
    _copy_tensors(path, source, encoder, prefix, chosen)


def _copy_tensors(
    path: Path,
    source: dict[str, Tensor],
    encoder: Encoder,
    prefix: str,
    chosen: list[int],
) -> None:
    """Overwrite the encoder's tensors by those of the chosen layers.

    Raises:
        UserError: if a tensor is missing, or has another shape.
    """
    # The tensors of a state_dict share memory with the parameters and have no graph.
    for name, tensor in encoder.state_dict().items():
        source_name = _source_name(name, prefix, chosen)
        fits = source_name in source and source[source_name].shape == tensor.shape
        if not fits:
            raise UserError(
                f"copy_from: {path} has no {source_name!r} of shape {tuple(tensor.shape)}; "
                "give a checkpoint of the same width"
            )
        tensor.copy_(source[source_name])


def _prefix_of(encoder: Encoder, layers: nn.ModuleList) -> str:
    """The prefix of the layers' parameters, such as `encoder.layer.`."""
    for name, module in encoder.named_modules():
        if module is layers:
            return f"{name}."
    raise AssertionError("the layers belong to the encoder")


def _layer_numbers(names: Iterable[str], prefix: str) -> set[int]:
    """The numbers of the layers to which these parameters belong."""
    numbers: set[int] = set()
    for name in names:
        if name.startswith(prefix):
            number, _, _ = name.removeprefix(prefix).partition(".")
            numbers.add(int(number))
    return numbers


def _evenly_spaced(count: int, available: int) -> list[int]:
    """The last layer of each of `count` equal groups of layers."""
    chosen: list[int] = []
    for number in range(1, count + 1):
        # Layers count from 0, so the last layer of a group is one less than the group's end.
        end = round(number * available / count)
        chosen.append(end - 1)
    return chosen


def _source_name(name: str, prefix: str, chosen: list[int]) -> str:
    """The name in the checkpoint of a parameter of the encoder."""
    if not name.startswith(prefix):
        return name
    number, _, rest = name.removeprefix(prefix).partition(".")
    source_layer = chosen[int(number)]
    return f"{prefix}{source_layer}.{rest}"

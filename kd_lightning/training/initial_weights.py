"""The weights that training starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kd_lightning.data.datamodule import DataModule
from kd_lightning.spec import Spec, check_vocabulary
from kd_lightning.weights import (
    KEY,
    fitting_weights,
    is_torchvision_name,
    load_weights,
    read_file,
    torchvision_weights,
    without_other_head,
)

LOSSES = "losses."
"""Prefix of the losses' adapters in a checkpoint's `state_dict`."""


def load_initial_weights(
    network: nn.Module,
    path: str | None,
    datamodule: DataModule,
    spec: Spec,
) -> dict[str, Tensor]:
    """Load a network from another run's checkpoint or from a file of weights.

    A head for other classes is not loaded: the network keeps its own, so that a pretrained network
    can be trained on other data.

    Args:
        network: receives the weights.
        path: of the checkpoint or file, or the name of a torchvision weights enum such as
            `ResNet18_Weights.DEFAULT`; `None`: the network keeps the weights it was built with.
        datamodule: may change the weights, see `DataModule.adapt_weights`.
        spec: of the data.

    Returns:
        The adapters of the checkpoint's losses by name; empty if there are none.

    Raises:
        UserError: if the file is missing or damaged, or does not fit the network or the data.
    """
    if path is None:
        datamodule.prepare_network(network)
        return {}
    owner = f"init_from {path}"
    content = _read(path)
    described = content.get(KEY) or {}
    trained_on = None
    if described.get("spec"):
        trained_on = Spec.from_dict(described["spec"])
    # Token ids of another vocabulary would fit the shapes, and mean other words.
    check_vocabulary(owner, trained_on, spec, spec.vocabulary)
    weights, notes = fitting_weights(network, content, owner)
    weights = datamodule.adapt_weights(network, weights, trained_on, owner)
    weights, skipped = without_other_head(network, weights, spec.num_classes)
    load_weights(network, weights, owner, [*notes, *skipped])
    # Only checkpoints of this package hold losses; others may use the same prefix.
    adapters: dict[str, Tensor] = {}
    if described:
        for key, value in content["state_dict"].items():
            if key.startswith(LOSSES):
                adapters[key.removeprefix(LOSSES)] = value
    return adapters


def _read(path: str) -> dict[str, Any]:
    """The content of a file, or of torchvision's weights of that name."""
    if is_torchvision_name(path) and not Path(path).exists():
        return torchvision_weights(path)
    return read_file(path, "init_from")

"""The weights that training starts from."""

from __future__ import annotations

from torch import Tensor, nn

from kd_lightning.data.datamodule import DataModule
from kd_lightning.spec import Spec, check_vocabulary
from kd_lightning.weights import KEY, load_weights, network_weights, read_file

LOSSES = "losses."
"""Prefix of the losses' adapters in a checkpoint's `state_dict`."""


def load_initial_weights(
    network: nn.Module, path: str | None, datamodule: DataModule, spec: Spec
) -> dict[str, Tensor]:
    """Load a network from another run's checkpoint or from a file of weights.

    Args:
        network: receives the weights.
        path: of the checkpoint or file; `None`: the network keeps the weights it was built with.
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
    content = read_file(path, "init_from")
    described = content.get(KEY) or {}
    trained_on = Spec.from_dict(described["spec"]) if described.get("spec") else None
    check_vocabulary(owner, trained_on, spec, spec.vocabulary)
    weights = datamodule.adapt_weights(network, network_weights(content), trained_on, owner)
    load_weights(network, weights, owner)
    adapters: dict[str, Tensor] = {}
    if described:
        for key, value in content["state_dict"].items():
            if key.startswith(LOSSES):
                adapters[key.removeprefix(LOSSES)] = value
    return adapters

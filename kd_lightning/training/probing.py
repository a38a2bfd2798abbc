"""Runs networks on blank batches before training, and leaves no trace of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kd_lightning.errors import UserError
from kd_lightning.features import evaluating
from kd_lightning.outputs import MOST_NAMED, Reading, as_logits, entries_of
from kd_lightning.types import Inputs

HEAD_REMEDY = (
    "give it a loss of its own (kd_lightning.losses.CrossEntropy with head=ROLE, and the role "
    "in layers), or build the network without it"
)
"""What to do about a head that no loss trains."""


@contextmanager
def unchanged(network: nn.Module) -> Iterator[None]:
    """Restore the buffers (such as BatchNorm's statistics) and all random generators."""
    # Lazy buffers have no values yet.
    buffers = []
    for buffer in network.buffers():
        if not is_lazy(buffer):
            buffers.append((buffer, buffer.detach().clone()))
    # Only the generators of these devices can be drawn from.
    devices = set()
    for parameter in network.parameters():
        if parameter.device.type == "cuda":
            devices.add(parameter.device.index or 0)
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, earlier in buffers:
                    buffer.copy_(earlier)


def forward(network: nn.Module, inputs: Inputs) -> object:
    """What the network returns."""
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(inputs)


def reason_of(error: Exception) -> str:
    """The first line of an error's message, or the error's name."""
    message = str(error)
    if not message:
        return type(error).__name__
    return message.splitlines()[0]


def check_single_sample(network: nn.Module, inputs: Inputs, owner: str) -> None:
    """Refuse a network that cannot train on a batch of one sample, as BatchNorm cannot.

    Args:
        network: in the mode in which it trains.
        inputs: of one blank sample.
        owner: what messages call the network.

    Raises:
        UserError: with what to change, as the data will serve such a batch.
    """
    try:
        with unchanged(network), torch.no_grad():
            forward(network, inputs)
    except Exception as error:
        raise UserError(
            f"{owner} cannot train on a batch of one sample ({reason_of(error)}), and the last batch "
            "of each epoch has only one; set data.drop_last=true, or change data.batch_size"
        ) from error


def check_heads(
    network: nn.Module,
    inputs: Inputs,
    raw: object,
    logits: Tensor,
    used: list[Tensor],
    reading: Reading,
) -> None:
    """Refuse to leave a head of the network untrained without the user's word.

    Networks such as Inception and GoogLeNet have auxiliary heads, and DeiT has two of which
    evaluation uses the mean. A head is untrained if its output is an entry shaped like the logits,
    and if neither the logits nor a tapped layer depend on its parameters.

    Args:
        network: in the mode in which it trains.
        inputs: of a blank batch.
        raw: what the network returned for it, with a graph.
        logits: the entry of it that the losses read.
        used: tapped features, which losses read, too.
        reading: how the network is read.

    Raises:
        UserError: if a head would stay untrained.
    """
    other_heads = _other_heads(raw, logits)
    if not other_heads:
        return
    untrained = _untrained(network, other_heads, [logits, *used])
    if not untrained:
        return
    # An untrained head that decides in evaluation is always wrong; another may be meant so.
    with evaluating(network), torch.enable_grad(), unchanged(network):
        evaluated = as_logits(forward(network, inputs), reading)
        deciding = _parameters_of(network, [evaluated])
    if deciding & set(untrained):
        names = ", ".join(sorted(untrained)[:MOST_NAMED])
        raise UserError(
            f"{reading.owner} {type(network).__name__} predicts in evaluation with a head that no "
            f"loss trains ({names}); {HEAD_REMEDY}"
        )
    if reading.entry is None:
        entries = ", ".join(sorted(set(untrained.values())))
        raise UserError(
            f"{reading.owner} {type(network).__name__} returns another head in training "
            f"({entries}) that no loss trains; {HEAD_REMEDY}, or set "
            f"{reading.setting('outputs', _name_of(logits, raw))} to leave it untrained"
        )


def _other_heads(raw: object, logits: Tensor) -> dict[str, Tensor]:
    """The entries of an output that are shaped like the logits and have a graph, by name."""
    heads = {}
    for name, value in entries_of(raw).items():
        if not isinstance(value, Tensor) or value is logits:
            continue
        if value.shape == logits.shape and value.requires_grad:
            heads[str(name)] = value
    return heads


def _untrained(
    network: nn.Module,
    heads: dict[str, Tensor],
    used: list[Tensor],
) -> dict[str, str]:
    """For each parameter that no loss trains, the head's output that depends on it.

    Args:
        network: any.
        heads: outputs that no loss reads, by name.
        used: outputs that losses read.
    """
    trained = _parameters_of(network, used)
    untrained = {}
    for name, head in heads.items():
        for parameter in _parameters_of(network, [head]) - trained:
            untrained[parameter] = name
    return untrained


def _name_of(logits: Tensor, raw: object) -> str:
    """The name of the output's entry that holds the logits."""
    name = "logits"
    for key, value in entries_of(raw).items():
        if value is logits:
            name = str(key)
    return name


def _parameters_of(network: nn.Module, outputs: list[Tensor]) -> set[str]:
    """The names of the parameters that outputs depend on."""
    named = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            named.append((name, parameter))
    with_graph = [output for output in outputs if output.requires_grad]
    if not named or not with_graph:
        return set()
    # One backward pass for all outputs: a parameter that none depends on gets no gradient.
    sums = [output.float().sum() for output in with_graph]
    total = torch.stack(sums).sum()
    parameters = [p for _, p in named]
    gradients = torch.autograd.grad(
        total, parameters, retain_graph=True, allow_unused=True
    )
    names = set()
    for (name, _), gradient in zip(named, gradients, strict=True):
        if gradient is not None:
            names.add(name)
    return names

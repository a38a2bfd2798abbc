"""Costs of a network: parameters, FLOPs, file size and latency on the CPU."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_lightning.data.blank import blank_inputs
from kd_lightning.features import run_network
from kd_lightning.networks import build_network
from kd_lightning.spec import Spec
from kd_lightning.types import Inputs
from kd_lightning.weights import KEY, load_weights, network_weights, read_file

_WARM_UP_PASSES = 5


def measure(
    network: nn.Module,
    spec: Spec,
    batches: tuple[int, ...] = (1, 256),
    seconds: float = 0.15,
) -> dict[str, float]:
    """Measure the costs of a forward pass on the CPU.

    Args:
        network: in any mode; it is measured in eval mode.
        spec: of the data that the network reads.
        batches: batch sizes at which latency is measured.
        seconds: how long each latency is measured after a warm-up, in seconds.

    Returns:
        `parameters`; `flops` per sample (a multiply-add counts as two); `file_bytes` of the weights
        in safetensors; `latency_ms_batch_N`, the median over passes in milliseconds.
    """
    network = network.eval().cpu()
    costs: dict[str, float] = {"parameters": 0}
    for parameter in network.parameters():
        costs["parameters"] += parameter.numel()
    with torch.inference_mode():
        costs["flops"] = _count_flops(network, blank_inputs(spec, 1))
        costs["file_bytes"] = _file_bytes(network)
        for batch in batches:
            samples = blank_inputs(spec, batch)
            costs[f"latency_ms_batch_{batch}"] = _latency_ms(network, samples, seconds)
    return costs


def _count_flops(network: nn.Module, inputs: Inputs) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    # On the CPU an LSTM is one operation, which torch does not count.
    lstm = {torch.ops.aten.mkldnn_rnn_layer: _lstm_flops}
    counter = FlopCounterMode(display=False, custom_mapping=lstm)
    with counter:
        run_network(network, inputs)
    return counter.get_total_flops()


def _lstm_flops(
    x: torch.Size, weight_ih: torch.Size, weight_hh: torch.Size, *_: Any, **__: Any
) -> int:
    """FLOPs of an LSTM.

    Args:
        x: shape of the inputs, `(L, B, I)`.
        weight_ih: shape of the input weights, `(4 H, I)`.
        weight_hh: shape of the recurrent weights, `(4 H, H)`.
    """
    steps = x[0] * x[1]
    return 2 * steps * (weight_ih.numel() + weight_hh.numel())


def _file_bytes(network: nn.Module) -> int:
    from safetensors.torch import save

    tensors = {}
    for name, tensor in network.state_dict().items():
        # safetensors refuses other memory layouts, such as channels-last, and tensors that
        # share memory, such as tied weights.
        tensors[name] = tensor.contiguous().clone()
    return len(save(tensors))


def _latency_ms(network: nn.Module, inputs: Inputs, seconds: float) -> float:
    """The median duration of a forward pass, in milliseconds."""
    # The first passes allocate memory and choose kernels.
    for _ in range(_WARM_UP_PASSES):
        run_network(network, inputs)
    durations_s = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        run_network(network, inputs)
        durations_s.append(time.perf_counter() - start)
    return 1000 * statistics.median(durations_s)


def measure_checkpoint(
    path: Path, batches: tuple[int, ...] = (1, 256)
) -> dict[str, float]:
    """Measure the costs of the network in a checkpoint of this package.

    Args:
        path: of the checkpoint.
        batches: batch sizes at which latency is measured.

    Raises:
        UserError: if the file cannot be read, or describes no network.
    """
    content = read_file(path, "the checkpoint")
    network = build_network(content[KEY]["network"])
    load_weights(network, network_weights(content), str(path))
    return measure(network, Spec.from_dict(content[KEY]["spec"]), batches)

"""What a network costs: parameters, FLOPs, file size, latency on the CPU."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn

from kd_lightning.data.blank import blank_inputs
from kd_lightning.features import run_network
from kd_lightning.networks import build_network
from kd_lightning.weights import KEY, load_weights, network_weights, read_file


def measure(
    network: nn.Module,
    input_shape: list[int],
    batches: tuple[int, ...] = (1, 256),
    seconds: float = 0.15,
    inputs: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Costs of a forward pass on the CPU.

    Args:
        network: in any mode; measured in eval.
        input_shape: of one sample.
        batches: batch sizes at which latency is measured.
        seconds: how long each latency is measured, after a warm-up.
        inputs: of one sample, where they are a mapping, as a datamodule's spec describes them.

    Returns:
        `parameters`; `flops` of one sample (a multiplication and an addition count two); `file_bytes` of the weights in
        safetensors; `latency_ms_batch_N`, the median of repeated passes.
    """
    from safetensors.torch import save
    from torch.utils.flop_counter import FlopCounterMode

    network = network.eval().cpu()
    spec = {"input_shape": input_shape, **({"inputs": inputs} if inputs else {})}
    costs: dict[str, float] = {"parameters": sum(p.numel() for p in network.parameters())}
    with torch.inference_mode():
        counter = FlopCounterMode(
            display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _lstm_flops}
        )
        with counter:
            run_network(network, blank_inputs(spec, 1))
        costs["flops"] = counter.get_total_flops()
        costs["file_bytes"] = len(
            save({name: t.contiguous() for name, t in network.state_dict().items()})
        )
        for batch in batches:
            samples = blank_inputs(spec, batch)
            for _ in range(5):
                run_network(network, samples)
            times, end = [], time.perf_counter() + seconds
            while time.perf_counter() < end:
                begun = time.perf_counter()
                run_network(network, samples)
                times.append(time.perf_counter() - begun)
            costs[f"latency_ms_batch_{batch}"] = 1000 * statistics.median(times)
    return costs


def _lstm_flops(
    x: torch.Size, onward: torch.Size, recurrent: torch.Size, *_: Any, **__: Any
) -> int:
    """Of an LSTM on the CPU, which is one operation there that torch does not count.

    Args:
        x: `(L, B, I)`.
        onward, recurrent: of the weights, `(4 H, I)` and `(4 H, H)`.
    """
    return 2 * x[0] * x[1] * (onward.numel() + recurrent.numel())


def measure_checkpoint(path: Any) -> dict[str, float]:
    """Costs of the network in one of our checkpoints."""
    content = read_file(path, "the checkpoint")
    network = build_network(content[KEY]["network"])
    load_weights(network, network_weights(content), str(path))
    spec = content[KEY]["spec"]
    return measure(network, spec["input_shape"], inputs=spec.get("inputs"))

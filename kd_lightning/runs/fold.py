"""Teachers' batch normalization folded into convolutions: `--trainer.callbacks+=kd_lightning.runs.fold.FoldTeachers`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kd_lightning.runs.compile import teacher_networks

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class FoldTeachers(pl.Callback):
    """Folds each batch normalization of the teachers' networks into the convolution before it, when training begins.

    A frozen teacher's batch normalization is a fixed affine map: folded, the network computes the same function within
    rounding, and passes over each of its feature maps once less. Layers from which features are taken stay as they are, and
    so do networks that `torch.fx` cannot trace.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for network in teacher_networks(pl_module):
            name = type(network).__name__
            try:
                if not fold(network):
                    rank_zero_warn(
                        f"FoldTeachers finds no batch normalization after a convolution in {name}"
                    )
            except Exception as error:  # whatever the network's own code raises when it is traced
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                rank_zero_warn(
                    f"FoldTeachers leaves {name} as it is, since torch.fx cannot trace it: {reason}"
                )


def fold(network: nn.Module) -> int:
    """Folds in place a network that is in eval mode and takes no gradients.

    Returns:
        The number of batch normalizations that are gone.

    Raises:
        Exception: what tracing raises; the network is as it was then.
    """
    pairs = list(_pairs(network))
    for conv, norm, name in pairs:
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        network.set_submodule(name, nn.Identity())
    return len(pairs)


def _pairs(network: nn.Module) -> Iterator[tuple[Any, Any, str]]:
    """Each convolution, the batch normalization that alone reads its output, and the latter's name; both run once a pass."""
    nodes = list(torch.fx.Tracer().trace(network).nodes)
    called = {
        node: network.get_submodule(str(node.target)) for node in nodes if node.op == "call_module"
    }
    runs = Counter(id(module) for module in called.values())
    read_elsewhere = {
        str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"
    }
    for node, norm in called.items():
        before = node.args[0] if node.args else None
        if not isinstance(before, torch.fx.Node) or before not in called or len(before.users) > 1:
            continue
        conv = called[before]
        foldable = (
            type(conv) in CONVOLUTIONS
            and type(norm) in NORMS
            and norm.running_mean is not None
            and not norm.training
        )
        alone = all(
            runs[id(m)] == 1 and not m._forward_hooks and not m._forward_pre_hooks
            for m in (conv, norm)
        )
        if foldable and alone and read_elsewhere.isdisjoint({str(before.target), str(node.target)}):
            yield conv, norm, str(node.target)

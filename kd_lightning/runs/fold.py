"""Folds teachers' batch normalization: `--trainer.callbacks+=kd_lightning.runs.fold.FoldTeachers`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from kd_lightning.runs.compile import teacher_networks

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class FoldTeachers(pl.Callback):
    """Folds each batch normalization of the teachers into the convolution before it.

    The batch normalization of a frozen teacher is a fixed affine map. After folding, the network
    computes the same function within rounding, and passes once less over each feature map. Layers
    that features are taken from stay as they are, and so do networks that `torch.fx` cannot trace.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Fold the teachers' networks in place; warns of those that stay as they are.

        Args:
            trainer: that is about to train.
            pl_module: in training.
        """
        for network in teacher_networks(pl_module):
            name = type(network).__name__
            try:
                folded = fold(network)
            except Exception as error:
                # The network's own code can raise anything when it is traced.
                lines = str(error).splitlines() or [type(error).__name__]
                reason = lines[0]
                rank_zero_warn(
                    f"FoldTeachers leaves {name} as it is, since torch.fx cannot trace it: {reason}"
                )
                continue
            if not folded:
                rank_zero_warn(
                    f"FoldTeachers finds no batch normalization after a convolution in {name}"
                )


def fold(network: nn.Module) -> int:
    """Fold a network in place.

    Args:
        network: in eval mode, without gradients.

    Returns:
        The number of batch normalizations that were folded.

    Raises:
        Exception: if tracing fails; the network is then unchanged.
    """
    pairs = list(_foldable_pairs(network))
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


def _foldable_pairs(network: nn.Module) -> Iterator[tuple[Any, Any, str]]:
    """Each convolution with the only batch normalization that reads it, and the latter's name."""
    called: dict[fx.Node, nn.Module] = {}
    read_elsewhere = set()
    for node in fx.Tracer().trace(network).nodes:
        if node.op == "call_module":
            called[node] = network.get_submodule(str(node.target))
        elif node.op == "get_attr":
            # The network's code reads a parameter of this module directly.
            read_elsewhere.add(str(node.target).rpartition(".")[0])
    calls = Counter(id(module) for module in called.values())
    for node, norm in called.items():
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source not in called:
            continue
        # Whatever else reads the convolution expects its own output.
        if len(source.users) > 1:
            continue
        conv = called[source]
        # A module that is called twice has one weight for two places.
        used_once = calls[id(conv)] == 1 and calls[id(norm)] == 1
        # A hook must see what the layer itself returns.
        has_hooks = _has_hooks(conv) or _has_hooks(norm)
        if not used_once or has_hooks:
            continue
        conv_name = str(source.target)
        norm_name = str(node.target)
        is_read = conv_name in read_elsewhere or norm_name in read_elsewhere
        if _is_foldable(conv, norm) and not is_read:
            yield conv, norm, norm_name


def _is_foldable(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether two modules are a convolution and a batch normalization that is a fixed map."""
    if type(conv) not in CONVOLUTIONS or type(norm) not in NORMS:
        return False
    # Without running statistics, or in training mode, the map depends on the batch.
    return norm.running_mean is not None and not norm.training


def _has_hooks(module: nn.Module) -> bool:
    """Whether features are taken from a layer."""
    return bool(module._forward_hooks or module._forward_pre_hooks)

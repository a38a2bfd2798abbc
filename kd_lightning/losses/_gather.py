"""What the losses that relate samples share: the samples of all processes, and unit vectors that are safe at zero.

A mean over samples can be taken by each process over its own: the module weighs each by `counted` (see BaseModule). A loss
between samples cannot. There every process gathers the joined batch and computes the same joined loss, so that:

- `counted` is 1 on every process, also on one without a sample: the loss is not scaled, and the mean over processes is it;
- the gather's backward pass adds up what all processes say of a row, which is W times that row's gradient, and the mean over
  the gradients of W processes, which DDP takes, makes it the joined batch's.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kd_lightning.types import Batch


class _AllGather(torch.autograd.Function):
    """`(n, ...)` of each of W processes to `(W, n, ...)` on all. Its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, own)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]


class JoinedBatch:
    """The batch of all processes together: `JoinedBatch(batch)(feature)` are its rows, in its order.

    The loader gives process r of W the rows r, r + W, r + 2 W, ... of each joined batch, fewer or none of a short last one.
    Outside `torch.distributed` it returns what it is given.

    Args:
        batch: this process's; a ghost has no row in the joined batch.
    """

    def __init__(self, batch: Batch) -> None:
        self.own = 0 if batch.ghost else len(batch)
        self.held: Tensor | None = None
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            sizes = batch.target.new_empty(dist.get_world_size())
            dist.all_gather(list(sizes.unbind()), batch.target.new_tensor(self.own))
            # Row i of process r is row i W + r of the joined batch, where process r has so many.
            self.held = torch.arange(int(sizes.max()), device=sizes.device)[:, None] < sizes

    def __call__(self, own: Tensor) -> Tensor:
        """`(B, ...)` of this process to the joined batch's `(sum of B, ...)`; every process must call it, with the same kind.

        A gradient reaches the rows of every process.
        """
        if self.held is None:
            return own
        # All processes must send as many rows: pad here, cut there.
        padded = torch.cat(
            [own[: self.own], own.new_zeros(len(self.held) - self.own, *own.shape[1:])]
        )
        gathered: Tensor = _AllGather.apply(padded)
        return gathered.transpose(0, 1)[self.held]


def unit(x: Tensor) -> Tensor:
    """Rows `(..., D)` at length one; a row of zeros stays one, and gets no gradient instead of an unbounded one."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    there = norm > 0
    return x * torch.where(there, 1 / torch.where(there, norm, 1), 0)

"""Tools for losses that relate samples: the joint batch of all processes, and safe unit vectors.

Most losses average over samples, so each process can average over its own: the module weights the
results by `weight_of`. A loss between samples cannot be split like that. Instead, every process
gathers the joint batch and computes the same joint loss. Two things make this exact:

- The weight is 1 in every process (`mean_over = "joint"`), even without a sample. The mean over
  processes is then the joint loss itself.
- The backward pass of the gather sums the gradients from all W processes, which is W times the
  gradient of a row. DDP averages over W processes, which gives the gradient of the joint batch.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from kd_lightning.types import Batch


class _AllGather(torch.autograd.Function):
    """Gather `(n, ...)` from each of W processes into `(W, n, ...)`; gradients are summed."""

    @staticmethod
    def forward(ctx: FunctionCtx, own: Tensor) -> Tensor:
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        # The collective fills the tensors of `parts` in place, in the order of ranks.
        dist.all_gather(parts, own)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        # `all_reduce` works in place and needs contiguous memory; autograd may still use the
        # original.
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[dist.get_rank()]


class JoinedBatch:
    """The joint batch of all processes: `JoinedBatch(batch)(feature)` returns its rows in order.

    The loader gives process r of W the rows r, r + W, r + 2 W, ... of each joint batch; a short
    last batch may leave some processes with fewer rows, or with none. Without
    `torch.distributed`, tensors are returned unchanged.

    Args:
        batch: this process's batch. A placeholder has no row in the joint batch.
        positions: gather one row per predicted position, as logits have, instead of one per
            sample. With several positions per sample, their order in the joint batch differs from
            that of one process.
    """

    def __init__(self, batch: Batch, positions: bool = False) -> None:
        own_rows = batch.num_rows if positions else len(batch)
        self.rows = 0 if batch.placeholder else own_rows
        self.exists: Tensor | None = None
        distributed = dist.is_available() and dist.is_initialized()
        if distributed and dist.get_world_size() > 1:
            sizes = batch.index.new_empty(dist.get_world_size())
            own_size = batch.index.new_tensor(self.rows)
            # `unbind` returns views, so that the gather fills `sizes` itself.
            views = list(sizes.unbind())
            dist.all_gather(views, own_size)
            # Row i of process r is row i W + r of the joint batch, if process r has that many rows.
            most_rows = int(sizes.max())
            rows = torch.arange(most_rows, device=sizes.device)
            self.exists = rows[:, None] < sizes

    def __call__(self, own: Tensor) -> Tensor:
        """Gather `(B, ...)` of each process into `(sum of B, ...)`; gradients reach all processes.

        Every process must call it with tensors of the same type and shape per row.
        """
        if self.exists is None:
            return own
        # All processes must send equally many rows: pad before the gather, select after it.
        missing = len(self.exists) - self.rows
        padding = own.new_zeros(missing, *own.shape[1:])
        padded = torch.cat([own[: self.rows], padding])
        gathered = cast(Tensor, _AllGather.apply(padded))
        # `exists` is `(rows, processes)`; selecting with it restores the order of the joint batch.
        by_row = gathered.transpose(0, 1)
        return by_row[self.exists]


def unit(x: Tensor) -> Tensor:
    """Scale the rows of `(B, ..., D)` to length one.

    A row of zeros stays zero and gets no gradient, instead of an unbounded one.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    nonzero = norm > 0
    # The inner `where` keeps 1 / 0 out of the backward pass, where it would become NaN.
    safe_norm = torch.where(nonzero, norm, 1)
    scale = torch.where(nonzero, 1 / safe_norm, 0)
    return x * scale

"""Collects the outputs of a test or a prediction and writes them to the run's folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from safetensors.torch import save_file
from torch import Tensor

from kd_lightning.tasks.base import Task
from kd_lightning.types import Batch

Outputs = Mapping[str, Tensor]
"""What the task stores of a batch: tensors with the samples first, always with `index` `(B,)`."""


def join_batches(batches: Sequence[Outputs]) -> dict[str, Tensor]:
    """Concatenate the outputs of batches in the order of `index`.

    Args:
        batches: tensors of shape `(B, ...)`, by the same names in every batch.

    Returns:
        Tensors of shape `(n, ...)` on the CPU.
    """
    whole = {}
    for name in batches[0]:
        parts = [batch[name].detach().cpu() for batch in batches]
        whole[name] = torch.cat(parts)
    # Several processes take turns with the samples.
    order = torch.argsort(whole["index"])
    ordered = {}
    for name, tensor in whole.items():
        ordered[name] = tensor[order].contiguous()
    return ordered


def gather_processes(trainer: pl.Trainer, batches: list[Outputs]) -> list[Outputs]:
    """The batches of all processes; each process holds its share of the samples.

    Args:
        trainer: that ran.
        batches: of this process.
    """
    if trainer.world_size == 1:
        return batches
    # Shares may differ in size, which gathering tensors would not allow.
    shares: list[list[Outputs]] = [[] for _ in range(trainer.world_size)]
    torch.distributed.all_gather_object(shares, batches)
    everything: list[Outputs] = []
    for share in shares:
        everything.extend(share)
    return everything


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that the same people can read as the other files of the run.

    The library itself makes a file that its owner alone can read.

    Args:
        tensors: contiguous, on the CPU, of any shapes.
        path: of the file.
    """
    save_file(dict(tensors), path)
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


class SavePredictions(pl.Callback):
    """Writes predictions-test.safetensors for paired tests and W&B.

    The file holds what the task's `test_outputs` returned for every test sample, in the order of
    `index`. For classification these are `logits`, `target` and `index`. If the metric that
    experiments compare is a sum over samples, `count` holds the contribution of each sample.

    Args:
        folder: of the run.
        task: of the data.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        self.folder = folder
        self.task = task
        self.saved: dict[str, Tensor] | None = None
        """The content of the file, in the main process after a test."""
        self._batches: list[Outputs] = []

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Tensor | Outputs | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hold what the step returned, on the CPU: a device may not hold a whole test set.

        Args:
            trainer: that tests.
            pl_module: that is tested.
            outputs: of the step.
            batch: of the step.
            batch_idx: in the test set.
            dataloader_idx: of the loader, if there are several.
        """
        if isinstance(outputs, Mapping):
            on_cpu = {}
            for name, tensor in outputs.items():
                on_cpu[name] = tensor.detach().cpu()
            self._batches.append(on_cpu)

    def on_test_epoch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Join the outputs of all processes, and write them.

        Args:
            trainer: that tests.
            pl_module: that is tested.
        """
        batches = gather_processes(trainer, self._batches)
        # A module may be tested again, with another checkpoint.
        self._batches = []
        if trainer.is_global_zero and batches:
            self.saved = join_batches(batches)
            if self.task.count_is_sum:
                self.saved["count"] = self.task.sample_counts(self.saved)
            save_tensors(self.saved, self.folder / "predictions-test.safetensors")

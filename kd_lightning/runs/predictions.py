"""The outputs of a test or a prediction, kept in the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from safetensors.torch import save_file
from torch import Tensor


def joined(outputs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Batches of outputs as one, in the order of `index`."""
    whole = {name: torch.cat([o[name].detach().cpu() for o in outputs]) for name in outputs[0]}
    order = torch.argsort(whole["index"])
    return {name: tensor[order].contiguous() for name, tensor in whole.items()}


def gathered(trainer: pl.Trainer, outputs: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The outputs of all processes, each of which holds its share."""
    if trainer.world_size == 1:
        return outputs
    shares: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(shares, outputs)
    return [output for share in shares for output in share]


class SavePredictions(pl.Callback):
    """Writes `predictions-test.safetensors`: logits, target and index of every test sample, for paired tests and W&B images."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._outputs: list[dict[str, Tensor]] = []
        self.saved: dict[str, Tensor] | None = None

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._outputs.append({name: tensor.detach().cpu() for name, tensor in outputs.items()})

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        outputs, self._outputs = gathered(trainer, self._outputs), []
        if trainer.is_global_zero and outputs:
            self.saved = joined(outputs)
            save_file(self.saved, self.folder / "predictions-test.safetensors")

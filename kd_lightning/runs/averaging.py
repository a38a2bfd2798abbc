"""Checkpoints of averaged weights."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl


class SaveAveraged(pl.Callback):
    """Writes `last.ckpt` once more after StochasticWeightAveraging has put its mean in place.

    It does so when training ends, after the checkpoint of the last epoch: without this, the file
    would hold other weights than those that are tested.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint again, with the averaged weights.

        Args:
            trainer: that has trained.
            pl_module: with the averaged weights.
        """
        trainer.save_checkpoint(self.path)

"""The base of all datamodules whose sources answer by index: which loader a stage has, in each process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from kd_lightning.data.loader import BatchLoader
from kd_lightning.randomness import run_seed, seed_from

FETCH_BYTES = 2**21
"""Small batches are made several at once, up to this many bytes of inputs: about what stays in a core's cache."""


class ServedDataModule(pl.LightningDataModule):
    """Serves the sources of "train", "validation" and "test".

    A subclass answers `source(stage)`: samples that `BatchLoader` reads, with `to(device)` and `sample_bytes`.
    """

    batch_size: int
    eval_batch_size: int
    resident: bool = False
    augment: Any = None
    views: int | None = None

    def source(self, stage: str) -> Any:
        raise NotImplementedError

    def adapt_weights(
        self,
        network: nn.Module,
        weights: Mapping[str, Tensor],
        trained_on: Mapping[str, Any] | None,
        owner: str,
    ) -> dict[str, Tensor]:
        """Change weights from `init_from` before they are loaded; a specialist's data cuts the head to its classes.

        Args:
            network: the network that will load the weights.
            weights: its new tensors, by name.
            trained_on: the spec of the data that the weights were trained on, if it is known.
            owner: what the error message calls the weights.
        """
        return dict(weights)

    @property
    def place(self) -> tuple[int, int]:
        """This process among all of the run: its rank, and their number."""
        return (
            (self.trainer.global_rank, self.trainer.world_size)
            if self.trainer is not None
            else (0, 1)
        )

    def loader(self, stage: str) -> BatchLoader:
        """Batches of a stage, for the process that asks."""
        source, train = self.source(stage), stage == "train"
        if self.trainer is not None and self.resident:
            device = self.trainer.strategy.root_device
            source = source.to(device) if device.type == "cuda" else source
        rank, world_size = self.place
        return BatchLoader(
            source,
            self.batch_size if train else self.eval_batch_size,
            shuffle=train,
            seed=seed_from(run_seed(), "train"),
            views=self.views if train and self.augment else 0,
            rank=rank,
            world_size=world_size,
            fetch=FETCH_BYTES // source.sample_bytes,
        )

    def train_dataloader(self) -> Any:
        return self.loader("train")

    def val_dataloader(self) -> Any:
        return self.loader("validation") if len(self.source("validation")) else []

    def test_dataloader(self) -> Any:
        return self.loader("test")

    def predict_dataloader(self) -> Any:
        return self.loader("test")

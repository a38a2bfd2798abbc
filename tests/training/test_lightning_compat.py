"""Whatever we use of Lightning beyond its public API still exists, and our hooks do what its own do."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from kd_lightning.data import DigitsDataModule
from kd_lightning.training import TrainingModule, lightning_compat
from kd_lightning.types import Batch
from tests.training.small import copied, distillation, same, trainer


def weights(datamodule: DigitsDataModule | None = None, **settings: Any) -> dict[str, Tensor]:
    """The student's weights after one epoch."""
    torch.manual_seed(0)
    module = distillation()
    trainer(**settings).fit(module, datamodule=datamodule or DigitsDataModule())
    return copied(module.net)


OVERRIDDEN = ("optimizer_zero_grad", "transfer_batch_to_device")


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_clip_val": 0.05}, {"accumulate_grad_batches": 3}]
)
def test_our_hooks_train_what_lightnings_own_train(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    ours = weights(**settings)
    for name in OVERRIDDEN:
        monkeypatch.setattr(TrainingModule, name, getattr(pl.LightningModule, name))
    assert same(ours, weights(**settings))


def test_gradients_are_clipped() -> None:
    assert not same(weights(), weights(gradient_clip_val=0.05))


@pytest.mark.parametrize(
    "hook", ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"]
)
def test_batch_hooks_of_the_datamodule_are_called(hook: str) -> None:
    class Dimmed(DigitsDataModule):
        """Digits that a hook makes darker."""

    def dim(self: Any, batch: Batch, *_: Any) -> Batch:
        assert isinstance(batch.inputs, Tensor)
        return Batch(batch.inputs * 0.5, batch.target, batch.index, batch.view, batch.split)

    setattr(Dimmed, hook, dim)
    assert not same(weights(), weights(Dimmed()))


def test_a_module_made_in_python_is_not_built_from_a_config() -> None:
    assert not lightning_compat.built_from_config()


class Progress(pl.Callback):
    """Notes what the compatibility functions return within an epoch."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.resumed: list[bool] = []
        self.every: set[int] = set()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.resumed.append(lightning_compat.resumes_within_epoch(trainer))

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.done.append(lightning_compat.batches_done_in_epoch(trainer))
        self.every.add(lightning_compat.log_every_n_steps(trainer))


def test_progress_within_an_epoch() -> None:
    progress = Progress()
    run = trainer(callbacks=[progress], log_every_n_steps=7, limit_train_batches=3)
    run.fit(distillation(), datamodule=DigitsDataModule())
    assert progress.done == [1, 2, 3]
    assert progress.resumed == [False]
    assert progress.every == {7}

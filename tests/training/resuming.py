"""Whether a run that is resumed within an epoch is the uninterrupted one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lightning.pytorch.callbacks import ModelCheckpoint

from kd_lightning.data.datamodule import DataModule
from kd_lightning.training.module import TrainingModule
from tests.training.small import copied, same, trainer


def resumed_equals_whole(
    make: Callable[[], TrainingModule],
    data: Callable[[], DataModule],
    folder: Path,
    steps: int = 14,
    epochs: int = 3,
) -> bool:
    """Compare all tensors of two runs, bit by bit.

    Args:
        make: returns the module, always with the same initial weights.
        data: returns the data.
        folder: for the checkpoint.
        steps: after which step the second run starts, neither the first nor the last of an epoch.
        epochs: of both runs.
    """
    whole = make()
    saving = ModelCheckpoint(
        folder, every_n_train_steps=steps, save_top_k=-1, filename="{step}"
    )
    full = trainer(max_epochs=epochs, enable_checkpointing=True, callbacks=[saving])
    full.fit(whole, datamodule=data())
    resumed = make()
    rest = trainer(max_epochs=epochs)
    rest.fit(resumed, datamodule=data(), ckpt_path=folder / f"step={steps}.ckpt")
    assert rest.global_step == full.global_step > steps
    assert steps % (full.global_step // epochs) > 0
    return same(copied(resumed), copied(whole))

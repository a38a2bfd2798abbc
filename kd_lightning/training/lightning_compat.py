"""What we need from Lightning beyond its public API, in one place.

tests/training/test_lightning_compat.py fails if a new version of Lightning moves one of these.
"""

from __future__ import annotations

from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters


def built_from_config() -> bool:
    """Whether LightningCLI is building a module from a config right now.

    Only then are the hyperparameters plain values. A module built in Python would pickle its
    networks into the checkpoint, which could then not be read without running code.
    """
    return _given_hyperparameters.get() is not None


def resumes_within_epoch(trainer: pl.Trainer) -> bool:
    """Whether training resumes from a checkpoint of the middle of an epoch."""
    return bool(trainer.fit_loop.restarted_mid_epoch)


def batches_done_in_epoch(trainer: pl.Trainer) -> int:
    """How many batches of the current epoch a resumed run has processed."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return int(cast(Any, progress.current).processed)


def log_every_n_steps(trainer: pl.Trainer) -> int:
    """The Trainer's option of that name; Lightning attaches it without declaring it."""
    return int(cast(Any, trainer).log_every_n_steps)

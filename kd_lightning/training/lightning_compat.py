"""What we need from Lightning beyond its public API, in one place.

tests/training/test_lightning_compat.py fails if a new version of Lightning moves one of these.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import lightning.pytorch as pl
from lightning.pytorch.core.mixins.hparams_mixin import (
    _given_hyperparameters,
    _given_hyperparameters_context,
)
from lightning.pytorch.utilities.model_helpers import is_overridden

if TYPE_CHECKING:
    # Slow to import, and needed by configs only.
    from lightning.pytorch.cli import LightningArgumentParser


Step = TypeVar("Step", bound=Callable[..., Any])

CURRENT_HOOK = "_current_fx_name"
"""The attribute in which Lightning notes the running hook, some 40 times per step."""

BATCH_HOOKS = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)


def overridden_batch_hooks(datamodule: pl.LightningDataModule | None) -> frozenset[str]:
    """The batch hooks that a datamodule overrides. Lightning asks three times per step.

    Args:
        datamodule: of the Trainer; `None` if it was given loaders.
    """
    if datamodule is None:
        return frozenset()
    return frozenset(hook for hook in BATCH_HOOKS if is_overridden(hook, datamodule))


def with_known_signature(step: Step) -> Step:
    """Inspect the parameters of `training_step` once; Lightning does it in every step."""
    vars(step)["__signature__"] = inspect.signature(step)
    return step


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
    # Lightning declares the type of a base class, without this count.
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return int(cast(Any, progress.current).processed)


def log_every_n_steps(trainer: pl.Trainer) -> int:
    """The Trainer's option of that name; Lightning attaches it without declaring it."""
    return int(cast(Any, trainer).log_every_n_steps)


def planned_steps(trainer: pl.Trainer) -> int:
    """The number of optimizer steps of the whole training; -1 if it has no end."""
    steps = trainer.estimated_stepping_batches
    if math.isinf(steps):
        return -1
    return int(steps)


def validates_after(trainer: pl.Trainer, batch_idx: int) -> bool:
    """Whether Lightning validates within the epoch after this batch.

    Args:
        trainer: that is training.
        batch_idx: of the batch in its epoch.
    """
    interval = trainer.val_check_batch
    if interval is None:
        return False
    done = batch_idx
    if trainer.check_val_every_n_epoch is None:
        # The interval then counts batches of the whole training.
        done = trainer.fit_loop.total_batch_idx
    return (done + 1) % interval == 0


def has_whole_weights(trainer: pl.Trainer) -> bool:
    """Whether each process holds all weights, so that a network runs outside of the strategy."""
    whole = pl.strategies.SingleDeviceStrategy | pl.strategies.DDPStrategy
    return isinstance(trainer.strategy, whole)


def callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    """The Trainer's callbacks; Lightning attaches them without declaring them."""
    return list(cast(Any, trainer).callbacks)


def datamodule_of(trainer: pl.Trainer) -> pl.LightningDataModule | None:
    """The datamodule that the Trainer was given, if any; Lightning attaches it undeclared."""
    return cast("pl.LightningDataModule | None", getattr(trainer, "datamodule", None))


def loader_in_use(trainer: pl.Trainer) -> object:
    """The loader, or loaders, of the stage that the Trainer is in, before it has set them up."""
    loops = {
        "fit": trainer.fit_loop,
        "validate": trainer.validate_loop,
        "test": trainer.test_loop,
        "predict": trainer.predict_loop,
    }
    stage = trainer.state.fn
    assert stage is not None, "the Trainer runs nothing"
    return cast(Any, loops[stage.value])._data_source.dataloader()


def averages_weights(trainer: pl.Trainer) -> bool:
    """Whether a callback copies the module before training, to average its weights."""
    averaging: list[type] = [pl.callbacks.StochasticWeightAveraging]
    # New in Lightning 2.6.
    if hasattr(pl.callbacks, "WeightAveraging"):
        averaging.append(pl.callbacks.WeightAveraging)
    return any(
        isinstance(callback, tuple(averaging)) for callback in callbacks(trainer)
    )


def keep_arguments_of(
    parser: LightningArgumentParser,
    base: type,
    config: Mapping[str, Any],
) -> None:
    """Let objects that a parser builds save their config as hyperparameters, as LightningCLI does.

    `load_from_checkpoint` then builds them again without further arguments.

    Args:
        parser: its `instantiate_classes` builds the objects.
        base: the objects' class or a base of it.
        config: `class_path` and `init_args` of the object, in plain values.
    """
    arguments = {
        "_class_path": config["class_path"],
        **(config.get("init_args") or {}),
        **(config.get("dict_kwargs") or {}),
    }

    def instantiate(
        class_type: type,
        *args: Any,
        applied_instantiation_links: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        # A context variable tells `save_hyperparameters` the arguments before they became objects.
        with _given_hyperparameters_context(
            hparams=arguments, instantiator="lightning.pytorch.cli.instantiate_module"
        ):
            return class_type(*args, **kwargs)

    parser.add_instantiator(instantiate, base, subclasses=True)

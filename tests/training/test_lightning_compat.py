"""Whatever we use of Lightning beyond its public API still exists, and our hooks do what its own do."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import Namespace
from torch import Tensor

from kd_lightning.data import DigitsDataModule
from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.parsing import plain_config, run_parser
from kd_lightning.runs.spec_arguments import fill_from_spec
from kd_lightning.training import TrainingModule, lightning_compat
from kd_lightning.types import Batch
from tests.runs import TEACHER
from tests.training.small import copied, distillation, same, trainer


def weights(
    datamodule: DigitsDataModule | None = None, **settings: Any
) -> dict[str, Tensor]:
    """The student's weights after one epoch."""
    torch.manual_seed(0)
    module = distillation()
    trainer(**settings).fit(module, datamodule=datamodule or DigitsDataModule())
    return copied(module.net)


OVERRIDDEN = (
    "__setattr__",
    "_call_batch_hook",
    "configure_gradient_clipping",
    "optimizer_zero_grad",
    "transfer_batch_to_device",
)


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


def test_lightning_calls_what_we_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are Lightning's own: if it renames them, our versions would do nothing."""
    hooks: set[str] = set()
    names: set[str] = set()
    call_hook = TrainingModule._call_batch_hook
    set_attribute = TrainingModule.__setattr__

    def call(module: TrainingModule, hook_name: str, *args: Any) -> Batch:
        hooks.add(hook_name)
        return call_hook(module, hook_name, *args)

    def set_(module: TrainingModule, name: str, value: Any) -> None:
        names.add(name)
        set_attribute(module, name, value)

    monkeypatch.setattr(TrainingModule, "_call_batch_hook", call)
    monkeypatch.setattr(TrainingModule, "__setattr__", set_)
    weights()
    assert hooks == set(lightning_compat.BATCH_HOOKS)
    assert lightning_compat.CURRENT_HOOK in names


def test_gradients_are_clipped() -> None:
    assert not same(weights(), weights(gradient_clip_val=0.05))


@pytest.mark.parametrize(
    "hook",
    ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"],
)
def test_batch_hooks_of_the_datamodule_are_called(hook: str) -> None:
    class Dimmed(DigitsDataModule):
        """Digits that a hook makes darker."""

    def dim(self: Any, batch: Batch, *_: Any) -> Batch:
        assert isinstance(batch.inputs, Tensor)
        return Batch(
            batch.inputs * 0.5, batch.target, batch.index, batch.view, batch.split
        )

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

    def on_train_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
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


class Validations(pl.Callback):
    """Notes after which batches Lightning validates, and after which it was expected to."""

    def __init__(self) -> None:
        self.batch = (-1, -1)
        self.expected: list[tuple[int, int]] = []
        self.validated: list[tuple[int, int]] = []

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.batch = (trainer.current_epoch, batch_idx)
        if lightning_compat.validates_after(trainer, batch_idx):
            self.expected.append(self.batch)

    def on_validation_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        self.validated.append(self.batch)


@pytest.mark.parametrize(
    "settings",
    [
        {"val_check_interval": 2},
        {"val_check_interval": 0.5},
        {"val_check_interval": 3, "check_val_every_n_epoch": None},
        {},
    ],
)
def test_validations_are_expected_after_the_right_batches(
    settings: dict[str, Any],
) -> None:
    validations = Validations()
    run = trainer(
        callbacks=[validations], max_epochs=2, limit_train_batches=4, **settings
    )
    run.fit(distillation(), datamodule=DigitsDataModule())
    assert validations.expected == validations.validated
    assert validations.validated


def test_callbacks_of_a_trainer() -> None:
    validations = Validations()
    assert validations in lightning_compat.callbacks(trainer(callbacks=[validations]))


def test_modules_that_a_parser_builds_keep_their_config() -> None:
    parser = run_parser("fit")
    arguments = resolve_configs(TEACHER)[1:]
    config = parser.parse_args(arguments)
    plain = plain_config(config)["model"]
    lightning_compat.keep_arguments_of(parser, TrainingModule, plain)
    fill_from_spec(config.model, DigitsDataModule().spec)
    module = parser.instantiate_classes(Namespace(model=config.model)).model
    assert module.hparams["_class_path"] == plain["class_path"]
    assert module.hparams["network"] == plain["init_args"]["network"]
    # Its optimizer and scheduler come from factories of jsonargparse.
    module.attach(DigitsDataModule())
    twin = copy.deepcopy(module)
    assert same(copied(twin.net), copied(module.net))
    assert twin.net is not module.net
    twin.check_optimizer()


class Loaders(pl.Callback):
    """Notes the loader and the datamodule that the compatibility functions find."""

    def __init__(self) -> None:
        self.loaders: list[object] = []
        self.datamodules: list[object] = []

    def setup(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str
    ) -> None:
        self.loaders.append(lightning_compat.loader_in_use(trainer))
        self.datamodules.append(lightning_compat.datamodule_of(trainer))


def test_the_loaders_of_each_stage() -> None:
    loaders = Loaders()
    data = DigitsDataModule()
    own = [data.loader(stage) for stage in ("train", "test", "test", "test")]
    run = trainer(callbacks=[loaders], limit_train_batches=1)
    module = distillation()
    run.fit(module, own[0])
    run.validate(module, own[1], verbose=False)
    run.test(module, own[2], verbose=False)
    run.predict(module, own[3])
    assert loaders.loaders == own
    assert loaders.datamodules == [None] * 4
    run.fit(module, datamodule=data)
    assert loaders.datamodules[-1] is data


def test_callbacks_that_average_weights() -> None:
    averaging: list[pl.Callback] = [pl.callbacks.StochasticWeightAveraging(swa_lrs=0.1)]
    # New in Lightning 2.6.
    if hasattr(pl.callbacks, "EMAWeightAveraging"):
        averaging.append(pl.callbacks.EMAWeightAveraging())
    for callback in averaging:
        assert lightning_compat.averages_weights(trainer(callbacks=[callback]))
    assert not lightning_compat.averages_weights(trainer())

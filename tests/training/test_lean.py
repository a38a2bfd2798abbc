"""What is made leaner does what Lightning's own does."""

from __future__ import annotations

import inspect
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from kd_lightning.training.lean import LeanModule
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from kd_lightning.data import DigitsDataModule
from kd_lightning.training import BaseModule
from kd_lightning.types import Batch
from tests.training.small import copied, distillation, same, trainer


def weights(datamodule: DigitsDataModule | None = None, **settings: Any) -> dict[str, Tensor]:
    """Of a student after one epoch."""
    torch.manual_seed(0)
    module = distillation()
    trainer(**settings).fit(module, datamodule=datamodule or DigitsDataModule())
    return copied(module.net)


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_clip_val": 0.05}, {"accumulate_grad_batches": 3}]
)
def test_trains_what_lightning_trains(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    lean = weights(**settings)
    for name in [name for name, value in vars(LeanModule).items() if inspect.isfunction(value)]:
        monkeypatch.setattr(LeanModule, name, getattr(pl.LightningModule, name))
    monkeypatch.delattr(BaseModule.training_step, "__signature__")
    assert same(lean, weights(**settings))


def test_gradients_are_clipped() -> None:
    assert not same(weights(), weights(gradient_clip_val=0.05))


@pytest.mark.parametrize(
    "hook", ["on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer"]
)
def test_hooks_of_the_data_are_called(hook: str) -> None:
    class Dimmed(DigitsDataModule):
        """Digits that a hook makes darker."""

    def dim(self: Any, batch: Batch, *_: Any) -> Batch:
        assert isinstance(batch.inputs, Tensor)
        return Batch(batch.inputs * 0.5, batch.target, batch.index, batch.view, batch.split)

    setattr(Dimmed, hook, dim)
    assert not same(weights(), weights(Dimmed()))


def test_lightning_asks_for_batch_hooks_where_we_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is Lightning's own: were it another one day, ours would do nothing."""
    asked: set[str] = set()
    answer = LeanModule._call_batch_hook

    def ask(module: LeanModule, hook_name: str, *args: Any) -> Any:
        asked.add(hook_name)
        return answer(module, hook_name, *args)

    monkeypatch.setattr(LeanModule, "_call_batch_hook", ask)
    weights()
    assert asked == {
        "on_before_batch_transfer",
        "transfer_batch_to_device",
        "on_after_batch_transfer",
    }


def test_the_parameters_of_a_step_are_known() -> None:
    class Short(BaseModule):
        def training_step(self, batch: Batch) -> Tensor:  # type: ignore[override]
            return self.objective(batch)

    assert is_param_in_hook_signature(distillation().training_step, "batch_idx", explicit=True)
    assert not is_param_in_hook_signature(Short.training_step, "batch_idx", min_args=2)

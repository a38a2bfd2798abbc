"""What a training checkpoint holds, and how training goes on from it."""

from __future__ import annotations

from typing import Any, ClassVar, cast

from torch import Tensor, nn

from kd_lightning.data.loader import BatchLoader
from kd_lightning.errors import UserError
from kd_lightning.training.lean import LeanModule
from kd_lightning.training.means import EpochMeans
from kd_lightning.training.optimizers import SchedulerFactory, takes_total_steps
from kd_lightning.weights import KEY, plain

SUMS = "kd_epoch_sums"


class CheckpointedModule(LeanModule):
    """A checkpoint of any step, in the middle of an epoch too, goes on as if training had not stopped."""

    role: ClassVar[str]
    losses: nn.ModuleDict
    scheduler: SchedulerFactory | None
    spec: dict[str, Any] | None

    def __init__(self) -> None:
        super().__init__()
        self._attached = self._losses_built = False
        self._pending_losses: dict[str, Tensor] = {}
        self._means, self._world_size = EpochMeans(), 1
        self._resumed_sums: Tensor | None = None
        self.register_load_state_dict_pre_hook(self._keep_loss_state)  # type: ignore[no-untyped-call]

    @property
    def net(self) -> nn.Module:
        """The network that is trained."""
        return cast(nn.Module, getattr(self, self.role))

    def on_train_start(self) -> None:
        loop = self.trainer.fit_loop
        if loop.restarted_mid_epoch:
            self._begin_epoch()  # Lightning announces no epoch that has begun already
            self._means = EpochMeans(self._resumed_sums)
            if isinstance(loader := self.trainer.train_dataloader, BatchLoader):
                loader.skip = cast(Any, loop.epoch_loop.batch_progress.current).processed

    def _begin_epoch(self) -> None:
        """What an epoch needs to know before its first step."""

    def _close_window(self) -> None:
        """Add the window's losses to the epoch's sums; stop where the loss is no longer finite."""
        if (wrong := self._means.close()) is not None:
            raise UserError(
                f"the loss became {wrong} in epoch {self.current_epoch}, at or before step {self.global_step}; "
                "lower the learning rate, or clip gradients with --trainer.gradient_clip_val=1"
            )

    def provenance(self) -> list[dict[str, Any]]:
        """Where the teacher's knowledge comes from, if there is one."""
        return []

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        network, described = self.net, plain(self.hparams.get(self.role))
        keep = getattr(getattr(self._trainer, "datamodule", None), "keep", None)
        # What it takes to make the network again, and to read what it reads, with none of the files that it came from.
        without = cast(Any, getattr(network, "without_files", None))
        alone = plain(without()) if callable(without) else {}
        if described is not None and alone:
            described["init_args"] = {**(described.get("init_args") or {}), **alone}
            checkpoint["hyper_parameters"] = {
                **checkpoint["hyper_parameters"],
                self.role: described,
            }
        self._close_window()
        if (sums := self._means.share(self.device, self._world_size)) is not None:
            checkpoint[SUMS] = sums  # of an epoch that is not at its end
        checkpoint[KEY] = {
            "role": self.role,
            "network": described,
            "without_files": alone,
            "spec": self.spec,
            "data": keep() if callable(keep) else None,
            "teacher": self.provenance(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        ours = checkpoint.get(KEY)
        if not ours or ours["role"] != self.role:
            raise UserError(
                f"the checkpoint is not one of a {type(self).__name__}; resume with the config that made it"
            )
        self._resumed_sums = checkpoint.get(SUMS)
        if self._losses_built:  # training goes on
            self._check_loss_state(checkpoint.get("state_dict") or {})
            self._check_schedule(checkpoint.get("lr_schedulers") or [])
        if not self._attached:
            self.spec = ours[
                "spec"
            ]  # the hyper-parameters' copy went through YAML, which takes some names for numbers

    def _check_loss_state(self, state: dict[str, Tensor]) -> None:
        """Training goes on with the losses that it began with: their adapters and memories are in the checkpoint."""
        theirs = {
            key.removeprefix("losses."): value.shape
            for key, value in state.items()
            if key.startswith("losses.")
        }
        ours = {key: value.shape for key, value in self.losses.state_dict().items()}
        if changed := sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)):
            raise UserError(
                f"the checkpoint was trained with other losses ({changed[0]} differs): resume with the config that made it, "
                "or start anew from its weights with --model.init_from"
            )

    def _check_schedule(self, states: list[dict[str, Any]]) -> None:
        """A schedule over a number of steps cannot be made longer or shorter on the way."""
        told = self.scheduler is not None and takes_total_steps(self.scheduler)
        steps = int(self.trainer.estimated_stepping_batches) if told else None
        for theirs in (state["total_steps"] for state in states if told and "total_steps" in state):
            if theirs != steps:
                raise UserError(
                    f"the checkpoint's learning rates were laid out over {theirs} steps, this run has {steps}: resume with the "
                    "same --trainer.max_epochs, batches and devices, or start anew from its weights with --model.init_from"
                )

    def _keep_loss_state(
        self, module: nn.Module, state: dict[str, Any], prefix: str, *_: Any
    ) -> None:
        """Adapters are built when the data is known: until then their saved state waits."""
        if self._losses_built:
            return
        built = {f"{prefix}losses.{key}" for key in self.losses.state_dict()}
        for key in [k for k in state if k.startswith(f"{prefix}losses.") and k not in built]:
            self._pending_losses[key.removeprefix(f"{prefix}losses.")] = state.pop(key)

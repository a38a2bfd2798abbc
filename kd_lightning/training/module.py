"""The Lightning hooks that all training schemes with one student share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.loader import BatchLoader
from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss
from kd_lightning.randomness import reseed, run_seed
from kd_lightning.spec import Spec
from kd_lightning.training import capture, checkpointing, lightning_compat
from kd_lightning.training.capture_file import FailedStep
from kd_lightning.training.checkpointing import Checkpoint
from kd_lightning.training.evaluated_module import EvaluatedModule
from kd_lightning.training.loss_values import check_row_wise
from kd_lightning.training.means import EpochMeans, NotFinite
from kd_lightning.training.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    optimize,
    optimizer_of,
)
from kd_lightning.training.parameter_groups import ParameterGroup, parameters_in_groups
from kd_lightning.training.quick_hooks import QuickHooks
from kd_lightning.training.split_gradients import (
    SplitOptimizer,
    check_both_kinds,
    split_backward,
)
from kd_lightning.types import Batch
from kd_lightning.values import Values
from kd_lightning.weights import KEY

Trains = Literal["both", "network", "losses"]
"""What the optimizer updates."""

Closure = Callable[[], Any]
"""What Lightning gives to an optimizer: it computes the loss and its gradients."""


class TrainingModule(QuickHooks, EvaluatedModule):
    """Trains one network with a dict of losses. Contains Lightning hooks only.

    The `Learner` holds the network, the `Objective` the losses. In checkpoints the network's
    weights have the prefix `role`, the losses' adapters the prefix `losses`.

    Args:
        network: any nn.Module that returns logits, or a `DeferredNetwork` that builds one in
            `configure_model`.
        losses: by name.
        optimizer: from the trainable parameters to an optimizer.
        scheduler: from an optimizer to a learning-rate scheduler.
        layers: module name for each role that a loss reads.
        init_from: checkpoint or weights file to start from.
        spec: of the data; filled in from the datamodule.
        channels_last: keep images and convolutions in that memory format.
        train: what the optimizer updates.
        outputs: which entry of the network's output holds the logits.
        parameter_groups: parameters that the optimizer treats differently.
        row_chunk: rows whose logits are in memory together; `None`: all.
    """

    def __init__(
        self,
        network: nn.Module,
        losses: Mapping[str, DistillLoss],
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        layers: Mapping[str, str] | None,
        init_from: str | None,
        spec: Values | None,
        channels_last: bool,
        train: Trains,
        outputs: int | str | None = None,
        parameter_groups: Sequence[ParameterGroup] | None = None,
        row_chunk: int | None = None,
    ) -> None:
        super().__init__(
            network, losses, layers, init_from, spec, channels_last, outputs
        )
        if row_chunk is not None:
            check_row_wise(row_chunk, losses)
        self.row_chunk = row_chunk
        self.learner.row_chunk = row_chunk
        for name, loss in losses.items():
            if loss.for_generator:
                raise UserError(
                    f"model.losses: {name!r} is a loss of a generator; use DataFreeModule, and "
                    "name it in model.generator_losses"
                )
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.trains = train
        self.parameter_groups = list(parameter_groups or [])
        self._means = EpochMeans()
        self.capture_folder: Path | None = None
        """Where a step whose loss is not finite is written to; nowhere if `None`."""
        self.check_steps = False
        """Whether accelerators check the loss in every step, which makes each step wait."""
        self._checks_steps = False
        self._splits_gradients = False
        self._step_terms: list[Tensor] = []
        self._window_start = capture.WindowStart(0, 0)
        self._resumed_sums: Tensor | None = None
        self._epoch_seed: tuple[int | str, ...] = ()
        self._rank = 0

    @property
    def job_type(self) -> str:
        """The kind of run that this module makes, if the user does not name it."""
        return "teacher"

    @property
    def run_in_training(self) -> list[nn.Module]:
        """What a training step runs and may change without an optimizer."""
        return [self.learner, self.objective]

    def provenance(self) -> list[dict[str, object]]:
        """Where the teacher's knowledge comes from, in plain values."""
        return []

    def keep_hyperparameters(self) -> None:
        """Store the config that LightningCLI built this module from, to build it again."""
        if lightning_compat.built_from_config():
            self.save_hyperparameters(logger=False)

    # -- the optimizer ----------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer of what `trains` names, and its scheduler.

        Raises:
            UserError: if one of them does not accept its arguments.
        """
        parameters = parameters_in_groups(self._trained(), self.parameter_groups)
        if not parameters:
            raise UserError(
                f"nothing is trained: no weight of {type(self.net).__name__} or its losses "
                "requires gradients; unfreeze some, or see model.train"
            )
        configured = optimize(
            self.optimizer,
            self.scheduler,
            parameters,
            lambda: lightning_compat.planned_steps(self.trainer),
        )
        optimizer = optimizer_of(configured)
        self._check_kind_of_optimizer(optimizer)
        if self.row_chunk is not None and not lightning_compat.has_whole_weights(
            self.trainer
        ):
            raise UserError(
                "model.row_chunk needs all weights in each process; use --trainer.strategy=ddp"
            )
        self._splits_gradients = isinstance(optimizer, SplitOptimizer)
        if self._splits_gradients and not lightning_compat.has_whole_weights(
            self.trainer
        ):
            raise UserError(
                f"model.optimizer: {type(optimizer).__name__} needs all weights in each process; "
                "use --trainer.strategy=ddp"
            )
        return configured

    def _trained(self) -> dict[str, nn.Module]:
        """What the optimizer updates, by the prefix of its parameters in checkpoints."""
        modules: dict[str, nn.Module] = {}
        if self.trains != "losses":
            modules[self.role] = self.net
        if self.trains != "network":
            modules["losses"] = self.losses
        return modules

    def check_optimizer(self) -> None:
        """Refuse an optimizer or scheduler with wrong arguments before anything is trained.

        Raises:
            UserError: if one of them does not accept its arguments.
        """
        placeholder = nn.Parameter(torch.zeros(1))
        configured = optimize(
            self.optimizer, self.scheduler, [placeholder], lambda: 100
        )
        self._check_kind_of_optimizer(optimizer_of(configured))

    def _check_kind_of_optimizer(self, optimizer: Optimizer) -> None:
        """Refuse an optimizer that this module or its losses cannot serve.

        Raises:
            UserError: one line, with what to change.
        """
        check_both_kinds(optimizer, *self.objective.names_by_kind())

    # -- training ---------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Continue an epoch that a checkpoint interrupted: its sums, and its remaining batches."""
        if not lightning_compat.resumes_within_epoch(self.trainer):
            return
        # Lightning announces no epoch that has begun already.
        self._begin_epoch()
        self._means = EpochMeans(self._resumed_sums)
        loader = self.trainer.train_dataloader
        if isinstance(loader, BatchLoader):
            loader.skip = lightning_compat.batches_done_in_epoch(self.trainer)

    def on_train_epoch_start(self) -> None:
        """Set the weights of the losses for this epoch."""
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._means = EpochMeans()
        self.objective.begin_epoch(self.current_epoch, self.trainer.world_size)
        # What no step changes is looked up once per epoch.
        self._epoch_seed = (run_seed(), "step", self.current_epoch)
        self._rank = self.global_rank
        # On a CPU there is no device to wait for.
        on_cpu = self.device.type == "cpu"
        is_alone = self.trainer.world_size == 1
        self._checks_steps = self.check_steps or (on_cpu and is_alone)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the random numbers of the step.

        Args:
            batch: on the device.
            batch_idx: in the epoch.
        """
        # Dropout is a function of (seed, epoch, batch, rank), so that a resumed run draws what
        # the uninterrupted run drew.
        reseed(self.device, *self.step_seed(batch_idx))

    def step_seed(self, batch_idx: int) -> tuple[int | str, ...]:
        """What the random numbers of a step of the current epoch are a function of.

        Args:
            batch_idx: in the epoch.
        """
        return (*self._epoch_seed, batch_idx, self._rank)

    @lightning_compat.with_known_signature
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted total of all losses for a batch, a scalar with a graph.

        Args:
            batch: on the device.
            batch_idx: in the epoch.

        Raises:
            UserError: if the total is not finite and every step is checked.
        """
        # The teacher runs first: its activations are free again before the student's fill memory.
        teacher = self._teacher_output(batch) if self._uses_teacher else None
        student = self.learner(batch)
        total, terms, samples = self.objective(student, teacher, batch)
        if self._checks_steps and not math.isfinite(total.detach().item()):
            values = [term.detach().item() for term in terms]
            failed = FailedStep(
                batch_idx, self.global_step, total.detach().item(), values, exact=True
            )
            capture.stop(self, failed, batch, student, teacher)
        # Other devices are not waited for: `_close_window` checks several steps at once, and must
        # know which these were.
        if self._splits_gradients:
            self._step_terms = terms
        if len(self._means) == 0:
            self._window_start = capture.WindowStart(batch_idx, self.global_step)
        self._means.add(samples, total, terms)
        return cast(Tensor, total)

    def networks_batch(self, batch: Batch) -> Batch:
        """The batch that student and teacher see in training, made from the loader's batch."""
        return batch

    def backward(self, loss: Tensor, *args: object, **kwargs: object) -> None:
        """Compute the gradients, for hard and soft losses apart if the optimizer wants both.

        Args:
            loss: the total of the step.
            args, kwargs: what Lightning passes to `loss.backward`.
        """
        if not self._splits_gradients:
            super().backward(loss, *args, **kwargs)
            return
        optimizer = self.trainer.optimizers[0]
        assert isinstance(optimizer, SplitOptimizer)
        hard, soft = self.objective.split(self._step_terms)
        # Without their graph's last references its memory is free again.
        self._step_terms = []
        split_backward(loss, hard, soft, optimizer, self.trainer.world_size)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Closure | None = None,
    ) -> None:
        """Update what is trained, then let the network's modules and the losses act.

        Args:
            epoch: of the training, from 0.
            batch_idx: of the batch in its epoch.
            optimizer: to step.
            optimizer_closure: computes the loss and its gradients.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.after_step()

    def after_step(self) -> None:
        """Let networks and losses act after an optimizer step."""
        self.learner.after_step()
        self.objective.after_step()

    def on_train_batch_end(
        self, outputs: STEP_OUTPUT, batch: Batch, batch_idx: int
    ) -> None:
        """Check the losses of the last steps, once per `log_every_n_steps`.

        Args:
            outputs: what `training_step` returned.
            batch: of the step.
            batch_idx: in the epoch.

        Raises:
            UserError: if one of the totals is not finite.
        """
        window = lightning_compat.log_every_n_steps(self.trainer)
        if len(self._means) >= window or self.trainer.is_last_batch:
            self._close_window()

    def _close_window(self) -> None:
        """Add the window's losses to the epoch's sums; stop if the loss is not finite."""
        not_finite = self._means.close()
        if not_finite is not None:
            self._stop_after_window(not_finite)

    def _stop_after_window(self, not_finite: NotFinite) -> None:
        """End the training because of a step of the window that was just closed."""
        capture.stop_after_window(self, self._window_start, not_finite)

    def on_train_epoch_end(self) -> None:
        """Log the mean of each loss over the epoch, and the learning rate.

        Raises:
            UserError: if a loss or a weight is not finite.
        """
        # The option `max_steps` may have cut the epoch short, within a window.
        self._close_window()
        for learner in self.learners:
            self._check_weights(learner.network)
        joined = self.trainer.world_size > 1
        means = self._means.compute(self.device, joined)
        if means is not None:
            self.log_dict(self._named_means(means))
        self._means = EpochMeans()
        first_group = self.trainer.optimizers[0].param_groups[0]
        self.log("learning_rate", first_group["lr"])

    def _check_weights(self, network: nn.Module) -> None:
        """Refuse weights that the last update broke, after the last loss was finite."""
        finite = [bool(p.isfinite().all()) for p in network.parameters()]
        if not all(finite):
            raise UserError(
                f"weights became infinite or NaN in epoch {self.current_epoch}; "
                "lower the learning rate"
            )

    def _named_means(self, means: Tensor) -> dict[str, Tensor]:
        """The means of an epoch's losses by the names in the logs."""
        return dict(zip(self.loss_names(), means, strict=True))

    def loss_names(self) -> list[str]:
        """The names of the losses that each epoch of training logs."""
        names = ["train_loss"]
        for name in self.losses:
            names.append(f"train_loss_{name}")
        return names

    # -- checkpoints ------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Add what it takes to build the network again, and to resume within an epoch.

        Args:
            checkpoint: the content that Lightning will write; changed in place.

        Raises:
            UserError: if the loss of a step since the last check is not finite.
        """
        arguments = checkpointing.self_contained_arguments(self.net)
        network = checkpointing.with_arguments(self.hparams.get(self.role), arguments)
        if network is not None and arguments:
            parameters = cast(Values, checkpoint["hyper_parameters"])
            checkpoint["hyper_parameters"] = {**parameters, self.role: network}
        # Weights that led to a loss that is not finite must not replace those that did not.
        self._close_window()
        world_size = self._trainer.world_size if self._trainer is not None else 1
        sums = self._means.share(self.device, world_size)
        # There are sums within an epoch only.
        if sums is not None:
            checkpoint[checkpointing.EPOCH_SUMS] = sums
        datamodule = getattr(self._trainer, "datamodule", None)
        data = None
        if isinstance(datamodule, DataModule):
            data = datamodule.checkpoint_state()
        checkpoint[KEY] = checkpointing.Described(
            role=self.role,
            network=network,
            without_files=arguments,
            spec=self.spec.to_dict() if self.spec is not None else None,
            data=data,
            teacher=self.provenance(),
        )
        checkpointing.mask_secrets(checkpoint)

    def on_load_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Check that a checkpoint is one of this module, and take over the sums of its epoch.

        Args:
            checkpoint: its whole content.

        Raises:
            UserError: if it is of another kind of module or, for training to resume, of other
                losses or another schedule.
        """
        described = cast(checkpointing.Described | None, checkpoint.get(KEY))
        if not described or described["role"] != self.role:
            raise UserError(
                f"the checkpoint is not one of a {type(self).__name__}; resume with the config "
                "that made it"
            )
        sums = checkpoint.get(checkpointing.EPOCH_SUMS)
        self._resumed_sums = cast(Tensor | None, sums)
        # Only `fit` builds all losses; testing and predicting need neither losses nor a schedule.
        if self.objective.built:
            self._check_resumed(checkpoint)
        if self.task is None and described["spec"]:
            # The copy in the hyperparameters went through YAML, which reads some names as numbers.
            self.spec = Spec.from_dict(described["spec"])

    def _check_resumed(self, checkpoint: Checkpoint) -> None:
        """Refuse to continue with other losses or another schedule than training began with."""
        stored = checkpoint.get("state_dict") or {}
        state = cast(dict[str, Tensor], stored)
        checkpointing.check_loss_state(state, self.losses)
        schedules = cast(Sequence[Values], checkpoint.get("lr_schedulers") or [])
        steps = lightning_compat.planned_steps(self.trainer) if schedules else 0
        checkpointing.check_schedule(schedules, self.scheduler, steps)

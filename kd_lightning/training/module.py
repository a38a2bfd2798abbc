"""The Lightning hooks that all training schemes with one student share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_lightning.data.blank import blank_batch
from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.loader import BatchLoader
from kd_lightning.data.plain import as_batch
from kd_lightning.errors import UserError
from kd_lightning.features import create_lazy_weights
from kd_lightning.losses.base import DistillLoss
from kd_lightning.metrics import TaskMetrics
from kd_lightning.outputs import Reading
from kd_lightning.randomness import reseed, run_seed
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task
from kd_lightning.teachers.base import Teacher
from kd_lightning.training import capture, checkpointing, lightning_compat
from kd_lightning.training.initial_weights import load_initial_weights
from kd_lightning.training.learner import Learner
from kd_lightning.training.learner_module import ModuleOfLearner
from kd_lightning.training.means import EpochMeans, NotFinite
from kd_lightning.training.objective import Objective, Teachers
from kd_lightning.training.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    optimize,
)
from kd_lightning.training.parameter_groups import ParameterGroup, parameters_in_groups
from kd_lightning.training.plain_loaders import data_of
from kd_lightning.training.teacher_metric import TeacherMetric
from kd_lightning.types import Batch, Inputs, Output
from kd_lightning.weights import KEY

Trains = Literal["both", "network", "losses"]


class TrainingModule(ModuleOfLearner):
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
    """

    def __init__(
        self,
        network: nn.Module,
        losses: Mapping[str, DistillLoss],
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        layers: Mapping[str, str] | None,
        init_from: str | None,
        spec: Mapping[str, object] | None,
        channels_last: bool,
        train: Trains,
        outputs: int | str | None = None,
        parameter_groups: Sequence[ParameterGroup] | None = None,
    ) -> None:
        super().__init__()
        reading = Reading(outputs, owner=f"the {self.role}", option="--model")
        self.learner = Learner(network, layers, reading=reading)
        self.objective = Objective(losses)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.init_from = init_from
        self.spec = Spec.from_dict(spec) if spec else None
        self.channels_last = channels_last
        self.trains = train
        self.parameter_groups = list(parameter_groups or [])
        self.task: Task | None = None
        self.metrics: TaskMetrics | None = None
        self.teacher_metric: TeacherMetric | None = None
        self._uses_teacher = False
        self._means = EpochMeans()
        self.capture_folder: Path | None = None
        """Where a step whose loss is not finite is written to; nowhere if `None`."""
        self.check_steps = False
        """Whether accelerators check the loss in every step, which makes each step wait."""
        self._checks_steps = False
        self._window_start = capture.WindowStart(0, 0)
        self._resumed_sums: Tensor | None = None
        self._deferred_stage: str | None = None
        self._epoch_seed: tuple[int | str, ...] = ()
        self._rank = 0
        self._datamodule_hooks: frozenset[str] = frozenset()
        checkpointing.rename_in_checkpoints(
            self, {"learner.network.": f"{self.role}.", "objective.losses.": "losses."}
        )

    # -- what users and other rooms read ----------------------------------------------------------

    @property
    def net(self) -> nn.Module:
        """The network that is trained."""
        return self.learner.network

    @property
    def losses(self) -> nn.ModuleDict:
        """The losses by name."""
        return self.objective.losses

    @property
    def learners(self) -> list[Learner]:
        """All learners that are trained, that of `net` first."""
        return [self.learner]

    @property
    def job_type(self) -> str:
        """The kind of run that this module makes, if the user does not name it."""
        return "teacher"

    @property
    def active_teacher(self) -> Teacher | None:
        """The prepared teacher; `None` if there is none."""
        return None

    def provenance(self) -> list[dict[str, object]]:
        """Where the teacher's knowledge comes from, in plain values."""
        return []

    def forward(self, inputs: Inputs) -> Tensor:
        """The network's logits at temperature 1, as in deployment."""
        return self.learner.logits(inputs)

    def keep_hyperparameters(self) -> None:
        """Store the config that LightningCLI built this module from, to build it again."""
        if lightning_compat.built_from_config():
            self.save_hyperparameters(logger=False)

    # -- before training --------------------------------------------------------------------------

    def attach(self, datamodule: DataModule, stage: str = "fit") -> None:
        """Prepare for this data: check it, load initial weights, tap layers, build adapters.

        Calling it again changes nothing.

        Args:
            datamodule: the data.
            stage: "fit", "validate", "test" or "predict".

        Raises:
            UserError: one line, before anything is trained, if something does not fit.
        """
        first = self.task is None
        if first:
            self.task = datamodule.task
            self.spec = datamodule.spec
            self.metrics = datamodule.task.metrics(self.spec)
            self.teacher_metric = TeacherMetric(
                datamodule.task.metrics(self.spec), datamodule.task.monitor
            )
            for learner in self.learners:
                learner.set_task(datamodule.task)
        assert self.task is not None
        assert self.spec is not None
        blank = blank_batch(self.spec, self.task)
        for learner in self.learners:
            create_lazy_weights(learner.network, blank.inputs, learner.name)
        if stage == "fit" and not self.objective.built:
            earlier_losses = load_initial_weights(
                self.net, self.init_from, datamodule, self.spec
            )
            self._use_initial_weights(datamodule)
            self._build_objective(blank)
            self.objective.restore(earlier_losses)
        elif self.objective.predicts and not self.objective.built:
            self._build_objective(blank)
        if first:
            for learner in self.learners:
                self._check_learner(learner, blank, datamodule, stage)
            if self.channels_last:
                self.to(memory_format=torch.channels_last)

    def _check_learner(
        self, learner: Learner, blank: Batch, datamodule: DataModule, stage: str
    ) -> None:
        assert self.spec is not None
        assert self.task is not None
        learner.check_output(blank, self.task, self.spec)
        if stage != "fit":
            return
        learner.check_training(blank, self.task, self.spec)
        if datamodule.smallest_batch() == 1:
            one = blank_batch(self.spec, self.task, samples=1)
            learner.check_single_sample(one)

    def _use_initial_weights(self, datamodule: DataModule) -> None:
        """Hook: the network has the weights that training starts from."""

    def _build_objective(self, blank: Batch) -> None:
        assert self.spec is not None
        assert self.task is not None
        teacher = self.active_teacher if self.objective.uses_teacher else None
        self._uses_teacher = teacher is not None
        self.objective.build(self.learner, teacher, blank, self.spec, self.task)

    def setup(self, stage: str) -> None:
        datamodule = lightning_compat.datamodule_of(self.trainer)
        self._datamodule_hooks = lightning_compat.overridden_batch_hooks(datamodule)
        if all(learner.is_built for learner in self.learners):
            self._attach_to_trainer(stage)
        else:
            # The Trainer calls configure_model next, which builds the network.
            self._deferred_stage = stage

    def configure_model(self) -> None:
        # Lightning calls this without a Trainer when it loads a checkpoint.
        for learner in self.learners:
            learner.build()
        if self._deferred_stage is not None:
            self._attach_to_trainer(self._deferred_stage)
            self._deferred_stage = None

    def _attach_to_trainer(self, stage: str) -> None:
        """Prepare for the Trainer's data, once the network is built."""
        datamodule = data_of(self.trainer, self.learner)
        self.attach(datamodule, stage)
        assert self.teacher_metric is not None
        self.teacher_metric.forget()
        self._join_cached_outputs(datamodule)

    def _join_cached_outputs(self, datamodule: DataModule) -> None:
        """Let the loaders add the teacher's cached outputs to the batches that need them."""
        teacher = self.active_teacher
        join = teacher.join if teacher is not None and teacher.joins else None
        for name in ("train", "validation", "test"):
            needed = self._uses_teacher or name != "train"
            if join is not None and needed:
                datamodule.joins[name] = join
            else:
                datamodule.joins.pop(name, None)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        parameters = parameters_in_groups(self._trained(), self.parameter_groups)
        return optimize(
            self.optimizer,
            self.scheduler,
            parameters,
            lambda: lightning_compat.planned_steps(self.trainer),
        )

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
        optimize(self.optimizer, self.scheduler, [placeholder], lambda: 100)

    # -- faster than Lightning's own; see lightning_compat -----------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if name == lightning_compat.CURRENT_HOOK:
            # nn.Module would first look for a parameter, a buffer and a module of that name.
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def _call_batch_hook(self, hook_name: str, *args: object) -> Batch:
        if hook_name in self._datamodule_hooks:
            return cast(Batch, super()._call_batch_hook(hook_name, *args))
        return cast(Batch, getattr(self, hook_name)(*args))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning calls the precision plugin even if nothing is clipped.
        if gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # -- batches ----------------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        batch = as_batch(batch)
        if (
            self.channels_last
            and isinstance(batch.inputs, Tensor)
            and batch.inputs.ndim == 4
        ):
            batch.inputs = batch.inputs.contiguous(memory_format=torch.channels_last)
        return batch

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        # Copies from page-locked memory run beside the kernels that are queued already.
        return as_batch(batch).to(device, non_blocking=True)

    # -- training ---------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        if not lightning_compat.resumes_within_epoch(self.trainer):
            return
        # Lightning announces no epoch that has begun already.
        self._begin_epoch()
        self._means = EpochMeans(self._resumed_sums)
        loader = self.trainer.train_dataloader
        if isinstance(loader, BatchLoader):
            loader.skip = lightning_compat.batches_done_in_epoch(self.trainer)

    def on_train_epoch_start(self) -> None:
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._means = EpochMeans()
        self.objective.begin_epoch(self.current_epoch, self.trainer.world_size)
        self._epoch_seed = (run_seed(), "step", self.current_epoch)
        self._rank = self.global_rank
        # On a CPU there is no device to wait for.
        alone_on_cpu = self.device.type == "cpu" and self.trainer.world_size == 1
        self._checks_steps = self.check_steps or alone_on_cpu

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout is a function of (seed, epoch, batch, rank), so that a resumed run draws what
        # the uninterrupted run drew.
        reseed(self.device, *self.step_seed(batch_idx))

    def step_seed(self, batch_idx: int) -> tuple[int | str, ...]:
        """What the random numbers of a step of the current epoch are a function of."""
        return (*self._epoch_seed, batch_idx, self._rank)

    @lightning_compat.with_known_signature
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # The teacher runs first: its activations are free again before the student's fill memory.
        teacher = self._teacher_output(batch) if self._uses_teacher else None
        student = self.learner(batch)
        total, terms, samples = self.objective(student, teacher, batch)
        if self._checks_steps and not math.isfinite(total.detach().item()):
            values = [term.detach().item() for term in terms]
            failed = capture.FailedStep(
                batch_idx, self.global_step, total.detach().item(), values, exact=True
            )
            capture.stop(self, failed, batch, student, teacher)
        if len(self._means) == 0:
            self._window_start = capture.WindowStart(batch_idx, self.global_step)
        self._means.add(samples, total, terms)
        return cast(Tensor, total)

    def targets(self, batch: Batch) -> Teachers:
        """What the losses of `net` learn from on this batch; `None` without a teacher."""
        return self._teacher_output(batch) if self.objective.uses_teacher else None

    def _teacher_output(self, batch: Batch) -> Output | None:
        """The teacher's output for a batch; `None` if there is no teacher."""
        teacher = self.active_teacher
        return None if teacher is None else cast(Output, teacher(batch))

    def optimizer_zero_grad(
        self, epoch: int, batch_idx: int, optimizer: Optimizer
    ) -> None:
        # Equal to optimizer.zero_grad() without its profiler entry, which takes longer than this.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def optimizer_step(self, *args: object, **kwargs: object) -> None:
        super().optimizer_step(*args, **kwargs)  # type: ignore[arg-type]
        self.after_step()

    def after_step(self) -> None:
        """Let networks and losses act after an optimizer step."""
        self.learner.after_step()
        self.objective.after_step()

    def on_train_batch_end(self, outputs: object, batch: Batch, batch_idx: int) -> None:
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
        self._close_window()  # max_steps may have cut the epoch short
        for learner in self.learners:
            self._check_weights(learner.network)
        means = self._means.compute(self.device, self.trainer.world_size > 1)
        if means is not None:
            self.log_dict(self._named_means(means))
        self._means = EpochMeans()
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])

    def _check_weights(self, network: nn.Module) -> None:
        if not all(bool(p.isfinite().all()) for p in network.parameters()):
            raise UserError(
                f"weights became infinite or NaN in epoch {self.current_epoch}; "
                "lower the learning rate"
            )

    def _named_means(self, means: Tensor) -> dict[str, Tensor]:
        """The means of an epoch's losses by the names in the logs."""
        return dict(zip(self.loss_names(), means, strict=True))

    def loss_names(self) -> list[str]:
        """The names of the losses that each epoch of training logs."""
        return ["train_loss", *(f"train_loss_{name}" for name in self.losses)]

    def metric_names(self, stage: str) -> list[str]:
        """The names of the metrics that an evaluation logs.

        Args:
            stage: "val" or "test".
        """
        assert self.task is not None
        assert self.metrics is not None
        names = []
        for name in self.metrics.names():
            if self.active_teacher is not None or not name.startswith("teacher_"):
                names.append(f"{stage}_{name}")
        if self.active_teacher is not None:
            names.append(f"{stage}_teacher_{self.task.monitor}")
        return names

    # -- evaluation -------------------------------------------------------------------------------

    def _begin_evaluation(self, stage: str) -> None:
        if self.metrics is not None and self.teacher_metric is not None:
            self.metrics.reset()
            self.teacher_metric.begin(stage)

    def on_validation_epoch_start(self) -> None:
        self._begin_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self._begin_evaluation("test")

    def _evaluate(self, batch: Batch) -> Output:
        """The student's output; the batch is added to the metrics."""
        assert self.metrics is not None
        assert self.teacher_metric is not None
        student = self.objective.predict(self.learner(batch), batch)
        if not batch.placeholder:
            teacher = self._teacher_output(batch)
            self.metrics.update(student, teacher, batch)
            self.teacher_metric.update(teacher, batch)
        return student

    def _log_metrics(self, stage: str) -> None:
        assert self.metrics is not None
        values = {}
        for name, value in self.metrics.compute().items():
            values[f"{stage}_{name}"] = value.float()
        if self.teacher_metric is not None:
            teacher = self.active_teacher
            changes = teacher is not None and teacher.learns
            values |= self.teacher_metric.finish(
                stage, whole=not self.trainer.sanity_checking and not changes
            )
        self.log_dict(values)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        assert self.task is not None
        return _without_placeholder(
            self.task.test_outputs(self._evaluate(batch), batch), batch
        )

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        assert self.task is not None
        student = self.objective.predict(self.learner(batch), batch)
        return _without_placeholder(self.task.predictions(student, batch), batch)

    # -- checkpoints ------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        datamodule = getattr(self._trainer, "datamodule", None)
        arguments = checkpointing.self_contained_arguments(self.net)
        network = checkpointing.with_arguments(self.hparams.get(self.role), arguments)
        if network is not None and arguments:
            parameters = cast(dict[str, object], checkpoint["hyper_parameters"])
            checkpoint["hyper_parameters"] = {**parameters, self.role: network}
        self._close_window()
        world_size = self._trainer.world_size if self._trainer is not None else 1
        sums = self._means.share(self.device, world_size)
        if sums is not None:
            checkpoint[checkpointing.EPOCH_SUMS] = sums  # of an unfinished epoch
        checkpoint[KEY] = checkpointing.Described(
            role=self.role,
            network=network,
            without_files=arguments,
            spec=self.spec.to_dict() if self.spec is not None else None,
            data=datamodule.checkpoint_state()
            if isinstance(datamodule, DataModule)
            else None,
            teacher=self.provenance(),
        )

    def on_load_checkpoint(self, checkpoint: dict[str, object]) -> None:
        described = cast(checkpointing.Described | None, checkpoint.get(KEY))
        if not described or described["role"] != self.role:
            raise UserError(
                f"the checkpoint is not one of a {type(self).__name__}; resume with the config "
                "that made it"
            )
        self._resumed_sums = cast(
            Tensor | None, checkpoint.get(checkpointing.EPOCH_SUMS)
        )
        if self.objective.built:
            # Training resumes: it must continue with what it began with.
            state = cast(dict[str, Tensor], checkpoint.get("state_dict") or {})
            checkpointing.check_loss_state(state, self.losses)
            schedules = cast(
                list[dict[str, object]], checkpoint.get("lr_schedulers") or []
            )
            steps = lightning_compat.planned_steps(self.trainer) if schedules else 0
            checkpointing.check_schedule(schedules, self.scheduler, steps)
        if self.task is None and described["spec"]:
            # The copy in the hyperparameters went through YAML, which reads some names as numbers.
            self.spec = Spec.from_dict(described["spec"])


def _without_placeholder(outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """No rows for a batch that stands for no samples."""
    if not batch.placeholder:
        return outputs
    return {name: tensor[:0] for name, tensor in outputs.items()}

"""Training a student on a generator's images, without the teacher's training data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.images.noise import NoiseDataModule
from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss, is_number
from kd_lightning.losses.generator.base import GeneratorLoss
from kd_lightning.randomness import hashed, run_seed
from kd_lightning.teachers.base import Teacher
from kd_lightning.training import checkpointing
from kd_lightning.training.checkpointing import Checkpoint
from kd_lightning.training.distillation import DistillationModule
from kd_lightning.training.means import EpochMeans
from kd_lightning.training.module import Trains
from kd_lightning.training.objective import Objective
from kd_lightning.training.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    default_optimizer,
    optimize,
    optimizer_of,
)
from kd_lightning.training.parameter_groups import ParameterGroup
from kd_lightning.training.split_gradients import (
    SplitOptimizer,
    average_over_processes,
)
from kd_lightning.types import Batch, Output

GENERATOR_OPTIMIZER = "kd_generator_optimizer"
"""The checkpoint's entry for the state of the generator's optimizer."""

GENERATOR_SUMS = "kd_generator_epoch_sums"
"""The checkpoint's entry for the generator's loss sums of an epoch that is not finished."""


def default_generator_optimizer(
    parameters: Iterable[nn.Parameter],
) -> torch.optim.Optimizer:
    """Adam at a rate of 0.001."""
    return torch.optim.Adam(parameters, lr=0.001)


class DataFreeModule(DistillationModule):
    """Distills on images that a generator makes of noise; `NoiseDataModule` serves the noise.

    Each `student_steps`-th batch, from the first of an epoch on, begins with a step of the
    generator. In every batch, the generator then makes images of the noise, and the student learns
    from the teacher on them. Thus the images of a batch come from the updated generator; Micaelli
    and Storkey 2019 use those of before the update.

    Optimizer, scheduler, clipping and the accumulation of gradients are those of the student. The
    generator's gradient passes through both networks, but not into their weights. A checkpoint
    holds the generator and its optimizer.

    Args:
        generator: from noise `(B, latent)` to normalized images.
        generator_losses: what the generator minimizes, by name.
        generator_optimizer: from the generator's parameters to an optimizer.
        student_steps: the student's batches per step of the generator.
        generator_clip: largest norm of the generator's gradient; `None`: any.
        generator_shift: the generator's losses see each batch of images shifted around its edges
            by up to so many pixels down and to the right, or up and to the left, at random (Yin et
            al. 2020 use 2 for CIFAR-10). 0: as they are.
        student, teacher, losses, optimizer, scheduler, layers, init_from, spec, channels_last,
            train, outputs, parameter_groups: see DistillationModule. Hard losses ignore images
            without labels.

    Raises:
        UserError: for a number out of range.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        generator: nn.Module,
        generator_losses: dict[str, GeneratorLoss],
        losses: dict[str, DistillLoss],
        optimizer: OptimizerFactory = default_optimizer,
        generator_optimizer: OptimizerFactory = default_generator_optimizer,
        scheduler: SchedulerFactory | None = None,
        student_steps: int = 5,
        generator_clip: float | None = None,
        generator_shift: int = 0,
        layers: dict[str, str] | None = None,
        init_from: str | None = None,
        spec: dict[str, Any] | None = None,
        channels_last: bool = False,
        train: Trains = "both",
        outputs: int | str | None = None,
        parameter_groups: list[ParameterGroup] | None = None,
    ) -> None:
        super().__init__(
            student=student,
            teacher=teacher,
            losses=losses,
            optimizer=optimizer,
            scheduler=scheduler,
            layers=layers,
            init_from=init_from,
            spec=spec,
            channels_last=channels_last,
            train=train,
            outputs=outputs,
            parameter_groups=parameter_groups,
        )
        if student_steps < 1:
            raise UserError(
                f"model.student_steps must be at least 1, got {student_steps}"
            )
        if generator_clip is not None and (
            not is_number(generator_clip) or generator_clip <= 0
        ):
            raise UserError(
                f"model.generator_clip must be a number greater than 0, got {generator_clip}"
            )
        if not isinstance(generator_shift, int) or generator_shift < 0:
            raise UserError(
                "model.generator_shift must be an integer of at least 0, got "
                f"{generator_shift}"
            )
        # Without a loss the generator would stay at its random weights.
        if not generator_losses:
            raise UserError(
                "model.generator_losses is empty; name at least one loss, such as "
                "kd_lightning.losses.generator.dafl.DAFL"
            )
        self.generator = generator
        # DDP must not wait for gradients of the generator in the student's steps.
        self.generator.requires_grad_(False)
        self.generator_objective = Objective(generator_losses)
        self.generator_optimizer = generator_optimizer
        self.student_steps = student_steps
        self.generator_clip = generator_clip
        self.generator_shift = generator_shift
        self._generator_optimizer: torch.optim.Optimizer | None = None
        self._generator_state: dict[str, Any] | None = None
        self._generator_means = EpochMeans()
        self._resumed_generator_sums: Tensor | None = None
        checkpointing.rename_in_checkpoints(
            self, {"generator_objective.losses.": "generator_losses."}
        )
        self.keep_hyperparameters()

    @property
    def run_in_training(self) -> list[nn.Module]:
        return [*super().run_in_training, self.generator, self.generator_objective]

    # -- before training --------------------------------------------------------------------------

    def attach(self, datamodule: DataModule, stage: str = "fit") -> None:
        if stage == "fit":
            # Real images would train the student on data that this method must not see.
            if not isinstance(datamodule, NoiseDataModule):
                raise UserError(
                    "DataFreeModule trains on noise; use "
                    "--data=kd_lightning.data.NoiseDataModule with the real data as data.data, "
                    f"not {type(datamodule).__name__}"
                )
            # A cache answers for the rows it was filled with, and a new image is no
            # such row.
            if self.teacher.joins:
                raise UserError(
                    f"DataFreeModule asks the teacher about new images, which "
                    f"{type(self.teacher).__name__} has no outputs for; use ModelTeacher"
                )
            self._check_generator(datamodule)
        super().attach(datamodule, stage)

    def _check_generator(self, datamodule: NoiseDataModule) -> None:
        """Refuse a generator that does not fit the noise or the images."""
        was_training = self.generator.training
        # In eval mode, so that the check does not move running statistics.
        self.generator.eval()
        noise = torch.zeros(2, datamodule.latent)
        # A generator without parameters runs where the noise is.
        reference = next(self.generator.parameters(), noise)
        try:
            with torch.no_grad():
                images = self.generator(noise.to(reference))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"the generator cannot read noise of {datamodule.latent} entries (data.latent): "
                f"{reason}"
            ) from error
        finally:
            self.generator.train(was_training)
        expected = datamodule.spec.input_shape
        if tuple(images.shape[1:]) != expected:
            raise UserError(
                f"the generator makes images of shape {list(images.shape[1:])}, the data has "
                f"{list(expected or ())}"
            )

    def _build_objective(self, blank: Batch) -> None:
        assert self.spec is not None
        assert self.task is not None
        self.generator_objective.build(
            self.learner, self.active_teacher, blank, self.spec, self.task
        )
        self._uses_teacher = self.objective.uses_teacher
        teacher = self.active_teacher if self._uses_teacher else None
        # Tapped last: both objectives read these layers.
        self.objective.build(
            self.learner,
            teacher,
            blank,
            self.spec,
            self.task,
            beside=self.generator_objective,
        )

    def configure_optimizers(self) -> Any:
        parameters = list(self.generator.parameters())
        # Lightning does not see this optimizer: two of them would mean manual
        # optimization, and the student's hooks, schedule and clipping would no longer
        # apply.
        configured = optimize(self.generator_optimizer, None, parameters, lambda: 0)
        self._generator_optimizer = self._checked(optimizer_of(configured))
        return super().configure_optimizers()

    def check_optimizer(self) -> None:
        super().check_optimizer()
        placeholder = nn.Parameter(torch.zeros(1))
        configured = optimize(self.generator_optimizer, None, [placeholder], lambda: 0)
        self._checked(optimizer_of(configured))

    def _checked(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        if isinstance(optimizer, SplitOptimizer):
            raise UserError(
                f"model.generator_optimizer: {type(optimizer).__name__} is for hard and soft "
                "losses; use torch.optim.Adam"
            )
        return optimizer

    # -- training ---------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        # Lightning's gradient scaler knows the student's optimizer alone.
        if self.trainer.precision == "16-mixed":
            raise UserError(
                "DataFreeModule does not scale the generator's loss, whose gradient would "
                "underflow; use --trainer.precision=bf16-mixed"
            )
        # Checkpoints are loaded before the optimizers exist, so the state waits until
        # here.
        if self._generator_state is not None:
            assert self._generator_optimizer is not None
            self._generator_optimizer.load_state_dict(self._generator_state)
            self._generator_state = None
        super().on_train_start()
        if self._resumed_generator_sums is not None:
            self._generator_means = EpochMeans(self._resumed_generator_sums)
            self._resumed_generator_sums = None

    def _begin_epoch(self) -> None:
        super()._begin_epoch()
        self._generator_means = EpochMeans()
        self.generator_objective.begin_epoch(
            self.current_epoch, self.trainer.world_size
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # One step of the generator, then `student_steps` of the student.
        if batch_idx % self.student_steps == 0:
            self._train_generator(batch, batch_idx)
        return super().training_step(self.networks_batch(batch), batch_idx)

    def networks_batch(self, batch: Batch) -> Batch:
        """The generator's images for a batch of noise, without a graph."""
        with torch.no_grad():
            return replace(batch, inputs=self.generator(batch.inputs))

    def _train_generator(self, batch: Batch, batch_idx: int) -> None:
        """One step of the generator on a batch of noise."""
        optimizer = self._generator_optimizer
        assert optimizer is not None
        # Frozen at all other times; the constructor gives the reason.
        self.generator.requires_grad_(True)
        made = self._shifted(self.generator(batch.inputs), batch_idx)
        images = replace(batch, inputs=made)
        teacher = cast(Output, self.teacher(images))
        student = self.learner(images)
        total, terms, samples = self.generator_objective(student, teacher, images)
        parameters = list(self.generator.parameters())
        # Unlike `backward`, this leaves no gradient in the student.
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        self.generator.requires_grad_(False)
        if self.trainer.world_size > 1:
            average_over_processes(gradients, self.trainer.world_size)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        if self.generator_clip is not None:
            nn.utils.clip_grad_norm_(parameters, self.generator_clip)
        optimizer.step()
        optimizer.zero_grad()
        self._generator_means.add(samples, total, terms)

    def _shifted(self, images: Tensor, batch_idx: int) -> Tensor:
        """The images of a batch, `(B, C, H, W)`, all shifted by the same random offset."""
        largest = self.generator_shift
        if largest == 0:
            return images
        # Without the rank, because the processes train one joint batch.
        parts = ("generator shift", run_seed(), self.current_epoch, batch_idx)
        draws = hashed(torch.arange(2), *parts).remainder(2 * largest + 1)
        down, right = draws.tolist()
        return images.roll((down - largest, right - largest), dims=(2, 3))

    def _close_window(self) -> None:
        super()._close_window()
        not_finite = self._generator_means.close()
        if not_finite is not None:
            raise UserError(
                f"the generator's loss became {not_finite.total} in epoch {self.current_epoch}; "
                "lower --model.generator_optimizer.lr, or set --model.generator_clip"
            )

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        joined = self.trainer.world_size > 1
        means = self._generator_means.compute(self.device, joined)
        if means is not None:
            names = ["generator_loss"]
            for name in self.generator_objective.losses:
                names.append(f"generator_loss_{name}")
            self.log_dict(dict(zip(names, means, strict=True)))
        self._generator_means = EpochMeans()

    # -- checkpoints ------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: Checkpoint) -> None:
        super().on_save_checkpoint(checkpoint)
        if self._generator_optimizer is not None:
            checkpoint[GENERATOR_OPTIMIZER] = self._generator_optimizer.state_dict()
        world_size = self._trainer.world_size if self._trainer is not None else 1
        sums = self._generator_means.share(self.device, world_size)
        if sums is not None:
            checkpoint[GENERATOR_SUMS] = sums

    def on_load_checkpoint(self, checkpoint: Checkpoint) -> None:
        super().on_load_checkpoint(checkpoint)
        state = checkpoint.get(GENERATOR_OPTIMIZER)
        self._generator_state = cast(dict[str, Any] | None, state)
        sums = checkpoint.get(GENERATOR_SUMS)
        self._resumed_generator_sums = cast(Tensor | None, sums)

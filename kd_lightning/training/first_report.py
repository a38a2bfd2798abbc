"""The first-batch report: what a run is about to do, before it does it.

A teacher that does not fit its data, or a loss that cannot act, costs nothing but a run's time and
its meaning. This callback measures both before the first step, on the validation split and on the
first training batch, and changes nothing that training depends on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import lightning.pytorch as pl
from rich.console import Console
from rich.table import Table
from torch.optim import Optimizer

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.loader import BatchLoader
from kd_lightning.errors import UserError
from kd_lightning.escaping import plain
from kd_lightning.randomness import reseed, run_seed
from kd_lightning.training import lightning_compat, report_warnings
from kd_lightning.training.loss_measurements import LossReport, measure_losses
from kd_lightning.training.measurements import TeacherReport, measure_teacher
from kd_lightning.training.module import TrainingModule
from kd_lightning.training.untouched import untouched
from kd_lightning.types import Batch
from kd_lightning.values import Value

Content: TypeAlias = "dict[str, Value]"
"""The report in plain values, as run.json stores it."""

PREFIX = "report/"
"""Of the report's values in loggers."""

HALF_PRECISIONS = ("16-mixed", "16-true", "transformer-engine-float16")
"""Precisions in which an unscaled gradient may underflow to zero."""


class FirstBatchReport(pl.Callback):
    """Measures teacher and losses before the first step, and warns of what looks wrong.

    Nothing is measured if a run resumes, or if a strategy divides the weights among processes; the
    latter is printed and stored.

    Args:
        strict: whether warnings end the run before it trains.
        show: print the tables; warnings are always printed.

    Attributes:
        content: the report; `None` before it is made.
        store: called with the content, to keep it.
    """

    def __init__(self, strict: bool = False, show: bool = True) -> None:
        self.strict = strict
        self.show = show
        self.content: Content | None = None
        self.store: Callable[[Content], None] | None = None

    def on_train_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        """Measure, store and print, unless the run resumes.

        Args:
            trainer: that is about to train.
            pl_module: attached to its data.

        Raises:
            UserError: for a warning, if the report is strict.
        """
        datamodule = getattr(trainer, "datamodule", None)
        if trainer.global_step > 0 or not isinstance(pl_module, TrainingModule):
            return
        if not isinstance(datamodule, DataModule):
            return
        # A sharded network cannot run outside of its strategy.
        if not lightning_compat.has_whole_weights(trainer):
            self._explain_absence(trainer)
            return
        report = _Report(trainer, pl_module, datamodule)
        report.measure()
        report.judge()
        self.content = report.content()
        if trainer.is_global_zero:
            report.print(self.show)
            if self.store is not None:
                self.store(self.content)
        values = report.flat()
        for logger in trainer.loggers:
            logger.log_metrics(values, step=0)
        # All processes stop, or none does: their first batches differ.
        warnings = trainer.strategy.broadcast(report.warnings)
        if self.strict and warnings:
            raise UserError(
                f"--run.strict: {'; '.join(warnings)} (--run.strict=false trains anyway)"
            )

    def _explain_absence(self, trainer: pl.Trainer) -> None:
        """Report that nothing is measured, because a strategy divides the weights."""
        name = type(trainer.strategy).__name__
        warning = (
            f"teacher and losses are not measured before training, because {name} divides the "
            "weights among devices; check them in a short run with --trainer.strategy=ddp, or on "
            "one device"
        )
        self.content = {
            "teacher": None,
            "losses": {},
            "warnings": [warning],
            "notes": [],
        }
        if trainer.is_global_zero:
            Console().print(plain(f"warning: {warning}"), soft_wrap=True)
            if self.store is not None:
                self.store(self.content)
        # A strict run must not train what nobody checked.
        if self.strict:
            raise UserError(
                f"--run.strict: {warning} (--run.strict=false trains anyway)"
            )


class _Report:
    """One report, from measuring to printing."""

    def __init__(
        self,
        trainer: pl.Trainer,
        module: TrainingModule,
        datamodule: DataModule,
    ) -> None:
        self.trainer = trainer
        self.module = module
        self.datamodule = datamodule
        self.teacher: TeacherReport | None = None
        self.losses: dict[str, LossReport] = {}
        self.warnings: list[str] = []
        self.notes: list[str] = []

    # -- measuring --------------------------------------------------------------------------------

    def measure(self) -> None:
        """Run teacher and student, and leave no trace."""
        module = self.module
        precision = self.trainer.precision_plugin
        with untouched(module.run_in_training, module.device):
            with precision.train_step_context():
                self._measure_teacher()
            batch = self._first_batch()
            if batch is None:
                return
            # The first step draws the same random numbers.
            epoch = module.current_epoch
            reseed(module.device, run_seed(), "step", epoch, 0, module.global_rank)
            gradients = self.trainer.precision not in HALF_PRECISIONS
            with precision.train_step_context():
                step = measure_losses(module, batch, gradients)
        self.losses = step.losses
        for owner in step.overwrites_inputs:
            self.warnings.append(report_warnings.about_inputs(owner))
        if step.probabilities:
            name = type(module.net).__name__
            self.warnings.append(report_warnings.about_probabilities(f"student {name}"))

    def _measure_teacher(self) -> None:
        module = self.module
        teacher = module.active_teacher
        if teacher is None or not module.objective.uses_teacher:
            return
        # A teacher that learns along with its student knows nothing yet.
        if teacher.learns:
            return
        self.notes += teacher.notes
        # A teacher of other classes has features alone.
        if not module.objective.teacher_predicts:
            return
        # Measuring a student that starts from trained weights needs eval mode.
        modes = {each: each.training for each in module.learner.modules()}
        try:
            self.teacher = measure_teacher(module, self.datamodule, self._moved)
        except UserError as error:
            # A cache need not hold the outputs for samples that are not trained on.
            self.notes.append(f"the teacher was not measured: {error}")
        for each, training in modes.items():
            each.training = training

    def _moved(self, batch: Batch) -> Batch:
        """A batch on the device and in the precision of the training."""
        moved: Batch = self.trainer.strategy.batch_to_device(batch)
        converted: Batch = self.trainer.precision_plugin.convert_input(moved)
        return converted

    def _first_batch(self) -> Batch | None:
        """The batch of the first step; the loader that trains is not advanced."""
        loader = self.trainer.train_dataloader
        if not isinstance(loader, BatchLoader):
            return None
        batches = iter(loader)
        batch = next(batches, None)
        # Ends the thread that prefetches.
        batches.close()  # type: ignore[attr-defined]
        # A process without samples takes part, too: losses may gather from all processes.
        if batch is None:
            return None
        return self._moved(batch)

    # -- judging ----------------------------------------------------------------------------------

    def judge(self) -> None:
        """Collect what looks wrong."""
        module = self.module
        if self.teacher is not None and module.task is not None:
            self.warnings += report_warnings.about_teacher(self.teacher, module.task)
        if self.losses:
            losses = dict(module.objective.named_losses())
            epochs = _planned_epochs(self.trainer)
            self.warnings += report_warnings.about_losses(self.losses, losses, epochs)
        for optimizer in self.trainer.optimizers:
            if isinstance(optimizer, Optimizer):
                self.warnings += report_warnings.about_learning_rate(optimizer)
                self.notes += report_warnings.note_on_learning_rate(
                    module.optimizer, optimizer
                )

    # -- presenting -------------------------------------------------------------------------------

    def content(self) -> Content:
        """The report in plain values."""
        losses = {}
        for name, loss in self.losses.items():
            losses[name] = {
                "value": loss.value,
                "weight": loss.weight,
                "weighted": loss.weighted,
                "gradient_norm": loss.gradient,
                "gradient_share": loss.share,
            }
        return {
            "teacher": None if self.teacher is None else _plain_teacher(self.teacher),
            "losses": losses,
            "warnings": self.warnings,
            "notes": self.notes,
        }

    def flat(self) -> dict[str, float]:
        """The report's numbers by name, for loggers."""
        values = {}
        if self.teacher is not None:
            values[f"teacher_{self.teacher.metric}"] = self.teacher.value
            if self.teacher.agreement is not None:
                values["teacher_label_agreement"] = self.teacher.agreement
            for temperature, entropy in self.teacher.entropy.items():
                values[f"teacher_entropy_T{temperature:g}"] = entropy
                values[f"teacher_top_T{temperature:g}"] = self.teacher.top[temperature]
        for name, loss in self.losses.items():
            values[f"loss_{name}"] = loss.value
            values[f"weighted_loss_{name}"] = loss.weighted
            if loss.share is not None:
                values[f"gradient_share_{name}"] = loss.share
        prefixed = {}
        for name, value in values.items():
            prefixed[f"{PREFIX}{name}"] = value
        return prefixed

    def print(self, tables: bool) -> None:
        """Print tables, notes and warnings on standard output."""
        console = Console()
        if tables and self.teacher is not None:
            console.print(_teacher_table(self.teacher))
        if tables and self.losses:
            console.print(_loss_table(self.losses))
        for note in self.notes if tables else []:
            console.print(plain(f"note: {note}"), soft_wrap=True)
        for warning in self.warnings:
            console.print(plain(f"warning: {warning}"), soft_wrap=True)


def _planned_epochs(trainer: pl.Trainer) -> float:
    """How many epochs the run trains, if nothing stops it; infinite if that is not known."""
    # -1 stands for no limit.
    limits = []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        limits.append(float(trainer.max_epochs))
    steps_per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
    if trainer.max_steps >= 0 and steps_per_epoch > 0:
        epochs = math.ceil(trainer.max_steps / steps_per_epoch)
        limits.append(float(epochs))
    return min(limits, default=math.inf)


def _plain_teacher(teacher: TeacherReport) -> Content:
    """The teacher's part of the report in plain values."""
    temperatures = {}
    for temperature, entropy in teacher.entropy.items():
        temperatures[f"{temperature:g}"] = {
            "mean_entropy": entropy,
            "mean_top_probability": teacher.top[temperature],
        }
    return {
        "split": teacher.split,
        "samples": teacher.samples,
        "metric": teacher.metric,
        "value": teacher.value,
        "student": teacher.student,
        "label_agreement": teacher.agreement,
        "temperatures": temperatures,
    }


def _teacher_table(teacher: TeacherReport) -> Table:
    title = f"teacher on {teacher.samples:,} samples of {teacher.split}"
    table = Table(title=title, title_justify="left")
    table.add_column("measure")
    table.add_column("value", justify="right")
    table.add_row(plain(teacher.metric), f"{teacher.value:.4g}")
    if teacher.student is not None:
        name = plain(f"student's {teacher.metric}")
        table.add_row(name, f"{teacher.student:.4g}")
    if teacher.agreement is not None:
        table.add_row("agreement with labels", f"{teacher.agreement:.1%}")
    for temperature, entropy in teacher.entropy.items():
        table.add_row(f"entropy at T = {temperature:g} (nats)", f"{entropy:.4g}")
        table.add_row(
            f"largest probability at T = {temperature:g}",
            f"{teacher.top[temperature]:.4g}",
        )
    return table


def _loss_table(losses: dict[str, LossReport]) -> Table:
    table = Table(title="losses on the first batch", title_justify="left")
    table.add_column("loss")
    for column in ("value", "weighted", "share of gradient"):
        table.add_column(column, justify="right")
    for name, loss in losses.items():
        share = "" if loss.share is None else f"{loss.share:.1%}"
        value = f"{loss.value:.4g}"
        weighted = f"{loss.weighted:.4g}"
        table.add_row(plain(name), value, weighted, share)
    return table

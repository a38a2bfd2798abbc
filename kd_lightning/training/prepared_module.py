"""How a Lightning module prepares for the data that the Trainer serves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from kd_lightning.data.blank import blank_batch
from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.plain import as_batch
from kd_lightning.features import create_lazy_weights
from kd_lightning.losses.base import DistillLoss
from kd_lightning.metrics import TaskMetrics
from kd_lightning.outputs import Reading
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task
from kd_lightning.teachers.base import Teacher
from kd_lightning.training import checkpointing
from kd_lightning.training.initial_weights import load_initial_weights
from kd_lightning.training.learner import Learner
from kd_lightning.training.learner_module import ModuleOfLearner
from kd_lightning.training.objective import Objective
from kd_lightning.training.plain_loaders import data_of
from kd_lightning.training.teacher_metric import TeacherMetric
from kd_lightning.types import Batch, Inputs
from kd_lightning.values import Values


class PreparedModule(ModuleOfLearner):
    """A learner and an objective that fit themselves to a datamodule.

    Neither shapes nor classes are arguments: `attach` reads them from the data, loads the initial
    weights, and lets the losses build their adapters.

    Args:
        network: any nn.Module that returns logits, or a `DeferredNetwork`.
        losses: by name.
        layers: module name for each role that a loss reads.
        init_from: checkpoint or weights file to start from.
        spec: of the data; filled in from the datamodule.
        channels_last: keep images and convolutions in that memory format.
        outputs: which entry of the network's output holds the logits.

    Attributes:
        objective: the losses.
        task: what the data asks for; `None` before `attach`, as `metrics` and `teacher_metric`.
    """

    def __init__(
        self,
        network: nn.Module,
        losses: Mapping[str, DistillLoss],
        layers: Mapping[str, str] | None,
        init_from: str | None,
        spec: Values | None,
        channels_last: bool,
        outputs: int | str | None,
    ) -> None:
        super().__init__()
        reading = Reading(outputs, owner=f"the {self.role}", option="--model")
        self.learner = Learner(network, layers, reading=reading)
        self.objective = Objective(losses)
        self.init_from = init_from
        self.spec = Spec.from_dict(spec) if spec else None
        self.channels_last = channels_last
        self.task: Task | None = None
        self.metrics: TaskMetrics | None = None
        self.teacher_metric: TeacherMetric | None = None
        self._uses_teacher = False
        self._deferred_stage: str | None = None
        checkpointing.rename_in_checkpoints(
            self, {"learner.network.": f"{self.role}.", "objective.losses.": "losses."}
        )

    # -- what users and other rooms read ----------------------------------------------------------

    @property
    def net(self) -> nn.Module:
        """The network that is trained."""
        return self.learner.network

    @property
    def learners(self) -> list[Learner]:
        """All learners that are trained, that of `net` first."""
        return [self.learner]

    @property
    def losses(self) -> nn.ModuleDict:
        """The losses by name."""
        return self.objective.losses

    @property
    def active_teacher(self) -> Teacher | None:
        """The prepared teacher; `None` if there is none."""
        return None

    def forward(self, inputs: Inputs) -> Tensor:
        """The network's logits at temperature 1, as in deployment."""
        return self.learner.logits(inputs)

    # -- preparing --------------------------------------------------------------------------------

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
            self._adopt_task(datamodule)
        assert self.task is not None
        assert self.spec is not None
        if stage == "fit":
            datamodule.class_pairs = self.objective.class_pairs
            if datamodule.class_pairs:
                datamodule.check_class_pairs()
        blank = blank_batch(self.spec, self.task)
        # Lazy layers have no weights to load or to tap before they have seen an input.
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
            # The adapters of such a loss are part of the prediction.
            self._build_objective(blank)
        if first:
            for learner in self.learners:
                self._check_learner(learner, blank, datamodule, stage)
            if self.channels_last:
                self.to(memory_format=torch.channels_last)

    def _adopt_task(self, datamodule: DataModule) -> None:
        """Take over what the data is, and create the metrics of its task."""
        task = datamodule.task
        self.task = task
        self.spec = datamodule.spec
        self.metrics = task.metrics(self.spec)
        # Metrics hold sums, so the teacher needs its own.
        teacher_metrics = task.metrics(self.spec)
        self.teacher_metric = TeacherMetric(teacher_metrics, task.monitor)
        for learner in self.learners:
            learner.set_task(task)

    def _use_initial_weights(self, datamodule: DataModule) -> None:
        """Hook: the network has the weights that training starts from."""

    def _build_objective(self, blank: Batch) -> None:
        assert self.spec is not None
        assert self.task is not None
        teacher = self.active_teacher if self.objective.uses_teacher else None
        self._uses_teacher = teacher is not None
        self.objective.build(self.learner, teacher, blank, self.spec, self.task)

    def _check_learner(
        self,
        learner: Learner,
        blank: Batch,
        datamodule: DataModule,
        stage: str,
    ) -> None:
        """Refuse a network that cannot predict this data or, for "fit", not train on it."""
        assert self.spec is not None
        assert self.task is not None
        learner.check_output(blank, self.task, self.spec)
        if stage != "fit":
            return
        learner.check_training(blank, self.task, self.spec)
        if datamodule.smallest_batch() == 1:
            single = blank_batch(self.spec, self.task, samples=1)
            learner.check_single_sample(single)

    def setup(self, stage: str) -> None:
        """Attach to the Trainer's data, unless the network has yet to be built.

        Args:
            stage: "fit", "validate", "test" or "predict".
        """
        super().setup(stage)
        if all(learner.is_built for learner in self.learners):
            self._attach_to_trainer(stage)
        else:
            # The Trainer calls configure_model next, which builds the network.
            self._deferred_stage = stage

    def configure_model(self) -> None:
        """Build a deferred network, within the strategy's context for new weights."""
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
        join = None
        if teacher is not None and teacher.joins:
            join = teacher.join
        for name in ("train", "validation", "test"):
            # Metrics compare with the teacher even if no loss reads it.
            needed = self._uses_teacher or name != "train"
            if join is not None and needed:
                datamodule.joins[name] = join
            else:
                datamodule.joins.pop(name, None)

    # -- batches ----------------------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """The batch as a `Batch`, with its images in the memory format of the network.

        Args:
            batch: as the loader yields it; plain loaders yield `(inputs, labels)`.
            dataloader_idx: of the loader, if there are several.
        """
        batch = as_batch(batch)
        inputs = batch.inputs
        if self.channels_last and isinstance(inputs, Tensor) and inputs.ndim == 4:
            batch.inputs = inputs.contiguous(memory_format=torch.channels_last)
        return batch

    def transfer_batch_to_device(
        self,
        batch: Batch,
        device: torch.device,
        dataloader_idx: int,
    ) -> Batch:
        """The batch on the device that trains.

        Args:
            batch: on any device.
            device: the module's.
            dataloader_idx: of the loader, if there are several.
        """
        # Copies from page-locked memory run beside the kernels that are queued already.
        return as_batch(batch).to(device, non_blocking=True)

"""Training a student against a frozen teacher."""

from __future__ import annotations

from typing import Any, ClassVar, Self, cast

from torch import Tensor, nn

from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.model import ModelTeacher
from kd_lightning.training.checkpointing import StateHookArgument
from kd_lightning.training.module import TrainingModule, Trains
from kd_lightning.training.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    default_optimizer,
)
from kd_lightning.training.parameter_groups import ParameterGroup


class DistillationModule(TrainingModule):
    """Trains a student on a dict of losses against a frozen teacher.

    A checkpoint holds the student and the losses' adapters, and where the teacher's weights came
    from, but never those weights, unless the teacher learns itself (`EMATeacher`). It loads, tests and predicts without the teacher; metrics that
    compare both are then left out.

    Args:
        student: any nn.Module that returns logits.
        teacher: what to learn from.
        losses: by name, the hard loss among them.
        optimizer, scheduler, init_from, spec, channels_last, train, outputs, parameter_groups,
            row_chunk: see ClassifierModule.
        layers: module name for each role, of the student's layers.
    """

    role: ClassVar[str] = "student"

    def __init__(
        self,
        student: nn.Module,
        teacher: Teacher,
        losses: dict[str, DistillLoss],
        optimizer: OptimizerFactory = default_optimizer,
        scheduler: SchedulerFactory | None = None,
        layers: dict[str, str] | None = None,
        init_from: str | None = None,
        spec: dict[str, Any] | None = None,
        channels_last: bool = False,
        train: Trains = "both",
        outputs: int | str | None = None,
        parameter_groups: list[ParameterGroup] | None = None,
        row_chunk: int | None = None,
    ) -> None:
        super().__init__(
            network=student,
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
            row_chunk=row_chunk,
        )
        self.teacher = teacher
        self.teacher_note: str | None = None
        """Why the teacher takes no part in an evaluation, if it does not."""
        self._let_teacher_follow()
        self.keep_hyperparameters()
        # The teacher's weights are large and stored elsewhere; provenance names them.
        self.register_state_dict_post_hook(self._drop_teacher)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(self._insert_teacher)  # type: ignore[no-untyped-call]

    @property
    def student(self) -> nn.Module:
        """The network that is trained."""
        return self.net

    @classmethod
    def arguments_of_loaded(cls) -> dict[str, object]:
        """A placeholder for the teacher, and the hard loss."""
        # Enough to predict and to evaluate; training on needs the teacher and the losses.
        return {"teacher": ModelTeacher(), "losses": {"ce": CrossEntropy()}}

    @property
    def learns_from_teacher(self) -> bool:
        """Whether any loss needs a teacher; none does if the student is trained alone."""
        return self.objective.uses_teacher

    @property
    def job_type(self) -> str:
        """The kind of run: "distill", or "student" if no loss needs the teacher."""
        return "distill" if self.learns_from_teacher else "student"

    @property
    def active_teacher(self) -> Teacher | None:
        """The teacher once it is prepared; `None` before."""
        if not self.teacher.ready:
            return None
        return self.teacher

    def attach(self, datamodule: DataModule, stage: str = "fit") -> None:
        """Prepare the teacher, then the student, for this data; see `PreparedModule.attach`.

        Evaluation needs no teacher: if it cannot be prepared, `teacher_note` says why.

        Args:
            datamodule: the data.
            stage: "fit", "validate", "test" or "predict".

        Raises:
            UserError: one line, before anything is trained, if something does not fit.
        """
        # A prediction needs no teacher, unless a loss predicts through an adapter that is built
        # from the teacher's layers.
        needed = stage != "predict" or self.objective.predicts
        if not self.teacher.ready and needed:
            try:
                self.teacher.prepare(datamodule)
            except UserError as error:
                if stage == "fit" and self.learns_from_teacher:
                    raise
                self.teacher_note = str(error)
        if self.row_chunk is not None and self.teacher.ready:
            self.teacher.use_row_chunk(self.row_chunk)
        super().attach(datamodule, stage)

    def _use_initial_weights(self, datamodule: DataModule) -> None:
        self._let_teacher_follow()

    def configure_model(self) -> None:
        """Build a deferred student, and tell the teacher about it."""
        if not self.learner.is_built:
            self.learner.build()
            self._let_teacher_follow()
        super().configure_model()

    def _let_teacher_follow(self) -> None:
        """Tell the teacher which student learns from it, once that is built."""
        if self.learner.is_built:
            self.teacher.follow(self.net, self.learner.layers, self.learner.reading)

    def after_step(self) -> None:
        """Let the teacher act after the student and the losses."""
        super().after_step()
        self.teacher.after_step()

    def provenance(self) -> list[dict[str, object]]:
        """Where the teacher's weights or outputs come from, in plain values."""
        return self.teacher.sources()

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let the student's weights require gradients or not; the teacher's never do.

        Args:
            requires_grad: for the student and the losses.
        """
        super().requires_grad_(requires_grad)
        self.teacher.requires_grad_(False)
        return self

    def unfreeze(self) -> Self:
        """Let the student's weights require gradients again; the teacher's never do."""
        super().unfreeze()
        self.teacher.requires_grad_(False)
        return self

    @staticmethod
    def _drop_teacher(
        module: nn.Module,
        state: dict[str, Tensor],
        prefix: str,
        *_: StateHookArgument,
    ) -> None:
        """Remove the tensors of a teacher that does not learn from a state dict."""
        if cast(Teacher, module.get_submodule("teacher")).learns:
            return
        for key in list(state):
            if key.startswith(f"{prefix}teacher."):
                del state[key]

    @staticmethod
    def _insert_teacher(
        module: nn.Module,
        state: dict[str, Tensor],
        prefix: str,
        *_: StateHookArgument,
    ) -> None:
        """Keep strict loading for the student: the live teacher's tensors fill in for those the
        file does not hold."""
        if cast(Teacher, module.get_submodule("teacher")).learns:
            return
        DistillationModule._drop_teacher(module, state, prefix)
        for key, value in module.get_submodule("teacher").state_dict().items():
            state[f"{prefix}teacher.{key}"] = value

"""Training a student against a frozen teacher."""

from __future__ import annotations

from typing import Any, ClassVar, Self, cast

from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss, Probe
from kd_lightning.teachers.base import Teacher
from kd_lightning.training.base import BaseModule
from kd_lightning.training.optimizers import OptimizerFactory, SchedulerFactory, default_optimizer
from kd_lightning.types import Batch, Output


class DistillationModule(BaseModule):
    """Trains a student on a dict of losses against a frozen teacher.

    The checkpoint holds the student and the losses' adapters, never the teacher's weights: only where they came from. It
    loads, tests and predicts without the teacher; what compares both is then left out.

    Args:
        student: any nn.Module that returns logits `(B, K)`.
        teacher: what to learn from.
        losses: by name, the hard loss among them.
        optimizer, scheduler, layers, init_from, spec, channels_last: see ClassifierModule; layers are the student's.
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
    ) -> None:
        super().__init__(
            student, losses, optimizer, scheduler, layers, init_from, spec, channels_last
        )
        self.teacher = teacher
        self.teacher_note: str | None = None
        """Why the teacher takes no part in an evaluation, where it does not."""
        self.keep_hyperparameters()
        self.register_state_dict_post_hook(self._drop_teacher)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(self._keep_teacher)  # type: ignore[no-untyped-call]

    def attach(self, datamodule: Any, stage: str = "fit") -> None:
        if not self.teacher.ready and stage != "predict":
            try:
                self.teacher.prepare(datamodule)
            except UserError as error:
                if stage == "fit" and self.learns_from_teacher:
                    raise
                self.teacher_note = str(error)
        super().attach(datamodule, stage)

    @property
    def learns_from_teacher(self) -> bool:
        """Whether any loss asks for a teacher; none does where the student is trained alone, for comparison."""
        return any(cast(DistillLoss, loss).uses_teacher for loss in self.losses.values())

    def _teacher_probe(self, datamodule: Any, roles: set[str]) -> Probe | None:
        if not self.learns_from_teacher:
            return None
        modules = self.teacher.tap(roles)
        for name, loss in self.losses.items():
            if (
                "all teacher logits" in cast(DistillLoss, loss).needs
                and not self.teacher.exact_logits
            ):
                raise UserError(
                    f"the loss {name!r} needs every logit of the teacher; a top-k cache holds a part of them"
                )
        try:
            output = self.teacher.probe(self._blank_batch())
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the teacher cannot read inputs of shape {datamodule.spec['input_shape']}: {error}"
            ) from error
        if output.logits.shape != (2, datamodule.spec["num_classes"]):
            shape, known = list(output.logits.shape[1:]), datamodule.spec["num_classes"]
            raise UserError(
                f"the teacher gives outputs of shape {shape} a sample; the data has {known} classes"
            )
        return Probe(output, modules, datamodule.spec)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        super().requires_grad_(requires_grad)
        self.teacher.requires_grad_(False)
        return self

    def unfreeze(self) -> Self:
        super().unfreeze()
        self.teacher.requires_grad_(False)
        return self

    def teach(self, batch: Batch) -> Output | None:
        teacher = self.teacher
        return teacher(batch) if teacher.ready else None

    def provenance(self) -> list[dict[str, Any]]:
        return self.teacher.sources()

    @staticmethod
    def _drop_teacher(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for key in [k for k in state if k.startswith(f"{prefix}teacher.")]:
            del state[key]

    @staticmethod
    def _keep_teacher(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Strict loading stays on for the student: the live teacher's own tensors stand in for those the file leaves out."""
        for key in [k for k in state if k.startswith(f"{prefix}teacher.")]:
            del state[key]
        teacher = module.get_submodule("teacher").state_dict()
        state.update({f"{prefix}teacher.{key}": value for key, value in teacher.items()})

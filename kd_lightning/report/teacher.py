"""The teacher's outputs for the test samples of a run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.export.student import TrainedStudent
from kd_lightning.runs.predictions import Outputs, join_batches
from kd_lightning.tasks import Classification
from kd_lightning.teachers.base import Teacher
from kd_lightning.training.distillation import DistillationModule


@dataclass(frozen=True)
class TeacherOutputs:
    """What a teacher returns for all test samples, in the order of `index`.

    Attributes:
        stored: what the task would store of the teacher's own test: tensors `(N, ...)`.
        temperature: T of the soft targets.
        soft_targets: the teacher's distributions at T, `(N, K)`; None if a sample has
            many positions.
    """

    stored: dict[str, Tensor]
    temperature: float
    soft_targets: Tensor | None


def teacher_outputs(student: TrainedStudent, temperature: float) -> TeacherOutputs:
    """Run the teacher of a run on its test samples.

    Args:
        student: the run, built again.
        temperature: T of the soft targets.

    Raises:
        UserError: if the run has no teacher, or if its outputs are not available.
    """
    teacher = _prepared_teacher(student)
    datamodule = student.datamodule
    loader = datamodule.loader("test")
    # A cached teacher's outputs come with the batches.
    loader.join = teacher.join if teacher.joins else None
    classifies = isinstance(datamodule.task, Classification)
    # A distribution for each pixel or token would fill the memory.
    stored: list[Outputs] = []
    targets: list[Outputs] = []
    with torch.no_grad():
        for batch in loader:
            output = teacher(batch)
            # In the form of the student's test, so that both can be compared.
            outputs = datamodule.task.test_outputs(output, batch)
            stored.append(outputs)
            if classifies:
                probs = output.log_probs(temperature).exp()
                targets.append({"index": batch.index, "probs": probs})
    if not stored:
        raise UserError("the data has no test samples")
    soft_targets = join_batches(targets)["probs"] if targets else None
    return TeacherOutputs(join_batches(stored), temperature, soft_targets)


def _prepared_teacher(student: TrainedStudent) -> Teacher:
    """The teacher of a run, ready to be asked."""
    module = student.module
    if not isinstance(module, DistillationModule):
        raise UserError("the run has no teacher")
    teacher = module.teacher
    if teacher.learns:
        raise UserError(
            "this teacher learns with the student, and no file holds its weights alone"
        )
    alone = UserError("no loss of the run reads a teacher")
    try:
        if not teacher.ready:
            teacher.prepare(student.datamodule)
    except UserError:
        if module.learns_from_teacher:
            raise
        raise alone from None
    # A student that learns alone may be compared with a teacher, but not a random one.
    if not module.learns_from_teacher and not module.provenance():
        raise alone
    return teacher

"""The weighted sum of several losses, with schedules and correct means across processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss, Probe, weight_of
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task
from kd_lightning.teachers.base import Teacher
from kd_lightning.training.learner import Learner
from kd_lightning.types import Batch, Output


class ObjectiveValue(NamedTuple):
    """The value of an Objective for one batch.

    Attributes:
        total: the weighted sum of all losses, a scalar with a graph.
        terms: each loss unweighted, in the order of the objective's losses.
        samples: how many samples the terms are a mean over. With several processes: the samples of
            all of them divided by the number of processes.
    """

    total: Tensor
    terms: list[Tensor]
    samples: Tensor | float


class Objective(nn.Module):
    """Losses by name; `objective(student, teacher, batch)` returns their weighted total.

    Plain torch: it works in a Lightning module and in a loop of your own. Call `build` once before
    the optimizer is created, since losses may have adapters that train with the student, and
    `begin_epoch` before every epoch.

    Args:
        losses: by name; at least one.

    Raises:
        UserError: if there is no loss.
    """

    def __init__(self, losses: Mapping[str, DistillLoss]) -> None:
        super().__init__()
        if not losses:
            raise UserError(
                "model.losses is empty; name at least one loss (`kd list methods` shows them)"
            )
        self.losses = nn.ModuleDict(dict(losses))
        self.built = False
        self._early_state: dict[str, Tensor] = {}
        self._weighted: list[tuple[DistillLoss, float]] = []
        self._world_size = 1
        self._after_step = _overriding(self.named_losses(), "after_step")
        self._predicting = _overriding(self.named_losses(), "predict")
        self.register_load_state_dict_pre_hook(self._hold_early_state)  # type: ignore[no-untyped-call]

    def named_losses(self) -> list[tuple[str, DistillLoss]]:
        """The losses with their names, in order."""
        return [(name, cast(DistillLoss, loss)) for name, loss in self.losses.items()]

    @property
    def uses_teacher(self) -> bool:
        """Whether any loss needs a teacher."""
        return any(loss.uses_teacher for _, loss in self.named_losses())

    @property
    def predicts(self) -> bool:
        """Whether a loss changes what the student predicts, so that evaluation needs its adapters."""
        return bool(self._predicting)

    # -- before training --------------------------------------------------------------------------

    def build(
        self,
        learner: Learner,
        teacher: Teacher | None,
        blank: Batch,
        spec: Spec,
        task: Task,
    ) -> None:
        """Tap the layers that losses read, and let losses create their adapters.

        Args:
            learner: the student.
            teacher: prepared; `None` if there is none, or if no loss uses it.
            blank: a batch of the data's shapes; see `blank_batch`.
            spec: of the data.
            task: what is predicted.

        Raises:
            UserError: if the teacher does not fit the data, or if a loss needs a teacher or a layer that there is none of.
        """
        teacher_probe = None
        if teacher is not None:
            teacher_probe = self._probe_teacher(teacher, blank, spec, task)
        student_roles: set[str] = set()
        for _, loss in self.named_losses():
            student_roles |= loss.student_roles
        modules = learner.tap(student_roles)
        student_probe = Probe(learner.probe(blank), spec=spec, modules=modules)
        for name, loss in self.named_losses():
            if loss.compares_classes and student_probe.output.logits.shape[-1] == 1:
                # If the data has several classes, the network is at fault and not the loss.
                learner.check_output(blank, task, spec)
                raise UserError(
                    f"the loss {name!r} compares distributions over classes, but the data "
                    f"{spec.data} is for {spec.task}; use TargetMSE for the labels and LogitMSE "
                    "for the teacher's values"
                )
            if loss.uses_teacher and teacher_probe is None:
                raise UserError(
                    f"the loss {name!r} needs a teacher; use DistillationModule with model.teacher"
                )
            loss.build(student_probe, teacher_probe)
        self.built = True
        if self._early_state:
            self.losses.load_state_dict(
                {**self.losses.state_dict(), **self._early_state}
            )
            self._early_state = {}

    def _probe_teacher(
        self, teacher: Teacher, blank: Batch, spec: Spec, task: Task
    ) -> Probe:
        roles: set[str] = set()
        for name, loss in self.named_losses():
            roles |= loss.teacher_roles
            if loss.exact_logits and not teacher.exact_logits:
                raise UserError(
                    f"the loss {name!r} needs every logit of the teacher; a top-k cache stores "
                    "only some of them"
                )
            teacher.require_temperatures(loss.teacher_temperatures)
        modules = teacher.tap(roles)
        output = teacher.probe(blank)
        problem = task.output_problem("the teacher", output.logits, spec)
        if problem is not None:
            raise UserError(problem)
        return Probe(output, spec=spec, modules=modules)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue with the adapters of losses of the same name, if their shapes fit.

        Args:
            state: of an earlier stage's losses, as `losses.state_dict()` returned it.
        """
        own = self.losses.state_dict()
        for name, _ in self.named_losses():
            keys = [key for key in own if key.startswith(f"{name}.")]
            fits = all(
                key in state and state[key].shape == own[key].shape for key in keys
            )
            if keys and fits:
                for key in keys:
                    own[key] = state[key]
        self.losses.load_state_dict(own)

    def _hold_early_state(
        self, module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object
    ) -> None:
        """Keep the state of adapters that do not exist yet: they are built when the data is known."""
        if self.built:
            return
        own = {f"{prefix}losses.{key}" for key in self.losses.state_dict()}
        for key in list(state):
            if key.startswith(f"{prefix}losses.") and key not in own:
                self._early_state[key.removeprefix(f"{prefix}losses.")] = state.pop(key)

    # -- training ---------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int, world_size: int = 1) -> None:
        """Set the weights of an epoch (from 0), and the number of processes that train together."""
        self._world_size = world_size
        self._weighted = []
        for _, loss in self.named_losses():
            loss.on_epoch_start(epoch)
            self._weighted.append((loss, loss.weight_at(epoch)))

    def forward(
        self, student: Output, teacher: Output | None, batch: Batch
    ) -> ObjectiveValue:
        """The weighted total of all losses, and each loss by itself."""
        terms = [loss(student, teacher, batch) for loss, _ in self._weighted]
        samples: Tensor | float = len(batch)
        if self._world_size > 1:
            samples, terms = self._joined(batch, terms)
        assert terms, "call begin_epoch before the first step"
        weights = [weight for _, weight in self._weighted]
        first, *others = [
            weight * term for weight, term in zip(weights, terms, strict=True)
        ]
        return ObjectiveValue(sum(others, first), terms, samples)

    def _joined(self, batch: Batch, terms: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Scale each process's losses so that their mean over processes is the joined batch's.

        The same holds for the gradients, of which DDP takes the mean.

        Returns:
            The samples of the joined batch divided by the number of processes; the scaled losses.
        """
        own = [weight_of(loss.mean_over, batch) for loss, _ in self._weighted]
        counts = torch.stack([weight_of("samples", batch), *own])
        joint = counts.clone()
        torch.distributed.all_reduce(joint)
        scales = counts[1:] * self._world_size / joint[1:].clamp(min=1)
        scaled = [term * scale for term, scale in zip(terms, scales, strict=True)]
        return joint[0] / self._world_size, scaled

    def predict(self, student: Output, batch: Batch) -> Output:
        """The student's prediction in evaluation; a loss may predict through its adapter."""
        for loss in self._predicting:
            student = loss.predict(student, batch)
        return student

    def after_step(self) -> None:
        """Let losses act after an optimizer step."""
        for loss in self._after_step:
            loss.after_step()


def _overriding(losses: list[tuple[str, DistillLoss]], hook: str) -> list[DistillLoss]:
    """The losses whose class implements an optional hook, so that the others cost nothing."""
    base = getattr(DistillLoss, hook)
    return [loss for _, loss in losses if getattr(type(loss), hook) is not base]

"""The weighted sum of several losses, with schedules and correct means across processes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss, Probe
from kd_lightning.row_chunks import first_rows
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task
from kd_lightning.teachers.base import Teacher
from kd_lightning.training.checkpointing import StateHookArgument
from kd_lightning.training.learner import Learner
from kd_lightning.training.loss_values import Teachers as Teachers
from kd_lightning.training.loss_values import loss_values
from kd_lightning.types import Batch, Output, Window, weight_of

_SMALLEST_WEIGHT = 1e-9
"""Less than the mean number of terms of any window that has some."""


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
        self.teacher_predicts = True
        """Whether the teacher predicts the data's classes, so that metrics can compare with it."""
        self._early_state: dict[str, Tensor] = {}
        self._weighted: list[tuple[DistillLoss, float]] = []
        self._world_size = 1
        self._after_step = _overriding(self.named_losses(), "after_step")
        self._predicting = _overriding(self.named_losses(), "predict")
        self.register_load_state_dict_pre_hook(self._hold_early_state)  # type: ignore[no-untyped-call]

    def named_losses(self) -> list[tuple[str, DistillLoss]]:
        """The losses with their names, in order."""
        named = []
        for name, loss in self.losses.items():
            named.append((name, cast(DistillLoss, loss)))
        return named

    @property
    def uses_teacher(self) -> bool:
        """Whether any loss needs a teacher."""
        return any(loss.uses_teacher for _, loss in self.named_losses())

    @property
    def needs_teacher_classes(self) -> bool:
        """Whether any loss needs a teacher that predicts the data's classes."""
        return any(loss.needs_teacher_classes for _, loss in self.named_losses())

    @property
    def class_pairs(self) -> bool:
        """Whether any loss compares each sample with another one of its class."""
        return any(loss.class_pairs for _, loss in self.named_losses())

    @property
    def student_roles(self) -> set[str]:
        """Roles of the student's layers that the losses read."""
        roles: set[str] = set()
        for _, loss in self.named_losses():
            roles |= loss.student_roles
        return roles

    @property
    def teacher_roles(self) -> set[str]:
        """Roles of the teacher's layers that the losses read."""
        roles: set[str] = set()
        for _, loss in self.named_losses():
            roles |= loss.teacher_roles
        return roles

    def names_by_kind(self) -> tuple[list[str], list[str]]:
        """The names of the hard losses, which need no teacher, and of the soft ones."""
        hard: list[str] = []
        soft: list[str] = []
        for name, loss in self.named_losses():
            kind = soft if loss.uses_teacher else hard
            kind.append(name)
        return hard, soft

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
        beside: Objective | None = None,
        other_teachers: Sequence[Teacher] = (),
    ) -> None:
        """Tap the layers that losses read, and let losses create their adapters.

        Args:
            learner: the student.
            teacher: prepared; `None` if there is none, or if no loss uses it.
            blank: a batch of the data's shapes; see `blank_batch`.
            spec: of the data.
            task: what is predicted.
            beside: another objective on the same networks, whose layers must be tapped, too.
            other_teachers: further teachers, if the student learns from several at once.

        Raises:
            UserError: if a teacher does not fit the data, or if a loss needs a teacher or a layer
                that there is none of, or has adapters for one teacher and there are several.
        """
        student_roles = self.student_roles
        teacher_roles = self.teacher_roles
        if beside is not None:
            student_roles |= beside.student_roles
            teacher_roles |= beside.teacher_roles
        teacher_probe = None
        if teacher is not None:
            self._check_teacher(teacher)
            teacher_probe = self._probe_teacher(
                teacher, teacher_roles, blank, spec, task
            )
        modules = learner.tap(student_roles)
        student_probe = Probe(learner.probe(blank), spec=spec, modules=modules)
        for other in other_teachers:
            self._check_teacher(other)
            other_probe = self._probe_teacher(other, teacher_roles, blank, spec, task)
            self._check_other_teacher(student_probe, other_probe)
        one_logit = student_probe.output.logits.shape[-1] == 1
        if one_logit and any(loss.compares_classes for _, loss in self.named_losses()):
            # If the data has several classes, the network is at fault and not the loss.
            learner.check_output(blank, task, spec)
        for name, loss in self.named_losses():
            _check_needs(name, loss, student_probe, teacher_probe, spec)
            loss.build(student_probe, teacher_probe)
            # An adapter, or a memory of outputs, belongs to one teacher's layers.
            if other_teachers and loss.uses_teacher and loss.state_dict():
                raise UserError(
                    f"the loss {name!r} has adapters or a memory for one teacher, but here the "
                    f"student has {1 + len(other_teachers)}; use a loss on logits such as KD, or "
                    "one teacher"
                )
        self.built = True
        if self._early_state:
            # A checkpoint was loaded before the adapters existed.
            state = {**self.losses.state_dict(), **self._early_state}
            self.losses.load_state_dict(state)
            self._early_state = {}

    def _check_teacher(self, teacher: Teacher) -> None:
        """Refuse a teacher that does not give what the losses need."""
        for name, loss in self.named_losses():
            if loss.exact_logits and not teacher.exact_logits:
                raise UserError(
                    f"the loss {name!r} needs every logit of the teacher; a top-k cache stores "
                    "only some of them"
                )
            teacher.require_temperatures(loss.teacher_temperatures)

    def _probe_teacher(
        self,
        teacher: Teacher,
        roles: set[str],
        blank: Batch,
        spec: Spec,
        task: Task,
    ) -> Probe:
        """Tap the teacher's layers of these roles, run it once, and check its output.

        Raises:
            UserError: if a loss needs the teacher's predictions and they are not of the data's
                classes.
        """
        modules = teacher.tap(roles)
        output = first_rows(teacher.probe(blank))
        problem = task.output_problem("the teacher", output.logits, spec)
        if problem is None and not teacher.predicts:
            problem = (
                "the teacher has features_only and may know other classes, but a loss reads its "
                "predictions; set features_only to false, or use a loss on features"
            )
        if problem is not None and self.needs_teacher_classes:
            raise UserError(problem)
        self.teacher_predicts = problem is None
        return Probe(output, spec=spec, modules=modules)

    def _check_other_teacher(self, student: Probe, teacher: Probe) -> None:
        """Let each loss compare its shapes with those of a further teacher.

        Raises:
            UserError: if the teacher does not fit the loss.
        """
        for _, loss in self.named_losses():
            if loss.uses_teacher:
                # A copy: the loss itself is built once, for the first teacher.
                copy.deepcopy(loss).build(student, teacher)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue with the adapters of losses of the same name, if their shapes fit.

        Args:
            state: of an earlier stage's losses, as `losses.state_dict()` returned it.
        """
        own = self.losses.state_dict()
        for name, _ in self.named_losses():
            keys = [key for key in own if key.startswith(f"{name}.")]
            # All tensors of a loss, or none: half of an adapter is of no use.
            if all(_fits(state, own, key) for key in keys):
                own |= {key: state[key] for key in keys}
        self.losses.load_state_dict(own)

    def _hold_early_state(
        self,
        module: nn.Module,
        state: dict[str, Tensor],
        prefix: str,
        *_: StateHookArgument,
    ) -> None:
        """Keep the state of adapters that do not exist yet: `build` creates and fills them."""
        if self.built:
            return
        own = self.losses.state_dict()
        for key in list(state):
            if not key.startswith(f"{prefix}losses."):
                continue
            name = key.removeprefix(f"{prefix}losses.")
            # A strict load would refuse keys of tensors that do not exist.
            if name not in own:
                self._early_state[name] = state.pop(key)

    # -- training ---------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int, world_size: int = 1) -> None:
        """Set the weights of the losses for an epoch.

        Args:
            epoch: from 0.
            world_size: the number of processes that train together.
        """
        self._world_size = world_size
        self._weighted = []
        for _, loss in self.named_losses():
            loss.on_epoch_start(epoch)
            self._weighted.append((loss, loss.weight_at(epoch)))

    def forward(
        self, student: Output, teacher: Teachers, batch: Batch
    ) -> ObjectiveValue:
        """The weighted total of all losses, and each loss by itself.

        Args:
            student: with logits `(N, K)`.
            teacher: with logits `(N, K)`; `None` if there is none. With several teachers, each
                loss that reads a teacher is its mean over them.
            batch: of both.
        """
        losses = [loss for loss, _ in self._weighted]
        terms = loss_values(losses, student, teacher, batch)
        samples: Tensor | float = len(batch)
        if self._world_size > 1:
            samples, terms = self._joined(batch, terms)
        elif batch.window is not None:
            terms = self._accumulated(batch, batch.window, terms)
        assert terms, "call begin_epoch before the first step"
        weighted = []
        for (_, weight), term in zip(self._weighted, terms, strict=True):
            weighted.append(weight * term)
        # From the first term on, because 0 + tensor would be one more kernel and graph node.
        first, *others = weighted
        total = sum(others, first)
        return ObjectiveValue(total, terms, samples)

    def _joined(self, batch: Batch, terms: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Scale each process's losses so that their mean over processes is the joined batch's.

        The same holds for the gradients, of which DDP takes the mean.

        Returns:
            The samples of the joined batch divided by the number of processes; the scaled losses.
        """
        # Of what each loss takes the mean: rows, labels or samples.
        own = [weight_of(loss.mean_over, batch) for loss, _ in self._weighted]
        counts = torch.stack([weight_of("samples", batch), *own])
        joint = counts.clone()
        if batch.window is not None:
            # The mean batch of a window stands for each of its batches.
            joint = joint.float()
            for position, (loss, _) in enumerate(self._weighted, start=1):
                joint[position] = batch.window.mean_weight(loss.mean_over)
        torch.distributed.all_reduce(joint)
        # A mean over n of all N terms counts n / N; times the number of processes, because DDP
        # divides the sum of gradients by it.
        own_counts = counts[1:] * self._world_size
        smallest = 1 if batch.window is None else _SMALLEST_WEIGHT
        scales = own_counts / joint[1:].clamp(min=smallest)
        scaled = []
        for term, scale in zip(terms, scales, strict=True):
            scaled.append(term * scale)
        samples = joint[0] / self._world_size
        return samples, scaled

    def _accumulated(
        self, batch: Batch, window: Window, terms: list[Tensor]
    ) -> list[Tensor]:
        """Scale the losses of a batch so that their mean over its window is that of all terms.

        Lightning divides each gradient by the number of batches in a window.
        """
        scaled = []
        for (loss, _), term in zip(self._weighted, terms, strict=True):
            own = weight_of(loss.mean_over, batch)
            mean_weight = max(window.mean_weight(loss.mean_over), _SMALLEST_WEIGHT)
            scaled.append(term * (own / mean_weight))
        return scaled

    def split(self, terms: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The terms of hard losses and those of soft ones, without losses of weight zero.

        Args:
            terms: of an `ObjectiveValue` of the current epoch.
        """
        hard: list[Tensor] = []
        soft: list[Tensor] = []
        for (loss, weight), term in zip(self._weighted, terms, strict=True):
            if weight == 0:
                continue
            kind = soft if loss.uses_teacher else hard
            kind.append(term)
        return hard, soft

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
    overriding = []
    for _, loss in losses:
        if getattr(type(loss), hook) is not base:
            overriding.append(loss)
    return overriding


def _fits(state: Mapping[str, Tensor], own: Mapping[str, Tensor], key: str) -> bool:
    """Whether an earlier state has a tensor of the same name and shape."""
    if key not in state:
        return False
    return state[key].shape == own[key].shape


def _check_needs(
    name: str, loss: DistillLoss, student: Probe, teacher: Probe | None, spec: Spec
) -> None:
    """Refuse a loss that the data or a missing teacher cannot serve."""
    if loss.compares_classes and student.output.logits.shape[-1] == 1:
        raise UserError(
            f"the loss {name!r} compares distributions over classes, but the data "
            f"{spec.data} is for {spec.task}; use TargetMSE for the labels and LogitMSE "
            "for the teacher's values"
        )
    if loss.uses_teacher and teacher is None:
        raise UserError(
            f"the loss {name!r} needs a teacher; use DistillationModule with model.teacher"
        )

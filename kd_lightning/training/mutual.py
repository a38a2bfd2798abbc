"""Training several students that teach each other: deep mutual learning, Zhang et al. 2018."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.training import lightning_compat
from kd_lightning.training.faults import find_fault
from kd_lightning.training.means import NotFinite
from kd_lightning.training.module import Closure, Trains
from kd_lightning.training.objective import ObjectiveValue, Teachers
from kd_lightning.training.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    default_optimizer,
)
from kd_lightning.training.parameter_groups import ParameterGroup
from kd_lightning.training.peer import Peer as Peer  # importable from here, too
from kd_lightning.training.split_gradients import SplitOptimizer
from kd_lightning.training.students import StudentsModule
from kd_lightning.types import Batch, Output

Update = Literal["in turn", "together"]


class MutualModule(StudentsModule):
    r"""Trains n students together, each on labels and on the predictions of its n - 1 peers.

    Student k minimizes its own losses, in which each loss on a teacher is the mean over the peers.
    With `CrossEntropy` and `KD(temperature=1)` that is the paper's
    $\mathrm{CE}_k + \frac{1}{n-1} \sum_{l \ne k} \mathrm{KL}(p_l \,\|\, p_k)$ (Zhang et al. 2018,
    equations 2 to 8). No gradient flows into a peer. Every student has its own copy of the losses,
    so that adapters are its own; with three or more students, losses with adapters are refused.

    `update="in turn"` is the paper's algorithm 1: on each batch the students take their steps one
    after another, and a student's predictions are computed again once it has moved. This takes
    3n - 2 forward passes, n of them with gradients, one graph at a time. `"together"` computes n
    passes once, and all students take their step at the same moment. Several devices need
    `--trainer.strategy=ddp_find_unused_parameters_true` in turn, and nothing together.

    One optimizer object holds the parameters of all students, and its schedule counts batches. A
    parameter without a gradient keeps its momentum untouched, so the steps are those of one
    optimizer per student for every optimizer that treats parameters one by one (SGD, Adam, AdamW).
    Gradient clipping is per student.

    Metrics, losses, the monitored metric, `best.ckpt`, predictions and the exported network are
    those of `student`. The others are logged as `val_peer1_accuracy`, `train_peer1_loss_kd`, ...,
    and the checkpoint holds them as `peers.0.*`, `peers.1.*`, ...

    Args:
        student: the first student, any nn.Module that returns logits.
        peers: the others, at least one. They may be different networks.
        losses: by name; each student gets a copy.
        optimizer, scheduler, spec, channels_last, train, outputs, parameter_groups: see
            ClassifierModule. They hold for every student.
        layers: module name for each role, of the student's layers.
        peer_layers: the same for each peer; by default those of the student.
        init_from: of the first student.
        update: "in turn" or "together".

    Raises:
        UserError: if there is no peer, or an argument does not fit.
    """

    role: ClassVar[str] = "student"
    paper: ClassVar[str] = "Zhang et al. 2018, arXiv 1706.00384"
    year: ClassVar[int] = 2018

    def __init__(
        self,
        student: nn.Module,
        peers: list[nn.Module],
        losses: dict[str, DistillLoss],
        optimizer: OptimizerFactory = default_optimizer,
        scheduler: SchedulerFactory | None = None,
        layers: dict[str, str] | None = None,
        peer_layers: list[dict[str, str]] | None = None,
        init_from: str | None = None,
        spec: dict[str, Any] | None = None,
        channels_last: bool = False,
        train: Trains = "both",
        outputs: int | str | None = None,
        parameter_groups: list[ParameterGroup] | None = None,
        update: Update = "in turn",
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
        )
        if not peers:
            raise UserError(
                "mutual learning needs at least two students; name the others in model.peers"
            )
        if update not in get_args(Update):
            raise UserError(
                f"model.update must be 'in turn' or 'together', got {update!r}"
            )
        all_layers = peer_layers or [dict(layers or {})] * len(peers)
        if len(all_layers) != len(peers):
            raise UserError(
                f"model.peer_layers has {len(all_layers)} entries for {len(peers)} peers; give one "
                "per peer"
            )
        self.update = update
        self.add_peers(peers, all_layers, losses, outputs)
        # The student whose turn it is, and what its peers predict for the batch.
        self._turn = 0
        self._predictions: dict[int, Output] = {}
        self._values: list[ObjectiveValue] = []
        self.keep_hyperparameters()

    @property
    def job_type(self) -> str:
        return "distill"

    @classmethod
    def arguments_of_loaded(cls) -> dict[str, object]:
        return {"losses": {"ce": CrossEntropy()}}

    # -- training ---------------------------------------------------------------------------------

    def _check_kind_of_optimizer(self, optimizer: Optimizer) -> None:
        # Such an optimizer keeps the hard and soft gradients of one objective.
        if isinstance(optimizer, SplitOptimizer):
            raise UserError(
                f"model.optimizer: {type(optimizer).__name__} updates one student, and "
                "MutualModule trains several; use torch.optim.SGD"
            )
        super()._check_kind_of_optimizer(optimizer)

    def targets(self, batch: Batch) -> Teachers:
        if not self._uses_teacher:
            return None
        return tuple(teacher(batch) for teacher in self._teachers[1:])

    def _begin_epoch(self) -> None:
        super()._begin_epoch()
        for objective in self.objectives[1:]:
            objective.begin_epoch(self.current_epoch, self.trainer.world_size)
        # Each student's step ends the batch, so there is nothing to accumulate over.
        if self.update == "in turn" and self.trainer.accumulate_grad_batches != 1:
            raise UserError(
                "students that are updated in turn cannot accumulate gradients; set "
                "--model.update=together, or --trainer.accumulate_grad_batches=1"
            )

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Closure | None = None,
    ) -> None:
        """Update the students together, or one after another.

        Args:
            epoch: of the training, from 0.
            batch_idx: of the batch in its epoch.
            optimizer: of all students.
            optimizer_closure: computes the loss and its gradients.
        """
        # Each step runs training_step for the student whose turn it is. The others have no
        # gradients then, and optimizers skip parameters without one.
        turns = len(self.learners) if self.update == "in turn" else 1
        for turn in range(turns):
            self._turn = turn
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def after_step(self) -> None:
        if self.update == "in turn":
            moved = [self._turn]
        else:
            moved = list(range(len(self.learners)))
        for number in moved:
            self.learners[number].after_step()
            self.objectives[number].after_step()

    @lightning_compat.with_known_signature
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.update == "together":
            return self._step_together(batch)
        if self._turn == 0:
            self._values = []
        self._predict_for_turn(batch)
        student: Output = self.learners[self._turn](batch)
        value = self._value(self._turn, student, batch)
        if len(self._values) == len(self.learners):
            self._note_values()
            self._predictions = {}
        return value.total

    def _predict_for_turn(self, batch: Batch) -> None:
        """Predict what the student of this turn learns from; peers that did not move are known."""
        if not self._uses_teacher:
            return
        if self._turn == 0:
            changed = list(range(1, len(self.learners)))
        else:
            changed = [self._turn - 1]
        for number in changed:
            self._predictions[number] = self._teachers[number](batch)

    def _step_together(self, batch: Batch) -> Tensor:
        """The sum of all students' losses: each parameter is in one of them."""
        self._values = []
        # All predictions come before the first step, so that each student serves as a
        # teacher as it is.
        outputs: list[Output] = [learner(batch) for learner in self.learners]
        if self._uses_teacher:
            for number, output in enumerate(outputs):
                self._predictions[number] = output.detached()
        totals = []
        for number, output in enumerate(outputs):
            totals.append(self._value(number, output, batch).total)
        self._note_values()
        self._predictions = {}
        return torch.stack(totals).sum()

    def _value(self, number: int, student: Output, batch: Batch) -> ObjectiveValue:
        """The losses of a student against the predictions of its peers."""
        targets = []
        for other, output in self._predictions.items():
            if other != number:
                targets.append(output)
        teachers = tuple(targets) if self._uses_teacher else None
        value: ObjectiveValue = self.objectives[number](student, teachers, batch)
        total = value.total.detach()
        if self._checks_steps and not bool(total.isfinite()):
            first = targets[0] if targets else None
            fault = find_fault(student, first, batch)
            reason = f" because {fault.detail} not finite" if fault.detail else ""
            raise UserError(
                f"the loss of student {number + 1} became {float(total)} in epoch "
                f"{self.current_epoch}, at step {self.global_step}{reason}; {fault.remedy}"
            )
        # Without the graphs, which would otherwise wait for the last turn.
        terms = [term.detach() for term in value.terms]
        self._values.append(ObjectiveValue(total, terms, value.samples))
        return value

    def _note_values(self) -> None:
        """Add the losses of all students to the epoch's means."""
        terms = []
        for value in self._values:
            terms += [value.total, *value.terms]
        totals = torch.stack([value.total for value in self._values])
        # The sum is finite only if every student's total is.
        self._means.add(self._values[0].samples, totals.sum(), terms)
        self._values = []

    def _stop_after_window(self, not_finite: NotFinite) -> None:
        raise UserError(
            f"the loss of a student became {not_finite.total} in epoch {self.current_epoch}; lower "
            "the learning rate, or clip gradients with --trainer.gradient_clip_val=1"
        )

    def _named_means(self, means: Tensor) -> dict[str, Tensor]:
        # The first value is the sum over students, which stands for their finiteness.
        return dict(zip(self.loss_names(), means[1:], strict=True))

    def loss_names(self) -> list[str]:
        names = super().loss_names()
        for number in range(len(self.peer_learners)):
            prefix = f"train_peer{number + 1}_loss"
            names += [prefix, *(f"{prefix}_{name}" for name in self.losses)]
        return names

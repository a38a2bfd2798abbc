"""Training several students that teach each other: deep mutual learning, Zhang et al. 2018."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.metrics import TaskMetrics
from kd_lightning.outputs import Reading
from kd_lightning.teachers.base import Teacher
from kd_lightning.training import checkpointing, lightning_compat
from kd_lightning.training.checkpointing import Checkpoint
from kd_lightning.training.faults import find_fault
from kd_lightning.training.initial_weights import load_initial_weights
from kd_lightning.training.learner import Learner
from kd_lightning.training.means import NotFinite
from kd_lightning.training.module import Closure, TrainingModule, Trains
from kd_lightning.training.objective import Objective, ObjectiveValue, Teachers
from kd_lightning.training.optimizers import (
    OptimizerFactory,
    SchedulerFactory,
    default_optimizer,
)
from kd_lightning.training.parameter_groups import ParameterGroup
from kd_lightning.training.split_gradients import SplitOptimizer
from kd_lightning.types import Batch, Output

Update = Literal["in turn", "together"]

TRACKING = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Layers that move their running statistics in training mode."""


class Peer(Teacher):
    """A student in training as the teacher of another one.

    It predicts without gradients and in the mode it trains in, so with dropout and with the
    statistics of the batch; the running statistics of BatchNorm do not move.

    Args:
        learner: the student.
    """

    def __init__(self, learner: Learner) -> None:
        super().__init__()
        # In a tuple: as a submodule, the student would be frozen.
        self._learners = (learner,)
        self._roles: set[str] = set()
        self.ready = True

    @property
    def learner(self) -> Learner:
        """The student."""
        return self._learners[0]

    def tap(self, roles: set[str]) -> dict[str, nn.Module]:
        # Several students may read layers of this one, and its own losses do.
        self._roles |= roles
        return self.learner.tap(self._roles)

    def probe(self, batch: Batch) -> Output:
        return self.learner.probe(batch)

    def outputs(self, batch: Batch) -> Output:
        with _running_statistics_kept(self.learner.network):
            output: Output = self.learner(batch)
        return output


@contextmanager
def _running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Let normalization layers in training mode use the batch without tracking it."""
    norms = []
    for layer in network.modules():
        # In eval mode the layer reads its running statistics, and moves none.
        if isinstance(layer, TRACKING) and layer.training and layer.track_running_stats:
            norms.append(layer)
    for layer in norms:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in norms:
            layer.track_running_stats = True


class MutualModule(TrainingModule):
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
        self.peer_learners = nn.ModuleList()
        self.peer_objectives = nn.ModuleList()
        self.peer_metrics = nn.ModuleList()
        renamed = {}
        for number, (peer, names) in enumerate(zip(peers, all_layers, strict=True)):
            reading = Reading(outputs, owner=f"peer {number + 1}", option="--model")
            self.peer_learners.append(Learner(peer, names, reading=reading))
            self.peer_objectives.append(Objective(copy.deepcopy(losses)))
            renamed[f"peer_learners.{number}.network."] = f"peers.{number}."
            own = f"peer_objectives.{number}.losses."
            renamed[own] = f"peer_losses.{number}."
        checkpointing.rename_in_checkpoints(self, renamed)
        self._teachers = tuple(Peer(learner) for learner in self.learners)
        # The student whose turn it is, and what its peers predict for the batch.
        self._turn = 0
        self._predictions: dict[int, Output] = {}
        self._values: list[ObjectiveValue] = []
        self.keep_hyperparameters()

    @property
    def student(self) -> nn.Module:
        """The first student."""
        return self.net

    @property
    def students(self) -> list[nn.Module]:
        """All students' networks."""
        return [learner.network for learner in self.learners]

    @property
    def learners(self) -> list[Learner]:
        return [self.learner, *(cast(Learner, each) for each in self.peer_learners)]

    @property
    def objectives(self) -> list[Objective]:
        """The losses of each student."""
        others = [cast(Objective, each) for each in self.peer_objectives]
        return [self.objective, *others]

    @property
    def job_type(self) -> str:
        return "distill"

    @classmethod
    def arguments_of_loaded(cls) -> dict[str, object]:
        return {"losses": {"ce": CrossEntropy()}}

    # -- before training --------------------------------------------------------------------------

    def attach(self, datamodule: DataModule, stage: str = "fit") -> None:
        super().attach(datamodule, stage)
        assert self.spec is not None
        while len(self.peer_metrics) < len(self.peer_learners):
            self.peer_metrics.append(datamodule.task.metrics(self.spec))

    def _use_initial_weights(self, datamodule: DataModule) -> None:
        assert self.spec is not None
        for learner in self.learners[1:]:
            load_initial_weights(learner.network, None, datamodule, self.spec)
        for first, second in itertools.combinations(range(len(self.learners)), 2):
            if _are_equal(self.students[first], self.students[second]):
                raise UserError(
                    f"the students {first + 1} and {second + 1} start with the same weights and "
                    "have nothing to teach each other; initialize them from different seeds"
                )

    def _build_objective(self, blank: Batch) -> None:
        assert self.spec is not None
        assert self.task is not None
        self._uses_teacher = self.objective.uses_teacher
        # First, so that a message names the peer and not "the teacher".
        for learner in self.learners:
            learner.check_output(blank, self.task, self.spec)
        for number, objective in enumerate(self.objectives):
            learner = self.learners[number]
            peers = self._peers_of(number) if self._uses_teacher else []
            first = peers[0] if peers else None
            objective.build(
                learner,
                first,
                blank,
                self.spec,
                self.task,
                other_teachers=peers[1:],
            )
        # Building a student's losses taps the layers that these read, and no others.
        for teacher, objective in zip(self._teachers, self.objectives, strict=True):
            roles: set[str] = set()
            for _, loss in objective.named_losses():
                roles |= loss.student_roles
            teacher.tap(roles)

    def _peers_of(self, number: int) -> list[Peer]:
        """The teachers of a student."""
        return [*self._teachers[:number], *self._teachers[number + 1 :]]

    def _trained(self) -> dict[str, nn.Module]:
        modules = super()._trained()
        pairs = zip(self.learners[1:], self.objectives[1:], strict=True)
        for number, (learner, objective) in enumerate(pairs):
            if self.trains != "losses":
                modules[f"peers.{number}"] = learner.network
            if self.trains != "network":
                modules[f"peer_losses.{number}"] = objective.losses
        return modules

    # -- training ---------------------------------------------------------------------------------

    def _check_kind_of_optimizer(self, optimizer: Optimizer) -> None:
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

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if not gradient_clip_val:
            return
        # A norm over all students would let one of them shrink the steps of the others.
        for learner, objective in zip(self.learners, self.objectives, strict=True):
            own = [*learner.parameters(), *objective.parameters()]
            if gradient_clip_algorithm == "value":
                torch.nn.utils.clip_grad_value_(own, gradient_clip_val)
            else:
                torch.nn.utils.clip_grad_norm_(own, gradient_clip_val)

    # -- evaluation -------------------------------------------------------------------------------

    def _metrics_of_peers(self) -> list[TaskMetrics]:
        return [cast(TaskMetrics, each) for each in self.peer_metrics]

    def _begin_evaluation(self, stage: str) -> None:
        super()._begin_evaluation(stage)
        for metrics in self._metrics_of_peers():
            metrics.reset()

    def _evaluate(self, batch: Batch) -> Output:
        pairs = zip(self.learners[1:], self.objectives[1:], strict=True)
        for metrics, (learner, objective) in zip(
            self._metrics_of_peers(), pairs, strict=True
        ):
            output = objective.predict(learner(batch), batch)
            if not batch.placeholder:
                metrics.update(output, None, batch)
        return super()._evaluate(batch)

    def _log_metrics(self, stage: str) -> None:
        super()._log_metrics(stage)
        for number, metrics in enumerate(self._metrics_of_peers()):
            values = {}
            for name, value in metrics.compute().items():
                values[f"{stage}_peer{number + 1}_{name}"] = value.float()
            self.log_dict(values)

    def metric_names(self, stage: str) -> list[str]:
        names = super().metric_names(stage)
        for number in range(len(self.peer_learners)):
            for name in super().metric_names(f"{stage}_peer{number + 1}"):
                names.append(name)
        return names

    # -- checkpoints ------------------------------------------------------------------------------

    def on_load_checkpoint(self, checkpoint: Checkpoint) -> None:
        super().on_load_checkpoint(checkpoint)
        state = cast(dict[str, Tensor], checkpoint.get("state_dict") or {})
        saved = {key.split(".")[1] for key in state if key.startswith("peers.")}
        if len(saved) != len(self.peer_learners):
            raise UserError(
                f"the checkpoint holds {1 + len(saved)} students, this run has "
                f"{len(self.learners)}; resume with the config that made it"
            )


def _are_equal(first: nn.Module, second: nn.Module) -> bool:
    """Whether two networks have parameters of the same names and values."""
    own = dict(first.named_parameters())
    other = dict(second.named_parameters())
    if not own or own.keys() != other.keys():
        return False
    for name, parameter in own.items():
        if parameter.shape != other[name].shape:
            return False
        if not torch.equal(parameter, other[name]):
            return False
    return True

"""A Lightning module of several students: how they are built, measured and saved."""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss
from kd_lightning.metrics import TaskMetrics
from kd_lightning.outputs import Reading
from kd_lightning.training import checkpointing
from kd_lightning.training.checkpointing import Checkpoint
from kd_lightning.training.initial_weights import load_initial_weights
from kd_lightning.training.learner import Learner
from kd_lightning.training.module import TrainingModule
from kd_lightning.training.objective import Objective
from kd_lightning.training.peer import Peer
from kd_lightning.types import Batch, Output


class StudentsModule(TrainingModule, ABC):
    """Base class: students that teach each other, each with its own losses and metrics.

    The learner and the objective of a `TrainingModule` are those of the first student; those of
    its peers stand beside them. A subclass calls `add_peers` in its constructor, and decides
    in which order the students take their steps.
    """

    def add_peers(
        self,
        peers: list[nn.Module],
        peer_layers: list[dict[str, str]],
        losses: dict[str, DistillLoss],
        outputs: int | str | None,
    ) -> None:
        """Create what the first student has for each other one.

        Args:
            peers: the other networks.
            peer_layers: module name for each role, of the layers of each peer.
            losses: by name; each peer gets a copy.
            outputs: which entry of a network's output holds the logits.
        """
        self.peer_learners = nn.ModuleList()
        self.peer_objectives = nn.ModuleList()
        self.peer_metrics = nn.ModuleList()
        # In checkpoints a peer has the names of a student, and none of this class.
        renamed = {}
        for number, (peer, names) in enumerate(zip(peers, peer_layers, strict=True)):
            reading = Reading(outputs, owner=f"peer {number + 1}", option="--model")
            self.peer_learners.append(Learner(peer, names, reading=reading))
            self.peer_objectives.append(Objective(copy.deepcopy(losses)))
            renamed[f"peer_learners.{number}.network."] = f"peers.{number}."
            own = f"peer_objectives.{number}.losses."
            renamed[own] = f"peer_losses.{number}."
        checkpointing.rename_in_checkpoints(self, renamed)
        self._teachers = tuple(Peer(learner) for learner in self.learners)

    @abstractmethod
    def after_step(self) -> None:
        """Call `after_step` of each student that the step moved, and of its losses."""

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
        # Networks with the same weights predict the same, and their divergence has no
        # gradient.
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
        # Lightning would report a list of missing tensors instead of the number of
        # students.
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

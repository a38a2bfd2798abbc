"""A generalist and its specialists as one teacher (Hinton et al. 2015, section 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.specialists.agreement import (
    MAX_ITERATIONS,
    TOLERANCE,
    active_specialists,
    agreed_log_probs,
    membership,
)
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.model import ModelTeacher
from kd_lightning.types import Batch, Inputs, Output, full
from kd_lightning.weights import KEY, read_file


class SpecialistTeacher(Teacher):
    """A generalist and the specialists that know its most probable classes, in the full distribution that they agree on.

    Its logits are log-probabilities. Each specialist sees only the samples for which it is asked.

    Args:
        generalist: path of the `kd` checkpoint of a network that knows all classes.
        specialists: paths of checkpoints trained on a `SpecialistDataModule`.
        n: specialists are asked that know any of the generalist's n most probable classes.
        tolerance, max_iterations: when the search for the distribution ends, see `agreed_log_probs`.

    Raises:
        UserError: for numbers out of range; from `prepare`, where a checkpoint is no specialist's or knows other classes.
    """

    def __init__(
        self,
        generalist: str,
        specialists: list[str],
        n: int = 1,
        tolerance: float = TOLERANCE,
        max_iterations: int = MAX_ITERATIONS,
    ) -> None:
        super().__init__()
        if not specialists:
            raise UserError(
                "SpecialistTeacher has no specialists; give the paths of their checkpoints"
            )
        if n < 1 or max_iterations < 1 or not tolerance > 0:
            raise UserError(
                "SpecialistTeacher: n and max_iterations must be at least 1 and tolerance greater than 0, "
                f"got {n}, {max_iterations} and {tolerance}"
            )
        self.n, self.tolerance, self.max_iterations = n, tolerance, max_iterations
        self._generalist = ModelTeacher(checkpoint=generalist)
        self._specialists = tuple(ModelTeacher(checkpoint=path) for path in specialists)
        self.members = nn.ModuleList([self._generalist, *self._specialists])
        self.class_ids: list[list[int]] = []
        self.corrections: list[float] = []

    def prepare(self, datamodule: Any) -> None:
        self._generalist.prepare(datamodule)
        about = [self._prepare(member, datamodule.spec) for member in self._specialists]
        self.class_ids = [list(one["class_ids"]) for one in about]
        self.corrections = [math.log(one["oversampling"]) for one in about]
        super().prepare(datamodule)

    @staticmethod
    def _prepare(member: ModelTeacher, spec: Mapping[str, Any]) -> dict[str, Any]:
        """Load a specialist; returns what its data says of it."""
        path = str(member.checkpoint)
        theirs = (read_file(path, "the specialist").get(KEY) or {}).get("spec") or {}
        about: dict[str, Any] | None = theirs.get("specialist")
        if about is None:
            raise UserError(
                f"{path} is not a specialist's checkpoint; train one on a SpecialistDataModule"
            )
        ids = about["class_ids"]
        if max(ids) >= spec["num_classes"]:
            raise UserError(
                f"the specialist {path} knows a class {max(ids)}; the data has {spec['num_classes']} classes"
            )
        names = [*(spec["classes"][at] for at in ids), theirs["classes"][-1]]
        member.prepare(SimpleNamespace(spec={**spec, "num_classes": len(names), "classes": names}))
        return about

    def outputs(self, batch: Batch) -> Output:
        generalist = full(self._generalist(batch).logits).log_softmax(-1)
        active = active_specialists(
            generalist, membership(self.class_ids, generalist.shape[-1]), self.n
        )
        said = []
        for at, (member, ids, correction) in enumerate(
            zip(self._specialists, self.class_ids, self.corrections, strict=True)
        ):
            log_probs = generalist.new_zeros(len(generalist), len(ids) + 1)
            rows = active[:, at].nonzero()[:, 0]
            if len(rows):
                log_probs[rows] = corrected(member(_chosen(batch, rows)).logits, correction).to(
                    log_probs
                )
            said.append(log_probs)
        return Output(
            agreed_log_probs(
                generalist, said, self.class_ids, active, self.tolerance, self.max_iterations
            )
        )

    def sources(self) -> list[dict[str, Any]]:
        return [
            source
            for member in (self._generalist, *self._specialists)
            for source in member.sources()
        ]


def corrected(logits: Tensor, correction: float) -> Tensor:
    """A specialist's log-probabilities `(B, m + 1)` in the data's own mix of classes.

    Args:
        logits: `(B, m + 1)`, the dustbin last, of a specialist that was trained on too many samples of its own classes.
        correction: added to the dustbin's logit: log of the proportion by which they were oversampled.
    """
    logits = full(logits).clone()
    logits[:, -1] += correction
    return logits.log_softmax(-1)


def _chosen(batch: Batch, rows: Tensor) -> Batch:
    """Some samples of a batch, as far as a network reads it."""

    def pick(inputs: Inputs) -> Inputs:
        return (
            inputs[rows]
            if isinstance(inputs, Tensor)
            else {name: tensor[rows] for name, tensor in inputs.items()}
        )

    teacher = None if batch.teacher_inputs is None else pick(batch.teacher_inputs)
    return replace(
        batch,
        inputs=pick(batch.inputs),
        target=batch.target[rows],
        index=batch.index[rows],
        teacher_inputs=teacher,
        partner=None,
        share=None,
    )


class SubsetTeacher(Teacher):
    """What a teacher of all classes says of a specialist's classes, the rest summed up: soft targets against overfitting.

    A specialist is trained on too many samples of its own classes, of which the teacher knows nothing. Its probability of
    the dustbin is therefore divided by the proportion of the oversampling, which inference multiplies back. Losses at a
    temperature temper this distribution, as they temper the specialist's.

    Args:
        checkpoint: path of the generalist's `kd` checkpoint ...
        teacher: ... or any teacher of all classes.

    Raises:
        UserError: where none or both are given; from `prepare`, where the data is not a specialist's.
    """

    def __init__(self, checkpoint: str | None = None, teacher: Teacher | None = None) -> None:
        super().__init__()
        if (checkpoint is None) == (teacher is None):
            raise UserError(
                "SubsetTeacher: give model.teacher.checkpoint, the generalist's, or a teacher of all classes"
            )
        self.teacher = teacher or ModelTeacher(checkpoint=checkpoint)
        self._inside = self._outside = torch.empty(0, dtype=torch.int64)
        self._correction = 0.0

    def prepare(self, datamodule: Any) -> None:
        about = datamodule.spec.get("specialist")
        if about is None:
            raise UserError(
                "SubsetTeacher is for a specialist's data; use kd_lightning.specialists.SpecialistDataModule"
            )
        self.teacher.prepare(datamodule.data)
        known = membership([about["class_ids"]], datamodule.data.spec["num_classes"])[0]
        self._inside, self._outside = torch.tensor(about["class_ids"]), (~known).nonzero()[:, 0]
        self._correction = -math.log(about["oversampling"])
        super().prepare(datamodule)

    @property
    def exact_logits(self) -> bool:
        return self.teacher.exact_logits

    def probe(self, batch: Batch) -> Output:
        return self._mapped(self.teacher.probe(batch))

    def outputs(self, batch: Batch) -> Output:
        return self._mapped(self.teacher(batch))

    def _mapped(self, output: Output) -> Output:
        said = output.log_probs()
        inside, outside = self._inside.to(said.device), self._outside.to(said.device)
        both = torch.cat([said[:, inside], said[:, outside].logsumexp(-1, keepdim=True)], dim=-1)
        return Output(corrected(both, self._correction))

    def sources(self) -> list[dict[str, Any]]:
        return self.teacher.sources()

"""Teachers with specialists: a generalist's team, and soft targets for training a specialist.

Hinton et al. 2015 (arXiv 1503.02531), section 5.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.spec import Spec, SpecialistInfo
from kd_lightning.specialists.agreement import (
    MAX_ITERATIONS,
    TOLERANCE,
    active_specialists,
    agreed_log_probs,
    membership,
)
from kd_lightning.specialists.data import SpecialistDataModule
from kd_lightning.tasks.base import Task
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.model import ModelTeacher
from kd_lightning.types import Batch, Inputs, Output, full
from kd_lightning.weights import KEY, read_file


class SpecialistTeacher(Teacher):
    """A generalist and its specialists as one teacher over all classes.

    Per sample, the specialists that know its most probable classes are queried, and the output is
    the distribution on which they and the generalist agree best. The logits are log-probabilities.

    Args:
        generalist: path of the `kd` checkpoint of a network that knows all classes.
        specialists: paths of checkpoints trained on a `SpecialistDataModule`.
        n: specialists are queried that know any of the generalist's n most probable classes.
        tolerance: accuracy of the search for the distribution, see `agreed_log_probs`.
        max_iterations: largest number of iterations of the search.

    Raises:
        UserError: if an argument is out of range; from `prepare`, if a checkpoint is not a
            specialist's or was trained on other classes.
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
                "SpecialistTeacher: n and max_iterations must be at least 1 and tolerance greater "
                f"than 0, got {n}, {max_iterations} and {tolerance}"
            )
        self.n = n
        self.tolerance = tolerance
        self.max_iterations = max_iterations
        self._generalist = ModelTeacher(checkpoint=generalist)
        members = [ModelTeacher(checkpoint=path) for path in specialists]
        self._specialists = tuple(members)
        # A tuple registers no modules; this list moves all members with the teacher.
        self.members = nn.ModuleList([self._generalist, *self._specialists])
        self.class_ids: list[list[int]] = []
        self.corrections: list[float] = []

    def prepare(self, datamodule: DataModule) -> None:
        """Load all checkpoints and check them against the data."""
        self._generalist.prepare(datamodule)
        # Start empty: a teacher may be prepared again, for other data.
        self.class_ids = []
        self.corrections = []
        for member in self._specialists:
            specialist = _prepare_specialist(member, datamodule.spec, datamodule.task)
            self.class_ids.append(list(specialist["class_ids"]))
            # Sampling a class more often adds the log of that factor to its trained logit.
            self.corrections.append(math.log(specialist["oversampling"]))
        super().prepare(datamodule)

    def outputs(self, batch: Batch) -> Output:
        """The agreed log-probabilities, `(B, K)`."""
        logits = full(self._generalist(batch).logits)
        generalist = logits.log_softmax(-1)
        known = membership(self.class_ids, generalist.shape[-1])
        active = active_specialists(generalist, known, self.n)
        opinions: list[Tensor] = []
        for number in range(len(self._specialists)):
            queried = active[:, number]
            opinions.append(self._opinion(number, batch, generalist, queried))
        agreed = agreed_log_probs(
            generalist,
            opinions,
            self.class_ids,
            active,
            self.tolerance,
            self.max_iterations,
        )
        return Output(agreed)

    def _opinion(
        self,
        number: int,
        batch: Batch,
        generalist: Tensor,
        active: Tensor,
    ) -> Tensor:
        """Log-probabilities of a specialist, which computes only the samples it is queried for.

        Args:
            number: number of the specialist.
            batch: B samples.
            generalist: log-probabilities, `(B, K)`, which give dtype and device.
            active: the samples that the specialist is queried for, bool `(B,)`.

        Returns:
            `(B, m + 1)`, zero for other samples.
        """
        classes = len(self.class_ids[number]) + 1
        log_probs = generalist.new_zeros(len(generalist), classes)
        rows = active.nonzero()[:, 0]
        # A network with batch norm or convolutions may reject an empty batch.
        if len(rows):
            output = self._specialists[number](_select(batch, rows))
            opinion = corrected(output.logits, self.corrections[number])
            log_probs[rows] = opinion.to(log_probs)
        return log_probs

    def sources(self) -> list[dict[str, object]]:
        """Path and checksum of each checkpoint."""
        sources = self._generalist.sources()
        for member in self._specialists:
            sources = sources + member.sources()
        return sources

    @property
    def notes(self) -> list[str]:
        """What the generalist and the specialists have to say, each line once."""
        notes = self._generalist.notes
        for member in self._specialists:
            notes = notes + member.notes
        return list(dict.fromkeys(notes))


def _prepare_specialist(member: ModelTeacher, spec: Spec, task: Task) -> SpecialistInfo:
    """Load a specialist and check its classes.

    Args:
        member: the specialist.
        spec: the spec of the data with all classes.
        task: what is predicted.

    Returns:
        The entry "specialist" of the spec that it was trained on.

    Raises:
        UserError: if the checkpoint is not a specialist's, or knows other classes.
    """
    # The specialist's own spec comes first: it names the classes that the network must predict.
    path = str(member.checkpoint)
    metadata = read_file(path, "the specialist").get(KEY) or {}
    trained_on: Spec | None = None
    if metadata.get("spec"):
        trained_on = Spec.from_dict(metadata["spec"])
    if trained_on is None or trained_on.specialist is None:
        raise UserError(
            f"{path} is not a specialist's checkpoint; train one on a SpecialistDataModule"
        )
    specialist = trained_on.specialist
    class_ids = specialist["class_ids"]
    if max(class_ids) >= spec.num_classes:
        raise UserError(
            f"the specialist {path} knows a class {max(class_ids)}; "
            f"the data has {spec.num_classes} classes"
        )
    # The names that the specialist must have for its classes to be those of this data.
    names = [spec.classes[class_id] for class_id in class_ids]
    dustbin = trained_on.classes[-1]
    names.append(dustbin)
    expected = replace(spec, num_classes=len(names), classes=tuple(names))
    member.prepare_for(expected, task)
    return specialist


def corrected(logits: Tensor, correction: float) -> Tensor:
    """A specialist's log-probabilities under the class frequencies of the data, `(B, m + 1)`.

    Args:
        logits: `(B, m + 1)`, the dustbin last, of a specialist whose own classes were oversampled
            in training.
        correction: added to the dustbin's logit: the logarithm of the oversampling factor.
    """
    # A copy: the caller's logits may be a cached output.
    logits = full(logits).clone()
    logits[:, -1] += correction
    return logits.log_softmax(-1)


def _select(batch: Batch, rows: Tensor) -> Batch:
    """Some samples of a batch, with all fields that a network reads.

    Args:
        batch: B samples.
        rows: int64 `(n,)`, which of them.
    """
    teacher_inputs = None
    if batch.teacher_inputs is not None:
        teacher_inputs = _select_inputs(batch.teacher_inputs, rows)
    return replace(
        batch,
        inputs=_select_inputs(batch.inputs, rows),
        target=batch.target[rows],
        index=batch.index[rows],
        teacher_inputs=teacher_inputs,
        partner=None,
        share=None,
    )


def _select_inputs(inputs: Inputs, rows: Tensor) -> Inputs:
    """Rows of a tensor, or of every tensor of a mapping."""
    if isinstance(inputs, Tensor):
        return inputs[rows]
    return {name: tensor[rows] for name, tensor in inputs.items()}


class SubsetTeacher(Teacher):
    """A teacher of all classes, reduced to a specialist's classes and a dustbin.

    Its soft targets protect a specialist from overfitting. The dustbin has the total probability
    of all other classes. In the specialist's training data its own classes are oversampled, which
    the teacher does not know, so the probability of the dustbin is divided by the oversampling
    factor; inference multiplies by it again. The logits are log-probabilities, which losses soften
    by their temperature as they soften those of the specialist.

    Args:
        checkpoint: path of the generalist's `kd` checkpoint.
        teacher: any teacher of all classes, instead of a checkpoint.

    Raises:
        UserError: unless exactly one of both is given; from `prepare`, if the data is not a
            specialist's.
    """

    def __init__(
        self, checkpoint: str | None = None, teacher: Teacher | None = None
    ) -> None:
        super().__init__()
        if (checkpoint is None) == (teacher is None):
            raise UserError(
                "SubsetTeacher: give either model.teacher.checkpoint, the generalist's, "
                "or model.teacher.teacher, a teacher of all classes"
            )
        self.teacher = teacher or ModelTeacher(checkpoint=checkpoint)
        self._inside = torch.empty(0, dtype=torch.int64)
        self._outside = torch.empty(0, dtype=torch.int64)
        self._correction = 0.0

    def prepare(self, datamodule: DataModule) -> None:
        """Prepare the teacher of all classes and look up the specialist's classes."""
        specialist = datamodule.spec.specialist
        if specialist is None:
            raise UserError(
                "SubsetTeacher needs a specialist's data; "
                "use kd_lightning.specialists.SpecialistDataModule"
            )
        assert isinstance(datamodule, SpecialistDataModule)
        self.teacher.prepare(datamodule.data)
        if not self.teacher.exact_logits:
            raise UserError(
                "SubsetTeacher needs every logit of its teacher; a top-k cache stores only some of "
                "them: cache the teacher without --top-k"
            )
        class_ids = specialist["class_ids"]
        known = membership([class_ids], datamodule.data.spec.num_classes)[0]
        self._inside = torch.tensor(class_ids)
        self._outside = (~known).nonzero()[:, 0]
        # Oversampling makes the dustbin rarer in training, by this factor.
        self._correction = -math.log(specialist["oversampling"])
        super().prepare(datamodule)

    @property
    def joins(self) -> bool:
        """Whether the teacher of all classes joins cached outputs to the data's batches."""
        return self.teacher.joins

    def join(self, batch: Batch, index: Tensor) -> Batch:
        """The batch with the outputs of the teacher of all classes, which `outputs` then reduces.

        Args:
            batch: B samples.
            index: int64 `(B,)`, their rows in the source split.
        """
        return self.teacher.join(batch, index)

    def probe(self, batch: Batch) -> Output:
        """An output `(B, m + 1)` for a batch of blank samples."""
        return self._reduce(self.teacher.probe(batch))

    def outputs(self, batch: Batch) -> Output:
        """Log-probabilities of the specialist's classes and the dustbin, `(B, m + 1)`."""
        return self._reduce(self.teacher(batch))

    def _reduce(self, output: Output) -> Output:
        """From logits of all classes, `(B, K)`, to the specialist's log-probabilities."""
        log_probs = output.log_probs()
        inside = log_probs[:, self._inside.to(log_probs.device)]
        outside = log_probs[:, self._outside.to(log_probs.device)]
        # The log of the sum of the other classes' probabilities.
        dustbin = outside.logsumexp(-1, keepdim=True)
        joined = torch.cat([inside, dustbin], dim=-1)
        return Output(corrected(joined, self._correction))

    def sources(self) -> list[dict[str, object]]:
        """The sources of the teacher of all classes."""
        return self.teacher.sources()

    @property
    def notes(self) -> list[str]:
        """The notes of the teacher of all classes."""
        return self.teacher.notes

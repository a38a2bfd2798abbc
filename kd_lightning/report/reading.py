"""Reads what a report needs of a run, from its folder and from its network and data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kd_lightning.compare.runs import Run, read_run
from kd_lightning.errors import UserError
from kd_lightning.export.student import TrainedStudent, load_student
from kd_lightning.report.teacher import TeacherOutputs, teacher_outputs
from kd_lightning.runs.folder import RunFolder
from kd_lightning.spec import Spec
from kd_lightning.tasks import (
    Classification,
    LanguageModelling,
    MaskedLanguageModelling,
    MultilabelClassification,
    Regression,
    Segmentation,
    SequenceToSequence,
    Task,
)
from kd_lightning.values import Values, mapping_at

TASKS: tuple[type[Task], ...] = (
    Classification,
    LanguageModelling,
    MaskedLanguageModelling,
    MultilabelClassification,
    Regression,
    Segmentation,
    SequenceToSequence,
)
"""The tasks that can be recognized by their names, without the data."""


@dataclass
class ReportedRun:
    """A run with all that could be read of it.

    What could not be read is None, and `notes` says why.

    Attributes:
        label: names the run on the page.
        run: its record and config.
        spec: of the data.
        task: what is predicted.
        stored: what the test stored of each sample.
        student: the network and the data, built again.
        teacher: the teacher's outputs for the test samples.
        notes: why something is missing, by the name of the attribute.
    """

    label: str
    run: Run
    spec: Spec
    task: Task | None = None
    stored: dict[str, Tensor] | None = None
    student: TrainedStudent | None = None
    teacher: TeacherOutputs | None = None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        assert self.run.folder is not None, "runs of folders have one"
        return self.run.folder

    @property
    def temperature(self) -> float:
        """The temperature of the first loss that has one; 1 if none has."""
        return _temperature(self.run.config)


def _temperature(config: Values) -> float:
    arguments = mapping_at(mapping_at(config, "model"), "init_args")
    for loss in mapping_at(arguments, "losses").values():
        # A config from elsewhere may hold anything here.
        if not isinstance(loss, Mapping):
            continue
        value = mapping_at(loss, "init_args").get("temperature")
        if isinstance(value, int | float) and value > 0:
            return float(value)
    return 1.0


def read_runs(paths: Sequence[str], with_data: bool) -> list[ReportedRun]:
    """Read runs from their folders.

    Args:
        paths: the folders, as the user wrote them.
        with_data: whether to build networks, data and teachers again; otherwise a
            report has only what the folders hold.

    Raises:
        UserError: if a folder holds no run.
    """
    runs = []
    for path in paths:
        if RunFolder(Path(path)).is_cache:
            raise UserError(
                f"{path} is not a run but a teacher's cache; give folders of runs"
            )
        runs.append(read_run(path))
    # All records first: a wrong folder is named before a network is built.
    reported = []
    for label, run in zip(_labels(runs), runs, strict=True):
        reported.append(_read(label, run, with_data))
    return reported


def _labels(runs: Sequence[Run]) -> list[str]:
    """The names of the runs; runs of one name also have their seed or their folder."""
    names = [run.name for run in runs]
    with_seeds = [f"{run.name}, seed {run.seed}" for run in runs]
    labels = []
    for run, name, with_seed in zip(runs, names, with_seeds, strict=True):
        label = name
        if names.count(name) > 1:
            label = with_seed
        if with_seeds.count(label) > 1:
            label = f"{label} ({run.source})"
        labels.append(label)
    return labels


def _read(label: str, run: Run, with_data: bool) -> ReportedRun:
    """Read one run; what is not available is noted."""
    try:
        spec = Spec.from_dict(run.data) if run.data else Spec(data="unknown")
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{run.source}: run.json: data does not describe data: {error}"
        ) from error
    reported = ReportedRun(label, run, spec)
    reported.task = _task_of_name(run)
    if with_data:
        _build(reported)
    else:
        reported.notes["student"] = "--no-data leaves out the samples."
        reported.notes["teacher"] = "--no-data leaves out the teacher."
    _load_predictions(reported)
    if reported.student is not None:
        _ask_teacher(reported, reported.student)
    return reported


def _task_of_name(run: Run) -> Task | None:
    """The task that a run's record names; None if it is not one of this package."""
    assert run.folder is not None
    name = mapping_at(run.folder.record, "task").get("name")
    for task in TASKS:
        if task.name == name:
            return task()
    return None


def _build(reported: ReportedRun) -> None:
    """Build network and data again, as `kd export` does."""
    try:
        student = load_student(str(reported.folder.path), [])
    # Weights that do not fit the network raise a RuntimeError in torch.
    except (UserError, RuntimeError) as error:
        reason = f"The network and the data cannot be built again: {error}."
        reported.notes["student"] = reason
        reported.notes["teacher"] = reason
        return
    # The data knows more than the record: a task's options and its own classes.
    reported.student = student
    reported.task = student.datamodule.task
    reported.spec = student.spec


def _load_predictions(reported: ReportedRun) -> None:
    """Load what the test of the run stored."""
    path = reported.folder.test_predictions
    if not path.is_file():
        reported.notes["stored"] = (
            "The run's folder holds no predictions, because the run was not tested; "
            "train with --run.test=last."
        )
        return
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        reported.notes["stored"] = f"{path.name} cannot be read: {error}."
        return
    problem = _problem_of(stored, reported.spec)
    if not problem and reported.task is not None:
        problem = _problem_for_task(stored, reported.task)
    if problem:
        reported.notes["stored"] = f"{path.name} does not fit the run: {problem}."
    else:
        reported.stored = stored


def _problem_of(stored: Mapping[str, Tensor], spec: Spec) -> str:
    """What is wrong with the tensors of a test; empty if nothing is."""
    if "index" not in stored:
        return "it names no samples"
    samples = len(stored["index"])
    for name, tensor in stored.items():
        if tensor.ndim == 0 or len(tensor) != samples:
            return f"{name} does not have {samples} samples"
    logits = stored.get("logits")
    if logits is not None and spec.num_classes and logits.shape[-1] != spec.num_classes:
        classes = logits.shape[-1]
        return f"it has {classes} classes, but the data has {spec.num_classes}"
    target = stored.get("target")
    # Other targets are real values, or have several columns per sample.
    has_classes = target is not None and target.ndim == 1 and samples > 0
    if has_classes and target is not None and not target.is_floating_point():
        largest = int(target.max())
        if largest >= spec.num_classes:
            return (
                f"it has a label {largest}, but the data has {spec.num_classes} classes"
            )
    return ""


def _problem_for_task(stored: dict[str, Tensor], task: Task) -> str:
    """Why a task cannot read the tensors of a test; empty if it can."""
    try:
        task.sample_counts(stored)
    # The task reads what it stored itself, so that it checks nothing.
    except (KeyError, IndexError, RuntimeError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        return f"it does not come from a test of {task.name} ({reason})"
    return ""


def _ask_teacher(reported: ReportedRun, student: TrainedStudent) -> None:
    """Compute the teacher's outputs for the test samples, which no run stores."""
    try:
        reported.teacher = teacher_outputs(student, reported.temperature)
    except UserError as error:
        reported.notes["teacher"] = f"There are no outputs of a teacher: {error}."


def class_names(spec: Spec) -> list[str]:
    """The names of the classes; their numbers if the data has no names.

    Args:
        spec: of the data.
    """
    if len(spec.classes) == spec.num_classes:
        return list(map(str, spec.classes))
    return [str(number) for number in range(spec.num_classes)]

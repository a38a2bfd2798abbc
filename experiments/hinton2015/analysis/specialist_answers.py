"""What a generalist, its specialists and both together predict for the evaluated samples."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished, Runs, Stage
from kd_lightning.runs.folder import read_json
from kd_lightning.specialists.agreement import (
    active_specialists,
    agreed_log_probs,
    membership,
)
from kd_lightning.specialists.teacher import corrected

Coverage = dict[int, tuple[int, int, int]]
"""By the number of specialists that know a class: samples, correct before, correct after."""


class System(TypedDict):
    """A generalist with specialists, as the experiment's YAML describes it.

    Attributes:
        run: name of the run with a grid over specialists.
        n: a specialist is active if it knows one of the generalist's n most probable classes; 1 by
            default.
    """

    run: str
    n: NotRequired[int]


@dataclass
class Answers:
    """The predictions of a system.

    Attributes:
        log_probs: `(N, K)`.
        target: `(N,)`.
    """

    log_probs: Tensor
    target: Tensor

    @property
    def correct(self) -> Tensor:
        """Whether each sample is classified correctly, bool `(N,)`."""
        return self.log_probs.argmax(1) == self.target

    def accuracy(self) -> float:
        """Accuracy over all samples and classes."""
        return float(self.correct.double().mean())

    def conditional_accuracy(self, class_ids: Sequence[Sequence[int]]) -> float:
        """Accuracy on the specialists' samples if only the specialist's classes are possible.

        Args:
            class_ids: each specialist's classes. A sample counts once per specialist of its class.
        """
        correct = []
        for ids in map(torch.tensor, class_ids):
            rows = torch.isin(self.target, ids)
            # A column of the selection is a position in `ids`, not a class.
            possible = self.log_probs[rows][:, ids]
            predicted = ids[possible.argmax(1)]
            correct.append(predicted == self.target[rows])
        all_correct = torch.cat(correct)
        return float(all_correct.double().mean())


def mean_answers(members: Sequence[Finished], stage: Stage) -> Answers:
    """Return the mean of the distributions of one network or several.

    Args:
        members: runs of networks that know all classes.
        stage: the samples.
    """
    predictions = [member.predictions(stage) for member in members]
    log_probs_of_members = []
    for prediction in predictions:
        logits = prediction["logits"].double()
        log_probs_of_members.append(logits.log_softmax(1))
    # The log of the mean probability: log sum exp, minus the log of the number of members.
    log_probs = torch.stack(log_probs_of_members)
    mean = log_probs.logsumexp(0) - math.log(len(predictions))
    # All members were tested on the same samples in the same order.
    return Answers(mean, predictions[0]["target"])


@dataclass(frozen=True)
class Baselines:
    """Other uses of the compute that trains the specialists.

    Attributes:
        longer: the run of a generalist that is trained for longer, if any.
        others: the run of further generalists, which form an ensemble with the generalist, if any.
        others_per_seed: how many further generalists one seed needs.
    """

    longer: str | None
    others: str | None
    others_per_seed: int

    def answers(
        self, runs: Runs, generalist: Finished, position: int, stage: Stage
    ) -> dict[str, Answers]:
        """Return the predictions of the baselines of one seed, by name.

        Args:
            runs: the finished runs.
            generalist: the generalist of this seed.
            position: the position of this seed among the generalist's seeds.
            stage: the samples.

        Raises:
            UserError: if there are too few further generalists.
        """
        answers = {}
        if self.longer is not None:
            # The mean over one run is that run's own prediction.
            same_seed = [
                run for run in runs[self.longer] if run.seed == generalist.seed
            ]
            answers[self.longer] = mean_answers(same_seed, stage)
        if self.others is not None:
            others = self._other_generalists(runs[self.others], position)
            members = [generalist, *others]
            name = f"ensemble of {len(members)} generalists"
            answers[name] = mean_answers(members, stage)
        return answers

    def _other_generalists(
        self, group: Sequence[Finished], position: int
    ) -> list[Finished]:
        """The further generalists of the seed at a position; no two seeds share one."""
        start = position * self.others_per_seed
        members = list(group[start : start + self.others_per_seed])
        if len(members) < self.others_per_seed:
            raise UserError(
                f"analysis of specialists: {self.others!r} needs {self.others_per_seed} seeds "
                "for each of the generalist's"
            )
        return members


@dataclass
class Panel:
    """The specialists of one generalist, and their predictions.

    Attributes:
        class_ids: the m classes of each specialist.
        log_probs: of each specialist, `(N, m + 1)`, the dustbin last, corrected for oversampling.
        names: the names of each specialist's classes.
    """

    class_ids: list[list[int]]
    log_probs: list[Tensor]
    names: list[list[str]]

    @classmethod
    def of(cls, members: Sequence[Finished], stage: Stage) -> Panel:
        """Read the specialists' descriptions and predictions.

        Args:
            members: the specialists' runs.
            stage: the samples.

        Raises:
            UserError: if a run is not a specialist's.
        """
        panel = cls([], [], [])
        for member in members:
            spec = read_json(member.folder / "run.json")["data"]
            if "specialist" not in spec:
                raise UserError(
                    f"analysis of specialists: {member.folder} is not a specialist's run"
                )
            description = spec["specialist"]
            logits = member.predictions(stage)["logits"]
            # In training, the dustbin was rarer by this factor than it is in the data.
            correction = math.log(description["oversampling"])
            panel.class_ids.append(list(description["class_ids"]))
            panel.log_probs.append(corrected(logits, correction))
            # The last class is the dustbin.
            panel.names.append(spec["classes"][:-1])
        return panel

    def coverage(self, classes: int) -> Tensor:
        """Count the specialists that know each of `classes` classes, `(K,)`."""
        return membership(self.class_ids, classes).sum(0)

    def conditional_accuracy(self, target: Tensor) -> float:
        """Accuracy of each specialist without the generalist, on the samples of its own classes.

        Args:
            target: `(N,)`.
        """
        correct = []
        for class_ids, log_probs in zip(self.class_ids, self.log_probs, strict=True):
            ids = torch.tensor(class_ids)
            rows = torch.isin(target, ids)
            # Without the dustbin, which is the last column.
            own_classes = log_probs[rows, :-1]
            predicted = ids[own_classes.argmax(1)]
            correct.append(predicted == target[rows])
        all_correct = torch.cat(correct)
        return float(all_correct.double().mean())


class Study:
    """All systems of one seed.

    Args:
        runs: the finished runs.
        generalist: the generalist of this seed.
        systems: label -> the specialists that are combined with the generalist.
        stage: the samples.

    Attributes:
        seed: the seed.
        base: the generalist's predictions.
        panels: the specialists of each system, by label.
        panels_by_run: the same specialists, by the name of their run.
        answers: the predictions of each system, by label.

    Raises:
        UserError: if a system has no specialists of this seed.
    """

    def __init__(
        self,
        runs: Runs,
        generalist: Finished,
        systems: Mapping[str, System],
        stage: Stage,
    ) -> None:
        self.seed = generalist.seed
        self.base = mean_answers([generalist], stage)
        self.panels: dict[str, Panel] = {}
        self.answers: dict[str, Answers] = {}
        self.panels_by_run: dict[str, Panel] = {}
        for label, system in systems.items():
            run = system["run"]
            # Systems that differ in n alone share their specialists.
            if run not in self.panels_by_run:
                members = _members(runs, run, self.seed)
                self.panels_by_run[run] = Panel.of(members, stage)
            panel = self.panels_by_run[run]
            self.panels[label] = panel
            n = int(system.get("n", 1))
            self.answers[label] = self._combine(panel, n)

    def _combine(self, panel: Panel, n: int) -> Answers:
        """The distributions on which the generalist and its active specialists agree best."""
        generalist = self.base.log_probs
        known = membership(panel.class_ids, generalist.shape[1])
        active = active_specialists(generalist, known, n)
        log_probs = agreed_log_probs(
            generalist, panel.log_probs, panel.class_ids, active
        )
        return Answers(log_probs, self.base.target)

    def by_coverage(self, label: str) -> Coverage:
        """Count correct samples before and after, by the number of specialists of their class.

        Args:
            label: the system's label.
        """
        target = self.base.target
        before = self.base.correct
        after = self.answers[label].correct
        num_classes = self.base.log_probs.shape[1]
        specialists_of_class = self.panels[label].coverage(num_classes)
        # From classes to samples: the number of specialists that know each sample's class.
        specialists = specialists_of_class[target]
        coverage = {}
        for count in specialists.unique().tolist():
            rows = specialists == count
            samples = int(rows.sum())
            correct_before = int(before[rows].sum())
            correct_after = int(after[rows].sum())
            coverage[count] = (samples, correct_before, correct_after)
        return coverage


def runs_of_grid(runs: Runs, run: str) -> list[Sequence[Finished]]:
    """Return the specialists of a run with a grid over `data.specialist`, each with all its seeds.

    Args:
        runs: the finished runs.
        run: the run's name before its grid.
    """
    # The runner appends the grid's values to a run's name.
    pattern = re.compile(re.escape(run) + r" specialist=\d+")
    return [group for name, group in runs.items() if pattern.fullmatch(name)]


def _members(runs: Runs, run: str, seed: int) -> list[Finished]:
    """The specialists of one seed."""
    members = []
    for group in runs_of_grid(runs, run):
        members += [specialist for specialist in group if specialist.seed == seed]
    if not members:
        raise UserError(
            f"analysis of specialists: there are no runs {run!r} with a grid over data.specialist"
        )
    return members

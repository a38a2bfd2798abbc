"""Hinton et al. 2015, section 5: a generalist with specialists in the paper's tables, beside other uses of the compute."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from kd_lightning.analyses.specialists_report import grid, report, training_cost
from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished, Row, Runs
from kd_lightning.experiments.stats import Comparison, holm, paired
from kd_lightning.runs.folder import read_json
from kd_lightning.specialists.agreement import active_specialists, agreed_log_probs, membership
from kd_lightning.specialists.teacher import corrected

ACCURACY = {"test": "test_accuracy", "validation": "val_accuracy"}
"""What a run's own record calls it."""

CONDITIONAL = "conditional_accuracy"

Values = dict[tuple[str, str], list[float]]
"""A value for each seed, by run and metric."""

Coverage = dict[int, tuple[int, int, int]]
"""By the number of specialists that know a class: its samples, and how many of them are right before and after."""


@dataclass
class Panel:
    """The specialists of one generalist, and what they say of the samples.

    Attributes:
        class_ids: for each specialist its classes.
        log_probs: for each `(N, m + 1)`, corrected for the oversampling.
        names: for each the names of its classes.
    """

    class_ids: list[list[int]]
    log_probs: list[Tensor]
    names: list[list[str]]

    @classmethod
    def of(cls, members: Sequence[Finished], stage: str) -> Panel:
        specs = [read_json(member.folder / "run.json")["data"] for member in members]
        if missing := [
            one.folder for one, spec in zip(members, specs, strict=True) if "specialist" not in spec
        ]:
            raise UserError(f"analysis of specialists: {missing[0]} is not a specialist's run")
        abouts = [spec["specialist"] for spec in specs]
        logits = [member.predictions(stage)["logits"] for member in members]
        log_probs = [
            corrected(z, math.log(about["oversampling"]))
            for z, about in zip(logits, abouts, strict=True)
        ]
        return cls(
            [list(a["class_ids"]) for a in abouts],
            log_probs,
            [spec["classes"][:-1] for spec in specs],
        )

    def coverage(self, classes: int) -> Tensor:
        """How many specialists know each class, `(K,)`."""
        return membership(self.class_ids, classes).sum(0)

    def alone(self, target: Tensor) -> float:
        """Conditional accuracy of each specialist by itself, all specialists' samples together."""
        right = []
        for said, ids in zip(self.log_probs, map(torch.tensor, self.class_ids), strict=True):
            rows = torch.isin(target, ids)
            right.append(ids[said[rows, :-1].argmax(1)] == target[rows])
        return float(torch.cat(right).double().mean())


@dataclass
class Answers:
    """What a system says of the samples: log-probabilities `(N, K)` against the targets `(N,)`."""

    log_probs: Tensor
    target: Tensor

    @property
    def right(self) -> Tensor:
        return self.log_probs.argmax(1) == self.target

    def accuracy(self) -> float:
        return float(self.right.double().mean())

    def conditional_accuracy(self, class_ids: Sequence[Sequence[int]]) -> float:
        """On the samples of each specialist's classes, with the choice among these alone; all specialists' samples together."""
        right = [self._among(torch.tensor(ids)) for ids in class_ids]
        return float(torch.cat(right).double().mean())

    def _among(self, ids: Tensor) -> Tensor:
        rows = torch.isin(self.target, ids)
        return ids[self.log_probs[rows][:, ids].argmax(1)] == self.target[rows]


class Study:
    """One seed: the generalist, what its specialists make of it, and the baselines.

    Attributes:
        panels: the specialists of each system.
        base: the generalist.
        answers: of the systems and the baselines, by label.
    """

    def __init__(
        self, runs: Runs, generalist: Finished, systems: Mapping[str, Mapping[str, Any]], stage: str
    ) -> None:
        self.seed = generalist.seed
        self.base = _answers([generalist], stage)
        names = dict.fromkeys(about["run"] for about in systems.values())
        panels = {name: Panel.of(_members(runs, name, self.seed), stage) for name in names}
        self.panels = {label: panels[about["run"]] for label, about in systems.items()}
        self.answers = {
            label: self._with(self.panels[label], int(about.get("n", 1)))
            for label, about in systems.items()
        }

    def _with(self, panel: Panel, n: int) -> Answers:
        known = membership(panel.class_ids, self.base.log_probs.shape[1])
        active = active_specialists(self.base.log_probs, known, n)
        log_probs = agreed_log_probs(self.base.log_probs, panel.log_probs, panel.class_ids, active)
        return Answers(log_probs, self.base.target)

    def by_coverage(self, label: str) -> Coverage:
        """What the system changes, by the number of specialists that know a sample's class."""
        target, base, system = self.base.target, self.base.right, self.answers[label].right
        counts = self.panels[label].coverage(self.base.log_probs.shape[1])[target]
        found = {}
        for count in counts.unique().tolist():
            rows = counts == count
            found[count] = (int(rows.sum()), int(base[rows].sum()), int(system[rows].sum()))
        return found


def gain_by_coverage(coverage: Coverage) -> float:
    """What accuracy gains with each further specialist that knows a sample's class: the slope by least squares over samples."""
    samples, before, after = (
        torch.tensor(column).double() for column in zip(*coverage.values(), strict=True)
    )
    count = torch.tensor(list(coverage)).double()
    away = count - (samples * count).sum() / samples.sum()
    spread = float((samples * away.square()).sum())
    return float(((after - before) * away).sum()) / spread if spread else 0.0


def _answers(members: Sequence[Finished], stage: str) -> Answers:
    """The mean of the distributions of one network or several."""
    said = [member.predictions(stage) for member in members]
    log_probs = torch.stack([one["logits"].double().log_softmax(1) for one in said])
    return Answers(log_probs.logsumexp(0) - math.log(len(said)), said[0]["target"])


def _members(runs: Runs, run: str, seed: int) -> list[Finished]:
    """A seed's specialists, of a run with a grid over them."""
    found = [one for group in grid(runs, run) for one in group if one.seed == seed]
    if not found:
        raise UserError(
            f"analysis of specialists: there are no runs {run!r} with a grid over data.specialist"
        )
    return found


def _share(runs: Runs, others: str, at: int, count: int) -> list[Finished]:
    """The other generalists that belong to the seed number `at`."""
    share = list(runs[others][at * count : (at + 1) * count])
    if len(share) < count:
        raise UserError(
            f"analysis of specialists: {others!r} needs {count} seeds for each of the generalist's"
        )
    return share


def against_generalist(
    runs: Runs,
    output: Path,
    generalist: str,
    systems: Mapping[str, Mapping[str, Any]],
    longer: str | None = None,
    others: str | None = None,
    ensemble: int = 2,
    stage: Literal["test", "validation"] = "test",
) -> list[Row]:
    """Conditional and overall accuracy, gain by coverage, clusters, training cost, and fair baselines.

    Writes `specialists.md` and, with what each seed gave and the classes of all specialists, `specialists.json`.

    Args:
        runs: the finished runs.
        output: folder of the results.
        generalist: name of its run.
        systems: label -> `{run: name of the grid of specialists, n: how many of the generalist's classes decide who is asked
            (1 where left out)}`. The first one also stands in the tables of coverage, clusters and cost.
        longer: the run of a generalist that is trained for as long as generalist and specialists together.
        others: a run of generalists with other seeds, `ensemble - 1` of them for each seed.
        ensemble: how many generalists the compute of generalist and specialists trains.
        stage: the samples that are asked about; "validation" where settings are chosen.
    """
    first, accuracy = next(iter(systems)), ACCURACY[stage]
    values: Values = defaultdict(list)
    coverage: list[Coverage] = []
    clusters = {}
    for at, one in enumerate(runs[generalist]):
        study = Study(runs, one, systems, stage)
        answers = {generalist: study.base, **study.answers}
        if longer is not None:
            answers[longer] = _answers(
                [again for again in runs[longer] if again.seed == one.seed], stage
            )
        if others is not None:
            members = [one, *_share(runs, others, at, ensemble - 1)]
            answers[f"ensemble of {ensemble} generalists"] = _answers(members, stage)
        for label, said in answers.items():
            values[label, accuracy].append(said.accuracy())
            for run, panel in _asked(label, study.panels):
                values[run, CONDITIONAL].append(said.conditional_accuracy(panel.class_ids))
        for run, panel in {
            about["run"]: study.panels[label] for label, about in systems.items()
        }.items():
            values[f"{run}, each by itself", CONDITIONAL].append(panel.alone(study.base.target))
        coverage.append(study.by_coverage(first))
        clusters[study.seed] = study.panels[first].names
    slopes = [gain_by_coverage(each) for each in coverage]
    tests = _tests(values, list(systems), accuracy)
    tests.append(
        paired(
            "gain with each further specialist",
            "no such gain",
            accuracy,
            slopes,
            [0.0] * len(slopes),
        )
    )
    holm(tests)
    costs = training_cost(runs, generalist, systems[first]["run"], longer, others, ensemble - 1)
    told = {
        "tests": [test.as_dict() for test in tests],
        "coverage": coverage,
        "costs": [asdict(c) for c in costs],
        "clusters": clusters,
    }
    (output / "specialists.json").write_text(json.dumps(told, indent=2) + "\n")
    (output / "specialists.md").write_text(
        report(values, accuracy, tests, coverage, costs, next(iter(clusters.values())))
    )
    # The runs' own accuracies are in the table already.
    return [
        Row(run, metric, each)
        for (run, metric), each in values.items()
        if run not in runs or metric != accuracy
    ]


def _asked(label: str, panels: Mapping[str, Panel]) -> Iterator[tuple[str, Panel]]:
    """On whose classes an answer's conditional accuracy is taken: a system's own; those of each system for a rival."""
    if label in panels:
        yield label, panels[label]
        return
    first = next(iter(panels.values()))
    yield label, first
    yield from (
        (_on(label, system), panel)
        for system, panel in panels.items()
        if panel.class_ids != first.class_ids
    )


def _on(rival: str, system: str) -> str:
    """A rival as it is on the classes of a system's specialists, where these are not the first system's."""
    return f"{rival}, on the classes of {system}"


def _tests(values: Values, systems: list[str], accuracy: str) -> list[Comparison]:
    """Each system against the generalist, the baselines and the other systems, paired by seed.

    By both accuracies; by the conditional one where both are of the same classes.
    """
    rivals = [run for run, of in values if of == accuracy and run not in systems]
    pairs = [(a, b) for a in systems for b in rivals]
    tests = [
        paired(a, b, accuracy, values[a, accuracy], values[b, accuracy])
        for a, b in [*pairs, *combinations(systems, 2)]
    ]
    own = {a: any((_on(b, a), CONDITIONAL) in values for b in rivals) for a in systems}
    alike = [(a, _on(b, a) if own[a] else b) for a, b in pairs]
    alike += [(a, b) for a, b in combinations(systems, 2) if not own[a] and not own[b]]
    tests += [
        paired(a, b, CONDITIONAL, values[a, CONDITIONAL], values[b, CONDITIONAL]) for a, b in alike
    ]
    return tests

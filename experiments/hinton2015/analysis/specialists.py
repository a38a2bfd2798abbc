"""Compares a generalist with specialists to other uses of the same compute.

Hinton et al. 2015, section 5.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Literal

import torch

from kd_lightning.experiments.analysis import Row, Runs
from kd_lightning.experiments.stats import Comparison, holm, paired

from .specialist_answers import Answers, Baselines, Coverage, Panel, Study, System
from .specialist_costs import Cost, training_cost
from .specialist_tables import CONDITIONAL, Values, report

ACCURACY = {"test": "test_accuracy", "validation": "val_accuracy"}
"""The name of the overall accuracy in a run's own record, by stage."""


def against_generalist(
    runs: Runs,
    output: Path,
    generalist: str,
    systems: Mapping[str, System],
    longer: str | None = None,
    others: str | None = None,
    ensemble: int = 2,
    stage: Literal["test", "validation"] = "test",
) -> list[Row]:
    """Compare systems of a generalist and specialists with the generalist and with fair baselines.

    Writes specialists.md (accuracies, gain by coverage, training cost, clusters) and
    specialists.json, with the counts of each seed and the classes of all specialists.

    Args:
        runs: the finished runs.
        output: folder of the results.
        generalist: the generalist's run.
        systems: label -> `{run: ..., n: ...}`: the run with a grid over specialists, and how many
            of the generalist's most probable classes decide which specialists are active (1 by
            default). The tables of coverage, clusters and cost show the first system.
        longer: the run of a generalist that is trained for as long as the generalist and the
            specialists together.
        others: the run of generalists with other seeds, `ensemble - 1` of them per seed.
        ensemble: how many generalists can be trained with the compute of the generalist and the
            specialists.
        stage: the samples; "validation" while settings are chosen.

    Returns:
        Rows `conditional_accuracy` and the overall accuracy of each system and baseline.

    Raises:
        UserError: if runs are missing, or a run is not a specialist's.
    """
    accuracy = ACCURACY[stage]
    baselines = Baselines(longer, others, ensemble - 1)
    first_system = next(iter(systems))
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    coverage = []
    clusters = {}
    for position, run in enumerate(runs[generalist]):
        study = Study(runs, run, systems, stage)
        answers = {generalist: study.base, **study.answers}
        answers |= baselines.answers(runs, run, position, stage)
        for name, metric, value in _accuracies(study, answers, accuracy):
            values[name, metric].append(value)
        coverage.append(study.by_coverage(first_system))
        clusters[study.seed] = study.panels[first_system].names

    # All tests of the experiment are corrected together.
    tests = _tests(values, list(systems), accuracy)
    tests.append(_coverage_test(coverage, accuracy))
    holm(tests)
    costs = training_cost(runs, generalist, systems[first_system]["run"], baselines)
    _write_json(output / "specialists.json", tests, coverage, costs, clusters)
    first_clusters = next(iter(clusters.values()))
    text = report(values, accuracy, tests, coverage, costs, first_clusters)
    (output / "specialists.md").write_text(text)
    return _rows(values, runs, accuracy)


def _accuracies(
    study: Study, answers: Mapping[str, Answers], accuracy: str
) -> Iterator[tuple[str, str, float]]:
    """Name, metric and value of all accuracies of one seed."""
    for label, answer in answers.items():
        yield label, accuracy, answer.accuracy()
        for name, panel in _panels_for(label, study.panels).items():
            yield name, CONDITIONAL, answer.conditional_accuracy(panel.class_ids)
    for run, panel in study.panels_by_run.items():
        value = panel.conditional_accuracy(study.base.target)
        yield f"{run}, each by itself", CONDITIONAL, value


def _write_json(
    path: Path,
    tests: list[Comparison],
    coverage: list[Coverage],
    costs: list[Cost],
    clusters: dict[int, list[list[str]]],
) -> None:
    """Write what the report shows, in full, for later analyses."""
    content = {
        "tests": [test.as_dict() for test in tests],
        "coverage": coverage,
        "costs": [asdict(cost) for cost in costs],
        "clusters": clusters,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def _rows(values: Values, runs: Runs, accuracy: str) -> list[Row]:
    """The accuracies as rows of results.json."""
    rows = []
    for (name, metric), numbers in values.items():
        # The table of the runs already shows the accuracies of the runs themselves.
        if name not in runs or metric != accuracy:
            rows.append(Row(name, metric, numbers))
    return rows


def gain_by_coverage(coverage: Coverage) -> float:
    """Compute the gain in accuracy per further specialist that knows a sample's class.

    This is the slope of a least-squares fit over samples; 0 if all samples have equal coverage.

    Args:
        coverage: samples, correct before and correct after, by the number of specialists.
    """
    specialists = torch.tensor(list(coverage)).double()
    counts = torch.tensor(list(coverage.values())).double()
    samples, before, after = counts.T
    # A weighted fit: each count of specialists stands for as many points as it has samples. The
    # slope is covariance over variance; the gain of a sample is 1, 0 or -1.
    mean = (samples * specialists).sum() / samples.sum()
    centered = specialists - mean
    variance = float((samples * centered.square()).sum())
    if not variance:
        return 0.0
    gains = after - before
    covariance = float((gains * centered).sum())
    return covariance / variance


def _coverage_test(coverage: list[Coverage], accuracy: str) -> Comparison:
    """Whether the accuracy gains with each further specialist that knows a sample's class."""
    slopes = [gain_by_coverage(counts) for counts in coverage]
    zeros = [0.0] * len(slopes)
    return paired(
        "gain with each further specialist", "no such gain", accuracy, slopes, zeros
    )


def _panels_for(label: str, panels: Mapping[str, Panel]) -> dict[str, Panel]:
    """The specialists whose classes an answer is evaluated on, by the name in the results.

    A system is evaluated on the classes of its own specialists, a rival on those of each system.
    """
    if label in panels:
        return {label: panels[label]}
    first = next(iter(panels.values()))
    # Systems with equal classes would give a rival the same number twice.
    evaluated = {label: first}
    for system, panel in panels.items():
        if panel.class_ids != first.class_ids:
            evaluated[_on_classes_of(label, system)] = panel
    return evaluated


def _on_classes_of(rival: str, system: str) -> str:
    """A rival's name if it is evaluated on other classes than those of the first system."""
    return f"{rival}, on the classes of {system}"


def _tests(values: Values, systems: list[str], accuracy: str) -> list[Comparison]:
    """Compare each system with the generalist, the baselines and the other systems.

    All pairs are compared by overall accuracy, and by conditional accuracy if both sides are
    evaluated on the same classes.
    """
    rivals = []
    for run, metric in values:
        if metric == accuracy and run not in systems:
            rivals.append(run)
    against_rivals = [(system, rival) for system in systems for rival in rivals]
    among_systems = list(combinations(systems, 2))

    # A system whose specialists have other classes than the first system's.
    has_other_classes = {}
    for system in systems:
        names = [(_on_classes_of(rival, system), CONDITIONAL) for rival in rivals]
        has_other_classes[system] = any(name in values for name in names)

    same_classes = []
    for system, rival in against_rivals:
        evaluated = (
            _on_classes_of(rival, system) if has_other_classes[system] else rival
        )
        same_classes.append((system, evaluated))
    for a, b in among_systems:
        if not has_other_classes[a] and not has_other_classes[b]:
            same_classes.append((a, b))

    tests = []
    for a, b in against_rivals + among_systems:
        overall_a = values[a, accuracy]
        overall_b = values[b, accuracy]
        tests.append(paired(a, b, accuracy, overall_a, overall_b))
    for a, b in same_classes:
        conditional_a = values[a, CONDITIONAL]
        conditional_b = values[b, CONDITIONAL]
        tests.append(paired(a, b, CONDITIONAL, conditional_a, conditional_b))
    return tests

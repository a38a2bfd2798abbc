"""Each row against one of them: paired over seeds, and over test examples."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from kd_lightning.compare.groups import Group, Measured
from kd_lightning.compare.labels import listing
from kd_lightning.errors import UserError
from kd_lightning.experiments.stats import LEAST_SEEDS, Comparison, bootstrap_examples, holm, paired


def against(groups: Sequence[Group], baseline: str, metric: str) -> list[Comparison]:
    """Every other group against the baseline, over the seeds that both have; p-values corrected for all of them (Holm).

    Raises:
        UserError: where no group has the baseline's label.
    """
    base = next((group for group in groups if group.label == baseline), None)
    if base is None:
        raise UserError(
            f"--baseline: there is no row {baseline!r}; rows are: {listing([group.label for group in groups], 20, '; ')}"
        )
    found = []
    for group in groups:
        if group is not base:
            sides = [_by_seed(one, metric) for one in (group, base)]
            seeds = sorted(sides[0].keys() & sides[1].keys())
            values = [
                [statistics.fmean(run.metrics[metric] for run in side[seed]) for seed in seeds]
                for side in sides
            ]
            result = paired(group.label, base.label, metric, *values)
            if metric == "test_errors" and result.p is not None:
                _over_examples(
                    result, *([run for seed in seeds for run in side[seed]] for side in sides)
                )
            found.append(result)
    holm(found)
    return found


def _by_seed(group: Group, metric: str) -> dict[int, list[Measured]]:
    found: dict[int, list[Measured]] = {}
    for run in group.runs:
        if metric in run.metrics:
            found.setdefault(run.seed, []).append(run)
    return found


def _over_examples(result: Comparison, a: Sequence[Measured], b: Sequence[Measured]) -> None:
    """The bootstrap over test examples, where all runs have kept their predictions of the same examples."""
    wrong = [_wrong(run) for run in (*a, *b)]
    kept = [one for one in wrong if one is not None]
    if len(kept) == len(wrong) and len({one.shape for one in kept}) == 1:
        low, high = bootstrap_examples(np.stack(kept[: len(a)]), np.stack(kept[len(a) :]))
        result.examples_low, result.examples_high = low, high


def _wrong(run: Measured) -> NDArray[np.bool_] | None:
    """`(examples,)`: whether the run errs on each test example; None where it kept no predictions."""
    try:
        tested = load_file(run.folder / "predictions-test.safetensors") if run.folder else {}
        wrong: NDArray[np.bool_] = tested["logits"].argmax(-1) != tested["target"]
    except (OSError, KeyError, SafetensorError):
        return None
    return wrong


def verdict(result: Comparison) -> str:
    """A cell: the difference, its interval and the corrected p, or that there is no test."""
    scale, unit = (100, " points") if "accuracy" in result.metric else (1, "")
    if not result.n:
        return "no shared seed"
    mean = f"{scale * result.mean:+.4g}{unit}"
    if result.p is None:
        return f"{mean} (no test: {result.n} seed{'s' * (result.n > 1)})"
    return f"{mean} [{scale * (result.low or 0):+.4g}, {scale * (result.high or 0):+.4g}], p = {result.p_holm:.2g}"


def notes(found: Sequence[Comparison]) -> list[str]:
    """What the last column means, and where it means nothing."""
    tests = sum(result.p is not None for result in found)
    said = [f"Difference in {found[0].metric} to {found[0].b}, paired by seed"] if found else []
    if tests:
        said[0] += (
            f", with its 95% interval and the paired t-test's p, Holm-corrected for {tests} test{'s' * (tests > 1)}"
        )
    if tests < len(found):
        said.append(
            f"Fewer than {LEAST_SEEDS} shared seeds give no test: those rows are not ranked"
        )
    return [f"{sentence}." for sentence in said]

"""Ensembles of the generations of a born-again network (Furlanello et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished, Row, Runs
from kd_lightning.experiments.stats import holm, paired


def ensembles(
    runs: Runs, output: Path, generations: list[str], alone: str
) -> list[Row]:
    """Compare ensembles of one network's generations with ensembles of unrelated networks.

    The generations of a chain have different seeds: if the last one has seed s, its teacher has
    seed s + 1, and the teacher's teacher seed s + 2. The unrelated networks have seeds of their own,
    and no network is a member of two ensembles. Writes ensembles.md, with paired t-tests over the
    ensembles, Holm-corrected together.

    Args:
        runs: the finished runs.
        output: folder for ensembles.md.
        generations: the runs whose networks form a chain, each the teacher of the next.
        alone: the run without a teacher, with as many seeds as all chains have members.

    Returns:
        Rows `test_errors` and `test_accuracy` of both kinds of ensemble; the members' distributions
        are averaged.

    Raises:
        UserError: if a network is missing.
    """
    size = len(generations)
    last = generations[-1]
    chains: list[list[Finished]] = []
    unrelated: list[list[Finished]] = []
    for number, run in enumerate(runs[last]):
        chain = []
        for generation, name in enumerate(reversed(generations)):
            chain.append(_with_seed(runs, name, run.seed + generation))
        chains.append(chain)
        first = number * size
        seeds = range(first, first + size)
        unrelated.append([_with_seed(runs, alone, seed) for seed in seeds])
    of_generations = [_errors(chain) for chain in chains]
    of_unrelated = [_errors(group) for group in unrelated]
    of_last = [_errors(chain[:1]) for chain in chains]
    names = (
        f"ensemble of generations 1 to {size}",
        f"ensemble of {size} without teacher",
    )
    tests = [
        paired(last, names[0], "test_errors", of_last, of_generations),
        paired(names[1], names[0], "test_errors", of_unrelated, of_generations),
    ]
    holm(tests)
    lines = [f"- {test.sentence()}." for test in tests]
    (output / "ensembles.md").write_text("\n".join(lines) + "\n")
    samples = len(chains[0][0].predictions("test")["target"])
    rows = []
    for name, errors in zip(names, (of_generations, of_unrelated), strict=True):
        accuracies = [1 - count / samples for count in errors]
        rows.append(Row(name, "test_errors", errors))
        rows.append(Row(name, "test_accuracy", accuracies))
    return rows


def _with_seed(runs: Runs, name: str, seed: int) -> Finished:
    """The network of a run with a seed.

    Raises:
        UserError: if there is none.
    """
    for run in runs[name]:
        if run.seed == seed:
            return run
    raise UserError(f"the ensembles need seed {seed} of the run {name!r}")


def _errors(members: Sequence[Finished]) -> float:
    """Test errors of the mean of the members' distributions."""
    probs = []
    for member in members:
        predictions = member.predictions("test")
        # Double precision keeps rounding errors of the mean from changing predictions.
        probs.append(predictions["logits"].double().softmax(-1))
    mean = torch.stack(probs).mean(0)
    wrong = mean.argmax(-1) != predictions["target"]
    return float(wrong.sum())

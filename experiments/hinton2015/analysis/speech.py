"""Speech recognition: frame accuracy, word errors, and one model's share of an ensemble's gain.

Hinton et al. 2015, section 4, table 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished, Row, Runs

from .bootstrap import Bootstrap, Counts, interval, mean_rate, rates
from .strings import Score, TestStrings


def recognition(
    runs: Runs,
    output: Path,
    baseline: str = "baseline",
    members: str = "ensemble member",
    distilled: str = "distilled",
) -> list[Row]:
    """Compute frame accuracies, word error rates, and the distilled model's share of the gain.

    The ensemble is the mean of its members' distributions. Writes recognition.md: the paper's table
    with 95% intervals (bootstrap over test strings and seeds).

    Args:
        runs: the finished runs.
        output: folder of the results.
        baseline: the run of the baseline.
        members: the run whose seeds are the members of the ensemble.
        distilled: the run of the distilled model.

    Returns:
        `test_accuracy` of the ensemble; `test_accuracy_without_silence`, `test_wer` and
        `test_wer_priors_not_divided` of all systems; `gain_share` and its interval.

    Raises:
        UserError: if one of the runs is missing, or was tested on other data.
    """
    _check_names(runs, [baseline, members, distilled])
    test = TestStrings(runs[baseline][0].datamodule())
    scores = {}
    for name, group in runs.items():
        if _was_tested(group):
            log_probs = [test.log_probs(run) for run in group]
            scores[name] = test.score(log_probs)
    # The seeds of the members form one ensemble, which therefore has a single seed.
    ensemble = f"ensemble of {len(runs[members])}"
    ensemble_log_probs = _ensemble_log_probs(test, runs[members])
    scores[ensemble] = test.score([ensemble_log_probs])

    bootstrap = Bootstrap(len(test.words))
    share, (low, high) = gain_share(
        bootstrap,
        test.frames,
        scores[baseline].right,
        scores[ensemble].right,
        scores[distilled].right,
    )
    # The bootstrap draws seeds at each use, so the order of these calls decides the intervals.
    gains = _gains(test, scores, bootstrap, baseline)
    table = _table(test, scores, bootstrap)
    share_text = f"{share:.0%}, 95% interval [{low:.0%}, {high:.0%}]"
    (output / "recognition.md").write_text(_document(table, gains, share_text))
    return [
        Row(ensemble, "test_accuracy", rates(scores[ensemble].right, test.frames)),
        *_rows(test, scores),
        Row(distilled, "gain_share", [share]),
        Row(distilled, "gain_share_low", [low]),
        Row(distilled, "gain_share_high", [high]),
    ]


def _check_names(runs: Runs, names: Sequence[str]) -> None:
    """Refuse names of runs that do not exist or did not finish."""
    for name in names:
        if not runs.get(name):
            known = ", ".join(runs)
            raise UserError(
                f"the speech analysis needs the run {name!r}; there are {known}"
            )


def _document(table: list[str], gains: list[str], share: str) -> str:
    """The content of recognition.md."""
    lines = [
        *table,
        "",
        *gains,
        "",
        f"Share of the ensemble's gain in frame accuracy that the distilled model has: {share}.",
        "95% intervals: bootstrap over test strings and seeds.",
        "",
    ]
    return "\n".join(lines)


def _rows(test: TestStrings, scores: Mapping[str, Score]) -> list[Row]:
    """The rows of all systems; a run's own metrics already contain its frame accuracy."""
    rows = []
    for name, score in scores.items():
        spoken = rates(score.spoken, test.spoken_frames)
        undivided = rates(score.undivided, test.words)
        rows.append(Row(name, "test_accuracy_without_silence", spoken))
        rows.append(Row(name, "test_wer", rates(score.errors, test.words)))
        rows.append(Row(name, "test_wer_priors_not_divided", undivided))
    return rows


def _was_tested(group: Sequence[Finished]) -> bool:
    """Whether a run has predictions; a cache of teacher outputs has none."""
    return bool(group) and (group[0].folder / "predictions-test.safetensors").is_file()


def _ensemble_log_probs(test: TestStrings, members: Sequence[Finished]) -> Tensor:
    """Log of the mean of the members' distributions, `(F, K)`."""
    log_probs = torch.stack([test.log_probs(member) for member in members])
    # The log of a mean of probabilities: log sum exp, minus the log of their number.
    log_count = float(np.log(len(members)))
    return log_probs.logsumexp(0) - log_count


def gain_share(
    bootstrap: Bootstrap,
    totals: Counts,
    baseline: Counts,
    ensemble: Counts,
    distilled: Counts,
) -> tuple[float, tuple[float, float]]:
    """Compute the distilled model's share of the ensemble's gain in accuracy over the baseline.

    Args:
        bootstrap: the resamples.
        totals: frames of each string, `(strings,)`.
        baseline: correct frames, `(seeds, strings)`.
        ensemble: correct frames, `(1, strings)`.
        distilled: correct frames, `(seeds, strings)`.

    Returns:
        The share, NaN if the ensemble has no gain, and its 95% interval.
    """
    b = mean_rate(baseline, totals)
    e = mean_rate(ensemble, totals)
    d = mean_rate(distilled, totals)
    share = float("nan")
    if e != b:
        share = (d - b) / (e - b)

    b_resampled = bootstrap.means(baseline, totals)
    e_resampled = bootstrap.means(ensemble, totals)
    d_resampled = bootstrap.means(distilled, totals)
    # In a resample, too, the ensemble may have no gain.
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = (d_resampled - b_resampled) / (e_resampled - b_resampled)
    return share, interval(shares)


def _gains(
    test: TestStrings, scores: Mapping[str, Score], bootstrap: Bootstrap, baseline: str
) -> list[str]:
    """One line per system: its gain in frame accuracy over the baseline on the same strings."""
    lines = []
    start = scores[baseline].right
    for name, score in scores.items():
        if name == baseline:
            continue
        rate = mean_rate(score.right, test.frames)
        gain = rate - mean_rate(start, test.frames)
        # Both sides share the resampled strings, so their difference is paired.
        resampled = bootstrap.means(score.right, test.frames)
        resampled_start = bootstrap.means(start, test.frames)
        low, high = interval(resampled - resampled_start)
        lines.append(
            f"- {name} - {baseline}: {100 * gain:+.2f} points of frame accuracy "
            f"[{100 * low:+.2f}, {100 * high:+.2f}]"
        )
    return lines


def _table(
    test: TestStrings, scores: Mapping[str, Score], bootstrap: Bootstrap
) -> list[str]:
    """The lines of the paper's table, with intervals."""
    lines = [
        "| system | seeds | test frame accuracy | without silence | WER |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, score in scores.items():
        cells = [
            _cell(bootstrap, score.right, test.frames),
            _cell(bootstrap, score.spoken, test.spoken_frames),
            _cell(bootstrap, score.errors, test.words),
        ]
        seeds = len(score.right)
        lines.append(f"| {name} | {seeds} | {' | '.join(cells)} |")
    return lines


def _cell(bootstrap: Bootstrap, counts: Counts, totals: Counts) -> str:
    """A mean rate and its 95% interval."""
    rate = mean_rate(counts, totals)
    resampled = bootstrap.means(counts, totals)
    low, high = interval(resampled)
    return f"{rate:.2%} [{low:.2%}, {high:.2%}]"

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
    for name in (baseline, members, distilled):
        if not runs.get(name):
            known = ", ".join(runs)
            raise UserError(f"the speech analysis needs the run {name!r}; there are {known}")
    test = TestStrings(runs[baseline][0].datamodule())
    scores = {}
    for name, group in runs.items():
        if _was_tested(group):
            scores[name] = test.score([test.log_probs(run) for run in group])
    ensemble = f"ensemble of {len(runs[members])}"
    scores[ensemble] = test.score([_ensemble_log_probs(test, runs[members])])

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
    return log_probs.logsumexp(0) - float(np.log(len(members)))


def gain_share(
    bootstrap: Bootstrap, totals: Counts, baseline: Counts, ensemble: Counts, distilled: Counts
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
    share = (d - b) / (e - b) if e != b else float("nan")

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
        gain = mean_rate(score.right, test.frames) - mean_rate(start, test.frames)
        resampled = bootstrap.means(score.right, test.frames)
        low, high = interval(resampled - bootstrap.means(start, test.frames))
        lines.append(
            f"- {name} - {baseline}: {100 * gain:+.2f} points of frame accuracy "
            f"[{100 * low:+.2f}, {100 * high:+.2f}]"
        )
    return lines


def _table(test: TestStrings, scores: Mapping[str, Score], bootstrap: Bootstrap) -> list[str]:
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
        lines.append(f"| {name} | {len(score.right)} | {' | '.join(cells)} |")
    return lines


def _cell(bootstrap: Bootstrap, counts: Counts, totals: Counts) -> str:
    """A mean rate and its 95% interval."""
    low, high = interval(bootstrap.means(counts, totals))
    return f"{mean_rate(counts, totals):.2%} [{low:.2%}, {high:.2%}]"

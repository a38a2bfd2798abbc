"""Speech recognition with acoustic models: frame accuracy, word errors, and what of an ensemble's gain one model keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torchmetrics.functional.text import word_error_rate

from kd_lightning.data.speech.windows import Speech
from kd_lightning.data.speech.word_loop import WordLoop
from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished, Row, Runs
from kd_lightning.experiments.stats import holm, paired
from kd_lightning.features import run_network
from kd_lightning.weights import read_file

RESAMPLES = 10_000
Counts = NDArray[np.float64]


@dataclass
class Score:
    """What the seeds of one system did on each test string.

    Attributes:
        right: frames whose state was predicted, `(seeds, strings)`.
        spoken: of those, frames that are no silence, `(seeds, strings)`.
        errors: words substituted, deleted and inserted, `(seeds, strings)`.
        undivided: the same where posteriors are not divided by the states' priors.
    """

    right: Counts
    spoken: Counts
    errors: Counts
    undivided: Counts


class TestStrings:
    """The strings of the test set, and the decoder."""

    __test__ = False  # no test of pytest's

    def __init__(self, datamodule: Any) -> None:
        if not hasattr(datamodule, "word_loop"):
            raise UserError(
                f"the speech analysis needs strings of words; the data {datamodule.spec['data']} has none"
            )
        self.speech: Speech = datamodule.raw("test")
        self.loop: WordLoop = datamodule.word_loop()
        self.silent = self.speech.target == self.loop.lexicon.silence
        self.lengths: Tensor = self.speech.lengths
        self.frames = self._by_string(torch.ones(len(self.silent)))
        self.spoken_frames = self._by_string((~self.silent).float())
        self.words: Counts = np.array([len(t) for t in self.speech.transcripts], dtype=float)

    def _by_string(self, values: Tensor) -> Counts:
        sums: Counts = (
            torch.zeros(len(self.lengths), dtype=torch.float64)
            .index_add(0, self.speech.string, values.double())
            .numpy()
        )
        return sums

    def word_errors(self, scores: Tensor) -> Counts:
        """Of each string, from scores of all frames `(F, K)`."""
        padded = pad_sequence(list(scores.split(self.lengths.tolist())), batch_first=True)
        pairs = zip(self.loop.decode(padded, self.lengths), self.speech.transcripts, strict=True)
        return np.array(
            [
                round(float(word_error_rate(_text(said), _text(true))) * len(true))
                for said, true in pairs
            ],
            dtype=float,
        )

    def score(self, log_probs: Sequence[Tensor]) -> Score:
        """Of log-posteriors of all frames `(F, K)`, a seed an item."""
        right = [(one.argmax(1) == self.speech.target).float() for one in log_probs]
        return Score(
            np.stack([self._by_string(one) for one in right]),
            np.stack([self._by_string(one * ~self.silent) for one in right]),
            np.stack([self.word_errors(one - self.loop.prior) for one in log_probs]),
            np.stack([self.word_errors(one) for one in log_probs]),
        )

    def log_probs(self, run: Finished) -> Tensor:
        """Log-posteriors of all test frames, in order."""
        said = run.predictions("test")
        if not torch.equal(said["target"], self.speech.target):
            raise UserError(f"{run.folder} was tested on other frames; run it again")
        return said["logits"].float().log_softmax(-1)


def _text(words: Sequence[int]) -> str:
    return " ".join(map(str, words))


def rates(counts: Counts, totals: Counts) -> list[float]:
    """Of each seed, over all strings."""
    return [float(rate) for rate in counts.sum(1) / totals.sum()]


class Bootstrap:
    """Test strings, and the seeds of each system, drawn anew: strings are the same ones for all systems."""

    def __init__(self, strings: int) -> None:
        self.draw = np.random.default_rng(0)
        self.weights = self.draw.multinomial(
            strings, np.full(strings, 1 / strings), size=RESAMPLES
        ).astype(float)

    def means(self, counts: Counts, totals: Counts) -> Counts:
        """The mean over seeds of the rate `counts / totals` in each resample, `(RESAMPLES,)`."""
        each = (self.weights @ counts.T) / (self.weights @ totals)[:, None]
        seeds = self.draw.integers(len(counts), size=(RESAMPLES, len(counts)))
        drawn: Counts = np.take_along_axis(each, seeds, 1).mean(1)
        return drawn


def interval(values: Counts) -> tuple[float, float]:
    """95%, by percentiles."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def recognition(
    runs: Runs,
    output: Path,
    baseline: str = "baseline",
    members: str = "ensemble member",
    distilled: str = "distilled",
) -> list[Row]:
    """Frame accuracy and word error rate of all systems, and the share of the ensemble's gain that the distilled model has.

    The ensemble is the mean of its members' distributions. Writes `recognition.md`: the paper's table with 95% intervals
    (bootstrap over test strings and seeds).

    Args:
        baseline, members, distilled: names of runs.
    """
    for name in (baseline, members, distilled):
        if not runs.get(name):
            raise UserError(
                f"the speech analysis needs the run {name!r}; there are {', '.join(runs)}"
            )
    test = TestStrings(runs[baseline][0].datamodule())
    scores = {
        name: test.score([test.log_probs(one) for one in group])
        for name, group in runs.items()
        if group and (group[0].folder / "predictions-test.safetensors").is_file()
    }
    together = torch.stack([test.log_probs(one) for one in runs[members]]).logsumexp(0) - np.log(
        len(runs[members])
    )
    ensemble = f"ensemble of {len(runs[members])}"
    scores[ensemble] = test.score([together])
    found = [Row(ensemble, "test_accuracy", rates(scores[ensemble].right, test.frames))]
    for name, score in scores.items():
        found.append(
            Row(name, "test_accuracy_without_silence", rates(score.spoken, test.spoken_frames))
        )
        found.append(Row(name, "test_wer", rates(score.errors, test.words)))
        found.append(Row(name, "test_wer_priors_not_divided", rates(score.undivided, test.words)))
    bootstrap = Bootstrap(len(test.words))
    share, (low, high) = gain_share(
        bootstrap, test.frames, *(scores[name].right for name in (baseline, ensemble, distilled))
    )
    found += [
        Row(distilled, f"gain_share{end}", [v])
        for end, v in (("", share), ("_low", low), ("_high", high))
    ]
    gains = _gains(test, scores, bootstrap, baseline)
    _write(
        output / "recognition.md",
        test,
        scores,
        bootstrap,
        gains,
        f"{share:.0%}, 95% interval [{low:.0%}, {high:.0%}]",
    )
    return found


def gain_share(
    bootstrap: Bootstrap, totals: Counts, baseline: Counts, ensemble: Counts, distilled: Counts
) -> tuple[float, tuple[float, float]]:
    """How much of the ensemble's gain in accuracy over the baseline the distilled model has, and the interval of that.

    Args:
        totals: frames of each string.
        baseline, ensemble, distilled: right ones, `(seeds, strings)`.
    """
    b, e, d = (float(np.mean(rates(counts, totals))) for counts in (baseline, ensemble, distilled))
    drawn = [bootstrap.means(counts, totals) for counts in (baseline, ensemble, distilled)]
    with np.errstate(divide="ignore", invalid="ignore"):
        return (d - b) / (e - b) if e != b else float("nan"), interval(
            (drawn[2] - drawn[0]) / (drawn[1] - drawn[0])
        )


def _gains(
    test: TestStrings, scores: Mapping[str, Score], bootstrap: Bootstrap, baseline: str
) -> list[str]:
    """In frame accuracy over the baseline on the same strings."""
    found, start = [], scores[baseline].right
    for name, right in ((name, score.right) for name, score in scores.items() if name != baseline):
        mean = np.mean(rates(right, test.frames)) - np.mean(rates(start, test.frames))
        low, high = interval(
            bootstrap.means(right, test.frames) - bootstrap.means(start, test.frames)
        )
        found.append(
            f"{name} - {baseline}: {100 * mean:+.2f} points of frame accuracy [{100 * low:+.2f}, {100 * high:+.2f}]"
        )
    return found


def _write(
    path: Path,
    test: TestStrings,
    scores: Mapping[str, Score],
    bootstrap: Bootstrap,
    gains: Sequence[str],
    share: str,
) -> None:
    lines = [
        "| system | seeds | test frame accuracy | without silence | WER |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for name, score in scores.items():
        cells = []
        for counts, totals in (
            (score.right, test.frames),
            (score.spoken, test.spoken_frames),
            (score.errors, test.words),
        ):
            low, high = interval(bootstrap.means(counts, totals))
            cells.append(f"{np.mean(rates(counts, totals)):.2%} [{low:.2%}, {high:.2%}]")
        lines.append(f"| {name} | {len(score.right)} | {' | '.join(cells)} |")
    lines += ["", *(f"- {gain}" for gain in gains)]
    lines += [
        "",
        f"Share of the ensemble's gain in frame accuracy that the distilled model has: {share}.",
    ]
    lines += ["95% intervals: bootstrap over test strings and seeds.", ""]
    path.write_text("\n".join(lines))


def regularizers(
    runs: Runs, output: Path, early: Mapping[str, str], compare: Sequence[tuple[str, str]] = ()
) -> list[Row]:
    """Frame accuracy on the training data, and both accuracies had training stopped early (Hinton et al. 2015, table 5).

    Args:
        early: runs, and the name under which the same runs are shown at their best epoch on validation data.
        compare: pairs of runs or such names, tested over their seeds by test accuracy, in `regularizers.md`.
    """
    found = []
    for name, group in runs.items():
        trained = [one for one in group if one.checkpoint.is_file()]
        if not trained:
            continue
        data = trained[0].datamodule()
        found.append(
            Row(name, "train_accuracy", [accuracy(one.network(), data, "train") for one in trained])
        )
        if name in early:
            best = [Best(one.seed, one.folder, one.metrics) for one in trained]
            rows = {
                f"{stage}_accuracy": [accuracy(one.network(), data, stage) for one in best]
                for stage in ("train", "test")
            }
            found += [Row(early[name], metric, values) for metric, values in rows.items()]
            found.append(
                Row(early[name], "stopped_after_epochs", [float(one.epochs) for one in best])
            )
    known = {
        name: [one.metrics["test_accuracy"] for one in group]
        for name, group in runs.items()
        if group
    }
    known |= {row.run: row.values for row in found if row.metric == "test_accuracy"}
    if missing := sorted({name for pair in compare for name in pair} - known.keys()):
        raise UserError(f"the analysis compares {missing[0]!r}; there are {', '.join(known)}")
    tests = [paired(a, b, "test_accuracy", known[a], known[b]) for a, b in compare]
    holm(tests)
    (output / "regularizers.md").write_text(
        "\n".join(f"- {test.sentence()}." for test in tests) + "\n"
    )
    return found


class Best(Finished):
    """A run at its best epoch on validation data."""

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def epochs(self) -> int:
        return int(read_file(self.checkpoint, "the checkpoint")["epoch"]) + 1


def accuracy(network: nn.Module, datamodule: Any, stage: str) -> float:
    """Share of the frames of a stage whose state is predicted."""
    right = total = 0
    with torch.inference_mode():
        for batch in datamodule.loader(stage):
            right += int(
                (run_network(network, batch.inputs).logits.argmax(1) == batch.target).sum()
            )
            total += len(batch)
    return right / total

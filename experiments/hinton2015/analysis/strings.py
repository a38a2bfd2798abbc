"""Scores acoustic models on strings of spoken words: frames and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchmetrics.functional.text import word_error_rate

from kd_lightning.data.speech.windows import Speech
from kd_lightning.data.speech.word_loop import WordLoop
from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished

from .bootstrap import Counts


@runtime_checkable
class SpeechData(Protocol):
    """A datamodule whose frames form strings of words."""

    def raw(self, split: str) -> Speech:
        """All frames of "train" or "test"."""
        ...

    def word_loop(self) -> WordLoop:
        """The decoder."""
        ...


@dataclass
class Score:
    """The results of all seeds of one system on each test string.

    All arrays have the shape `(seeds, strings)`.

    Attributes:
        right: frames whose state was predicted.
        spoken: the same without the frames of silence.
        errors: words substituted, deleted and inserted.
        undivided: the same if posteriors are not divided by the states' priors.
    """

    right: Counts
    spoken: Counts
    errors: Counts
    undivided: Counts


class TestStrings:
    """The strings of the test set, and the decoder.

    Args:
        datamodule: speech data.

    Raises:
        UserError: if the data has no strings of words.
    """

    # pytest would collect the class because of its name.
    __test__ = False

    def __init__(self, datamodule: LightningDataModule) -> None:
        if not isinstance(datamodule, SpeechData):
            raise UserError(
                "the speech analysis needs strings of words; "
                f"the data {type(datamodule).__name__} has none"
            )
        self.speech = datamodule.raw("test")
        self.loop = datamodule.word_loop()
        self.silent = self.speech.target == self.loop.lexicon.silence
        self.lengths = self.speech.lengths
        self.frames = self._by_string(torch.ones(len(self.silent)))
        self.spoken_frames = self._by_string((~self.silent).float())
        words = [len(transcript) for transcript in self.speech.transcripts]
        self.words: Counts = np.array(words, dtype=float)

    def _by_string(self, values: Tensor) -> Counts:
        """The sum over each string's frames; `values` has the shape `(F,)`."""
        zeros = torch.zeros(len(self.lengths), dtype=torch.float64)
        sums = zeros.index_add(0, self.speech.string, values.double())
        counts: Counts = sums.numpy()
        return counts

    def word_errors(self, scores: Tensor) -> Counts:
        """Count the word errors of each string.

        Args:
            scores: log-likelihoods of all frames, `(F, K)`.

        Returns:
            Shape `(strings,)`.
        """
        scores_of_strings = scores.split(self.lengths.tolist())
        padded = pad_sequence(list(scores_of_strings), batch_first=True)
        decoded = self.loop.decode(padded, self.lengths)
        errors = []
        for words, transcript in zip(decoded, self.speech.transcripts, strict=True):
            rate = float(word_error_rate(_text(words), _text(transcript)))
            # The rate is in single precision; the count of errors is whole.
            errors.append(round(rate * len(transcript)))
        return np.array(errors, dtype=float)

    def score(self, log_probs: Sequence[Tensor]) -> Score:
        """Score a system.

        Args:
            log_probs: for each seed the log-posteriors of all frames, `(F, K)`.
        """
        right = []
        spoken = []
        errors = []
        undivided = []
        for posteriors in log_probs:
            predicted = posteriors.argmax(1)
            correct = (predicted == self.speech.target).float()
            right.append(self._by_string(correct))
            spoken.append(self._by_string(correct * ~self.silent))
            # Posteriors over priors are likelihoods but for a factor per frame.
            likelihoods = posteriors - self.loop.prior
            errors.append(self.word_errors(likelihoods))
            undivided.append(self.word_errors(posteriors))
        return Score(
            right=np.stack(right),
            spoken=np.stack(spoken),
            errors=np.stack(errors),
            undivided=np.stack(undivided),
        )

    def log_probs(self, run: Finished) -> Tensor:
        """Read a run's log-posteriors of all test frames, `(F, K)`.

        Args:
            run: an acoustic model's run.

        Raises:
            UserError: if the run was tested on other frames.
        """
        predictions = run.predictions("test")
        if not torch.equal(predictions["target"], self.speech.target):
            raise UserError(f"{run.folder} was tested on other frames; run it again")
        # A run in half precision stores its logits so.
        logits = predictions["logits"].float()
        return logits.log_softmax(-1)


def _text(words: Sequence[int]) -> str:
    """Words as torchmetrics expects them, separated by spaces."""
    return " ".join(map(str, words))

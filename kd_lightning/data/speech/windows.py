"""Frames of speech with their context: windows of an in-memory matrix, gathered by index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kd_lightning.data.source import Source
from kd_lightning.data.speech.digit_strings import MELS, DigitString
from kd_lightning.types import CLEAN, Batch

CONTEXT, PREDICTED = 26, 20
"""Frames of a window, and the one (from 0) whose state is predicted: Hinton et al. 2015, section 4."""


@dataclass
class Speech:
    """The frames of a source split, utterance by utterance.

    Attributes:
        frames: float32 `(P, 40)`, of each string, its first and last frame repeated before and after it.
        first: int64 `(F,)`, where the window of each frame begins in `frames`.
        target: int64 `(F,)`, the state of each frame.
        string: int64 `(F,)`, the string to which each frame belongs.
        transcripts: the digits of each string.
        speakers: of each string.
        parts: "train", "validation" or "test", of each string.
        shares: see DigitString.
    """

    frames: Tensor
    first: Tensor
    target: Tensor
    string: Tensor
    transcripts: list[list[int]]
    speakers: list[str]
    parts: list[str]
    shares: list[float]

    @property
    def windows(self) -> Tensor:
        """Every run of 26 frames, `(P - 25, 1040)`, without copying."""
        rows = max(0, len(self.frames) - CONTEXT + 1)
        return self.frames.as_strided((rows, CONTEXT * MELS), (MELS, 1))

    @property
    def images(self) -> Tensor:
        """The window of each frame as W&B shows mistakes, `(F, 1, 26, 40)`."""
        return self.windows.index_select(0, self.first).view(-1, 1, CONTEXT, MELS)

    @property
    def lengths(self) -> Tensor:
        """Frames of each string, int64."""
        return torch.bincount(self.string, minlength=len(self.transcripts))


@dataclass
class SpeechSource(Source):
    """Some frames of a source split, each with its context.

    Attributes:
        windows: `(P - 25, 1040)`, see Speech.
        first, target: of the whole source split.
        rows: int64 `(n,)`, the frames that take part: position i of this source is `rows[i]`.
        split: the name of the source split.
    """

    windows: Tensor
    first: Tensor
    target: Tensor
    rows: Tensor
    split: str

    @property
    def sample_bytes(self) -> int:
        return 4 * CONTEXT * MELS

    @property
    def resident_bytes(self) -> int:
        frames = self.windows.shape[0] + CONTEXT - 1
        return 4 * frames * MELS + self.first.nbytes + self.target.nbytes + self.rows.nbytes

    def to(self, device: torch.device) -> SpeechSource:
        """The same source with its samples resident on `device`."""
        frames = torch.cat([self.windows[:, :MELS], self.windows[-1, MELS:].view(-1, MELS)]).to(
            device
        )
        windows = frames.as_strided(self.windows.shape, self.windows.stride())
        return replace(
            self,
            windows=windows,
            **{name: getattr(self, name).to(device) for name in ("first", "target", "rows")},
        )

    def batch(self, rows: Tensor, view: int) -> Batch:
        index = self.rows.index_select(0, rows.to(self.rows.device))
        inputs = self.windows.index_select(0, self.first.index_select(0, index))
        return Batch(
            inputs.view(-1, 1, CONTEXT, MELS),
            self.target.index_select(0, index),
            index,
            CLEAN,
            self.split,
        )


def joined(
    strings: Sequence[DigitString], frames: Sequence[Tensor], targets: Sequence[Tensor]
) -> Speech:
    """Strings in a row, each padded at its edges, so that no window holds anything of another one."""
    before, after = PREDICTED, CONTEXT - 1 - PREDICTED
    padded = [torch.cat([f[:1].expand(before, -1), f, f[-1:].expand(after, -1)]) for f in frames]
    sizes = torch.tensor([len(f) for f in frames])
    starts = torch.cumsum(sizes + before + after, 0) - (sizes + before + after)
    string = torch.arange(len(strings)).repeat_interleave(sizes)
    within = torch.arange(len(string)) - (torch.cumsum(sizes, 0) - sizes)[string]
    return Speech(
        torch.cat(padded),
        starts[string] + within,
        torch.cat(list(targets)),
        string,
        [s.digits for s in strings],
        [s.speaker for s in strings],
        [s.part for s in strings],
        [s.share for s in strings],
    )

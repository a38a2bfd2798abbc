"""Frames of speech with their context: windows of an in-memory matrix, gathered by index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kd_lightning.data.source import Source
from kd_lightning.data.speech.digit_strings import DigitString
from kd_lightning.data.speech.framing import MELS
from kd_lightning.types import CLEAN, Batch

CONTEXT = 26
"""Frames per window (Hinton et al. 2015, section 4)."""
PREDICTED = 20
"""Position, from 0, of the frame in its window whose state is predicted: the 21st of 26."""


@dataclass
class Speech:
    """The frames of a source split, string by string: F frames in total.

    Attributes:
        frames: features, float32 `(P, 40)`. The first and the last frame of each string are
            repeated before and after it, so P is larger than F.
        first: row of `frames` where the window of each frame begins, int64 `(F,)`.
        target: state of each frame, int64 `(F,)`.
        string: string to which each frame belongs, int64 `(F,)`.
        transcripts: digits of each string.
        speakers: speaker of each string.
        parts: part of each string: "train", "validation" or "test".
        shares: position of each string within its part, see `DigitString`.
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
        """All runs of 26 frames, `(P - 25, 1040)`: overlapping views of `frames`, not copies."""
        # A window starts at every frame: consecutive rows of the view overlap in all but one frame.
        # The copies would take 26 times the memory.
        rows = max(0, len(self.frames) - CONTEXT + 1)
        return self.frames.as_strided((rows, CONTEXT * MELS), (MELS, 1))

    @property
    def images(self) -> Tensor:
        """The window of each frame as an image that W&B can show, `(F, 1, 26, 40)`."""
        windows = self.windows.index_select(0, self.first)
        return windows.view(-1, 1, CONTEXT, MELS)

    @property
    def lengths(self) -> Tensor:
        """Number of frames of each string, int64."""
        return torch.bincount(self.string, minlength=len(self.transcripts))


@dataclass
class SpeechSource(Source):
    """Some frames of a source split, each with its context.

    Attributes:
        windows: windows of the whole source split, `(P - 25, 1040)`, see `Speech`.
        first: row of `windows` for each frame of the source split, int64 `(F,)`.
        target: state of each frame of the source split, int64 `(F,)`.
        rows: frames of the source split that this source serves, int64 `(n,)`.
        split: name of the source split.
    """

    windows: Tensor
    first: Tensor
    target: Tensor
    rows: Tensor
    split: str

    @property
    def sample_bytes(self) -> int:
        """Bytes of one window of float32 numbers."""
        return 4 * CONTEXT * MELS

    @property
    def resident_bytes(self) -> int:
        """Bytes that `to` copies to a device."""
        frames = self.windows.shape[0] + CONTEXT - 1
        # The windows share their frames, so the frames are counted once.
        frame_bytes = 4 * frames * MELS
        index_bytes = self.first.nbytes + self.target.nbytes + self.rows.nbytes
        return frame_bytes + index_bytes

    def to(self, device: torch.device) -> SpeechSource:
        """The same source with its samples on `device`."""
        # The windows overlap: copy the frames below them, then rebuild the overlapping views.
        frames_before_last_window = self.windows[:, :MELS]
        rest_of_last_window = self.windows[-1, MELS:].view(-1, MELS)
        all_frames = torch.cat([frames_before_last_window, rest_of_last_window])
        frames = all_frames.to(device)
        return replace(
            self,
            windows=frames.as_strided(self.windows.shape, self.windows.stride()),
            first=self.first.to(device),
            target=self.target.to(device),
            rows=self.rows.to(device),
        )

    def batch(self, rows: Tensor, view: int) -> Batch:
        """Samples by their positions in this source.

        Args:
            rows: positions in this source, int64 `(B,)`.
            view: ignored, because speech is not augmented.

        Returns:
            A batch with inputs `(B, 1, 26, 40)` and targets `(B,)`.
        """
        positions = rows.to(self.rows.device)
        index = self.rows.index_select(0, positions)
        first = self.first.index_select(0, index)
        inputs = self.windows.index_select(0, first)
        return Batch(
            inputs=inputs.view(-1, 1, CONTEXT, MELS),
            target=self.target.index_select(0, index),
            index=index,
            view=CLEAN,
            split=self.split,
        )


def concatenate(
    strings: Sequence[DigitString],
    frames: Sequence[Tensor],
    targets: Sequence[Tensor],
) -> Speech:
    """Put strings in a row, each padded at its edges, so that no window spans two strings.

    Args:
        strings: the strings.
        frames: features of each string of T frames, `(T, 40)`.
        targets: states of each string of T frames, int64 `(T,)`.
    """
    before = PREDICTED
    after = CONTEXT - 1 - PREDICTED
    # A frame near the edge has a full window too: the first and last frame stand in for the rest.
    padded = []
    for string_frames in frames:
        first_repeated = string_frames[:1].expand(before, -1)
        last_repeated = string_frames[-1:].expand(after, -1)
        padded.append(torch.cat([first_repeated, string_frames, last_repeated]))

    sizes = torch.tensor(list(map(len, frames)))
    padded_sizes = sizes + before + after
    # Frame i of a string has its window at row i of the padded string.
    padded_starts = torch.cumsum(padded_sizes, 0) - padded_sizes
    starts = torch.cumsum(sizes, 0) - sizes
    string = torch.arange(len(strings)).repeat_interleave(sizes)
    frame_in_string = torch.arange(len(string)) - starts[string]
    speech = Speech(
        frames=torch.cat(padded),
        first=padded_starts[string] + frame_in_string,
        target=torch.cat(list(targets)),
        string=string,
        transcripts=[],
        speakers=[],
        parts=[],
        shares=[],
    )
    for digit_string in strings:
        speech.transcripts.append(digit_string.digits)
        speech.speakers.append(digit_string.speaker)
        speech.parts.append(digit_string.part)
        speech.shares.append(digit_string.share)
    return speech

"""Reads recordings that a user brings as frames like those for training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from kd_lightning.data.new_samples import Content, InputReader, NewSample
from kd_lightning.data.speech.digit_strings import DigitString
from kd_lightning.data.speech.features import log_mel, normalize
from kd_lightning.data.speech.framing import FFT, HOP, MELS, RATE
from kd_lightning.data.speech.recordings import read_wav
from kd_lightning.data.speech.windows import CONTEXT, concatenate
from kd_lightning.errors import UserError
from kd_lightning.values import Values


@dataclass(frozen=True)
class RecordingReader(InputReader):
    """Cuts WAV files into frames of 10 ms with their context, float32 `(B, 1, 26, 40)`.

    Each recording is normalized by its own mean and variance, as the recordings of a
    speaker are who has no training part. One with little speech is therefore read less
    well.
    """

    kind: ClassVar[str] = "recordings"
    suffixes: ClassVar[tuple[str, ...]] = (".wav",)

    def samples(self, path: Path) -> Iterator[NewSample]:
        """The frames of a recording by their times in seconds.

        Args:
            path: of a WAV file with 1 channel, 8 kHz and 16 bits.

        Raises:
            UserError: if the file cannot be read.
        """
        signal = read_wav(path)
        if len(signal) < FFT:
            raise UserError(f"{path} has {len(signal)} samples, fewer than a frame")
        whole_hops = len(signal) // HOP * HOP
        # A speaker of its own, without a training part; features read no labels.
        recording = DigitString(
            speaker=str(path),
            part="test",
            digits=[],
            share=0.0,
            samples=signal[:whole_hops],
            flat=torch.zeros(0, dtype=torch.int64),
        )
        frames = normalize([recording], log_mel([recording]))
        blank = torch.zeros(len(frames[0]), dtype=torch.int64)
        windows = concatenate([recording], frames, [blank]).images
        for number, window in enumerate(windows):
            yield NewSample(f"{path}@{number * HOP / RATE:.2f}s", (window,))

    def encode(self, contents: Sequence[Content]) -> Tensor:
        """Windows of features, float32 `(B, 1, 26, 40)`.

        Args:
            contents: B windows.

        Raises:
            UserError: if one is no window.
        """
        windows = []
        for content in contents:
            window = content[0] if isinstance(content, tuple) and content else None
            if not isinstance(window, Tensor) or window.shape != (1, CONTEXT, MELS):
                raise UserError("this network reads frames of speech; give a WAV file")
            windows.append(window)
        return torch.stack(windows)

    def describe(self) -> Values:
        """The kind alone: nothing depends on the training recordings."""
        return {"kind": self.kind}

"""Log Mel filterbank energies, normalized per speaker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kd_lightning.data.speech.digit_strings import DigitString, by_speaker, select
from kd_lightning.data.speech.framing import FFT, HOP, MELS, RATE, WINDOW, frames_in
from kd_lightning.errors import UserError

ENERGY_FLOOR = 1.0
"""Samples are 16-bit integers, so no microphone signal has an energy as low as this."""


def log_mel(strings: Sequence[DigitString]) -> list[Tensor]:
    """Natural logarithm of the 40 Mel filterbank energies of each string, not normalized.

    Returns:
        Per string, float32 `(T, 40)`.

    Raises:
        UserError: if librosa is not installed.
    """
    try:
        # Importing librosa takes two seconds, and cached features do not need it.
        from librosa.feature import melspectrogram
    except ImportError as error:
        raise UserError(
            "spoken digits: librosa is not installed; pip install 'kd_lightning[speech]'"
        ) from error
    # One transform of all strings in a row is faster than one per string.
    signal = np.concatenate([string.samples for string in strings])
    energies = melspectrogram(
        y=signal,
        sr=RATE,
        n_fft=FFT,
        win_length=WINDOW,
        hop_length=HOP,
        n_mels=MELS,
        center=False,
        power=2.0,
    )
    # Silence would have an energy of 0, and no logarithm.
    log_energies = np.log(np.maximum(energies, ENERGY_FLOOR))
    all_frames = torch.from_numpy(log_energies.T.copy())

    frames = []
    start = 0
    for string in strings:
        # The windows that reach into the next string are skipped.
        stop = start + frames_in(len(string.samples))
        frames.append(all_frames[start:stop])
        start += len(string.samples) // HOP
    return frames


def normalize(strings: Sequence[DigitString], frames: Sequence[Tensor]) -> list[Tensor]:
    """Scale features to mean 0 and variance 1 over each speaker's training part.

    The statistics of a held-out speaker, who has no training part, come from all its strings.

    Args:
        strings: the strings.
        frames: features of each string, `(T, D)`.

    Returns:
        Per string, float32 `(T, D)`.
    """
    normalized = list(frames)
    for rows, statistics_rows in by_speaker(strings):
        # Sums over thousands of frames lose digits in single precision.
        joined = torch.cat(select(frames, statistics_rows)).double()
        mean = joined.mean(0).float()
        # A band without any variation, such as one above a low-pass filter, must not divide by 0.
        std = joined.std(0).clamp(min=1e-3).float()
        for row in rows:
            normalized[row] = (frames[row] - mean) / std
    return normalized

"""Generated recordings: a digit is two tones, a speaker has a pitch, a loudness and some noise."""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

RATE = 8000


def record(
    path: Path,
    samples: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    rate: int = RATE,
    channels: int = 1,
) -> None:
    """Write a WAV file with 16 bits per sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())


def spoken_digits(
    root: Path,
    speakers: Sequence[str] = ("ann", "bob"),
    takes: int = 12,
    digits: int = 10,
) -> Path:
    """Write a small data set below `root`; return the folder of its recordings."""
    folder, drawn = (
        root / "free-spoken-digit-dataset" / "recordings",
        np.random.default_rng(0),
    )
    for number, speaker in enumerate(speakers):
        for digit in range(digits):
            for take in range(takes):
                length = int(drawn.integers(1600, 2400))
                tones = np.where(
                    np.arange(length) < length // 2,
                    300 + 120 * digit,
                    2800 - 220 * digit,
                ) * (1 + 0.05 * number)
                swell = np.sin(np.pi * np.arange(length) / length)
                wave_form = (
                    swell
                    * np.sin(2 * np.pi * np.cumsum(tones) / RATE)
                    * 3000
                    / (1 + number)
                )
                noise = drawn.normal(size=length) * 20 * (1 + number)
                record(folder / f"{digit}_{speaker}_{take}.wav", wave_form + noise)
    return folder

"""The recordings of the Free Spoken Digit Dataset: one WAV file per spoken digit."""

from __future__ import annotations

import re
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kd_lightning.data.speech.framing import HOP, RATE, WINDOW
from kd_lightning.errors import UserError

NOISE_QUANTILE = 0.05
"""The background noise of a speaker is as loud as this quantile of the speaker's 10 ms blocks."""
_FILE_NAME = re.compile(r"(\d)_([^_]+)_(\d+)\.wav")
_FileKey = tuple[str, str, str]


@dataclass
class Recording:
    """One spoken digit.

    Attributes:
        digit: the digit, 0 to 9.
        speaker: name of the speaker.
        take: number of the recording among those of the same speaker and digit, from 0.
        samples: the signal at 8 kHz, 16-bit integers stored as float32, `(N,)`.
    """

    digit: int
    speaker: str
    take: int
    samples: NDArray[np.float32]


def read_recordings(folder: Path) -> list[Recording]:
    """Read all recordings, sorted by speaker, digit and take.

    Raises:
        UserError: if a recording is missing or damaged, or is not mono with 16 bits at 8 kHz.
    """
    paths = _wav_files(folder)
    if not paths:
        raise UserError(
            f"spoken digits: {folder} contains no recording such as 0_george_0.wav"
        )
    speakers: set[str] = set()
    last_take = 0
    for _, speaker, take_text in paths:
        speakers.add(speaker)
        last_take = max(last_take, int(take_text))

    # Every speaker must have every take of every digit.
    recordings = []
    for speaker in sorted(speakers):
        for digit in range(10):
            for take in range(last_take + 1):
                path = paths.get((str(digit), speaker, str(take)))
                if path is None:
                    missing = folder / f"{digit}_{speaker}_{take}.wav"
                    raise UserError(f"spoken digits: {missing} is missing")
                samples = read_wav(path)
                recordings.append(Recording(digit, speaker, take, samples))
    return recordings


def _wav_files(folder: Path) -> dict[_FileKey, Path]:
    """Paths of the recordings by digit, speaker and take, as their file names give them."""
    paths: dict[_FileKey, Path] = {}
    for path in folder.glob("*.wav"):
        match = _FILE_NAME.fullmatch(path.name)
        if match is not None:
            digit, speaker, take = match.groups()
            paths[digit, speaker, take] = path
    return paths


def read_wav(path: Path) -> NDArray[np.float32]:
    """Samples of one recording, float32 `(N,)`.

    Args:
        path: of the file.

    Raises:
        UserError: if it is damaged, or is not mono with 16 bits at 8 kHz.
    """
    try:
        with wave.open(str(path)) as file:
            channels = file.getnchannels()
            rate = file.getframerate()
            sample_bytes = file.getsampwidth()
            expected_bytes = file.getnframes() * channels * sample_bytes
            # A truncated file yields fewer bytes than its header states, without an error.
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise UserError(
            f"spoken digits: {path} is not a readable WAV file; is the copy complete?"
        ) from error
    bits = 8 * sample_bytes
    if (channels, rate, bits) != (1, RATE, 16):
        raise UserError(
            f"spoken digits: {path} has {channels} channel(s), {rate} Hz and {bits} bits; "
            f"convert it to 1 channel, {RATE} Hz and 16 bits"
        )
    if len(data) != expected_bytes:
        raise UserError(
            f"spoken digits: {path} is shorter than its header states; is the copy complete?"
        )
    # WAV files are little-endian on every machine.
    samples = np.frombuffer(data, dtype="<i2").astype(np.float32)
    if len(samples) < 2 * WINDOW:
        raise UserError(
            f"spoken digits: {path} has {len(samples)} samples, too few for a digit; "
            "remove or replace it"
        )
    return samples


def noise_level(recordings: Sequence[Recording]) -> float:
    """Root mean square of a speaker's background noise, in units of 16-bit samples; at least 1."""
    blocks = []
    for recording in recordings:
        whole_blocks = len(recording.samples) // HOP * HOP
        samples = recording.samples[:whole_blocks]
        blocks.append(samples.reshape(-1, HOP))
    power = np.square(np.concatenate(blocks)).mean(1)
    # The quietest blocks hold no speech.
    loudness = np.sqrt(power)
    level = np.quantile(loudness, NOISE_QUANTILE)
    # A recording with digital silence would have no noise at all.
    return max(1.0, float(level))

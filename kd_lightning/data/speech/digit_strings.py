"""From the recordings of single digits to strings of digits with a state for every frame."""

from __future__ import annotations

import re
import wave
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.data.speech.hmm import Lexicon, align_all, train_alignment
from kd_lightning.errors import UserError
from kd_lightning.randomness import hashed, integers, seed_from

RATE, WINDOW, HOP, FFT, MELS = 8000, 200, 80, 256, 40
"""Samples a second; 25 ms and 10 ms in samples; the window is padded to a power of two; Mel bands up to half the rate."""
SHORTEST, LONGEST = 3, 7
"""Digits of a string."""
GAP = (800, 2400)
"""Samples of low noise before, between and after digits: 100 to 300 ms."""
QUIET = 0.05
"""The noise is as loud as this quantile of a speaker's 10 ms pieces."""
ROUNDS = 5
"""Realignments."""
_NAME = re.compile(r"(\d)_([^_]+)_(\d+)\.wav")


@dataclass
class Recording:
    """One spoken digit: 16-bit samples as float32 whole numbers, at 8 kHz."""

    digit: int
    speaker: str
    take: int
    samples: NDArray[np.float32]


@dataclass
class DigitString:
    """Recordings of one speaker, of one part of the data, in a row.

    Attributes:
        speaker: who speaks.
        part: "train", "validation" or "test".
        digits: what is said.
        share: how much of the speaker's part lies before the middle of this string, in [0, 1).
        samples: with gaps of noise, a whole number of hops.
        flat: of each frame, the state that it has where each recording is cut into equal parts, int64 `(T,)`.
    """

    speaker: str
    part: str
    digits: list[int]
    share: float
    samples: NDArray[np.float32]
    flat: Tensor


def read_recordings(folder: Path) -> list[Recording]:
    """All recordings in the order of speaker, digit and take.

    Raises:
        UserError: where one is missing, broken, or not 8 kHz, 16 bits, one channel.
    """
    named = {
        match.groups(): path
        for path in folder.glob("*.wav")
        if (match := _NAME.fullmatch(path.name))
    }
    if not named:
        raise UserError(f"spoken digits: there is no recording like 0_george_0.wav in {folder}")
    speakers, takes = (
        sorted({speaker for _, speaker, _ in named}),
        1 + max(int(take) for *_, take in named),
    )
    found = []
    for speaker in speakers:
        for digit in range(10):
            for take in range(takes):
                path = named.get((str(digit), speaker, str(take)))
                if path is None:
                    raise UserError(
                        f"spoken digits: {folder / f'{digit}_{speaker}_{take}.wav'} is missing"
                    )
                found.append(Recording(digit, speaker, take, _read(path)))
    return found


def _read(path: Path) -> NDArray[np.float32]:
    try:
        with wave.open(str(path)) as file:
            form = (file.getnchannels(), file.getframerate(), 8 * file.getsampwidth())
            data = file.readframes(file.getnframes())
            whole = len(data) == file.getnframes() * file.getnchannels() * file.getsampwidth()
    except (OSError, EOFError, wave.Error) as error:
        raise UserError(
            f"spoken digits: {path} cannot be read as a WAV file; is the copy complete?"
        ) from error
    if form != (1, RATE, 16):
        channels, rate, bits = form
        raise UserError(
            f"spoken digits: {path} has {channels} channel(s) at {rate} Hz and {bits} bits; convert it to 1 at {RATE} Hz and 16"
        )
    if not whole:
        raise UserError(
            f"spoken digits: {path} is shorter than its heading says; is the copy complete?"
        )
    samples = np.frombuffer(data, dtype="<i2").astype(np.float32)
    if len(samples) < 2 * WINDOW:
        raise UserError(
            f"spoken digits: {path} holds {len(samples)} samples, too few for a digit; take it away, or mend it"
        )
    return samples


def quiet_level(recordings: Sequence[Recording]) -> float:
    """The root mean square of a speaker's quiet pieces of 10 ms."""
    pieces = np.concatenate(
        [r.samples[: len(r.samples) // HOP * HOP].reshape(-1, HOP) for r in recordings]
    )
    return max(1.0, float(np.quantile(np.sqrt(np.square(pieces).mean(1)), QUIET)))


def lengths_of(total: int, *parts: int | str) -> list[int]:
    """`total` recordings cut into strings of 3 to 7 (fewer than 3 only where there are no more), as a function of the parts."""
    found: list[int] = []
    drawn = integers(torch.arange(total), SHORTEST, LONGEST, *parts).tolist()
    while (left := total - sum(found)) > 0:
        found.append(left if left <= LONGEST else min(drawn[len(found)], left - SHORTEST))
    return found


def strings_of(
    recordings: Sequence[Recording], part: str, level: float, lexicon: Lexicon, seed: int
) -> list[DigitString]:
    """The recordings of one speaker and part, each once, as strings.

    Of any ten in a row that begin at a multiple of ten, each is another digit: the first strings are a stratified sample.
    """
    number = torch.tensor([10 * r.take + r.digit for r in recordings])
    key = hashed(number, seed, part, recordings[0].speaker, "order").tolist()
    rounds: dict[int, int] = {}
    order = []
    for at in sorted(range(len(recordings)), key=lambda at: key[at]):
        digit = recordings[at].digit
        rounds[digit] = rounds.get(digit, -1) + 1
        order.append((rounds[digit], key[at], at))
    ordered = [recordings[at] for *_, at in sorted(order)]
    found, done = [], 0
    for length in lengths_of(len(ordered), seed, part, recordings[0].speaker, "lengths"):
        chosen = ordered[done : done + length]
        name = (seed, part, recordings[0].speaker, done)
        share = (done + length / 2) / len(ordered)
        samples, flat = _joined(chosen, level, lexicon, *name)
        found.append(
            DigitString(chosen[0].speaker, part, [r.digit for r in chosen], share, samples, flat)
        )
        done += length
    return found


def _joined(
    chosen: Sequence[Recording], level: float, lexicon: Lexicon, *name: int | str
) -> tuple[NDArray[np.float32], Tensor]:
    """Recordings with noise before, between and after them, and the flat start's states."""
    gaps = integers(torch.arange(len(chosen) + 1), *GAP, *name, "gaps").tolist()
    length = sum(gaps) + sum(len(r.samples) for r in chosen)
    generator = torch.Generator().manual_seed(seed_from(*name, "noise"))
    samples = (torch.randn(-(-length // HOP) * HOP, generator=generator) * level).round().numpy()
    state = torch.full((len(samples),), lexicon.silence)
    at = gaps[0]
    for recording, gap in zip(chosen, gaps[1:], strict=True):
        size = len(recording.samples)
        samples[at : at + size] = recording.samples
        state[at : at + size] = (
            recording.digit * lexicon.states + torch.arange(size) * lexicon.states // size
        )
        at += size + gap
    middles = torch.arange(frames_in(len(samples))) * HOP + FFT // 2
    return samples, state[middles]


def frames_in(samples: int) -> int:
    return 1 + (samples - FFT) // HOP


def log_mel(strings: Sequence[DigitString]) -> list[Tensor]:
    """Logarithms of 40 Mel filterbank energies of each string, `(T, 40)`, not normalized.

    Raises:
        UserError: where librosa is not installed.
    """
    try:
        from librosa.feature import (
            melspectrogram,
        )  # here, because it costs two seconds, and the result is kept
    except ImportError as error:
        raise UserError(
            "spoken digits: librosa is not installed; pip install 'kd_lightning[speech]'"
        ) from error
    joined = np.concatenate([s.samples for s in strings])
    energy = melspectrogram(
        y=joined,
        sr=RATE,
        n_fft=FFT,
        win_length=WINDOW,
        hop_length=HOP,
        n_mels=MELS,
        center=False,
        power=2.0,
    )
    # Samples are whole numbers of 16 bits: an energy of one lies below what any microphone gave.
    frames, start, found = torch.from_numpy(np.log(np.maximum(energy, 1.0)).T.copy()), 0, []
    for string in strings:  # those frames that lie within one string
        found.append(frames[start : start + frames_in(len(string.samples))])
        start += len(string.samples) // HOP
    return found


def normalized(strings: Sequence[DigitString], frames: Sequence[Tensor]) -> list[Tensor]:
    """Features with mean 0 and variance 1 over each speaker's training part; over all that there is of a held-out speaker."""
    found: list[Tensor] = list(frames)
    for own, known in _speakers(strings):
        joined = torch.cat([frames[at] for at in known]).double()
        mean, std = joined.mean(0).float(), joined.std(0).clamp(min=1e-3).float()
        for at in own:
            found[at] = (frames[at] - mean) / std
    return found


def labelled(
    strings: Sequence[DigitString], frames: Sequence[Tensor], lexicon: Lexicon
) -> list[Tensor]:
    """The state of each frame, by forced alignment with Gaussians of the speaker's training part, or of all of a held-out one.

    Gaussians that all speakers share take the gaps of one with much noise for speech.
    """
    chains, found = [lexicon.chain(s.digits) for s in strings], [s.flat for s in strings]
    for own, known in _speakers(strings):
        flat = torch.cat([strings[at].flat for at in known])
        model = train_alignment(
            [frames[at] for at in known], [chains[at] for at in known], flat, lexicon.size, ROUNDS
        )
        aligned = align_all(model, [frames[at] for at in own], [chains[at] for at in own])
        for at, state in zip(own, aligned.split([len(frames[at]) for at in own]), strict=True):
            found[at] = state
    return found


def _speakers(strings: Sequence[DigitString]) -> Iterator[tuple[list[int], list[int]]]:
    """Of each speaker all strings, and those that tell about the speaker: the training part, or all where there is none."""
    for speaker in sorted({s.speaker for s in strings}):
        own = [at for at, s in enumerate(strings) if s.speaker == speaker]
        yield own, [at for at in own if strings[at].part == "train"] or own

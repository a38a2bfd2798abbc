"""Strings of digits: recordings of one speaker, joined with gaps of background noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.data.speech.framing import FFT, HOP, frames_in
from kd_lightning.data.speech.hmm import Lexicon
from kd_lightning.data.speech.recordings import Recording
from kd_lightning.randomness import hashed, integers, seed_from

SHORTEST = 3
"""Smallest number of digits per string."""
LONGEST = 7
"""Largest number of digits per string."""
GAP = (800, 2400)
"""Shortest and longest gap before, between and after digits, in samples: 100 to 300 ms."""


_T = TypeVar("_T")


@dataclass
class DigitString:
    """Consecutive recordings of one speaker and one part of the data.

    Attributes:
        speaker: name of the speaker.
        part: "train", "validation" or "test".
        digits: the transcript.
        share: position of the middle of this string within the speaker's part, in [0, 1).
        samples: the signal with its gaps, a whole number of hops, `(N,)`.
        flat: the state of each frame in the flat start, which cuts each recording into equal
            parts, int64 `(T,)`.
    """

    speaker: str
    part: str
    digits: list[int]
    share: float
    samples: NDArray[np.float32]
    flat: Tensor


def make_strings(
    recordings: Sequence[Recording],
    part: str,
    level: float,
    lexicon: Lexicon,
    seed: int,
) -> list[DigitString]:
    """Group the recordings of one speaker and part into strings; each recording occurs once.

    Of any ten recordings in a row that start at a multiple of ten, each is a different digit, so
    the first strings of a part are a stratified sample.

    Args:
        recordings: all recordings of the speaker and part.
        part: "train", "validation" or "test".
        level: root mean square of the noise in the gaps.
        lexicon: the states of each digit.
        seed: seed of the order, the lengths, the gaps and the noise.
    """
    speaker = recordings[0].speaker
    # The key of a recording depends on its take and digit alone, not on the other recordings.
    numbers = [10 * recording.take + recording.digit for recording in recordings]
    hashes = hashed(torch.tensor(numbers), seed, part, speaker, "order")
    sort_keys = hashes.tolist()
    ordered = _stratified_order(recordings, sort_keys)

    strings = []
    start = 0
    for length in draw_lengths(len(ordered), seed, part, speaker, "lengths"):
        chosen = ordered[start : start + length]
        samples, flat = _concatenate(chosen, level, lexicon, seed, part, speaker, start)
        digits = [recording.digit for recording in chosen]
        share = (start + length / 2) / len(ordered)
        strings.append(DigitString(speaker, part, digits, share, samples, flat))
        start += length
    return strings


def draw_lengths(total: int, *seed_parts: int | str) -> list[int]:
    """Split `total` recordings into strings of 3 to 7 digits, as a function of `seed_parts`.

    A string is shorter than 3 only if there are fewer than 3 recordings.
    """
    # More draws than strings: how many strings there are depends on the draws.
    positions = torch.arange(total)
    drawn = integers(positions, SHORTEST, LONGEST, *seed_parts).tolist()
    lengths: list[int] = []
    remaining = total
    while remaining > 0:
        length = remaining
        if remaining > LONGEST:
            # Leave enough recordings for another string.
            length = min(drawn[len(lengths)], remaining - SHORTEST)
        lengths.append(length)
        remaining -= length
    return lengths


def _stratified_order(
    recordings: Sequence[Recording], sort_keys: Sequence[int]
) -> list[Recording]:
    """Shuffle by the keys, but let all digits occur n times before any occurs n + 1 times."""
    rows = range(len(recordings))
    shuffled = sorted(rows, key=lambda row: sort_keys[row])
    occurrences: Counter[int] = Counter()
    ranks = []
    for row in shuffled:
        digit = recordings[row].digit
        ranks.append((occurrences[digit], sort_keys[row], row))
        occurrences[digit] += 1
    # First by the number of earlier occurrences, then by key: one round of all digits at a time.
    ranks.sort()
    ordered = []
    for _, _, row in ranks:
        ordered.append(recordings[row])
    return ordered


def _concatenate(
    recordings: Sequence[Recording],
    level: float,
    lexicon: Lexicon,
    *seed_parts: int | str,
) -> tuple[NDArray[np.float32], Tensor]:
    """Put noise before, between and after recordings.

    Returns:
        The signal `(N,)` and the states of the flat start, int64 `(T,)`.
    """
    positions = torch.arange(len(recordings) + 1)
    gaps = integers(positions, *GAP, *seed_parts, "gaps").tolist()
    length = sum(gaps)
    for recording in recordings:
        length += len(recording.samples)
    # Round up, so that a string starts at a whole frame when all strings are put in a row.
    num_hops = -(-length // HOP)
    whole_hops = num_hops * HOP
    noise_seed = seed_from(*seed_parts, "noise")
    generator = torch.Generator().manual_seed(noise_seed)
    noise = torch.randn(whole_hops, generator=generator) * level
    # Whole numbers, as in the recordings.
    samples = noise.round().numpy()
    states = torch.full((whole_hops,), lexicon.silence)

    start = gaps[0]
    for recording, gap in zip(recordings, gaps[1:], strict=True):
        size = len(recording.samples)
        stop = start + size
        samples[start:stop] = recording.samples
        # The flat start cuts a digit into as many equal parts as it has states.
        state_in_digit = torch.arange(size) * lexicon.states // size
        first_state = recording.digit * lexicon.states
        states[start:stop] = first_state + state_in_digit
        start = stop + gap

    # The state of a frame is that of the sample in the middle of its transform.
    frame_starts = torch.arange(frames_in(whole_hops)) * HOP
    frame_centers = frame_starts + FFT // 2
    return samples, states[frame_centers]


def by_speaker(strings: Sequence[DigitString]) -> Iterator[tuple[list[int], list[int]]]:
    """Group strings by speaker, for statistics that are estimated per speaker.

    Yields:
        Per speaker, the positions in `strings` of all its strings, and of those that statistics
        may use: its training part, or all its strings if it has no training part (held out).
    """
    rows_of: dict[str, list[int]] = {}
    training_rows_of: dict[str, list[int]] = {}
    for row, string in enumerate(strings):
        rows_of.setdefault(string.speaker, []).append(row)
        if string.part == "train":
            training_rows_of.setdefault(string.speaker, []).append(row)
    for speaker in sorted(rows_of):
        rows = rows_of[speaker]
        yield rows, training_rows_of.get(speaker, rows)


def select(items: Sequence[_T], rows: Sequence[int]) -> list[_T]:
    """The items at the given positions."""
    return [items[row] for row in rows]

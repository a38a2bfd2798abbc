"""Labels of frames: HMM states by forced alignment, one model per speaker."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kd_lightning.data.speech.digit_strings import DigitString, by_speaker, select
from kd_lightning.data.speech.hmm import Lexicon, align_all, train_alignment

ROUNDS = 5
"""Largest number of realignments."""


def label_frames(
    strings: Sequence[DigitString],
    frames: Sequence[Tensor],
    lexicon: Lexicon,
) -> list[Tensor]:
    """Label each frame with its HMM state by forced alignment.

    Each speaker has Gaussians of its own, trained on its training part, or on all its strings if
    it is held out. Gaussians shared by all speakers mistake the gaps of a noisy speaker for speech.

    Args:
        strings: the strings.
        frames: normalized features of each string, `(T, D)`.
        lexicon: the states.

    Returns:
        Per string, int64 `(T,)`.
    """
    chains = [lexicon.chain(string.digits) for string in strings]
    labels = [string.flat for string in strings]
    for rows, training_rows in by_speaker(strings):
        # So far, the labels of this speaker are those of the flat start.
        model = train_alignment(
            select(frames, training_rows),
            select(chains, training_rows),
            torch.cat(select(labels, training_rows)),
            lexicon.size,
            ROUNDS,
        )
        # The model is trained on the training part, but labels all of the speaker's strings.
        speaker_frames = select(frames, rows)
        aligned = align_all(model, speaker_frames, select(chains, rows))
        lengths = list(map(len, speaker_frames))
        for row, states in zip(rows, aligned.split(lengths), strict=True):
            labels[row] = states
    return labels

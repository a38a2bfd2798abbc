"""Hidden Markov models of words: the lexicon, Gaussian emissions and forced alignment.

Each word is a chain of states from left to right; silence is one more word, with a single state.
All functions take a batch of utterances, padded to the longest, and loop over time once:
utterances and states are tensor dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kd_lightning.errors import UserError

VARIANCE_FLOOR = 0.01
"""Smallest variance of a feature (features have variance 1). Without a floor, a state that was
fitted to a few nearly equal frames would reject all others."""


@dataclass(frozen=True)
class Lexicon:
    """The states of each word.

    Word w has the states `w * states` to `(w + 1) * states - 1`. The last state is silence.

    Attributes:
        words: number of words.
        states: number of states per word.
    """

    words: int
    states: int

    @property
    def silence(self) -> int:
        """The state of silence."""
        return self.words * self.states

    @property
    def size(self) -> int:
        """Number of states."""
        return self.silence + 1

    @property
    def first(self) -> Tensor:
        """First state of each word, then silence, int64 `(words + 1,)`."""
        return torch.arange(self.words + 1) * self.states

    @property
    def last(self) -> Tensor:
        """Last state of each word, then silence, int64 `(words + 1,)`."""
        last = self.first + self.states - 1
        # Silence has only one state.
        return last.clamp(max=self.silence)

    def chain(self, transcript: Sequence[int]) -> Tensor:
        """States of a transcript in order, with silence before, between and after the words."""
        states = [self.silence]
        for word in transcript:
            first = word * self.states
            states.extend(range(first, first + self.states))
            states.append(self.silence)
        return torch.tensor(states)


def align(scores: Tensor, lengths: Tensor, chains: Sequence[Tensor]) -> Tensor:
    r"""Forced alignment: the best path through each utterance's chain of states (Viterbi).

    A path starts in the first state of the chain, visits all states in order and ends in the last
    one. With $c_j$ the $j$-th state of the chain and $s_t(c)$ the score of frame $t$ in state $c$,
    the best score of a path that is in $c_j$ at frame $t$ is

    $$d_0(0) = s_0(c_0), \qquad d_0(j) = -\infty \text{ for } j > 0,$$
    $$d_t(j) = s_t(c_j) + \max\{d_{t-1}(j),\ d_{t-1}(j - 1)\}.$$

    Staying and advancing are taken as equally likely, so transitions add the same constant to all
    paths and are left out. If both terms of the maximum are equal, the path stays.

    Args:
        scores: log-likelihood of each frame in each state, `(B, T, S)`.
        lengths: number of frames of each utterance, int64 `(B,)`; later frames are ignored.
        chains: per utterance, its states in order, int64 `(J_i,)`.

    Returns:
        The state of each frame, int64 `(B, T)`; -1 beyond the end of an utterance.

    Raises:
        UserError: if an utterance has fewer frames than its chain has states.
    """
    # A path visits every state for at least one frame.
    sizes = torch.tensor(list(map(len, chains)))
    _check_lengths(lengths, sizes)
    # Places beyond the end of a chain are never on a path that is traced back.
    states = pad_sequence(list(chains), batch_first=True)
    advanced = _best_advances(scores, lengths, states)

    # Follow the best path back from the last state of each chain, in which it must end.
    place = sizes[:, None] - 1
    reversed_path = []
    for t in reversed(range(scores.shape[1])):
        in_utterance = (t < lengths)[:, None]
        state = states.gather(1, place)
        reversed_path.append(torch.where(in_utterance, state, -1))
        has_advanced = advanced[t].gather(1, place)
        place = place - has_advanced.long()
    return torch.cat(reversed_path[::-1], 1)


def _check_lengths(lengths: Tensor, sizes: Tensor) -> None:
    """Refuse an utterance with fewer frames than its chain has states, `(B,)` both."""
    too_short = lengths < sizes
    if not bool(too_short.any()):
        return
    row = int(too_short.nonzero()[0])
    raise UserError(
        f"utterance {row} has {int(lengths[row])} frames, "
        f"too few for the {int(sizes[row])} states of its words"
    )


def _best_advances(scores: Tensor, lengths: Tensor, states: Tensor) -> Tensor:
    """The forward pass of `align`.

    Args:
        scores: `(B, T, S)`.
        lengths: int64 `(B,)`.
        states: the padded chains, int64 `(B, J)`.

    Returns:
        Whether the best path that is at place j of the chain at frame t was at place j - 1 one
        frame before, bool `(T, B, J)`; false at frame 0 and beyond the end of an utterance.
    """
    utterances, places = states.shape
    frames = scores.shape[1]
    # A path starts in the first state of its chain, so all other places are out of reach.
    unreachable = scores.new_full((utterances, 1), -torch.inf)
    first_states = states[:, :1]
    start = scores[:, 0].gather(1, first_states)
    other_places = unreachable.expand(-1, places - 1)
    best = torch.cat([start, other_places], 1)
    advanced = torch.zeros(frames, utterances, places, dtype=torch.bool)
    for t in range(1, frames):
        # The score at place j of advancing from place j - 1.
        advance = torch.cat([unreachable, best[:, :-1]], 1)
        in_utterance = (t < lengths)[:, None]
        advanced[t] = (advance > best) & in_utterance
        frame_scores = scores[:, t].gather(1, states)
        best = torch.maximum(best, advance) + frame_scores
    return advanced


@dataclass
class Gaussians:
    """The emission model: per state, a normal distribution with a diagonal covariance.

    Attributes:
        mean: float64 `(S, D)`.
        variance: float64 `(S, D)`.
    """

    mean: Tensor
    variance: Tensor

    @classmethod
    def fit(cls, frames: Tensor, state: Tensor, size: int) -> Gaussians:
        """Maximum-likelihood estimate from labeled frames.

        Args:
            frames: `(F, D)`.
            state: the state of each frame, int64 `(F,)`.
            size: number of states S.

        Raises:
            UserError: if a state has no frame.
        """
        counts = torch.bincount(state, minlength=size).double()[:, None]
        empty = counts == 0
        if bool(empty.any()):
            state_number = int(empty.nonzero()[0, 0])
            raise UserError(
                f"state {state_number} has no frame; "
                "check that each word occurs in the training data"
            )
        # Sums over many frames, and the difference below, would lose digits in single precision.
        frames = frames.double()
        zeros = torch.zeros(size, frames.shape[1], dtype=torch.float64)
        # `index_add` sums the frames of each state.
        total = zeros.index_add(0, state, frames)
        total_square = zeros.index_add(0, state, frames.square())
        mean = total / counts
        mean_square = total_square / counts
        variance = mean_square - mean.square()
        return cls(mean, variance.clamp(min=VARIANCE_FLOOR))

    def scores(self, frames: Tensor) -> Tensor:
        r"""Log-likelihood of frames `(F, D)` in each state up to a constant, float32 `(F, S)`.

        $$-\tfrac{1}{2} \sum_d \left[(x_d - \mu_d)^2 / \sigma_d^2 + \log \sigma_d^2\right]$$
        with the square expanded, so that matrix products compute it.
        """
        frames = frames.double()
        precision = 1 / self.variance
        # (x - mu)^2 / var = x^2 / var - 2 x mu / var + mu^2 / var.
        quadratic = frames.square() @ precision.T
        linear = 2 * frames @ (self.mean * precision).T
        per_feature = self.mean.square() * precision + self.variance.log()
        constant = per_feature.sum(1)
        log_likelihood = -0.5 * (quadratic - linear + constant)
        return log_likelihood.float()


def train_alignment(
    frames: Sequence[Tensor],
    chains: Sequence[Tensor],
    flat: Tensor,
    size: int,
    rounds: int,
) -> Gaussians:
    """Viterbi training: alternate between alignment and the estimation of the Gaussians.

    Args:
        frames: features of each utterance, `(T_i, D)`.
        chains: states of each utterance in order, int64 `(J_i,)`.
        flat: initial state of each frame, all utterances in a row, int64 `(F,)`.
        size: number of states.
        rounds: largest number of realignments; training ends earlier if the alignment is stable.
    """
    all_frames = torch.cat(list(frames))
    states = flat
    model = Gaussians.fit(all_frames, states, size)
    for _ in range(rounds):
        aligned = align_all(model, frames, chains)
        model = Gaussians.fit(all_frames, aligned, size)
        if torch.equal(aligned, states):
            break
        states = aligned
    return model


def align_all(
    model: Gaussians,
    frames: Sequence[Tensor],
    chains: Sequence[Tensor],
) -> Tensor:
    """Forced alignment of utterances with a trained model.

    Args:
        model: the emission model.
        frames: features of each utterance, `(T_i, D)`.
        chains: states of each utterance in order, int64 `(J_i,)`.

    Returns:
        The state of each frame, all utterances in a row, int64 `(F,)`.
    """
    lengths = torch.tensor(list(map(len, frames)))
    # One product of matrices for all utterances, then one padded row per utterance.
    all_scores = model.scores(torch.cat(list(frames)))
    scores = all_scores.split(lengths.tolist())
    padded_scores = pad_sequence(list(scores), batch_first=True)
    # Padding has the state -1, so that selecting the others puts all utterances in a row.
    path = align(padded_scores, lengths, chains)
    return path[path >= 0]

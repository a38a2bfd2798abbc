"""Hidden Markov models of words: labels by forced alignment, and decoding by a loop over all words.

Every word is a chain of states from left to right, and silence is one more word of a single state. All functions take a batch
of utterances, padded to the longest, and walk through time once: states and utterances are tensor dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from kd_lightning.errors import UserError

VARIANCE_FLOOR = 0.01
"""Of features that have variance one: a state that saw a few alike frames stays able to see others."""


@dataclass(frozen=True)
class Lexicon:
    """Which state belongs to which word: word w has states `w * states` to `(w + 1) * states - 1`; the last one is silence.

    Attributes:
        words: number of words.
        states: states of each word.
    """

    words: int
    states: int

    @property
    def silence(self) -> int:
        return self.words * self.states

    @property
    def size(self) -> int:
        """Number of states."""
        return self.silence + 1

    @property
    def first(self) -> Tensor:
        """The state in which each word begins, silence last, `(words + 1,)`."""
        return torch.arange(self.words + 1) * self.states

    @property
    def last(self) -> Tensor:
        """The state in which each word ends, silence last, `(words + 1,)`."""
        return (self.first + self.states - 1).clamp(max=self.silence)

    def chain(self, transcript: Sequence[int]) -> Tensor:
        """The states of a transcript in order, with silence before, between and after the words."""
        words = [[self.silence, *range(w * self.states, (w + 1) * self.states)] for w in transcript]
        return torch.tensor([*(state for word in words for state in word), self.silence])


def align(scores: Tensor, lengths: Tensor, chains: Sequence[Tensor]) -> Tensor:
    """Forced alignment: the best way through each utterance's chain of states, all of which are passed in order (Viterbi).

    Staying and moving on are equally likely, so that transitions do not change which way is best; of two equal ways, the one
    that moves on later.

    Args:
        scores: log-likelihood of each frame in each state, `(B, T, S)`.
        lengths: frames of each utterance, int64 `(B,)`; later frames do not count.
        chains: the states of each utterance in order, int64, of any length.

    Returns:
        The state of each frame, int64 `(B, T)`; -1 beyond an utterance's end.

    Raises:
        UserError: where an utterance has fewer frames than its chain has states.
    """
    sizes = torch.tensor([len(chain) for chain in chains])
    if bool((lengths < sizes).any()):
        at = int((lengths < sizes).nonzero()[0])
        raise UserError(
            f"utterance {at} has {int(lengths[at])} frames, too few for the {int(sizes[at])} states of its words"
        )
    states = pad_sequence(list(chains), batch_first=True)
    lost = scores.new_full((len(chains), 1), -torch.inf)
    best = torch.cat(
        [scores[:, 0].gather(1, states[:, :1]), lost.expand(-1, states.shape[1] - 1)], 1
    )
    moved = torch.zeros(scores.shape[1], *states.shape, dtype=torch.bool)
    for t in range(1, scores.shape[1]):
        running = (t < lengths)[:, None]
        come = torch.cat([lost, best[:, :-1]], 1)
        moved[t] = (come > best) & running
        best = torch.where(
            running, torch.maximum(best, come) + scores[:, t].gather(1, states), best
        )
    place, path = sizes[:, None] - 1, []
    for t in range(scores.shape[1] - 1, -1, -1):
        path.append(torch.where((t < lengths)[:, None], states.gather(1, place), -1))
        place = place - moved[t].gather(1, place).long()
    return torch.cat(path[::-1], 1)


@dataclass
class Gaussians:
    """A normal distribution of independent features for each state.

    Attributes:
        mean, variance: `(S, D)`, float64.
    """

    mean: Tensor
    variance: Tensor

    @classmethod
    def fit(cls, frames: Tensor, state: Tensor, size: int) -> Gaussians:
        """From frames `(F, D)` and the state of each `(F,)`.

        Raises:
            UserError: where a state has no frame.
        """
        count = torch.bincount(state, minlength=size).double()[:, None]
        if not bool((count > 0).all()):
            raise UserError(
                f"no frame of state {int((count == 0).nonzero()[0, 0])}: does a word never occur in training?"
            )
        frames, none = frames.double(), torch.zeros(size, frames.shape[1], dtype=torch.float64)
        mean = none.index_add(0, state, frames) / count
        square = none.index_add(0, state, frames.square()) / count
        return cls(mean, (square - mean.square()).clamp(min=VARIANCE_FLOOR))

    def scores(self, frames: Tensor) -> Tensor:
        """Log-likelihood of frames `(F, D)` in each state up to a constant, float32 `(F, S)`."""
        frames, weight = frames.double(), 1 / self.variance
        constant = (self.mean.square() * weight + self.variance.log()).sum(1)
        return (
            -0.5 * (frames.square() @ weight.T - 2 * frames @ (self.mean * weight).T + constant)
        ).float()


def train_alignment(
    frames: Sequence[Tensor], chains: Sequence[Tensor], flat: Tensor, size: int, rounds: int
) -> Gaussians:
    """Viterbi training: a Gaussian for each state, and the alignment that these give, in turns.

    Args:
        frames: of each utterance, `(T_i, D)`.
        chains: the states of each utterance in order.
        flat: the state of each frame to start from, all utterances in a row, `(F,)`: words cut into equal parts.
        size: number of states.
        rounds: at most this many realignments; fewer where nothing changes any more.
    """
    joined, state = torch.cat(list(frames)), flat
    model = Gaussians.fit(joined, state, size)
    for _ in range(rounds):
        aligned = align_all(model, frames, chains)
        model = Gaussians.fit(joined, aligned, size)
        if torch.equal(aligned, state):
            break
        state = aligned
    return model


def align_all(model: Gaussians, frames: Sequence[Tensor], chains: Sequence[Tensor]) -> Tensor:
    """The state of each frame of all utterances in a row, `(F,)`."""
    lengths = torch.tensor([len(f) for f in frames])
    scores = pad_sequence(
        list(model.scores(torch.cat(list(frames))).split(lengths.tolist())), batch_first=True
    )
    path = align(scores, lengths, chains)
    return path[path >= 0]


@dataclass
class WordLoop:
    """Any sequence of words, wherever one may begin as likely as it is alone (unigram); silence is a word that is not written.

    Attributes:
        lexicon: the words.
        stay: log-probability of staying in each state, `(S,)`.
        leave: log-probability of leaving it, `(S,)`.
        word: log-probability of each word, silence last, `(words + 1,)`.
        prior: log-probability of each state, `(S,)`, by which a network's posterior is divided to be a likelihood.
    """

    lexicon: Lexicon
    stay: Tensor
    leave: Tensor
    word: Tensor
    prior: Tensor

    @classmethod
    def from_alignment(cls, lexicon: Lexicon, state: Tensor, utterance: Tensor) -> WordLoop:
        """By counting, one added to each count of a transition; words are equally likely, silence is as frequent as it is.

        Args:
            lexicon: the words.
            state: of each frame in training, int64 `(F,)`.
            utterance: to which each frame belongs, `(F,)`, in order.
        """
        frames = torch.bincount(state, minlength=lexicon.size).double()
        left = torch.ones(len(state), dtype=torch.bool)
        left[:-1] = (state[1:] != state[:-1]) | (utterance[1:] != utterance[:-1])
        times = torch.bincount(state[left], minlength=lexicon.size).double() + 1
        leave, ends = times / (frames + 2), times[lexicon.last]
        word = (
            torch.cat([(ends[:-1].sum() / lexicon.words).expand(lexicon.words), ends[-1:]])
            / ends.sum()
        )
        prior = frames.clamp(min=1) / frames.sum()
        return cls(lexicon, *(value.log().float() for value in (1 - leave, leave, word, prior)))

    def decode(self, scores: Tensor, lengths: Tensor) -> list[list[int]]:
        """The words of the best way through all states (Viterbi), which ends where a word ends.

        Args:
            scores: log-likelihood of each frame in each state, `(B, T, S)`, up to a constant of the frame.
            lengths: frames of each utterance, int64 `(B,)`.

        Returns:
            The words of each utterance, without silence.
        """
        first, last = self.lexicon.first, self.lexicon.last
        best = torch.full_like(scores[:, 0], -torch.inf)
        best[:, first] = self.word + scores[:, 0, first]
        before = torch.arange(-1, self.lexicon.size - 1)
        before[first] = 0  # never read: a word is entered from the end of another, see below
        origins, entries = [], []
        for t in range(1, scores.shape[1]):
            running = (t < lengths)[:, None]
            leaving = best + self.leave
            end, which = leaving[:, last].max(1, keepdim=True)
            come, origin = leaving[:, before], before.expand_as(best).clone()
            come[:, first], origin[:, first] = end + self.word, last[which].expand(-1, len(first))
            moved = (come > best + self.stay) & running
            own = torch.arange(self.lexicon.size).expand_as(best)
            origins.append(torch.where(moved, origin, own))
            entries.append(moved & torch.zeros_like(moved).index_fill(1, first, True))
            best = torch.where(running, torch.maximum(best + self.stay, come) + scores[:, t], best)
        at = last[(best + self.leave)[:, last].argmax(1)][:, None]
        begun = []  # at each frame the word that begins there, or -1
        for origin, entry in zip(reversed(origins), reversed(entries), strict=True):
            begun.append(torch.where(entry.gather(1, at), at // self.lexicon.states, -1))
            at = origin.gather(1, at)
        begun.append(at // self.lexicon.states)
        words = torch.cat(begun[::-1], 1)
        return [row[(row >= 0) & (row < self.lexicon.words)].tolist() for row in words]

"""Decoding with a loop over all words: frame scores to the most likely sequence of words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kd_lightning.data.speech.hmm import Lexicon


@dataclass
class WordLoop:
    """A hidden Markov model that accepts any sequence of words (a unigram language model).

    Silence is a word that transcripts do not contain.

    Attributes:
        lexicon: the words.
        stay: log-probability of staying in each state, `(S,)`.
        leave: log-probability of leaving each state, `(S,)`.
        word: log-probability of each word, silence last, `(words + 1,)`.
        prior: log-probability of each state, `(S,)`. A network's log-posteriors minus this prior
            are log-likelihoods up to a constant per frame.
    """

    lexicon: Lexicon
    stay: Tensor
    leave: Tensor
    word: Tensor
    prior: Tensor

    @classmethod
    def from_alignment(
        cls,
        lexicon: Lexicon,
        state: Tensor,
        utterance: Tensor,
    ) -> WordLoop:
        """Estimate all probabilities by counting, with add-one smoothing of the transitions.

        All words are equally likely; silence is as likely as its frequency.

        Args:
            lexicon: the words.
            state: state of each training frame, int64 `(F,)`.
            utterance: utterance of each frame, int64 `(F,)`, in order.
        """
        # A state is left where the next frame has another state or belongs to another utterance.
        is_last = torch.ones(len(state), dtype=torch.bool)
        state_changes = state[1:] != state[:-1]
        utterance_changes = utterance[1:] != utterance[:-1]
        is_last[:-1] = state_changes | utterance_changes
        frames = torch.bincount(state, minlength=lexicon.size).double()
        # One more exit and one more stay than were counted, so that neither probability is 0.
        last_states = state[is_last]
        exits = torch.bincount(last_states, minlength=lexicon.size).double() + 1
        leave = exits / (frames + 2)

        # Silence is the last of the words; the others share their counts equally.
        word_ends = exits[lexicon.last]
        mean_count = word_ends[:-1].sum() / lexicon.words
        spoken_counts = mean_count.expand(lexicon.words)
        word_counts = torch.cat([spoken_counts, word_ends[-1:]])
        word = word_counts / word_ends.sum()

        # A state without frames counts as one frame, so that its logarithm is finite.
        prior = frames.clamp(min=1) / frames.sum()
        return cls(
            lexicon,
            stay=(1 - leave).log().float(),
            leave=leave.log().float(),
            word=word.log().float(),
            prior=prior.log().float(),
        )

    def decode(self, scores: Tensor, lengths: Tensor) -> list[list[int]]:
        r"""The words of the best path through all states (Viterbi).

        With $s_t(i)$ the score of frame $t$ in state $i$, the best score of a path that is in
        state $i$ at frame $t$ is

        $$d_0(i) = \log P(w) + s_0(i) \text{ if } i \text{ is the first state of a word } w,
          \text{ else } -\infty,$$
        $$d_t(i) = s_t(i) + \max\{d_{t-1}(i) + \mathrm{stay}(i),\ e_t(i)\}.$$

        The score $e_t$ of entering a state comes from the state before it in the same word, or,
        for the first state of a word $w$, from the last state of the best word $v$ before it:

        $$e_t(i) = d_{t-1}(i - 1) + \mathrm{leave}(i - 1), \qquad
          e_t(\mathrm{first}(w)) = \log P(w)
          + \max_v [d_{t-1}(\mathrm{last}(v)) + \mathrm{leave}(\mathrm{last}(v))].$$

        A path ends by leaving the last state of a word.

        Args:
            scores: log-likelihood of each frame in each state, up to a constant per frame,
                `(B, T, S)`.
            lengths: number of frames of each utterance, int64 `(B,)`; later frames are ignored.

        Returns:
            The words of each utterance, without silence.
        """
        first = self.lexicon.first
        first_scores = scores[:, 0]
        is_first = torch.zeros(self.lexicon.size, dtype=torch.bool)
        is_first[first] = True
        states = torch.arange(self.lexicon.size)
        same_state = states.expand_as(first_scores)

        # A path starts in the first state of a word.
        best = torch.full_like(first_scores, -torch.inf)
        best[:, first] = self.word + first_scores[:, first]
        # Per frame from 1: the state of the best path one frame before, (B, S).
        origins = []
        # Per frame from 1: whether the best path enters a word here, (B, S).
        word_starts = []
        for t in range(1, scores.shape[1]):
            in_utterance = (t < lengths)[:, None]
            staying = best + self.stay
            entering, entered_from = self._enter(best)
            enters = (entering > staying) & in_utterance
            origins.append(torch.where(enters, entered_from, same_state))
            word_starts.append(enters & is_first)
            # A finished utterance keeps its scores, from which its path is traced back.
            extended = torch.maximum(staying, entering) + scores[:, t]
            best = torch.where(in_utterance, extended, best)
        return self._trace_back(best, origins, word_starts)

    def _enter(self, best: Tensor) -> tuple[Tensor, Tensor]:
        """The best way to enter each state from another one.

        Args:
            best: $d_{t-1}$, `(B, S)`.

        Returns:
            The score $e_t$, `(B, S)`, and the state that the path comes from, int64 `(B, S)`.
        """
        first = self.lexicon.first
        last = self.lexicon.last
        leaving = best + self.leave
        # Within a word, a state is entered from the state before it.
        previous = torch.arange(-1, self.lexicon.size - 1)
        # Any valid index: the entries of first states are overwritten below.
        previous[first] = 0
        entering = leaving[:, previous]
        origin = previous.expand_as(best).clone()
        # The first state of a word is entered from the best end of any word.
        word_ends = leaving[:, last]
        best_end, ended_word = word_ends.max(1, keepdim=True)
        entering[:, first] = best_end + self.word
        end_state = last[ended_word]
        origin[:, first] = end_state.expand(-1, len(first))
        return entering, origin

    def _trace_back(
        self,
        best: Tensor,
        origins: Sequence[Tensor],
        word_starts: Sequence[Tensor],
    ) -> list[list[int]]:
        """Follow the best path of each utterance back and collect the words that it enters.

        Args:
            best: final scores, `(B, S)`.
            origins: per frame from 1, the previous state of the best path, int64 `(B, S)`.
            word_starts: per frame from 1, whether the best path enters a word, bool `(B, S)`.
        """
        last = self.lexicon.last
        leaving = best + self.leave
        word_ends = leaving[:, last]
        final_word = word_ends.argmax(1)
        state = last[final_word][:, None]
        # Per frame, from the last to the first: the word that starts there, or -1, (B, 1).
        started = []
        steps_back = zip(reversed(origins), reversed(word_starts), strict=True)
        for origin, word_start in steps_back:
            word = state // self.lexicon.states
            starts_here = word_start.gather(1, state)
            started.append(torch.where(starts_here, word, -1))
            state = origin.gather(1, state)
        # Every path starts with a word at frame 0.
        started.append(state // self.lexicon.states)

        transcripts = []
        # Skip the frames that start no word, and silence.
        in_order = torch.cat(started[::-1], 1)
        for words in in_order:
            is_spoken = (words >= 0) & (words < self.lexicon.words)
            transcripts.append(words[is_spoken].tolist())
        return transcripts

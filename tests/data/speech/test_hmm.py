"""Alignment and decoding against an exhaustive search over all paths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from kd_lightning.data.speech.hmm import Gaussians, Lexicon, align, train_alignment
from kd_lightning.data.speech.word_loop import WordLoop
from kd_lightning.errors import UserError


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_paths(chain: list[int], frames: int) -> Iterator[list[int]]:
    """All paths that visit the states of a chain in order."""
    for cuts in itertools.combinations(range(1, frames), len(chain) - 1):
        bounds = [0, *cuts, frames]
        yield [
            s
            for s, (a, b) in zip(chain, itertools.pairwise(bounds), strict=True)
            for _ in range(a, b)
        ]


def test_the_chain_of_a_transcript() -> None:
    lexicon = Lexicon(words=3, states=2)
    assert (lexicon.size, lexicon.silence) == (7, 6)
    assert lexicon.chain([2, 0]).tolist() == [6, 4, 5, 6, 0, 1, 6]
    assert (lexicon.first.tolist(), lexicon.last.tolist()) == (
        [0, 2, 4, 6],
        [1, 3, 5, 6],
    )


@pytest.mark.parametrize("seed", range(5))
def test_alignment_is_the_best_of_all_paths(seed: int) -> None:
    lexicon = Lexicon(words=2, states=2)
    chains = [lexicon.chain(t) for t in ([0], [1], [1, 0])]
    lengths, scores = torch.tensor([6, 4, 9]), random(3, 9, lexicon.size, seed=seed)
    aligned = align(scores, lengths, chains)
    for b, (length, chain) in enumerate(zip(lengths.tolist(), chains, strict=True)):
        paths = list(all_paths(chain.tolist(), length))
        totals = [
            sum(float(scores[b, t, s]) for t, s in enumerate(path)) for path in paths
        ]
        best = paths[totals.index(max(totals))]
        assert aligned[b, :length].tolist() == best
        assert (aligned[b, length:] == -1).all()


def test_ties_are_decided_for_the_path_that_advances_earlier() -> None:
    chain = torch.tensor([0, 1, 2])
    path = align(torch.zeros(1, 5, 3), torch.tensor([5]), [chain])
    assert path.tolist() == [[0, 1, 2, 2, 2]]


def test_too_few_frames_are_an_error() -> None:
    lexicon = Lexicon(words=1, states=3)
    with pytest.raises(
        UserError, match="utterance 1 has 4 frames, too few for the 5 states"
    ):
        align(
            torch.zeros(2, 6, lexicon.size),
            torch.tensor([6, 4]),
            [lexicon.chain([0])] * 2,
        )


def some_loop(lexicon: Lexicon, seed: int) -> WordLoop:
    leave = (
        torch.rand(lexicon.size, generator=torch.Generator().manual_seed(seed)) * 0.6
        + 0.2
    )
    word = random(lexicon.words + 1, seed=seed).log_softmax(0)
    return WordLoop(
        lexicon, (1 - leave).log(), leave.log(), word, torch.zeros(lexicon.size)
    )


def all_scored_paths(
    loop: WordLoop, frames: int
) -> Iterator[tuple[list[int], list[int], float]]:
    """All paths of the loop: states, words and the log-probability of the transitions."""
    lexicon = loop.lexicon
    first, last = lexicon.first.tolist(), lexicon.last.tolist()

    def grow(
        path: list[int], words: list[int], score: float
    ) -> Iterator[tuple[list[int], list[int], float]]:
        state = path[-1]
        if len(path) == frames:
            if state in last:
                yield path, words, score + float(loop.leave[state])
            return
        yield from grow([*path, state], words, score + float(loop.stay[state]))
        if state not in last:
            yield from grow([*path, state + 1], words, score + float(loop.leave[state]))
        else:
            for word, start in enumerate(first):
                gain = float(loop.leave[state]) + float(loop.word[word])
                yield from grow([*path, start], [*words, word], score + gain)

    for word, start in enumerate(first):
        yield from grow([start], [word], float(loop.word[word]))


@pytest.mark.parametrize(
    ("words", "states", "seed"),
    [(2, 2, 0), (2, 2, 1), (2, 2, 2), (3, 1, 3), (1, 3, 4), (2, 1, 5)],
)
def test_decoding_is_the_best_of_all_paths(words: int, states: int, seed: int) -> None:
    lexicon = Lexicon(words, states)
    loop, lengths = some_loop(lexicon, seed), torch.tensor([5, 3, 4])
    scores = 2 * random(3, 5, lexicon.size, seed=seed + 10)
    decoded = loop.decode(scores, lengths)
    for b, length in enumerate(lengths.tolist()):
        candidates = [
            (score + sum(float(scores[b, t, s]) for t, s in enumerate(path)), spoken)
            for path, spoken, score in all_scored_paths(loop, length)
        ]
        best = max(candidates, key=lambda pair: pair[0])[1]
        assert decoded[b] == [word for word in best if word < words]


def test_frames_beyond_the_end_are_ignored() -> None:
    lexicon = Lexicon(3, 2)
    loop, scores = some_loop(lexicon, 0), random(1, 8, lexicon.size, seed=1)
    louder = scores.clone()
    louder[:, 5:] += 100 * random(1, 3, lexicon.size, seed=2)
    assert (
        loop.decode(scores, torch.tensor([5]))
        == loop.decode(louder, torch.tensor([5]))
        == loop.decode(scores[:, :5], torch.tensor([5]))
    )


def test_a_repeated_word_is_two_words() -> None:
    lexicon = Lexicon(2, 2)
    states = torch.tensor([4, 2, 3, 2, 3, 3, 4, 0, 1])
    scores = torch.full((1, 9, 5), -20.0).scatter(2, states[None, :, None], 0.0)
    assert some_loop(lexicon, 0).decode(scores, torch.tensor([9])) == [[1, 1, 0]]


def test_transitions_and_priors_are_counted() -> None:
    lexicon = Lexicon(1, 2)
    state = torch.tensor(
        [2, 2, 0, 0, 0, 1, 2, 2, 0, 1, 1, 2]
    )  # two utterances of six frames
    loop = WordLoop.from_alignment(lexicon, state, torch.arange(12) // 6)
    assert loop.prior.exp().tolist() == pytest.approx([4 / 12, 3 / 12, 5 / 12])
    left = [2, 2, 3]  # silence is left before the word, and where an utterance ends
    assert loop.leave.exp().tolist() == pytest.approx(
        [(n + 1) / (c + 2) for n, c in zip(left, [4, 3, 5], strict=True)]
    )
    assert torch.allclose(loop.leave.exp() + loop.stay.exp(), torch.ones(3))
    assert loop.word.exp().tolist() == pytest.approx(
        [3 / 7, 4 / 7]
    )  # add-one smoothing


def test_gaussians_have_the_density_of_torch() -> None:
    frames, state = random(40, 3, seed=0), torch.arange(40) % 4
    model = Gaussians.fit(frames, state, 4)
    normal = torch.distributions.Normal(model.mean, model.variance.sqrt())
    dense = normal.log_prob(frames.double()[:, None]).sum(-1) + 1.5 * math.log(
        2 * math.pi
    )
    assert torch.allclose(model.scores(frames).double(), dense, atol=1e-4)
    with pytest.raises(UserError, match="state 4 has no frame"):
        Gaussians.fit(frames, state, 5)


def test_training_finds_states_of_unequal_duration() -> None:
    """Each word has a short and a long state; the flat start cuts it in the middle."""
    lexicon, generator = Lexicon(2, 2), torch.Generator().manual_seed(0)
    means = 3 * random(lexicon.size, 4, seed=7)
    frames, chains, true, flat = [], [], [], []
    for at in range(40):
        word = at % 2
        truth = torch.tensor([4] * 5 + [2 * word] * 2 + [2 * word + 1] * 8 + [4] * 5)
        frames.append(
            means[truth] + 0.5 * torch.randn(len(truth), 4, generator=generator)
        )
        chains.append(lexicon.chain([word]))
        true.append(truth)
        flat.append(
            torch.tensor([4] * 5 + [2 * word] * 5 + [2 * word + 1] * 5 + [4] * 5)
        )
    model = train_alignment(frames, chains, torch.cat(flat), lexicon.size, rounds=5)
    lengths = torch.tensor([len(f) for f in frames])
    aligned = align(torch.stack([model.scores(f) for f in frames]), lengths, chains)
    assert float((torch.cat(flat) == torch.cat(true)).double().mean()) == pytest.approx(
        17 / 20
    )
    assert float((aligned.flatten() == torch.cat(true)).double().mean()) > 0.99
    again = train_alignment(frames, chains, torch.cat(flat), lexicon.size, rounds=5)
    assert torch.equal(again.mean, model.mean)

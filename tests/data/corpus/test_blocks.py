"""Blocks of tokens: each token is predicted once, from its own document alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kd_lightning.data.corpus.blocks import NO_DOCUMENT, Blocks, Boundaries
from kd_lightning.data.corpus.prediction import NextToken, PredictedTokens
from kd_lightning.data.corpus.token_file import TokenFile
from kd_lightning.types import CLEAN

END = 9


def file_of(documents: list[list[int]], prompts: list[int] | None = None) -> TokenFile:
    """Documents without their last token, which is `END`."""
    ended = [[*document, END] for document in documents]
    lengths = [len(document) for document in ended]
    return TokenFile(
        ids=np.concatenate(ended).astype(np.uint16),
        starts=np.cumsum([0, *lengths[:-1]]),
        prompts=np.array(prompts or [0] * len(documents)),
        sha256="",
    )


def every(blocks: Blocks) -> torch.Tensor:
    return torch.arange(len(blocks))


def next_tokens(blocks: Blocks) -> PredictedTokens:
    index = every(blocks)
    return NextToken().read(blocks.read(index), index, CLEAN)


def packed(documents: list[list[int]], boundaries: Boundaries = "reset") -> Blocks:
    return Blocks(file_of(documents), 4, True, boundaries, END)


def test_packed_blocks_by_hand() -> None:
    # The tokens: 1 2 9 3 4 5 9 6 7 9.
    blocks = packed([[1, 2], [3, 4, 5], [6, 7]])
    tokens = blocks.read(every(blocks))
    read = next_tokens(blocks)
    assert read.inputs["input_ids"].tolist() == [
        [1, 2, 9, 3],
        [4, 5, 9, 6],
        [7, 9, 9, 9],
    ]
    assert read.target.tolist() == [[2, 9, 3, 4], [5, 9, 6, 7], [9, 9, 9, 9]]
    # 3 and 6 begin a document, and nothing in the last block follows the end.
    assert read.counts.tolist() == [
        [True, True, False, True],
        [True, True, False, True],
        [True, False, False, False],
    ]
    assert tokens.documents[:, :-1].tolist() == [
        [0, 0, 0, 1],
        [0, 0, 0, 1],
        [0, 0, NO_DOCUMENT, NO_DOCUMENT],
    ]
    # The second block begins inside a document, whose part in the block starts at 0.
    assert tokens.places[:2, :-1].tolist() == [[0, 1, 2, 0], [0, 1, 2, 0]]


def test_boundaries_may_be_ignored() -> None:
    blocks = packed([[1, 2], [3, 4, 5], [6, 7]], "ignore")
    counts = next_tokens(blocks).counts
    assert counts.tolist() == [[True] * 4, [True] * 4, [True, False, False, False]]


@pytest.mark.parametrize("boundaries", ["reset", "ignore"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_every_token_is_predicted_once(boundaries: Boundaries, is_packed: bool) -> None:
    rng = np.random.default_rng(0)
    documents = [[int(n)] * int(n) for n in rng.integers(0, 14, size=30)]
    tokens = file_of(documents)
    blocks = Blocks(tokens, 5, is_packed, boundaries, END)
    read = next_tokens(blocks)
    predicted = read.target[read.counts].tolist()
    if is_packed and boundaries == "ignore":
        expected = tokens.ids[1:].tolist()
    else:
        expected = []
        for document in documents:
            expected.extend([*document, END][1:])
    assert predicted == expected


def test_inputs_and_targets_are_shifted_by_one() -> None:
    blocks = packed([list(range(1, 8))], "ignore")
    read = next_tokens(blocks)
    assert torch.equal(read.inputs["input_ids"][0, 1:], read.target[0, :-1])
    # The next block begins with the last target.
    assert read.inputs["input_ids"][1, 0] == read.target[0, -1]


def test_prompts_are_read_and_not_predicted() -> None:
    tokens = file_of([[1, 2, 3, 4], [5, 6, 7]], prompts=[2, 1])
    blocks = Blocks(tokens, 8, False, "reset", END)
    read = next_tokens(blocks)
    assert read.inputs["input_ids"][0, :4].tolist() == [1, 2, 3, 4]
    # The last token of the prompt predicts the first one of the completion.
    assert read.target[read.counts].tolist() == [3, 4, END, 6, 7, END]
    first = read.counts[0].nonzero().flatten()
    assert first.tolist() == [1, 2, 3]


def test_blocks_inside_a_prompt_are_left_out() -> None:
    tokens = file_of([[1] * 10 + [2, 3]], prompts=[10])
    blocks = Blocks(tokens, 4, False, "reset", END)
    read = next_tokens(blocks)
    assert read.target[read.counts].tolist() == [2, 3, END]
    assert bool(read.counts.any(1).all())


def test_documents_without_a_token_to_predict() -> None:
    assert len(Blocks(file_of([[]]), 4, False, "reset", END)) == 0
    blocks = packed([[]])
    assert not bool(next_tokens(blocks).counts.any())


def test_an_end_token_stays_a_target_though_it_also_pads() -> None:
    blocks = Blocks(file_of([[1, 2]]), 4, False, "reset", END)
    read = next_tokens(blocks)
    assert read.inputs["input_ids"].tolist() == [[1, 2, END, END]]
    assert read.counts.tolist() == [[True, True, False, False]]
    assert read.target[read.counts].tolist() == [2, END]

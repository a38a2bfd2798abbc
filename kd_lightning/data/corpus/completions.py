"""Replaces the completions in a batch of texts, such as by those of a student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kd_lightning.types import UNLABELLED, Batch


def prompts_of(batch: Batch, shortest: int = 1) -> list[Tensor]:
    """What precedes the tokens to predict in each text.

    Args:
        batch: of B texts, one per block, with `input_ids` int64 `(B, L)`.
        shortest: tokens that a prompt has at least, if the text has as many.

    Returns:
        For each text an int64 tensor of at least one token.
    """
    ids = _token_ids(batch)
    length = ids.shape[1]
    counts = _counts(batch).int()
    # The input before the first token to predict is the last one of the prompt.
    first = counts.argmax(1)
    last = length - 1 - counts.flip(1).argmax(1)
    # The token after the last counted input ends the text, or the block.
    ends = torch.minimum(first.clamp(min=shortest - 1), last)
    prompts = []
    for row, end in zip(ids, ends.tolist(), strict=True):
        prompts.append(row[: end + 1])
    return prompts


def with_completions(
    batch: Batch, prompts: Sequence[Tensor], completions: Sequence[Tensor], end: int
) -> Batch:
    """The same prompts with other completions, which are all that is predicted.

    The new tokens have no labels: losses that compare networks count them, and hard
    losses do not.

    Args:
        batch: of B texts, one per block, with `input_ids` int64 `(B, L)`.
        prompts: int64 `(n,)` for each text.
        completions: int64 `(m,)` for each text, at most L + 1 tokens with the prompt.
        end: the token that fills up a block.

    Returns:
        A batch with positions at the inputs that precede the tokens of the completions.
    """
    old = _token_ids(batch)
    samples, length = old.shape
    # One more than a network reads: the target of the last input.
    tokens = old.new_full((samples, length + 1), end)
    counts = torch.zeros_like(old, dtype=torch.bool)
    pairs = zip(prompts, completions, strict=True)
    for row, (prompt, completion) in enumerate(pairs):
        start = len(prompt)
        stop = start + len(completion)
        tokens[row, :start] = prompt
        tokens[row, start:stop] = completion
        counts[row, start - 1 : stop - 1] = True
    return replace(
        batch,
        inputs={"input_ids": tokens[:, :-1].contiguous()},
        target=torch.full_like(old, UNLABELLED),
        positions=counts.flatten().nonzero().flatten(),
    )


def _token_ids(batch: Batch) -> Tensor:
    """The tokens that a network reads, int64 `(B, L)`."""
    assert isinstance(batch.inputs, Mapping)
    return batch.inputs["input_ids"]


def _counts(batch: Batch) -> Tensor:
    """Whether the token after each input is predicted, bool `(B, L)`."""
    target = batch.target
    if batch.positions is None:
        return torch.ones_like(target, dtype=torch.bool)
    counts = torch.zeros(target.numel(), dtype=torch.bool, device=target.device)
    counts[batch.positions] = True
    return counts.view(target.shape)

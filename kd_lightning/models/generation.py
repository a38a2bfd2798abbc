"""Lets a causal language model complete prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.features import evaluating
from kd_lightning.hub import library
from kd_lightning.models.language_model import CausalLanguageModel
from kd_lightning.randomness import uniform


@dataclass(frozen=True)
class Sampling:
    """How each next token is chosen.

    Attributes:
        temperature: divides the logits, greater than 0.
        top_p: draw only among the likeliest tokens that together have this probability
            (Holtzman et al. 2020); in (0, 1].
        greedy: take the likeliest token instead of drawing one.
        max_new_tokens: the longest completion; `None`: as long as the network can read.

    Raises:
        UserError: for a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    greedy: bool = False
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UserError(
                "the temperature of sampling must be a number greater than 0, got "
                f"{self.temperature}; for the likeliest token, sample greedily"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be a number in (0, 1], got {self.top_p}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise UserError(
                f"max_new_tokens must be at least 1, got {self.max_new_tokens}"
            )


class _Generating(Protocol):
    """The part of a model of transformers that generates."""

    generation_config: object

    def generate(self, input_ids: Tensor, **options: object) -> Tensor:
        """Prompts and completions, int64 `(B, L + new)`."""


class _Processor(Protocol):
    """A logits processor of transformers."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Changed scores `(B, V)`."""


class _KnownTokens:
    """A logits processor that rules out the tokens that only pad a vocabulary.

    Args:
        count: of the tokens of the tokenizer.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores `(B, V)` with -inf from `count` on."""
        changed = scores.clone()
        changed[:, self.count :] = -torch.inf
        return changed


class _SeededChoice:
    """A logits processor that draws the next token, and rules out all others.

    The draw is a function of the seed, the row and the position. It does not depend on
    the other prompts of a batch, and leaves the global random generators untouched.

    Args:
        rows: int64 `(B,)`, a number for each prompt.
        seed: what else the draws are a function of.
    """

    def __init__(self, rows: Tensor, seed: Sequence[int | str]) -> None:
        self.rows = rows
        self.seed = tuple(seed)
        self._position = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `(B, V)`: 0 for the drawn token and -inf for the others."""
        draws = uniform(self.rows, "next token", *self.seed, self._position)
        self._position += 1
        # Inverse of the cumulative distribution. The sum over a large vocabulary needs
        # double precision.
        cumulative = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
        thresholds = draws[:, None].double() * cumulative[:, -1:]
        token = torch.searchsorted(cumulative, thresholds, right=True)
        ruled_out = torch.full_like(scores, -torch.inf)
        return ruled_out.scatter(1, token, 0.0)


class _OwnLimits:
    """A stopping criterion of transformers: a number of new tokens for each prompt.

    Args:
        limits: int64 `(B,)`, the number of new tokens.
        width: of the padded prompts.
    """

    def __init__(self, limits: Tensor, width: int) -> None:
        self.limits = limits
        self.width = width

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **_: object) -> Tensor:
        """Whether each completion is long enough, bool `(B,)`."""
        return self.limits <= input_ids.shape[1] - self.width


def generate(
    network: CausalLanguageModel,
    prompts: Sequence[Tensor],
    end: int,
    sampling: Sampling,
    seed: Sequence[int | str] = (0,),
    rows: Tensor | None = None,
    longest: int | None = None,
) -> list[Tensor]:
    """Complete prompts, in eval mode and without gradients.

    A completion is a function of the network, its prompt, the seed and its row. Up to
    rounding, it does not depend on the other prompts.

    Args:
        network: predicts the next token.
        prompts: int64 `(n,)` each, at least one token, on the network's device.
        end: the token that ends a text; a completion stops after it.
        sampling: how each token is chosen.
        seed: what the draws are a function of, together with the row.
        rows: int64 `(B,)` on the CPU, a number for each prompt; `None`: its position.
        longest: the most tokens of a prompt and its completion; `None`: one more than
            the network reads, because it does not read the last one.

    Returns:
        For each prompt an int64 tensor of new tokens, with `end` if that was reached.
        It is empty if the prompt has `longest` tokens.

    Raises:
        UserError: if a prompt is empty, or has more tokens than the network reads.
    """
    limits = _limits_of(network, prompts, sampling, longest)
    if rows is None:
        rows = torch.arange(len(prompts))
    completions = [prompt[:0] for prompt in prompts]
    unfinished = [number for number, limit in enumerate(limits) if limit > 0]
    if not unfinished:
        return completions
    left_padded, mask = _left_padded([prompts[number] for number in unfinished], end)
    open_limits = [limits[number] for number in unfinished]
    new_tokens = _new_tokens(
        network,
        left_padded,
        mask,
        end,
        open_limits,
        _processors(network, sampling, rows[unfinished].to(mask.device), seed),
    )
    for number, limit, tokens in zip(unfinished, open_limits, new_tokens, strict=True):
        completions[number] = _until_end(tokens[:limit], end)
    return completions


def _limits_of(
    network: CausalLanguageModel,
    prompts: Sequence[Tensor],
    sampling: Sampling,
    longest: int | None,
) -> list[int]:
    """The most new tokens for each prompt.

    Raises:
        UserError: if a prompt is empty or too long.
    """
    readable = network.longest_input
    if longest is None and readable is not None:
        longest = readable + 1
    if longest is None and sampling.max_new_tokens is None:
        raise UserError(
            "the language model reads texts of any length; give max_new_tokens"
        )
    limits = []
    for number, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UserError(f"prompt {number} has no token to continue from")
        if readable is not None and len(prompt) > readable:
            raise UserError(
                f"prompt {number} has {len(prompt):,} tokens, but the language model "
                f"reads at most {readable:,}"
            )
        possible = []
        if longest is not None:
            possible.append(longest - len(prompt))
        if sampling.max_new_tokens is not None:
            possible.append(sampling.max_new_tokens)
        limits.append(min(possible))
    return limits


def _left_padded(prompts: Sequence[Tensor], pad: int) -> tuple[Tensor, Tensor]:
    """Prompts that end in the last column, and which tokens exist; int64 `(B, L)`."""
    width = max(len(prompt) for prompt in prompts)
    ids = prompts[0].new_full((len(prompts), width), pad)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return ids, mask


def _processors(
    network: CausalLanguageModel,
    sampling: Sampling,
    rows: Tensor,
    seed: Sequence[int | str],
) -> list[_Processor]:
    """What turns logits into the choice of a token; the likeliest one is then taken."""
    processors: list[_Processor] = [_KnownTokens(network.num_classes)]
    if sampling.greedy:
        return processors
    transformers = library("transformers")
    if sampling.temperature != 1:
        warper = transformers.TemperatureLogitsWarper(float(sampling.temperature))
        processors.append(warper)
    if sampling.top_p < 1:
        processors.append(transformers.TopPLogitsWarper(sampling.top_p))
    processors.append(_SeededChoice(rows, seed))
    return processors


def _new_tokens(
    network: CausalLanguageModel,
    ids: Tensor,
    mask: Tensor,
    end: int,
    limits: Sequence[int],
    processors: list[_Processor],
) -> Tensor:
    """The new tokens of each row, int64 `(B, new)`; `end` fills up those that ended."""
    transformers = library("transformers")
    model = cast(_Generating, network.model)
    width = ids.shape[1]
    own_limits = _OwnLimits(torch.tensor(limits, device=ids.device), width)
    settings = transformers.GenerationConfig(
        # The processors draw the token, and leave only that one.
        do_sample=False,
        max_new_tokens=max(limits),
        eos_token_id=end,
        pad_token_id=end,
        use_cache=True,
    )
    with evaluating(network), _generation_settings(model, settings):
        tokens = model.generate(
            ids,
            attention_mask=mask,
            generation_config=settings,
            logits_processor=transformers.LogitsProcessorList(processors),
            stopping_criteria=transformers.StoppingCriteriaList([own_limits]),
        )
    return tokens[:, width:]


@contextmanager
def _generation_settings(model: _Generating, settings: object) -> Iterator[None]:
    """Replace the settings that came with a model, which `generate` would add."""
    original = model.generation_config
    model.generation_config = settings
    try:
        yield
    finally:
        model.generation_config = original


def _until_end(tokens: Tensor, end: int) -> Tensor:
    """The tokens up to the first `end`, with it; all if there is none."""
    ends = (tokens == end).nonzero()
    if len(ends) == 0:
        return tokens
    return tokens[: int(ends[0, 0]) + 1]

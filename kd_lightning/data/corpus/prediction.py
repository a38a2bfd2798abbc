"""What a language model predicts of a block of tokens: the next or the masked ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kd_lightning.data.corpus.blocks import NO_DOCUMENT, BlockTokens
from kd_lightning.data.corpus.tokenizers import LanguageTokenizer
from kd_lightning.errors import UserError
from kd_lightning.randomness import integers, run_seed, uniform
from kd_lightning.tasks.language import LanguageModelling, MaskedLanguageModelling
from kd_lightning.types import CLEAN

MASK_SHARE = 0.8
"""The share of the tokens to predict that the mask token replaces, as in BERT."""

RANDOM_SHARE = 0.1
"""The share of the tokens to predict that a random token replaces; the others stay."""


@dataclass(frozen=True)
class PredictedTokens:
    """Blocks as a network reads them.

    Attributes:
        inputs: int64 `(B, L)` each, by the names of the network's arguments.
        target: int64 `(B, L)`.
        counts: bool `(B, L)`, whether a target is to be predicted.
    """

    inputs: dict[str, Tensor]
    target: Tensor
    counts: Tensor


class TokenPrediction(ABC):
    """What a language model predicts of a block of tokens.

    Attributes:
        has_views: whether the same block differs between views.
    """

    has_views: ClassVar[bool] = False

    @abstractmethod
    def task(self, tokenizer: LanguageTokenizer) -> LanguageModelling:
        """The task that a network is trained for.

        Args:
            tokenizer: that may not know its vocabulary yet.
        """

    @abstractmethod
    def prepare(self, tokenizer: LanguageTokenizer) -> None:
        """Read what is needed of the vocabulary.

        Args:
            tokenizer: that knows its vocabulary.

        Raises:
            UserError: if the vocabulary lacks a token.
        """

    @abstractmethod
    def read(self, tokens: BlockTokens, index: Tensor, view: int) -> PredictedTokens:
        """The inputs and the targets of some blocks.

        Args:
            tokens: of B blocks.
            index: int64 `(B,)`, the blocks' rows in their source split.
            view: which draw of the masks; `CLEAN` in evaluation.
        """

    @abstractmethod
    def blanks(self) -> dict[str, int]:
        """Further inputs by name, each with the value that fills a blank block."""

    def fingerprint(self) -> dict[str, object]:
        """What decides inputs and targets; empty for the next token."""
        return {}


class NextToken(TokenPrediction):
    """The token after each token: for causal language models.

    This is the only place where targets are shifted.
    """

    def task(self, tokenizer: LanguageTokenizer) -> LanguageModelling:
        """Language modelling, with bits per byte."""
        return LanguageModelling(tokenizer.token_bytes)

    def prepare(self, tokenizer: LanguageTokenizer) -> None:
        """Do nothing: every vocabulary has a next token."""

    def read(self, tokens: BlockTokens, index: Tensor, view: int) -> PredictedTokens:
        """The first L tokens as inputs, the last L as targets; all views are the same.

        A token is predicted only from its own document.
        """
        documents = tokens.documents
        same_document = documents[:, 1:] == documents[:, :-1]
        return PredictedTokens(
            inputs={"input_ids": tokens.ids[:, :-1].contiguous()},
            target=tokens.ids[:, 1:].contiguous(),
            counts=tokens.counts[:, 1:] & same_document,
        )

    def blanks(self) -> dict[str, int]:
        """There are no further inputs."""
        return {}


class MaskedTokens(TokenPrediction):
    """Some tokens of each block, which the network does not see.

    As in BERT (Devlin et al. 2019, arXiv 1810.04805, section 3.1), 15% of the tokens
    are predicted. Of these, 80% are replaced by the mask token and 10% by a random
    token of the vocabulary; the others stay. Every block with a token to predict has at
    least one. Special tokens, prompts and padding are never predicted.

    Which tokens are predicted, and what replaces them, is a function of (seed, view,
    block). In evaluation it is a function of the block alone, so that all runs are
    measured on the same masks.

    Args:
        share: of the tokens to predict, in (0, 1).
        seed: of the masks in training; `None`: the run's seed. Fix it if one teacher
            cache serves several seeds.

    Raises:
        UserError: if the share is out of range; from `prepare`, if the vocabulary has
            no mask token.
    """

    has_views: ClassVar[bool] = True

    def __init__(self, share: float = 0.15, seed: int | None = None) -> None:
        if not 0 < share < 1:
            raise UserError(f"MaskedTokens: share must be in (0, 1), got {share}")
        self.share = share
        self.seed = run_seed() if seed is None else seed
        self._mask = 0
        self._vocabulary = 0
        self._special = torch.empty(0, dtype=torch.int64)

    def task(self, tokenizer: LanguageTokenizer) -> LanguageModelling:
        """Masked language modelling, without bits per byte."""
        return MaskedLanguageModelling()

    def prepare(self, tokenizer: LanguageTokenizer) -> None:
        """Read the mask token, the special tokens and the size of the vocabulary."""
        if tokenizer.mask is None:
            raise UserError(
                "data.prediction: the tokenizer has no mask token; use that of a "
                "masked language model, or set mask: true for BytePairTokenizer"
            )
        self._mask = tokenizer.mask
        self._vocabulary = tokenizer.size
        special = {*tokenizer.special_ids(), tokenizer.end, tokenizer.mask}
        self._special = torch.tensor(sorted(special))

    def read(self, tokens: BlockTokens, index: Tensor, view: int) -> PredictedTokens:
        """The first L tokens, some of them masked, and the same tokens as targets."""
        target = tokens.ids[:, :-1].contiguous()
        is_special = torch.isin(target, self._special)
        candidates = tokens.counts[:, :-1] & ~is_special
        exists = tokens.documents[:, :-1] != NO_DOCUMENT
        # Each place of the split has a number of its own.
        length = target.shape[1]
        cells = index[:, None] * length + torch.arange(length)
        seed = 0 if view == CLEAN else self.seed
        counts = self._chosen(candidates, cells, seed, view)
        return PredictedTokens(
            inputs={
                "input_ids": self._replaced(target, counts, cells, seed, view),
                "attention_mask": exists.long(),
            },
            target=target,
            counts=counts,
        )

    def _chosen(
        self, candidates: Tensor, cells: Tensor, seed: int, view: int
    ) -> Tensor:
        """Which candidates are predicted, bool `(B, L)`.

        Args:
            candidates: bool `(B, L)`.
            cells: int64 `(B, L)`, numbers of the places.
            seed, view: of the draw.
        """
        available = candidates.sum(1, keepdim=True)
        wanted = (self.share * available).round().clamp(min=1)
        draws = uniform(cells, seed, view, "masked").masked_fill(~candidates, 2.0)
        # The places of the smallest draws: a fixed number of each block, as in the
        # authors' code.
        ranks = draws.argsort(dim=1, stable=True).argsort(dim=1)
        return (ranks < wanted) & candidates

    def _replaced(
        self, ids: Tensor, counts: Tensor, cells: Tensor, seed: int, view: int
    ) -> Tensor:
        """What the network reads, int64 `(B, L)`."""
        draws = uniform(cells, seed, view, "replacement")
        is_masked = counts & (draws < MASK_SHARE)
        is_random = counts & ~is_masked & (draws < MASK_SHARE + RANDOM_SHARE)
        others = integers(cells, 0, self._vocabulary - 1, seed, view, "random token")
        return ids.masked_fill(is_masked, self._mask).where(~is_random, others)

    def blanks(self) -> dict[str, int]:
        """All tokens of a blank block exist."""
        return {"attention_mask": 1}

    def fingerprint(self) -> dict[str, object]:
        """The share, the seed, and the token that stands for a mask."""
        return {
            "prediction": {"masked": self.share, "seed": self.seed, "mask": self._mask}
        }

"""Hidden states and attention of a transformer, layer by layer: Jiao et al. 2020."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import adapted, check_layers, feature_of
from kd_lightning.losses._tokens import check_one_tokenizer, check_tokens, mean_over, token_mask
from kd_lightning.losses.base import DistillLoss, Probe, teacher_of
from kd_lightning.types import Batch, Output


def states_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""$\mathrm{MSE}(H^S W, H^T)$ over a sentence's tokens, mean over the batch (Jiao et al. 2020, equations 8 and 9).

    Args:
        student: the mapped states $H^S W$, `(B, L, H)`.
        teacher: $H^T$, `(B, L, H)`.
        mask: `(B, L)`, 1 on tokens and 0 on padding.

    Returns:
        A scalar; zero where both agree on all tokens.
    """
    return mean_over((student - teacher).square(), mask[..., None])


def scores_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""$\frac{1}{h} \sum_i \mathrm{MSE}(A_i^S, A_i^T)$ over pairs of a sentence's tokens, mean over the batch (equation 7).

    Args:
        student: attention before the softmax, `(B, h, L, L)`.
        teacher: the same.
        mask: `(B, L)`, 1 on tokens and 0 on padding.

    Returns:
        A scalar; zero where both agree on all pairs of tokens.
    """
    return mean_over((student - teacher).square(), mask[:, None, :, None] * mask[:, None, None, :])


class TinyBERT(DistillLoss):
    r"""The student's hidden states, mapped to the teacher's width, and its attention scores are to be the teacher's.

    The sum over `states` of $\mathrm{MSE}(H^S W, H^T)$, and over `scores` of the mean over heads of
    $\mathrm{MSE}(A^S, A^T)$, where A is the attention before its softmax. Which layers are compared is what the roles name:
    the paper takes every k-th layer of the teacher, and the embeddings as layer 0. Padding is left out, and every sentence
    counts alike. The prediction layer is another entry (`KD`).

    Args:
        states: roles of hidden states, the same for student and teacher, such as [states0, states1]; none: leave them out.
        scores: roles of attention scores, such as [scores1]; none: leave them out.
        shared: one map W for all states, as in the authors' code, instead of one each.
        base: weight, start, end, warmup; see DistillLoss.

    Shapes:
        states `(B, L, H)`, whose H may differ; scores `(B, heads, L, L)`, whose heads must agree.

    Raises:
        UserError: where nothing is named; from `build`, where layers do not fit, or the teacher reads other tokens.
    """

    paper: ClassVar[str] = "Jiao et al. 2020, arXiv 1909.10351"
    year: ClassVar[int] = 2020
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)

    def __init__(
        self,
        states: Sequence[str] = ("states0", "states1", "states2"),
        scores: Sequence[str] = ("scores1", "scores2"),
        shared: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.states = check_layers("TinyBERT", states) if states else []
        self.scores = check_layers("TinyBERT", scores) if scores else []
        if not self.states and not self.scores:
            raise UserError("TinyBERT: name layers in states or in scores, such as [states1]")
        self.roles = [*self.states, *self.scores]
        self.shared = shared
        self.maps = nn.ModuleList()

    def build(self, student: Probe, teacher: Probe | None) -> None:
        check_one_tokenizer("TinyBERT", student)
        for role in self.states:
            check_tokens("TinyBERT", student, teacher, role, 3, (1,))
        for role in self.scores:
            check_tokens("TinyBERT", student, teacher, role, 4, (1, 2))
        assert teacher is not None
        widths = [
            [probe.output.features[role].shape[-1] for probe in (student, teacher)]
            for role in self.states
        ]
        if self.shared and any(pair != widths[0] for pair in widths):
            raise UserError(
                f"TinyBERT: a shared map needs states of one width, got {widths}; set shared to false"
            )
        made = [
            nn.Linear(ours, theirs, bias=False)
            for ours, theirs in (widths[:1] if self.shared else widths)
        ]
        self.maps = nn.ModuleList(made * len(widths) if self.shared else made)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        known = teacher_of(self, teacher)
        if len(self.maps) != len(self.states):
            raise UserError("TinyBERT has no maps yet; call build() with a probe of both networks")
        terms = []
        for role, mapping in zip(self.states, self.maps, strict=True):
            theirs = feature_of("TinyBERT", known, role)
            ours = adapted(mapping, feature_of("TinyBERT", student, role))
            terms.append(states_loss(ours, theirs, token_mask(batch, theirs)))
        for role in self.scores:
            theirs = feature_of("TinyBERT", known, role)
            terms.append(
                scores_loss(
                    feature_of("TinyBERT", student, role), theirs, token_mask(batch, theirs)
                )
            )
        return torch.stack(terms).sum()

"""Hidden states and attention of a transformer, layer by layer: Jiao et al. 2020."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import adapted, check_layers, feature_of
from kd_lightning.losses._tokens import (
    check_one_tokenizer,
    check_tokens,
    masked_mean,
    token_mask,
)
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    teacher_of,
)
from kd_lightning.types import Batch, Output


def states_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""$\mathrm{MSE}(H^S W, H^T)$ over a sentence's tokens, mean over sentences.

    Jiao et al. 2020, equations 8 and 9.

    Args:
        student: the mapped states $H^S W$, `(B, L, H)`.
        teacher: $H^T$, `(B, L, H)`.
        mask: `(B, L)`, 1 on tokens and 0 on padding.

    Returns:
        A scalar; zero if both agree on all tokens.
    """
    return masked_mean((student - teacher).square(), mask[..., None])


def scores_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    r"""$\frac{1}{h} \sum_i \mathrm{MSE}(A_i^S, A_i^T)$ over pairs of tokens, mean over sentences.

    Jiao et al. 2020, equation 7.

    Args:
        student: attention before the softmax, `(B, h, L, L)`.
        teacher: the same, `(B, h, L, L)`.
        mask: `(B, L)`, 1 on tokens and 0 on padding.

    Returns:
        A scalar; zero if both agree on all pairs of tokens.
    """
    # A score counts if both its query (third axis) and its key (fourth axis) are tokens.
    is_query = mask[:, None, :, None]
    is_key = mask[:, None, None, :]
    pairs = is_query * is_key
    return masked_mean((student - teacher).square(), pairs)


def _linear_map(widths: tuple[int, int]) -> nn.Linear:
    """A map from the student's width to the teacher's, without a bias."""
    student_width, teacher_width = widths
    return nn.Linear(student_width, teacher_width, bias=False)


class TinyBERT(DistillLoss):
    r"""The student's mapped hidden states and its attention scores match the teacher's.

    The sum over `states` of $\mathrm{MSE}(H^S W, H^T)$, and over `scores` of the mean over heads of
    $\mathrm{MSE}(A^S, A^T)$, where A is the attention before its softmax. The mapping of roles
    decides which layers are compared: the paper takes every k-th layer of the teacher, and the
    embeddings as layer 0. Padding is ignored, and every sentence has the same weight. The
    prediction layer is a separate entry (`KD`).

    Args:
        states: roles of hidden states, the same for student and teacher, such as
            [states0, states1]; empty to leave this term out.
        scores: roles of attention scores, such as [scores1]; empty to leave this term out.
        shared: use one map W for all states, as in the authors' code, instead of one per layer.
        base: weight, start, end, warmup; see `DistillLoss`.

    Shapes:
        states `(B, L, H)`, H may differ; scores `(B, heads, L, L)`, heads must agree.

    Raises:
        UserError: if both lists are empty; from `build`, if layers do not fit or the teacher reads
            other tokens.
    """

    paper: ClassVar[str] = "Jiao et al. 2020, arXiv 1909.10351"
    year: ClassVar[int] = 2020
    family: ClassVar[str] = "feature"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    mean_over: MeanOver = "samples"

    def __init__(
        self,
        states: Sequence[str] = ("states0", "states1", "states2"),
        scores: Sequence[str] = ("scores1", "scores2"),
        shared: bool = False,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.states = check_layers("TinyBERT", states) if states else []
        self.scores = check_layers("TinyBERT", scores) if scores else []
        if not self.states and not self.scores:
            raise UserError(
                "TinyBERT: name layers in states or in scores, such as [states1]"
            )
        self.roles = [*self.states, *self.scores]
        self.shared = shared
        self.maps = nn.ModuleList()

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Check the layers and create the maps W."""
        check_one_tokenizer("TinyBERT", student)
        for role in self.states:
            check_tokens("TinyBERT", student, teacher, role, rank=3, same=(1,))
        for role in self.scores:
            check_tokens("TinyBERT", student, teacher, role, rank=4, same=(1, 2))
        assert teacher is not None
        widths = []
        for role in self.states:
            student_width = student.output.features[role].shape[-1]
            teacher_width = teacher.output.features[role].shape[-1]
            widths.append((student_width, teacher_width))
        if not self.shared:
            self.maps = nn.ModuleList(_linear_map(pair) for pair in widths)
            return
        if any(pair != widths[0] for pair in widths):
            shown = [list(pair) for pair in widths]
            raise UserError(
                f"TinyBERT: a shared map needs states of one width, got {shown}; "
                "set shared to false"
            )
        # One module under several indices: its weight is trained and stored as one parameter.
        shared = [_linear_map(pair) for pair in widths[:1]]
        self.maps = nn.ModuleList(shared * len(widths))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The sum of `states_loss` over `states` and of `scores_loss` over `scores`, a scalar.

        Raises:
            UserError: before `build`.
        """
        targets = teacher_of(self, teacher)
        if len(self.maps) != len(self.states):
            raise UserError(
                "TinyBERT has no maps yet; call build() with a probe of both networks"
            )
        # The maps are ordered like `states`: one per role, or the same one for all.
        terms = []
        for role, mapping in zip(self.states, self.maps, strict=True):
            target = feature_of("TinyBERT", targets, role)
            own = adapted(mapping, feature_of("TinyBERT", student, role))
            terms.append(states_loss(own, target, token_mask(batch, target)))
        for role in self.scores:
            target = feature_of("TinyBERT", targets, role)
            own = feature_of("TinyBERT", student, role)
            terms.append(scores_loss(own, target, token_mask(batch, target)))
        return torch.stack(terms).sum()

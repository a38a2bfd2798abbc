"""Similarities to a queue of teacher embeddings: Fang et al. 2021 (SEED)."""

from __future__ import annotations

import math
from typing import ClassVar, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    adapted,
    check_role,
    feature_of,
    not_built,
    pooled,
    shapes_of,
)
from kd_lightning.losses._gather import JoinedBatch, unit
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    positive,
    teacher_of,
)
from kd_lightning.types import Batch, Output, finite_log_probs, full


def similarity_kl(
    student: Tensor,
    teacher: Tensor,
    queue: Tensor,
    is_filled: Tensor,
    temperature: float,
    teacher_temperature: float,
) -> Tensor:
    r"""$\mathrm{KL}(p \| q)$ of the distributions over a queue, mean over samples, in nats.

    Fang et al. 2021: $p$ is the softmax of $t_i^T d_j / \tau_T$ over the entries
    $d_j$ of the queue, and $q$ that of $s_i^T d_j / \tau_S$.

    Args:
        student: rows of length one, `(B, D)`.
        teacher: rows of length one, `(B, D)`.
        queue: rows of length one, `(K, D)`.
        is_filled: which entries count, bool `(K,)`.
        temperature: tau of the student.
        teacher_temperature: tau of the teacher.

    Returns:
        A scalar.
    """
    # Empty places have the probability 0 in both distributions.
    is_empty = ~is_filled
    own = student @ queue.T / temperature
    own = own.masked_fill(is_empty, -math.inf)
    target = teacher @ queue.T / teacher_temperature
    target = target.masked_fill(is_empty, -math.inf)
    log_q = torch.log_softmax(own, dim=1)
    log_p = torch.log_softmax(target, dim=1)
    return F.kl_div(
        finite_log_probs(log_q),
        finite_log_probs(log_p),
        reduction="batchmean",
        log_target=True,
    )


class SEED(DistillLoss):
    r"""A student's embedding is as similar to those of many images as the teacher's is.

    Neither labels nor logits are read, so the images may be unlabelled and the teacher any encoder.
    A linear layer maps the student's feature to the teacher's width. Both become unit vectors, and
    are compared with a queue of the teacher's embeddings of past batches; see `similarity_kl`.

    A batch enters the queue before it is compared, so that each sample's own embedding is in it,
    and the oldest embeddings leave. Until the queue is full, only its filled part counts. All
    processes push the joint batch in one order and hold the same queue, which is in the training
    checkpoint and never in the exported student. It takes K * D * 4 bytes.

    Args:
        layer: role of the embedding of student and teacher; maps are pooled.
        size: K, the entries of the queue; at least the samples of a joint batch.
        temperature: tau of the student, greater than 0.
        teacher_temperature: tau of the teacher, greater than 0.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if a layer does not fit; from
            `forward`, if the queue is smaller than the joint batch.
    """

    paper: ClassVar[str] = "Fang et al. 2021, arXiv 2101.04731"
    year: ClassVar[int] = 2021
    family: ClassVar[str] = "contrastive"
    needs: ClassVar[tuple[str, ...]] = ("teacher features",)
    mean_over: MeanOver = "samples"

    queue: Tensor
    pushed: Tensor

    def __init__(
        self,
        layer: str = "penultimate",
        size: int = 65536,
        temperature: float = 0.2,
        teacher_temperature: float = 0.01,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layer = check_role("SEED", "layer", layer)
        self.roles = [self.layer]
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UserError(f"SEED: size must be a whole number from 1, got {size}")
        self.size = size
        self.temperature = positive("SEED", "temperature", temperature)
        self.teacher_temperature = positive(
            "SEED", "teacher_temperature", teacher_temperature
        )
        self.projector: nn.Module | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the projector and the empty queue."""
        own, target = shapes_of("SEED", student, teacher, (self.layer, self.layer))
        self.projector = nn.Linear(own[1], target[1])
        self.register_buffer("queue", torch.zeros(self.size, target[1]))
        # How many embeddings have entered so far decides where the next ones go.
        self.register_buffer("pushed", torch.tensor(0))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """`similarity_kl` over the filled part of the queue; a scalar in nats.

        Raises:
            UserError: before `build`, or for a joint batch that is larger than the queue.
        """
        target = feature_of("SEED", teacher_of(self, teacher), self.layer)
        if self.projector is None:
            raise not_built("SEED")
        embedding = unit(pooled(target))
        # The batch enters the queue first, so that each sample is compared with itself, too.
        joint_embedding = JoinedBatch(batch)(embedding)
        queue, pushed = self._with(joint_embedding)
        if self.training:
            self.queue.copy_(queue)
            self.pushed.copy_(pushed)
        student_feature = pooled(feature_of("SEED", student, self.layer))
        own = unit(adapted(self.projector, student_feature))
        places = torch.arange(self.size, device=queue.device)
        is_filled = places < pushed
        # Products of unit vectors need single precision, also under autocast.
        with torch.autocast(own.device.type, enabled=False):
            return similarity_kl(
                own,
                embedding,
                full(queue),
                is_filled,
                self.temperature,
                self.teacher_temperature,
            )

    def _with(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """The queue after a joint batch `(N, D)` has entered, and how many have entered then."""
        count = len(embeddings)
        # A batch would overwrite a part of itself.
        if count > self.size:
            raise UserError(
                f"SEED: the queue of {self.size} is smaller than the batch of {count} samples; "
                "raise the argument size"
            )
        places = self.pushed + torch.arange(count, device=embeddings.device)
        entries = embeddings.to(self.queue.dtype)
        # A copy: the graph of this step needs the queue as it is now.
        queue = self.queue.index_copy(0, places % self.size, entries)
        return queue, self.pushed + count

"""Contrastive representation distillation: Tian, Krishnan and Isola 2020."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import Convention, check_convention, check_role, feature_of
from kd_lightning.losses._gather import JoinedBatch, unit
from kd_lightning.losses.base import DistillLoss, Probe, is_number, positive, teacher_of
from kd_lightning.randomness import hashed, run_seed, seed_from
from kd_lightning.types import UNLABELLED, Batch, Output, full

Negatives = Literal["class", "instance"]
"""What a sample is told apart from: samples of other classes, or all other samples."""

UNSEEN = UNLABELLED - 1
"""The label of a row that no batch has held yet. It sorts first, unlabelled rows next, then the classes."""


def nce(similarity: Tensor, log_z: Tensor) -> Tensor:
    r"""Noise-contrastive estimation of which of 1 + N rows is a sample's own, in nats, mean over samples.

    $-\log h_0 - \sum_{k=1}^N \log(1 - h_k)$ with $h = e^a / (e^a + N Z)$. In the paper Z is 1 / M, for M rows in all (Tian et
    al. 2020, section 3.1); in its authors' code the mean of e^a over the first batch, and 1e-7 is added within the logarithms.

    Args:
        similarity: a: `(B, 1 + N)`, inner products over the temperature, the sample's own row first.
        log_z: log of Z, a scalar.
    """
    logit = similarity - log_z - math.log(similarity.shape[1] - 1)
    return -(F.logsigmoid(logit[:, 0]) + F.logsigmoid(-logit[:, 1:]).sum(1)).mean()


def info_nce(student: Tensor, teacher: Tensor, apart: Tensor, temperature: float) -> Tensor:
    r"""Cross-entropy of finding a sample's teacher among the batch's, plus that of finding its student; in nats.

    Each is $-\log \frac{\exp(s_i^T t_i / \tau)}{\sum_j \exp(s_i^T t_j / \tau)}$, mean over i, where j is i or one of its
    negatives (van den Oord et al. 2018, arXiv 1807.03748, equation 4).

    Args:
        student: `(B, D)`, of length one.
        teacher: `(B, D)`, of length one.
        apart: bool `(B, B)`, symmetric: whether j is a negative of i.
        temperature: tau.
    """
    target = torch.arange(len(apart), device=apart.device)
    left_out = ~apart & (target[:, None] != target)
    similarity = (student @ teacher.T / temperature).masked_fill(left_out, -math.inf)
    return F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)


def draw_negatives(
    labels: Tensor,
    index: Tensor,
    count: int,
    step: Tensor,
    negatives: Negatives = "class",
    trained: int = 0,
) -> Tensor:
    """Rows to tell samples apart from, with replacement, as a function of (run's seed, step, the sample's row).

    Uniform over all rows but the sample's own and, for "class", those known to be of its class; a row whose label is not
    known is taken for another class. Once `trained` rows have been seen, unseen ones are no longer drawn. A sample for which
    that leaves none (all are of one class) draws from all other rows.

    Args:
        labels: int64 `(M,)`, M at least 2, of all rows: a class, `UNLABELLED` or `UNSEEN`; seen where `index` points.
        index: int64 `(B,)`, the samples' rows.
        count: negatives of each sample.
        step: int64 scalar.
        negatives: "class" or "instance".
        trained: how many rows there are to be seen.

    Returns:
        int64 `(B, count)`.
    """
    rows, label = len(labels), labels[index]
    ordered, order = labels.sort(stable=True)
    place = torch.empty_like(order).scatter_(0, order, torch.arange(rows, device=order.device))[
        index
    ]
    # In that order a sample leaves out the places before `skipped`, and those from `first` to before `last`.
    first, last = place, place + 1
    if negatives == "class":
        first = torch.where(label >= 0, torch.searchsorted(ordered, label), first)
        last = torch.where(label >= 0, torch.searchsorted(ordered, label, right=True), last)
    unseen = (labels == UNSEEN).sum()
    skipped = torch.where(rows - unseen >= trained, unseen, 0)
    alone = rows - skipped - (last - first) < 1
    first, last = torch.where(alone, place, first), torch.where(alone, place + 1, last)
    skipped = torch.where(alone, 0, skipped)
    counter = (step * rows + index)[:, None] * count + torch.arange(count, device=index.device)
    left = rows - skipped - (last - first)
    at = skipped[:, None] + hashed(counter, run_seed(), "crd", "negatives") % left[:, None]
    return order[at + torch.where(at >= first[:, None], (last - first)[:, None], 0)]


class CRD(DistillLoss):
    r"""A student's embedding is to tell which of many teachers' embeddings is of its own sample, and the other way round.

    Both features pass through a linear layer each, to `dimensions` units of length one; these layers train with the student
    and are no part of it. The loss is the sum over both directions, mean over the batch; the CIFAR-100 benchmark's weight 0.8.

    With memory banks, as in the paper: both sides' embeddings of all M rows of the source split, as of when each was last
    trained on. A student's embedding is compared with the teacher's bank, a teacher's with the student's, by `nce`.

    - Banks start at random, uniform with a mean square length of one. After the loss is computed, in training alone, each row
      becomes `momentum` * old + (1 - `momentum`) * new, at length one.
    - By convention "paper", $h = e^a / (e^a + N / M)$; the CIFAR-100 benchmark, which is the authors' code, has N Z in
      the place of N / M, Z being the mean of $e^a$ over the first batch (of all processes), one for each direction, fixed then.
    - Negatives are drawn by `draw_negatives` from a step counter that is kept with the banks. "class" is the benchmark's
      "exact" mode. There labels are known beforehand and rows drawn without replacement; here labels are learned as rows
      are seen, so that in the first epoch a row of the sample's own class can be drawn. Rows that are not trained on (held
      out, or left out of the subset) stay as they started and are drawn in the first epoch alone.
    - Banks take M * dimensions * 2 * 4 bytes: 51,200,000 for 50,000 rows at 128; 1.3 GB for ImageNet. They are in every
      training checkpoint and never in the deployed student; every process holds them, with what all processes saw. A step
      copies both, and computes B * M similarities a direction. No index may be twice in a batch.

    With `in_batch`: no banks, `info_nce` over the batch of all processes; "class" leaves out other samples of the same label.
    Mixed samples (`Mixup`) count as the one they have index and target of.

    Args:
        layer: role of the layer, the same for student and teacher; its features are flattened.
        dimensions: units of both embeddings.
        num_negatives: N, for each sample; in a batch, all there are.
        temperature: tau; where left out, 0.1 by the paper's text for CIFAR-100, 0.07 by its code, and within the batch.
        momentum: in [0, 1).
        negatives: "class" or "instance".
        in_batch: compare within the batch.
        convention: "paper" or "benchmark", of the memory banks; see above.
        base: weight, start, end, warmup; see DistillLoss.

    Raises:
        UserError: for an argument out of range; from `build`, where the data do not say how many rows there are.
    """

    paper: ClassVar[str] = "Tian et al. 2020, arXiv 1910.10699"
    year: ClassVar[int] = 2020
    family: ClassVar[str] = "contrastive"
    needs: ClassVar[tuple[str, ...]] = ("teacher features", "sample indices", "labels")

    student_bank: Tensor
    teacher_bank: Tensor
    labels: Tensor
    steps: Tensor
    log_z: Tensor

    def __init__(
        self,
        layer: str = "penultimate",
        dimensions: int = 128,
        num_negatives: int = 16384,
        temperature: float | None = None,
        momentum: float = 0.5,
        negatives: Negatives = "class",
        in_batch: bool = False,
        convention: Convention = "paper",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        for name, value in (("dimensions", dimensions), ("num_negatives", num_negatives)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"CRD: {name} must be a whole number of at least 1, got {value}")
        if not is_number(momentum) or not 0 <= momentum < 1:
            raise UserError(f"CRD: momentum must be in [0, 1), got {momentum}")
        if negatives not in get_args(Negatives):
            raise UserError(f"CRD: negatives must be 'class' or 'instance', got {negatives!r}")
        self.layer, self.dimensions, self.num_negatives = (
            check_role("CRD", "layer", layer),
            dimensions,
            num_negatives,
        )
        self.roles = [self.layer]
        self.convention = check_convention("CRD", convention)
        usual = 0.1 if convention == "paper" and not in_batch else 0.07
        self.temperature = positive(
            "CRD", "temperature", usual if temperature is None else temperature
        )
        self.momentum = momentum
        self.negatives, self.in_batch = negatives, in_batch
        self.embeddings: nn.ModuleDict | None = None

    def counted(self, batch: Batch) -> Tensor:
        """This process's samples, whose mean it is; within the batch, 1: every process returns the joined batch's loss."""
        return batch.target.new_tensor(1) if self.in_batch else super().counted(batch)

    def build(self, student: Probe, teacher: Probe | None) -> None:
        if teacher is None:
            raise UserError("CRD needs a teacher; use DistillationModule with model.teacher")
        outputs = {"student": student.output, "teacher": teacher.output}
        widths = {
            name: feature_of("CRD", output, self.layer).flatten(1).shape[1]
            for name, output in outputs.items()
        }
        self.embeddings = nn.ModuleDict(
            {name: nn.Linear(width, self.dimensions) for name, width in widths.items()}
        )
        if not self.in_batch:
            self._build_banks(student.spec)

    def _build_banks(self, spec: Mapping[str, Any]) -> None:
        rows = spec.get("source_samples")
        if not isinstance(rows, int) or rows < 2:
            raise UserError(
                f"CRD: the data's spec must say as source_samples how many rows there are (2 or more), not {rows}"
            )
        self._trained = int((spec.get("samples") or {}).get("train", rows))
        for name in ("student", "teacher"):
            generator = torch.Generator().manual_seed(seed_from(run_seed(), "crd", name))
            start = 2 * torch.rand(rows, self.dimensions, generator=generator) - 1
            self.register_buffer(f"{name}_bank", start * math.sqrt(3 / self.dimensions))
        self.register_buffer("labels", torch.full((rows,), UNSEEN))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("log_z", torch.zeros(2))

    def embed(self, side: str, output: Output) -> Tensor:
        """The embedding of the "student" or "teacher", `(B, dimensions)`, of length one, in at least single precision."""
        if self.embeddings is None:
            raise UserError("CRD has no embeddings yet; call build() with a probe of both networks")
        layer = self.embeddings[side]
        assert isinstance(layer, nn.Linear)
        return unit(
            F.linear(
                feature_of("CRD", output, self.layer).flatten(1),
                full(layer.weight),
                full(layer.bias),
            )
        )

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        known = teacher_of(self, teacher)
        with torch.autocast(student.logits.device.type, enabled=False):
            own, other = self.embed("student", student), self.embed("teacher", known)
            compare = self._in_batch if self.in_batch else self._with_banks
            return compare(own, other, batch, JoinedBatch(batch))

    def _in_batch(self, own: Tensor, other: Tensor, batch: Batch, joined: JoinedBatch) -> Tensor:
        target = joined(batch.target)
        apart = target[:, None] != target
        apart |= target < 0 if self.negatives == "class" else True
        return info_nce(joined(own), joined(other), apart, self.temperature)

    def _with_banks(self, own: Tensor, other: Tensor, batch: Batch, joined: JoinedBatch) -> Tensor:
        index = joined(batch.index)
        labels = self.labels.index_copy(0, index, joined(batch.target))
        drawn = draw_negatives(
            labels, batch.index, self.num_negatives, self.steps, self.negatives, self._trained
        )
        rows = torch.cat([batch.index[:, None], drawn], 1)
        # All similarities, then a choice: B * N rows of a bank would be 80 times as large. Of copies: the banks change below,
        # before the backward pass reads them.
        pairs = ((own, self.teacher_bank), (other, self.student_bank))
        similar = [
            (x @ full(bank).clone().T / self.temperature).gather(1, rows) for x, bank in pairs
        ]
        if self.convention == "paper":
            log_z = torch.full_like(self.log_z, -math.log(len(labels)))
        else:
            means = joined(
                torch.stack([a.detach().logsumexp(1) for a in similar], 1) - math.log(rows.shape[1])
            )
            log_z = torch.where(
                self.steps > 0, self.log_z, means.logsumexp(0) - math.log(len(means))
            )
        loss = torch.stack([nce(a, z) for a, z in zip(similar, log_z, strict=True)]).sum()
        if self.training:
            self._remember(self.student_bank, index, joined(own.detach()))
            self._remember(self.teacher_bank, index, joined(other.detach()))
            self.labels.copy_(labels)
            self.log_z.copy_(log_z)
            self.steps.add_(1)
        return loss

    def _remember(self, bank: Tensor, index: Tensor, new: Tensor) -> None:
        mixed = self.momentum * full(bank[index]) + (1 - self.momentum) * new
        bank.index_copy_(0, index, unit(mixed).to(bank.dtype))

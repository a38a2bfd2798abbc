"""Contrastive representation distillation: Tian, Krishnan and Isola 2020."""

from __future__ import annotations

import math
from typing import ClassVar, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    Convention,
    check_convention,
    check_role,
    feature_of,
)
from kd_lightning.losses._gather import JoinedBatch, unit
from kd_lightning.losses._negatives import UNSEEN, Negatives, draw_negatives
from kd_lightning.losses.base import (
    BaseOptions,
    DistillLoss,
    MeanOver,
    Probe,
    is_number,
    positive,
    teacher_of,
)
from kd_lightning.randomness import run_seed, seed_from
from kd_lightning.spec import Spec
from kd_lightning.types import Batch, Output, full


def nce(similarity: Tensor, log_z: Tensor) -> Tensor:
    r"""Noise-contrastive estimation: which of 1 + N rows is a sample's own; in nats.

    $-\log h_0 - \sum_{k=1}^N \log(1 - h_k)$ with $h = e^a / (e^a + N Z)$, mean over samples. In the
    paper Z is 1 / M, for M rows in all (Tian et al. 2020, section 3.1). In its authors' code it is
    the mean of e^a over the first batch, and 1e-7 is added inside the logarithms.

    Args:
        similarity: a, inner products over the temperature, `(B, 1 + N)`, the sample's own row
            first.
        log_z: log of Z, a scalar.

    Returns:
        A scalar.
    """
    # h = e^a / (e^a + N Z) is the sigmoid of a - log N - log Z, and 1 - h that of its negative. In
    # this form no exponential overflows, so no small number is needed inside the logarithms.
    num_negatives = similarity.shape[1] - 1
    logit = similarity - log_z - math.log(num_negatives)
    own = F.logsigmoid(logit[:, 0])
    others = F.logsigmoid(-logit[:, 1:]).sum(1)
    return -(own + others).mean()


def info_nce(
    student: Tensor,
    teacher: Tensor,
    apart: Tensor,
    temperature: float,
) -> Tensor:
    r"""Cross-entropy of finding a sample's teacher in the batch, plus that of its student; in nats.

    Each is $-\log \frac{\exp(s_i^T t_i / \tau)}{\sum_j \exp(s_i^T t_j / \tau)}$, mean over i, where
    j is i or one of its negatives (van den Oord et al. 2018, arXiv 1807.03748, equation 4).

    Args:
        student: `(B, D)`, rows of length one.
        teacher: `(B, D)`, rows of length one.
        apart: bool `(B, B)`, symmetric: whether j is a negative of i.
        temperature: tau.

    Returns:
        A scalar.
    """
    target = torch.arange(len(apart), device=apart.device)
    # A pair that is neither positive nor negative must not be in the sum: exp(-inf) is zero.
    excluded = ~apart & (target[:, None] != target)
    similarity = student @ teacher.T / temperature
    similarity = similarity.masked_fill(excluded, -math.inf)
    student_finds_teacher = F.cross_entropy(similarity, target)
    teacher_finds_student = F.cross_entropy(similarity.T, target)
    return student_finds_teacher + teacher_finds_student


class CRD(DistillLoss):
    r"""A student's embedding must match the teacher's embedding of the same sample among negatives.

    The reverse direction is added: the teacher's embedding must match the student's. Each feature
    passes through its own linear layer to `dimensions` units of length one. These layers train with
    the student but are not part of it. The loss is the sum over both directions, mean over samples;
    the CIFAR-100 benchmark's weight is 0.8.

    With memory banks, as in the paper, both sides' embeddings of all M rows of the source split are
    stored as they were when the row was last trained on. `nce` compares a student's embedding with
    the teacher's bank, and a teacher's with the student's bank.

    - Banks start at random, uniform with a mean square length of one. After the loss is computed,
      and only in training, each row becomes `momentum` * old + (1 - `momentum`) * new, at length
      one.
    - Convention "paper" uses $h = e^a / (e^a + N / M)$. The CIFAR-100 benchmark, which is the
      authors' code, uses N Z in place of N / M: Z is the mean of $e^a$ over the first batch (of all
      processes), one per direction, and is then fixed.
    - `draw_negatives` draws the negatives from a step counter that is stored with the banks.
      "class" is the benchmark's "exact" mode. The benchmark knows all labels in advance and draws
      rows without replacement; here labels are learned as rows are seen, so a row of the sample's
      own class can be drawn in the first epoch. Rows that are not trained on (held out, or not in
      the subset) keep their initial embedding and are drawn only in the first epoch.
    - Banks take M * dimensions * 2 * 4 bytes: 51,200,000 for 50,000 rows at 128 dimensions, 1.3 GB
      for ImageNet. They are part of every training checkpoint and never of the exported student.
      Every process stores the embeddings from all processes. A step copies both banks and computes
      B * M similarities per direction. No index may occur twice in a batch.

    With `in_batch` there are no banks: `info_nce` compares the joint batch of all processes, and
    "class" excludes other samples with the same label. Mixed samples (`Mixup`) count as the sample
    whose index and target they carry.

    Args:
        layer: role of the layer, the same for student and teacher; its features are flattened.
        dimensions: width of both embeddings.
        num_negatives: N, per sample; ignored with `in_batch`, which uses all there are.
        temperature: tau. The default is 0.1 for convention "paper" (its text on CIFAR-100), and
            0.07 for "benchmark" (its code) and with `in_batch`.
        momentum: in [0, 1).
        negatives: "class" or "instance".
        in_batch: compare within the batch.
        convention: "paper" or "benchmark", of the memory banks; see above.
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: for an argument out of range; from `build`, if the data do not provide the number
            of rows, or have several labels per sample.
    """

    paper: ClassVar[str] = "Tian et al. 2020, arXiv 1910.10699"
    year: ClassVar[int] = 2020
    family: ClassVar[str] = "contrastive"
    needs: ClassVar[tuple[str, ...]] = ("teacher features", "sample indices", "labels")
    mean_over: MeanOver = "samples"

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
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        for name, value in (
            ("dimensions", dimensions),
            ("num_negatives", num_negatives),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(
                    f"CRD: {name} must be a whole number of at least 1, got {value}"
                )
        if not is_number(momentum) or not 0 <= momentum < 1:
            raise UserError(f"CRD: momentum must be in [0, 1), got {momentum}")
        if negatives not in get_args(Negatives):
            raise UserError(
                f"CRD: negatives must be 'class' or 'instance', got {negatives!r}"
            )
        if temperature is None:
            # The paper's text gives 0.1, its authors' code uses 0.07.
            temperature = 0.1 if convention == "paper" and not in_batch else 0.07
        self.layer = check_role("CRD", "layer", layer)
        self.roles = [self.layer]
        self.dimensions = dimensions
        self.num_negatives = num_negatives
        self.temperature = positive("CRD", "temperature", temperature)
        self.momentum = momentum
        self.negatives: Negatives = negatives
        self.in_batch = in_batch
        self.convention = check_convention("CRD", convention)
        # With banks each process averages over its own samples; without, all gather one batch.
        self.mean_over = "joint" if in_batch else "samples"
        self.embeddings: nn.ModuleDict | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create the embedding layers and the memory banks."""
        if teacher is None:
            raise UserError(
                "CRD needs a teacher; use DistillationModule with model.teacher"
            )
        if student.spec.target_shape != ():
            raise UserError(
                f"CRD needs one label per sample; the data {student.spec.data} has targets of "
                f"shape {list(student.spec.target_shape)} per sample"
            )
        layers = {}
        for side, probe in (("student", student), ("teacher", teacher)):
            feature = feature_of("CRD", probe.output, self.layer)
            width = feature.flatten(1).shape[1]
            layers[side] = nn.Linear(width, self.dimensions)
        self.embeddings = nn.ModuleDict(layers)
        if not self.in_batch:
            self._build_banks(student.spec)

    def _build_banks(self, spec: Spec) -> None:
        rows = spec.source_samples
        if rows < 2:
            raise UserError(
                "CRD: the data's spec must give the number of rows as source_samples, "
                f"2 or more, got {rows}"
            )
        self._trained_rows = spec.samples.get("train", rows)
        for side in ("student", "teacher"):
            # A generator of its own: the banks do not depend on what was drawn before them.
            seed = seed_from(run_seed(), "crd", side)
            generator = torch.Generator().manual_seed(seed)
            start = 2 * torch.rand(rows, self.dimensions, generator=generator) - 1
            # A uniform number in [-1, 1] has mean square 1/3; D of them times 3 / D give 1.
            scale = math.sqrt(3 / self.dimensions)
            self.register_buffer(f"{side}_bank", start * scale)
        # Buffers rather than attributes, so that a resumed run continues with the same banks.
        self.register_buffer("labels", torch.full((rows,), UNSEEN))
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("log_z", torch.zeros(2))

    def embed(self, side: str, output: Output) -> Tensor:
        """The embedding of the "student" or "teacher", in at least single precision.

        Returns:
            `(B, dimensions)`, rows of length one.

        Raises:
            UserError: before `build`.
        """
        if self.embeddings is None:
            raise UserError(
                "CRD has no embeddings yet; call build() with a probe of both networks"
            )
        layer = self.embeddings[side]
        assert isinstance(layer, nn.Linear)
        feature = feature_of("CRD", output, self.layer).flatten(1)
        # The functional form: a network in half precision has a layer in half precision.
        embedding = F.linear(feature, full(layer.weight), full(layer.bias))
        return unit(embedding)

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The contrastive loss of this process's samples, or of the joint batch with `in_batch`.

        Returns:
            A scalar, in nats. In training, the memory banks then hold the batch's embeddings.
        """
        target_output = teacher_of(self, teacher)
        # Similarities divided by a temperature of 0.07 need single precision.
        with torch.autocast(student.logits.device.type, enabled=False):
            own = self.embed("student", student)
            target = self.embed("teacher", target_output)
            joined = JoinedBatch(batch)
            if self.in_batch:
                return self._within_batch(own, target, batch, joined)
            return self._with_banks(own, target, batch, joined)

    def _within_batch(
        self,
        own: Tensor,
        target: Tensor,
        batch: Batch,
        joined: JoinedBatch,
    ) -> Tensor:
        labels = joined(batch.target)
        apart = labels[:, None] != labels
        # Unlabelled samples are negatives of all others; for "instance" everyone is.
        apart |= labels < 0 if self.negatives == "class" else True
        own = joined(own)
        target = joined(target)
        return info_nce(own, target, apart, self.temperature)

    def _with_banks(
        self,
        own: Tensor,
        target: Tensor,
        batch: Batch,
        joined: JoinedBatch,
    ) -> Tensor:
        # Labels are learned before the draw, so that no sample meets its own class unknowingly.
        index = joined(batch.index)
        labels = self.labels.index_copy(0, index, joined(batch.target))
        negatives = draw_negatives(
            labels,
            batch.index,
            self.num_negatives,
            self.steps,
            self.negatives,
            self._trained_rows,
        )
        rows = torch.cat([batch.index[:, None], negatives], 1)
        similar = [
            self._similarities(own, self.teacher_bank, rows),
            self._similarities(target, self.student_bank, rows),
        ]
        log_z = self._log_z(similar, joined)
        directions = [nce(a, z) for a, z in zip(similar, log_z, strict=True)]
        loss = torch.stack(directions).sum()
        if self.training:
            # Every process stores the joint batch, which keeps the banks of all processes equal.
            self._remember(self.student_bank, index, joined(own.detach()))
            self._remember(self.teacher_bank, index, joined(target.detach()))
            self.labels.copy_(labels)
            self.log_z.copy_(log_z)
            self.steps.add_(1)
        return loss

    def _similarities(self, embedding: Tensor, bank: Tensor, rows: Tensor) -> Tensor:
        """Inner products of `(B, D)` with the bank's rows `(B, 1 + N)`, over the temperature."""
        # Compute all B * M products and select: gathering B * N rows of the bank would take 80
        # times the memory. A copy of the bank, because it changes before the backward pass.
        current = full(bank).clone()
        similarity = embedding @ current.T / self.temperature
        return similarity.gather(1, rows)

    def _log_z(self, similar: list[Tensor], joined: JoinedBatch) -> Tensor:
        """Log of Z for both directions, `(2,)`."""
        if self.convention == "paper":
            # Z = 1 / M.
            rows = len(self.labels)
            return torch.full_like(self.log_z, -math.log(rows))
        # Log of the mean of e^a over all entries, first per sample, then over the joint batch.
        log_sums = torch.stack([a.detach().logsumexp(1) for a in similar], 1)
        entries = similar[0].shape[1]
        means = joined(log_sums - math.log(entries))
        first_batch = means.logsumexp(0) - math.log(len(means))
        # `where` instead of `if`, which would wait for the device in every step.
        return torch.where(self.steps > 0, self.log_z, first_batch)

    def _remember(self, bank: Tensor, index: Tensor, new: Tensor) -> None:
        """Move the bank's rows `index` `(B,)` towards the new embeddings `(B, D)`, in place."""
        old = full(bank[index])
        mixed = self.momentum * old + (1 - self.momentum) * new
        bank.index_copy_(0, index, unit(mixed).to(bank.dtype))

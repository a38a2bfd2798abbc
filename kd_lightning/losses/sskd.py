"""Self-supervision as an auxiliary task: Xu, Liu, Li and Loy 2020."""

from __future__ import annotations

import warnings
from typing import ClassVar, Literal, NamedTuple, Unpack, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.losses._adapters import (
    adapted,
    check_one_label,
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
    is_labelled,
    is_number,
    not_negative,
    positive,
    teacher_of,
)
from kd_lightning.types import Batch, Output, finite_log_probs

Stage = Literal["head", "student"]
"""What trains: the teacher's head on the teacher's features, or the student with its own head."""


class Views(NamedTuple):
    """The rows of a joint batch of several views per sample.

    Attributes:
        originals: int64 `(B,)`, the row of each sample in its first view.
        transformed: int64 `(V,)`, the rows of all other views.
        source: int64 `(V,)`, the place in `originals` of the sample that each transformed row shows.
    """

    originals: Tensor
    transformed: Tensor
    source: Tensor


def views_of(view: Tensor, index: Tensor) -> Views:
    """Find the originals of a batch, in the view of the smallest number, and what shows them.

    Args:
        view: int64 `(N,)`, the view of each row.
        index: int64 `(N,)`, the sample of each row.
    """
    # Views are numbered, and the first one is not transformed.
    is_original = view == view.min()
    originals = torch.nonzero(is_original).flatten()
    transformed = torch.nonzero(~is_original).flatten()
    # Each transformed row matches exactly one original, whose place argmax finds.
    same_sample = index[transformed][:, None] == index[originals]
    return Views(originals, transformed, same_sample.int().argmax(1))


def cosines(features: Tensor, views: Views) -> Tensor:
    """The cosine of each transformed row with each original, `(V, B)`, for features `(N, D)`."""
    rows = unit(features)
    return rows[views.transformed] @ rows[views.originals].T


def kept_rows(log_probs: Tensor, truth: Tensor, share_of_wrong: float) -> Tensor:
    """Which rows the student learns from: bool `(V,)`.

    Xu et al. 2020, section 3.3: all rows whose largest entry is the true one, and of the others
    the share with the best rank of the true entry, rounded down. Among equal ranks we prefer the
    larger probability of the truth, so that the choice does not depend on the order of the rows.

    Args:
        log_probs: of the teacher at the temperature, `(V, K)`.
        truth: int64 `(V,)`, the true entry; `UNLABELLED` for an unknown one, which ranks last.
        share_of_wrong: in [0, 1].
    """
    own = log_probs.gather(1, truth.clamp(min=0)[:, None])
    # Rank 0: the teacher gives the true entry the highest probability.
    rank = (log_probs > own).sum(1)
    rank = torch.where(is_labelled(truth), rank, log_probs.shape[1])
    num_correct = (rank == 0).sum()
    num_wrong = len(rank) - num_correct
    # All rows that the teacher gets right, and of the others those with the smallest
    # rank.
    num_kept = num_correct + (share_of_wrong * num_wrong.double()).floor().long()
    # Stable sorts by the second key first, then by the first one.
    by_probability = own.squeeze(1).argsort(descending=True, stable=True)
    order = by_probability[rank[by_probability].argsort(stable=True)]
    places = torch.arange(len(order), device=order.device)
    none = torch.zeros_like(rank, dtype=torch.bool)
    return none.scatter(0, order, places < num_kept)


def kept_kl(
    student: Tensor,
    teacher: Tensor,
    kept: Tensor,
    temperature: float,
) -> Tensor:
    r"""$T^2 \, \mathrm{KL}(p \,\|\, q)$, summed over columns, mean over the kept rows, in nats.

    Args:
        student: $\ln q$ at the temperature, `(V, K)`.
        teacher: $\ln p$ at the temperature, `(V, K)`.
        kept: bool `(V,)`.
        temperature: T.

    Returns:
        A scalar; zero, with a graph, if no row is kept.
    """
    log_q = finite_log_probs(student)
    log_p = finite_log_probs(teacher)
    divergence = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)
    # A mask instead of an index: the number of kept rows stays on the device.
    total = torch.where(kept, divergence, 0).sum()
    return temperature**2 * total / kept.sum().clamp(min=1)


def contrast_head(width: int) -> nn.Sequential:
    """Two linear layers with a ReLU between them: `(B, D)` to `(B, D)`."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


class SSKD(DistillLoss):
    r"""The student also learns which transformed image the teacher takes for which original.

    A batch holds several views of each image: the original, and transformed ones. The configuration
    sets `data.copies=4` and `Rotations`, the paper's four rotations. Of all views, the one of the
    smallest number is the original. Hard losses see only originals, since `Rotations` serves
    turned images as unlabelled. Both networks get a head, two linear layers on pooled features;
    $s_{ij}$ is the cosine of transformed image i and original j after the head.

    Two stages are two runs:

    1. `stage: head` (`configs/methods/sskd_head.yaml`): the teacher's head learns to find the
       original of each transformed image, $-\ln \mathrm{softmax}_j(s_{ij})$ at the true j. Neither
       network trains.
    2. `stage: student` (`configs/methods/sskd.yaml`) with `--model.init_from` set to the first
       run's `last.ckpt`. The loss is the weighted sum of three divergences, each
       $T^2\,\mathrm{KL}(p \| q)$ from the teacher: of the logits of originals ($L_{kd}$), of the
       logits of transformed images ($L_T$), and of the rows of $s$ ($L_{ss}$). Without the first
       run the teacher's head is random, and a warning says so.

    Only a part of the rows counts in the last two; see `kept_rows`. The true entry of a logit row
    is the original's class.

    All processes together are one batch: the number of originals decides how hard the contrast is.

    Args:
        layer: role of the last features of student and teacher; maps are pooled.
        stage: "head" or "student".
        originals: weight of $L_{kd}$.
        transformed: weight of $L_T$.
        contrast: weight of $L_{ss}$.
        temperature: T of both terms on logits.
        contrast_temperature: T of $L_{ss}$.
        keep_transformed: share of wrong rows that $L_T$ keeps, in [0, 1].
        keep_contrast: share of wrong rows that $L_{ss}$ keeps, in [0, 1].
        base: weight, start, end, warmup; see `DistillLoss`.

    Raises:
        UserError: if an argument is not valid; from `build`, if a layer does not fit, or the data
            has several labels per sample; from `forward`, if the batch holds a single view.
    """

    paper: ClassVar[str] = "Xu et al. 2020, arXiv 2006.07114"
    year: ClassVar[int] = 2020
    family: ClassVar[str] = "contrastive"
    needs: ClassVar[tuple[str, ...]] = (
        "all teacher logits",
        "teacher features",
        "several views",
        "a stage of its own",
    )
    exact_logits: ClassVar[bool] = True
    compares_classes: ClassVar[bool] = True
    mean_over: MeanOver = "joint"

    def __init__(
        self,
        layer: str = "penultimate",
        stage: Stage = "student",
        originals: float = 0.9,
        transformed: float = 2.7,
        contrast: float = 10.0,
        temperature: float = 4.0,
        contrast_temperature: float = 0.5,
        keep_transformed: float = 1.0,
        keep_contrast: float = 0.75,
        **base: Unpack[BaseOptions],
    ) -> None:
        super().__init__(**base)
        self.layer = check_role("SSKD", "layer", layer)
        self.roles = [self.layer]
        if stage not in get_args(Stage):
            raise UserError(f"SSKD: stage must be 'head' or 'student', got {stage!r}")
        self.stage = stage
        self.originals = not_negative("SSKD", "originals", originals)
        self.transformed = not_negative("SSKD", "transformed", transformed)
        self.contrast = not_negative("SSKD", "contrast", contrast)
        self.temperature = positive("SSKD", "temperature", temperature)
        self.contrast_temperature = positive(
            "SSKD", "contrast_temperature", contrast_temperature
        )
        self.keep_transformed = _share("keep_transformed", keep_transformed)
        self.keep_contrast = _share("keep_contrast", keep_contrast)
        self.student_head: nn.Module | None = None
        self.teacher_head: nn.Module | None = None

    def build(self, student: Probe, teacher: Probe | None) -> None:
        """Create both heads; only the stage's own head trains."""
        check_one_label("SSKD", student)
        own, target = shapes_of("SSKD", student, teacher, (self.layer, self.layer))
        self.student_head = contrast_head(own[1])
        self.teacher_head = contrast_head(target[1])
        # Both exist in both stages, so that the second run can continue with the first's.
        self.student_head.requires_grad_(self.stage == "student")
        self.teacher_head.requires_grad_(self.stage == "head")
        self.register_buffer("head_steps", torch.tensor(0))

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        """The contrast of the head's stage, or the sum of the three terms: a scalar in nats.

        Raises:
            UserError: before `build`, or for a batch with one view per sample.
        """
        target = teacher_of(self, teacher)
        target_feature = feature_of("SSKD", target, self.layer)
        if self.student_head is None or self.teacher_head is None:
            raise not_built("SSKD")
        if isinstance(batch.view, int):
            raise UserError(
                "SSKD compares several views of each sample, but the batch holds one; set "
                "data.copies=4 and data.augment to kd_lightning.data.Rotations"
            )
        joined = JoinedBatch(batch)
        views = views_of(joined(batch.view), joined(batch.index))
        target_rows = joined(adapted(self.teacher_head, pooled(target_feature)))
        # Products of matrices need single precision, also under autocast.
        with torch.autocast(target_rows.device.type, enabled=False):
            target_cosines = cosines(target_rows, views)
            if self.stage == "head":
                return F.cross_entropy(target_cosines, views.source)
        own_feature = feature_of("SSKD", student, self.layer)
        own_rows = joined(adapted(self.student_head, pooled(own_feature)))
        logits = joined(student.tempered_logits())
        log_q = torch.log_softmax(logits / self.temperature, dim=1)
        log_p = joined(target.log_probs(self.temperature))
        with torch.autocast(own_rows.device.type, enabled=False):
            own_cosines = cosines(own_rows, views)
        labels = joined(batch.labels)
        on_logits = self._on_logits(log_q, log_p, labels, views)
        on_cosines = self._on_cosines(own_cosines, target_cosines, views)
        return on_logits + self.contrast * on_cosines

    def _on_logits(
        self,
        log_q: Tensor,
        log_p: Tensor,
        labels: Tensor,
        views: Views,
    ) -> Tensor:
        """The weighted terms of originals and transformed images, a scalar.

        Args:
            log_q: log-probabilities of the student at the temperature, `(N, K)`.
            log_p: of the teacher.
            labels: int64 `(N,)`.
            views: the rows of the joint batch.
        """
        # Originals teach whether or not the teacher is right.
        all_rows = torch.ones_like(views.originals, dtype=torch.bool)
        originals = kept_kl(
            log_q[views.originals],
            log_p[views.originals],
            all_rows,
            self.temperature,
        )
        # Transformed images have no label of their own.
        truth = labels[views.originals][views.source]
        target = log_p[views.transformed]
        kept = kept_rows(target, truth, self.keep_transformed)
        transformed = kept_kl(log_q[views.transformed], target, kept, self.temperature)
        return self.originals * originals + self.transformed * transformed

    def _on_cosines(self, own: Tensor, target: Tensor, views: Views) -> Tensor:
        """The unweighted divergence of the cosines `(V, B)` of both networks, a scalar."""
        temperature = self.contrast_temperature
        log_q = torch.log_softmax(own / temperature, dim=1)
        log_p = torch.log_softmax(target / temperature, dim=1)
        kept = kept_rows(log_p, views.source, self.keep_contrast)
        return kept_kl(log_q, log_p, kept, temperature)

    def on_epoch_start(self, epoch: int) -> None:
        """Warn if the second stage uses a teacher's head that was never trained."""
        if self.stage != "student" or epoch > 0 or self.teacher_head is None:
            return
        if int(self.get_buffer("head_steps")) == 0:
            warnings.warn(
                "SSKD: the teacher's head is random; train it first with "
                "configs/methods/sskd_head.yaml, and start from that run's last.ckpt with "
                "--model.init_from",
                stacklevel=2,
            )

    def after_step(self) -> None:
        """Count the steps of the teacher's head."""
        if self.stage == "head":
            self.get_buffer("head_steps").add_(1)


def _share(name: str, value: float) -> float:
    """Return `value` if it is a number in [0, 1]; UserError otherwise."""
    if not is_number(value) or not 0 <= value <= 1:
        raise UserError(f"SSKD: {name} must be in [0, 1], got {value}")
    return float(value)

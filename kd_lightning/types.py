"""Batch and Output: what every dataset yields, and what every network returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Self, overload

import torch
from torch import Tensor

CLEAN = -1
"""The view without augmentation: validation, test, and training without augmentation."""

UNLABELLED = -100
"""The target of a position whose label is unknown or withheld."""

MeanOver = Literal["rows", "labelled", "samples", "joint"]
"""What a loss averages over; `weight_of` turns it into a number.

- "rows": all predicted positions, labelled or not (KD).
- "labelled": the predicted positions with a label (cross-entropy).
- "samples": the samples of the batch (losses on features).
- "joint": the samples of all processes together, gathered by the loss itself (SP, RKD).
"""

Inputs = Tensor | Mapping[str, Tensor]

TensorMap = Callable[[Tensor], Tensor]


@overload
def map_tensors(value: Inputs, change: TensorMap) -> Inputs:
    """Inputs stay inputs."""


@overload
def map_tensors(value: None, change: TensorMap) -> None:
    """`None` stays `None`."""


def map_tensors(value: Inputs | None, change: TensorMap) -> Inputs | None:
    """Apply `change` to a tensor, or to every tensor of a mapping; `None` stays `None`.

    Args:
        value: tensors of any shape.
        change: such as a copy to another device.
    """
    if value is None:
        return None
    if isinstance(value, Tensor):
        return change(value)
    return {name: change(tensor) for name, tensor in value.items()}


class Window(NamedTuple):
    """How many terms the batches of one optimizer step have, if gradients are accumulated.

    Attributes:
        divisor: what each batch's gradient is divided by: the batches of a full window.
        batches: how many batches there are; fewer in the last window of an epoch.
        rows, labelled, samples: of all of them together; see `MeanOver`.
    """

    divisor: int
    batches: int
    rows: int
    labelled: int
    samples: int

    def mean_weight(self, mean_over: MeanOver) -> float:
        """The sum of `weight_of` over the batches of the window, divided by `divisor`."""
        totals = {
            "rows": self.rows,
            "labelled": self.labelled,
            "samples": self.samples,
            "joint": self.batches,
        }
        return totals[mean_over] / self.divisor


@dataclass(slots=True)
class Batch:
    """One batch of samples, in the same form for every dataset and every method.

    A sample has one or more *positions* that are predicted: one for an image with one label, one
    per pixel for segmentation, one per token for a language model. A network's `Output` has one
    row of logits per position.

    Attributes:
        inputs: what the student reads: a tensor `(B, ...)` or a mapping of such tensors.
        target: `(B, *S)`, int64 class ids or floats. `S` is `()` for one label per sample, `(H, W)`
            for pixels and `(L,)` for tokens. `UNLABELLED` (-100; NaN for floats) marks a position
            that exists but has no label: soft losses count it, hard losses do not.
        index: int64 `(B,)`, the sample's row in the unfiltered source split, so that one teacher
            cache serves every subset.
        view: which draw of the augmentation this is; `CLEAN` (-1) without augmentation. An int64
            tensor `(B,)` if the batch holds several views.
        split: the source split that `index` refers to, `"train"` or `"test"`. Validation rows are
            rows of a source split.
        teacher_inputs: what the teacher reads, if it reads another encoding of the same samples.
        placeholder: True for a batch that only keeps a process in step with the others. Under DDP
            a process that has no samples left must still join the collective calls; losses and
            metrics ignore its samples.
        partner: for mixed samples, the target of the sample mixed into each, shaped like `target`.
        share: for mixed samples, float32 `(B,)` in [0, 1]: the fraction of each sample that is its
            own. The rest is its partner's.
        positions: int64 `(N,)`, the entries of `target.flatten()` that exist, in ascending order;
            `None` if all of them do. Padding and void pixels have no position: nothing counts them.
        joined: the teacher's output for this batch, if a cache supplied it with the data.
        window: the terms of all batches whose gradients are accumulated for one optimizer step;
            `None` if each batch has a step of its own.
        paired: whether the second half of the samples accompanies the first: sample `B / 2 + i`
            is another one of the class of sample `i`. The labels of the second half are withheld,
            so that hard losses do not count it.
    """

    inputs: Inputs
    target: Tensor
    index: Tensor
    view: int | Tensor = CLEAN
    split: str = "train"
    teacher_inputs: Inputs | None = None
    placeholder: bool = False
    partner: Tensor | None = None
    share: Tensor | None = None
    positions: Tensor | None = None
    joined: JoinedOutput | None = None
    paired: bool = False
    window: Window | None = None

    def __len__(self) -> int:
        """The number of samples; each view of an image is a sample of its own."""
        return self.index.shape[0]

    @property
    def num_rows(self) -> int:
        """The number of predicted positions N: the rows of an Output's logits."""
        if self.positions is None:
            return self.target.numel()
        return self.positions.shape[0]

    @property
    def labels(self) -> Tensor:
        """The target of each predicted position, `(N,)`."""
        return self._rows_of(self.target)

    @property
    def partner_labels(self) -> Tensor | None:
        """The partner's target at each predicted position, `(N,)`; `None` if samples are not mixed."""
        return None if self.partner is None else self._rows_of(self.partner)

    @property
    def row_share(self) -> Tensor | None:
        """The share of its own sample at each predicted position, `(N,)`; `None` if not mixed."""
        if self.share is None or self.target.ndim == 1:
            return self.share
        # All positions of a sample have its share.
        ones = [1] * (self.target.ndim - 1)
        per_sample = self.share.view(-1, *ones)
        shares = per_sample.expand(self.target.shape)
        return self._rows_of(shares)

    def _rows_of(self, values: Tensor) -> Tensor:
        """Select the predicted positions of a tensor shaped like `target`; a view if it can be."""
        flat = values if values.ndim == 1 else values.flatten()
        return flat if self.positions is None else flat.index_select(0, self.positions)

    def slice(self, start: int, stop: int) -> Batch:
        """Samples `start` to `stop`, without copying; the batch itself if those are all.

        Only for batches without `positions`: their rows are not aligned with the samples.
        """
        # Most loaders serve whole fetches.
        if (start, stop) == (0, len(self)):
            return self
        assert self.positions is None, "a batch with positions cannot be sliced"
        assert self.joined is None, "slice before the teacher's outputs are joined"
        assert not self.paired, "a part of a paired batch has no pairs"
        # Built directly: every small batch is a slice, and dataclasses.replace is slower.
        return Batch(
            inputs=map_tensors(self.inputs, lambda tensor: tensor[start:stop]),
            target=self.target[start:stop],
            index=self.index[start:stop],
            view=self.view if isinstance(self.view, int) else self.view[start:stop],
            split=self.split,
            teacher_inputs=map_tensors(
                self.teacher_inputs, lambda tensor: tensor[start:stop]
            ),
            placeholder=self.placeholder,
            partner=None if self.partner is None else self.partner[start:stop],
            share=None if self.share is None else self.share[start:stop],
        )

    def _map(self, change: TensorMap) -> Batch:
        """The same batch with `change` applied to every tensor."""
        view = self.view
        return Batch(
            inputs=map_tensors(self.inputs, change),
            target=change(self.target),
            index=change(self.index),
            view=view if isinstance(view, int) else change(view),
            split=self.split,
            teacher_inputs=map_tensors(self.teacher_inputs, change),
            placeholder=self.placeholder,
            partner=None if self.partner is None else change(self.partner),
            share=None if self.share is None else change(self.share),
            positions=None if self.positions is None else change(self.positions),
            joined=None if self.joined is None else self.joined.map(change),
            paired=self.paired,
            window=self.window,
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on `device`; the batch itself if it is there already."""
        # Resident data is on the device already.
        device = torch.device(device)
        if self.target.device == device:
            return self
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which copies to a GPU do not block."""
        return self._map(lambda tensor: tensor.pin_memory())

    @property
    def is_pinned(self) -> bool:
        """Whether the batch is in page-locked memory."""
        return self.target.is_pinned()


def is_labelled(labels: Tensor) -> Tensor:
    """Whether each label is known: bool, shaped like `labels`.

    An unknown label is `UNLABELLED` among class ids and NaN among real values.
    """
    return ~labels.isnan() if labels.is_floating_point() else labels != UNLABELLED


def count_labelled(labels: Tensor, partner: Tensor | None = None) -> Tensor:
    """The number of rows with a label, of their own or of their partner: an int64 scalar.

    Args:
        labels: `(N,)`.
        partner: `(N,)`, the labels of the samples mixed into these; `None` if not mixed.
    """
    known = is_labelled(labels)
    if partner is not None:
        known = known | is_labelled(partner)
    return known.sum()


def weight_of(mean_over: MeanOver, batch: Batch) -> Tensor:
    """The number of terms in a loss's mean: an int64 scalar on the batch's device.

    Processes train on different numbers of rows. The module multiplies each process's loss by this
    weight before it averages over processes, so that the result is the mean over the joint batch.

    Args:
        mean_over: what the loss averages over.
        batch: this process's batch. A placeholder has no terms.

    Returns:
        The number of rows, labelled rows or samples; 1 for a joint loss, which has the same value
        in every process.
    """
    if mean_over == "labelled" and not batch.placeholder:
        return count_labelled(batch.labels, batch.partner_labels)
    if mean_over == "joint":
        # All processes hold the same value, so equal weights leave it unchanged. A placeholder
        # counts too: its process takes part in the gather.
        terms = 1
    elif batch.placeholder:
        terms = 0
    elif mean_over == "rows":
        terms = batch.num_rows
    else:
        terms = len(batch)
    # A fill kernel: unlike a copy of a host scalar, it does not wait for the device.
    return batch.index.new_full((), terms)


def full(x: Tensor) -> Tensor:
    """At least single precision: half-precision tensors become float32, others stay as they are.

    Args:
        x: of any shape.
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def finite_log_probs(log_probs: Tensor) -> Tensor:
    """Log-probabilities with the smallest finite number in place of -inf; others stay as they are.

    A network may rule out a class with a logit of -inf. In a sum of `p * (log p - log q)` that
    class then counts 0, as the limit of `p log p` demands, instead of `0 * inf`, which is NaN.
    """
    return log_probs.clamp(min=torch.finfo(log_probs.dtype).min)


@dataclass(slots=True)
class Output:
    """A network's predictions for a batch.

    Attributes:
        logits: `(N, K)`, before any softmax, one row per predicted position. For one label per
            sample, N is the batch size.
        features: tensors captured from named layers, by role, in the shape the layer gave them.
    """

    logits: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)

    def tempered_logits(self, temperature: float = 1.0) -> Tensor:
        """Logits of the distribution at a temperature, `(N, K)`, at least single precision."""
        return full(self.logits) / temperature

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """Log of the predicted distribution at a temperature, `(N, K)`, at least single precision."""
        return torch.log_softmax(self.tempered_logits(temperature), dim=-1)

    def paired_log_probs(
        self, student: Output, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of a student and of this output, its teacher, over the same events.

        The events are the K classes, unless this output knows only some of them: a `TopKOutput`
        knows its largest classes and the probability of all others together. A loss that compares
        distributions reads them here, so that student = teacher is exactly its minimum.

        Returns:
            The student's and the teacher's, of one shape `(N, events)`.
        """
        return student.log_probs(temperature), self.log_probs(temperature)

    def map(self, change: TensorMap) -> Self:
        """An output of the same kind with `change` applied to every tensor."""
        logits = change(self.logits)
        features = self._map_features(change)
        return replace(self, logits=logits, features=features)

    def _map_features(self, change: TensorMap) -> dict[str, Tensor]:
        return {role: change(feature) for role, feature in self.features.items()}

    def detached(self) -> Output:
        """The same values without their graph: no loss sends a gradient into the teacher."""
        # Most teachers run without gradients, and a copy in every step would cost time.
        if type(self) is Output and not self.features and not self.logits.requires_grad:
            return self
        return self.map(lambda tensor: tensor.detach())


@dataclass(slots=True)
class EnsembleOutput(Output):
    """The arithmetic mean of several networks' distributions, at whatever temperature is in use.

    `logits` is the log of that mean at temperature 1. At another temperature the mean of the
    tempered distributions is not the tempered mean, so the members' logits are stored.

    Attributes:
        members: `(N, M, K)`, the members' logits.
        weights: `(M,)`, positive, summing to one.
    """

    members: Tensor = field(default_factory=lambda: torch.empty(0, 0, 0))
    weights: Tensor = field(default_factory=lambda: torch.empty(0))

    def tempered_logits(self, temperature: float = 1.0) -> Tensor:
        """Log of the mean of the members' distributions at a temperature, `(N, K)`."""
        return mean_log_probs(self.members, self.weights, temperature)

    def log_probs(self, temperature: float = 1.0) -> Tensor:
        """The same: the mean of distributions is normalized already."""
        return mean_log_probs(self.members, self.weights, temperature)

    def map(self, change: TensorMap) -> Self:
        """The same ensemble with `change` applied to every tensor."""
        return replace(
            self,
            logits=change(self.logits),
            features=self._map_features(change),
            members=change(self.members),
            weights=change(self.weights),
        )


class JoinedOutput:
    """A teacher's output that travels with a batch.

    Lightning's precision plugins convert the fields of dataclasses. This plain class protects
    cached outputs from that, so that they keep the precision in which they were stored.
    """

    __slots__ = ("output",)

    def __init__(self, output: Output) -> None:
        self.output = output

    def map(self, change: TensorMap) -> JoinedOutput:
        """The same output with `change` applied to every tensor."""
        return JoinedOutput(self.output.map(change))


def mean_log_probs(
    members: Tensor, weights: Tensor, temperature: float = 1.0
) -> Tensor:
    """Log of the weighted arithmetic mean of tempered distributions (Hinton et al. 2015, section 5.1).

    Args:
        members: `(N, M, K)` logits.
        weights: `(M,)`, summing to one.
        temperature: divides the logits.

    Returns:
        `(N, K)` log-probabilities.
    """
    log_probs = torch.log_softmax(full(members) / temperature, dim=-1)
    # log(sum_m w_m p_m) = logsumexp_m(log w_m + log p_m), which no small p makes underflow.
    log_weights = weights.to(log_probs).log()[:, None]
    return torch.logsumexp(log_probs + log_weights, dim=-2)

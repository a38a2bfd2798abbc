"""Logits in chunks of rows: the same values, gradients, weights and metrics as all at once."""

from __future__ import annotations

import inspect
import multiprocessing
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import kd_lightning.losses
from kd_lightning.data import DigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.losses import (
    GJSD,
    KD,
    TAID,
    CrossEntropy,
    DistillLoss,
    LogitMSE,
    ReverseKL,
    SkewKL,
)
from kd_lightning.row_chunks import (
    ChunkedOutput,
    first_rows,
    rows_of_batch,
    rows_of_output,
    spans,
)
from kd_lightning.sparse import TopKOutput, log_sum_of_others
from kd_lightning.training import ClassifierModule, Objective
from kd_lightning.types import UNLABELLED, Batch, EnsembleOutput, Output, Window
from tests.training.small import mlp

N = 13
WIDTH = 5
CLASSES = 11


def row_wise_losses() -> list[type[DistillLoss]]:
    """All losses that declare to be means over rows."""
    found = []
    for name in kd_lightning.losses.__all__:
        loss = getattr(kd_lightning.losses, name)
        if inspect.isclass(loss) and issubclass(loss, DistillLoss) and loss.row_wise:
            found.append(loss)
    return found


class Networks:
    """A student's states and head, in double precision, and the teacher's logits."""

    def __init__(self, rows: int = N) -> None:
        rng = torch.Generator().manual_seed(0)
        draw = partial(torch.randn, generator=rng, dtype=torch.float64)
        self.states = draw(rows, WIDTH).requires_grad_()
        self.head = nn.Linear(WIDTH, CLASSES).double()
        with torch.no_grad():
            self.head.weight.copy_(draw(CLASSES, WIDTH))
            self.head.bias.copy_(draw(CLASSES))
        self.teacher_states = draw(rows, WIDTH)
        self.teacher_head = nn.Linear(WIDTH, CLASSES, bias=False).double()
        with torch.no_grad():
            self.teacher_head.weight.copy_(draw(CLASSES, WIDTH))
        self.teacher_head.requires_grad_(False)
        labels = torch.randint(CLASSES, (rows,), generator=rng)
        # Some chunks hold no label at all.
        labels[rows // 3 : 2 * rows // 3] = UNLABELLED
        self.batch = Batch(torch.zeros(rows, 1), labels, torch.arange(rows))

    def whole(self) -> Output:
        return Output(self.head(self.states))

    def chunked(self, row_chunk: int) -> ChunkedOutput:
        return ChunkedOutput(self.states, self.head, row_chunk)

    def teacher(self, kind: str, row_chunk: int) -> Output:
        logits: Tensor = self.teacher_head(self.teacher_states)
        if kind == "live":
            return ChunkedOutput(self.teacher_states, self.teacher_head, row_chunk)
        if kind == "ensemble":
            members = torch.stack([logits, logits.roll(1, 0)], dim=1)
            shares = torch.tensor([0.25, 0.75], dtype=torch.float64)
            return EnsembleOutput(logits, members=members, weights=shares)
        if kind == "top-k":
            values, indices = logits.topk(3, dim=-1)
            rests = [log_sum_of_others(logits / t, indices) for t in (1.0, 4.0)]
            rest = torch.cat(rests, -1)
            return TopKOutput(values, indices, rest, (1.0, 4.0), CLASSES)
        return Output(logits)

    def gradients(self, value: Tensor) -> list[Tensor]:
        inputs = [self.states, *self.head.parameters()]
        return list(torch.autograd.grad(value, inputs))


def values(
    losses: dict[str, DistillLoss],
    student: Output,
    teacher: Output | None,
    batch: Batch,
) -> Tensor:
    objective = Objective(losses)
    objective.begin_epoch(0)
    value = objective(student, teacher, batch)
    assert len(value.terms) == len(losses)
    total: Tensor = value.total
    return total


def check_equal(
    make: Callable[[], dict[str, DistillLoss]],
    networks: Networks,
    kind: str,
    row_chunk: int,
) -> None:
    batch = networks.batch
    plain = "plain" if kind == "live" else kind
    target = networks.teacher(plain, row_chunk)
    expected = values(make(), networks.whole(), target, batch)
    target = networks.teacher(kind, row_chunk)
    actual = values(make(), networks.chunked(row_chunk), target, batch)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    wanted = networks.gradients(expected)
    for gradient, other in zip(networks.gradients(actual), wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("loss", row_wise_losses())
@pytest.mark.parametrize("row_chunk", [1, 4, N, 100])
def test_values_and_gradients_are_those_of_all_rows(
    loss: type[DistillLoss], row_chunk: int
) -> None:
    check_equal(lambda: {"loss": loss()}, Networks(), "plain", row_chunk)


@pytest.mark.parametrize("kind", ["live", "ensemble", "top-k"])
def test_every_kind_of_teacher(kind: str) -> None:
    def several() -> dict[str, DistillLoss]:
        losses: dict[str, DistillLoss] = {
            "ce": CrossEntropy(weight=0.3),
            "kd": KD(temperature=4.0),
            "skew": SkewKL(reverse=True),
        }
        if kind != "top-k":
            losses |= {"reverse": ReverseKL(), "mse": LogitMSE(weight=0.1)}
        return losses

    check_equal(several, Networks(), kind, 4)


def test_mixed_samples() -> None:
    networks = Networks()
    networks.batch.partner = networks.batch.target.roll(3)
    networks.batch.share = torch.linspace(0, 1, N, dtype=torch.float64)
    check_equal(lambda: {"ce": CrossEntropy()}, networks, "plain", 4)


def test_positions_select_the_labels() -> None:
    networks = Networks()
    rows = torch.arange(0, 2 * N, 2)
    target = torch.full((2 * N,), 99)
    target[rows] = networks.batch.target
    networks.batch = Batch(
        torch.zeros(2, N), target.view(2, N), torch.arange(2), positions=rows
    )
    check_equal(lambda: {"ce": CrossEntropy(), "kd": KD()}, networks, "plain", 5)


def test_accumulated_micro_batches_are_one_batch() -> None:
    networks = Networks()
    whole = values({"ce": CrossEntropy(), "kd": KD()}, *pair(networks), networks.batch)
    labels = networks.batch.target
    labelled = int((labels != UNLABELLED).sum())
    window = Window(divisor=2, batches=2, rows=N, labelled=labelled, samples=N)
    total = torch.zeros((), dtype=torch.float64)
    for start, stop in ((0, 7), (7, N)):
        student = ChunkedOutput(networks.states[start:stop], networks.head, 3)
        target = rows_of_output(networks.teacher("plain", 3), start, stop)
        part = Batch(
            torch.zeros(stop - start, 1),
            labels[start:stop],
            torch.arange(start, stop),
            window=window,
        )
        losses: dict[str, DistillLoss] = {"ce": CrossEntropy(), "kd": KD()}
        # Lightning divides by the number of batches.
        total = total + values(losses, student, target, part) / 2
    # The scales of a window are in single precision.
    torch.testing.assert_close(total, whole, rtol=1e-6, atol=0)


def pair(networks: Networks) -> tuple[Output, Output]:
    return networks.whole(), networks.teacher("plain", 3)


def in_process(rank: int, folder: str) -> None:
    """The gradients of one of two processes with parts of unequal size, as DDP averages them."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    networks = Networks()
    start, stop = ((0, 9), (9, N))[rank]
    losses: dict[str, DistillLoss] = {"ce": CrossEntropy(), "kd": KD()}
    objective = Objective(losses)
    objective.begin_epoch(0, world_size=2)
    value = objective(
        ChunkedOutput(networks.states[start:stop], networks.head, 4),
        rows_of_output(networks.teacher("live", 4), start, stop),
        rows_of_batch(networks.batch, start, stop),
    )
    means = [value.total.detach(), *networks.gradients(value.total)]
    for tensor in means:
        torch.distributed.all_reduce(tensor)
        tensor /= 2
    if rank == 0:
        torch.save(means, f"{folder}/means.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(sys.platform != "linux", reason="forks processes")
def test_two_processes_are_one(tmp_path: Path) -> None:
    networks = Networks()
    losses: dict[str, DistillLoss] = {"ce": CrossEntropy(), "kd": KD()}
    whole = values(losses, *pair(networks), networks.batch)
    # Forked, because importing torch again would take longer than the test.
    context = multiprocessing.get_context("fork")
    processes = []
    for rank in range(2):
        process = context.Process(target=in_process, args=(rank, str(tmp_path)))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    means = torch.load(tmp_path / "means.pt", weights_only=True)
    expected = [whole.detach(), *networks.gradients(whole)]
    for actual, wanted in zip(means, expected, strict=True):
        # The scales of processes are in single precision.
        torch.testing.assert_close(actual, wanted, rtol=1e-6, atol=1e-7)


def test_a_batch_without_a_row_or_label_costs_nothing() -> None:
    networks = Networks(rows=0)
    losses: dict[str, DistillLoss] = {"ce": CrossEntropy(), "kd": KD()}
    student = networks.chunked(4)
    value = values(losses, student, networks.teacher("plain", 4), networks.batch)
    assert value.item() == 0
    assert not any(bool(g.isnan().any()) for g in networks.gradients(value))

    networks = Networks()
    networks.batch.target[:] = UNLABELLED
    value = values({"ce": CrossEntropy()}, networks.chunked(4), None, networks.batch)
    assert value.item() == 0
    assert all(bool((g == 0).all()) for g in networks.gradients(value))


def test_no_more_than_a_chunk_of_logits_is_computed_or_kept() -> None:
    """Neither the forward nor the backward pass sees all rows, nor does the graph hold them."""
    networks = Networks()
    seen: list[int] = []

    def head(states: Tensor) -> Tensor:
        seen.append(len(states))
        logits: Tensor = networks.head(states)
        return logits

    kept: list[torch.Size] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    student = ChunkedOutput(networks.states, head, 4)
    losses: dict[str, DistillLoss] = {"ce": CrossEntropy(), "gjsd": GJSD()}
    target = networks.teacher("live", 4)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        value = values(losses, student, target, networks.batch)
    # Once for both losses.
    assert seen == [4, 4, 4, 1]
    assert not any(shape[-1:] == (CLASSES,) for shape in kept)
    value.backward()
    assert sorted(seen) == sorted([4, 4, 4, 1] * 2)


def test_chunks_cover_all_rows_once() -> None:
    assert spans(7, 3) == [(0, 3), (3, 6), (6, 7)]
    assert spans(0, 3) == []
    assert spans(3, 3) == [(0, 3)]


def test_a_chunked_output_is_an_output_like_any_other() -> None:
    networks = Networks()
    whole = networks.whole()
    chunked = networks.chunked(4)
    assert torch.equal(chunked.logits, whole.logits)
    assert torch.equal(chunked.log_probs(2.0), whole.log_probs(2.0))
    halved = chunked.map(lambda logits: logits / 2)
    assert torch.equal(halved.logits, whole.logits / 2)
    assert not chunked.detached().logits.requires_grad
    assert first_rows(chunked).logits.shape == (4, CLASSES)
    assert first_rows(whole) is whole


@pytest.mark.parametrize(
    ("losses", "row_chunk", "message"),
    [
        ({"taid": TAID()}, 4, r"the loss 'taid' \(TAID\) is not a mean over rows"),
        ({"ce": CrossEntropy(head="aux")}, 4, "the loss 'ce'"),
        ({"ce": CrossEntropy()}, 0, "model.row_chunk must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_chunked_is_refused(
    losses: dict[str, DistillLoss], row_chunk: int, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ClassifierModule(mlp(), losses, row_chunk=row_chunk)
    assert "\n" not in str(caught.value)


def test_a_network_of_another_kind_is_refused() -> None:
    module = ClassifierModule(mlp(), row_chunk=4)
    with pytest.raises(UserError, match="row_chunk is for language models, and the"):
        module.attach(DigitsDataModule())

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kd_lightning.types import (
    CLEAN,
    UNLABELLED,
    Batch,
    EnsembleOutput,
    Inputs,
    JoinedOutput,
    Output,
    full,
    mean_log_probs,
)
from tests.reference import kd as reference

TEMPERATURES = (0.5, 1.0, 4.0, 20.0)
META = torch.device("meta")  # a second device that every machine has


def batch_of(inputs: Inputs, teacher_inputs: Inputs | None = None) -> Batch:
    target, index = torch.tensor([1, UNLABELLED, 0]), torch.tensor([7, 8, 9])
    return Batch(
        inputs, target, index, view=4, split="test", teacher_inputs=teacher_inputs
    )


def random_logits(*shape: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(
        *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )


def ensemble_of(members: Tensor, weights: list[float]) -> EnsembleOutput:
    w = torch.tensor(weights, dtype=torch.float64)
    return EnsembleOutput(mean_log_probs(members, w), members=members, weights=w)


def test_batch_has_the_length_of_its_targets() -> None:
    assert len(batch_of(torch.zeros(3, 2))) == 3


def test_batch_defaults() -> None:
    batch = Batch(torch.zeros(1, 2), torch.zeros(1), torch.zeros(1))
    assert (
        (batch.view, batch.split, batch.teacher_inputs)
        == (CLEAN, "train", None)
        == (-1, "train", None)
    )


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_batch_to_its_own_device_is_itself(device: torch.device | str) -> None:
    batch = batch_of(torch.zeros(3, 2))
    assert batch.to(device) is batch


def test_batch_to_another_device() -> None:
    batch = batch_of(torch.zeros(3, 2))
    moved = batch.to(META)
    assert isinstance(moved.inputs, Tensor)
    assert [t.device for t in (moved.inputs, moved.target, moved.index)] == [META] * 3
    assert (moved.view, moved.split, moved.teacher_inputs) == (4, "test", None)
    assert batch.target.tolist() == [
        1,
        UNLABELLED,
        0,
    ]  # the batch itself stays where it was


def test_batch_to_moves_mappings() -> None:
    batch = batch_of(
        {"ids": torch.zeros(3, 2), "mask": torch.ones(3, 2)},
        teacher_inputs={"ids": torch.zeros(3, 5)},
    )
    moved = batch.to("meta")
    assert isinstance(moved.inputs, dict)
    assert isinstance(moved.teacher_inputs, dict)
    assert {k: (t.device, t.shape) for k, t in moved.inputs.items()} == {
        "ids": (META, (3, 2)),
        "mask": (META, (3, 2)),
    }
    assert {k: (t.device, t.shape) for k, t in moved.teacher_inputs.items()} == {
        "ids": (META, (3, 5))
    }


def test_batch_to_moves_teacher_inputs() -> None:
    moved = batch_of(torch.zeros(3, 2), teacher_inputs=torch.zeros(3, 5)).to(META)
    assert isinstance(moved.teacher_inputs, Tensor)
    assert moved.teacher_inputs.device == META


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_full_widens_half_precision(dtype: torch.dtype) -> None:
    half = torch.tensor([1.0, -2.5], dtype=dtype)
    assert full(half).dtype == torch.float32
    assert full(half).tolist() == [1.0, -2.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_leaves_the_rest_alone(dtype: torch.dtype) -> None:
    x = torch.zeros(2, dtype=dtype)
    assert full(x) is x


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16]
)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_log_probs_normalize(
    temperature: float, dtype: torch.dtype, scale: float
) -> None:
    members = random_logits(4, 3, 6).clamp(-6, 6).mul(scale).to(dtype)
    weights = torch.tensor(
        [0.25, 0.25, 0.5], dtype=dtype
    )  # exact in half precision too
    for output in (
        Output(members[:, 0]),
        EnsembleOutput(members[:, 0], members=members, weights=weights),
    ):
        log_probs = output.log_probs(temperature)
        assert log_probs.dtype == (
            torch.float64 if dtype == torch.float64 else torch.float32
        )
        assert log_probs.shape == (4, 6)
        torch.testing.assert_close(
            log_probs.exp().sum(-1),
            torch.ones(4, dtype=log_probs.dtype),
            rtol=0,
            atol=1e-5,
        )


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_log_probs_agree_with_reference(temperature: float) -> None:
    members = random_logits(4, 3, 6)
    weights = [0.2, 0.3, 0.5]
    single = Output(members[:, 0]).log_probs(temperature).exp()
    mean = ensemble_of(members, weights).log_probs(temperature).exp()
    for found, row in zip(single.tolist(), members[:, 0].tolist(), strict=True):
        assert found == pytest.approx(reference.softened(row, temperature))
    for found, row in zip(
        mean.tolist(),
        reference.arithmetic_mean(members.tolist(), weights, temperature),
        strict=True,
    ):
        assert found == pytest.approx(row)


def test_log_probs_by_hand() -> None:
    # (0, 2 ln 3): at T = 1 odds of 9, at T = 2 odds of 3.
    output = Output(torch.tensor([[0.0, 2 * math.log(3)]]))
    assert output.log_probs().exp().tolist() == [pytest.approx([0.1, 0.9])]
    assert output.log_probs(2.0).exp().tolist() == [pytest.approx([0.25, 0.75])]


def test_ensemble_by_hand() -> None:
    # T = 1: the mean of (1/10, 9/10) and (1/2, 1/2) is (3/10, 7/10).
    # T = 2: the mean of (1/4, 3/4) and (1/2, 1/2) is (3/8, 5/8).
    # Tempering the first mean would give odds of sqrt(7/3), not of 5/3.
    ensemble = ensemble_of(
        torch.tensor([[[0.0, 2 * math.log(3)], [0.0, 0.0]]], dtype=torch.float64),
        [0.5, 0.5],
    )
    assert ensemble.log_probs().exp().tolist() == [pytest.approx([0.3, 0.7])]
    assert ensemble.log_probs(2.0).exp().tolist() == [pytest.approx([0.375, 0.625])]
    assert Output(ensemble.logits).log_probs(2.0).exp().tolist() != [
        pytest.approx([0.375, 0.625], rel=0.01)
    ]


def test_ensemble_weights_count() -> None:
    # 1/4 of (1/4, 3/4) and 3/4 of (1/2, 1/2): (7/16, 9/16).
    ensemble = ensemble_of(
        torch.tensor([[[0.0, math.log(3)], [0.0, 0.0]]], dtype=torch.float64),
        [0.25, 0.75],
    )
    assert ensemble.log_probs().exp().tolist() == [pytest.approx([7 / 16, 9 / 16])]


def test_ensemble_of_one_is_that_one() -> None:
    members = random_logits(4, 1, 6)
    torch.testing.assert_close(
        ensemble_of(members, [1.0]).log_probs(3.0), Output(members[:, 0]).log_probs(3.0)
    )


# -- positions --------------------------------------------------------------------------------------------------------


def dense_batch() -> Batch:
    """Two texts of three tokens; the last one of the second text is padding."""
    batch = Batch(
        torch.zeros(2, 3),
        torch.tensor([[5, UNLABELLED, 7], [8, 9, 0]]),
        torch.arange(2),
    )
    batch.positions = torch.tensor([0, 1, 2, 3, 4])
    return batch


def test_one_row_per_sample_is_not_copied() -> None:
    batch = batch_of(torch.zeros(3, 2))
    assert batch.labels is batch.target
    assert batch.num_rows == len(batch) == 3
    assert batch.partner_labels is None
    assert batch.row_share is None


def test_padding_has_no_row() -> None:
    batch = dense_batch()
    assert len(batch) == 2
    assert batch.num_rows == 5
    assert batch.labels.tolist() == [5, UNLABELLED, 7, 8, 9]
    batch.positions = None
    assert batch.num_rows == 6
    assert batch.labels.tolist() == [5, UNLABELLED, 7, 8, 9, 0]


def test_mixed_rows_take_their_samples_share() -> None:
    batch = dense_batch()
    batch.partner = batch.target.flip(0)
    batch.share = torch.tensor([0.25, 1.0])
    assert batch.partner_labels is not None
    assert batch.row_share is not None
    assert batch.partner_labels.tolist() == [8, 9, 0, 5, UNLABELLED]
    assert batch.row_share.tolist() == [0.25, 0.25, 0.25, 1.0, 1.0]


def test_every_tensor_moves() -> None:
    batch = dense_batch()
    batch.partner = batch.target
    batch.share = torch.ones(2)
    batch.view = torch.tensor([0, 1])
    batch.joined = JoinedOutput(
        Output(torch.zeros(5, 10), {"last": torch.zeros(2, 3, 4)})
    )
    batch.placeholder = True
    moved = batch.to(META)
    assert moved.joined is not None
    teacher = moved.joined.output
    assert isinstance(moved.view, Tensor)
    tensors = [moved.positions, moved.partner, moved.share, moved.view, teacher.logits]
    assert [tensor.device for tensor in tensors if tensor is not None] == [META] * 5
    assert teacher.features["last"].device == META
    assert moved.placeholder


def test_slice_takes_every_field_of_one_row_per_sample() -> None:
    batch = batch_of(torch.arange(6.0).view(3, 2), teacher_inputs=torch.arange(3))
    batch.partner = torch.tensor([2, 1, 0])
    batch.share = torch.tensor([0.5, 0.25, 1.0])
    part = batch.slice(1, 3)
    assert batch.slice(0, 3) is batch
    assert isinstance(part.inputs, Tensor)
    assert isinstance(part.teacher_inputs, Tensor)
    assert part.partner is not None
    assert part.share is not None
    assert part.inputs.tolist() == [[2, 3], [4, 5]]
    assert part.target.tolist() == [UNLABELLED, 0]
    assert part.index.tolist() == [8, 9]
    assert part.teacher_inputs.tolist() == [1, 2]
    assert part.partner.tolist() == [1, 0]
    assert part.share.tolist() == [0.25, 1.0]

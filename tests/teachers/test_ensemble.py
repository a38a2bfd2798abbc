"""The mean of several teachers, against sums written from the paper."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from kd_lightning.data import DigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.runs.launch import RunResult
from kd_lightning.teachers import EnsembleTeacher, ModelTeacher, Teacher
from kd_lightning.types import Batch, EnsembleOutput, Output
from tests.reference import kd as reference
from tests.training.small import complaint, distillation, mlp, samples, shaky, trainer

TEMPERATURES = (0.5, 1.0, 4.0, 20.0)
MEMBERS = 3.0 * torch.randn(
    6, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64
)
BATCH = Batch(torch.zeros(6, 1), torch.zeros(6, dtype=torch.int64), torch.arange(6))


class Fixed(Teacher):
    """Says the same whatever it is asked."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def outputs(self, batch: Batch) -> Output:
        return Output(self.logits)


def output_of(
    mean: Literal["arithmetic", "geometric"],
    weights: list[float] | None,
    members: Tensor = MEMBERS,
) -> Output:
    teacher = EnsembleTeacher(
        [Fixed(member) for member in members.unbind(1)], mean=mean, weights=weights
    )
    teacher.prepare(DigitsDataModule())
    output = teacher(BATCH)
    assert isinstance(output, Output)
    return output


def probs(output: Output, temperature: float) -> list[list[float]]:
    rows: list[list[float]] = output.log_probs(temperature).exp().tolist()
    return rows


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize(
    ("given", "scaled"), [(None, [1 / 3] * 3), ([1.0, 2.0, 5.0], [0.125, 0.25, 0.625])]
)
def test_arithmetic_mean_at_the_temperature_in_use(
    temperature: float, given: list[float] | None, scaled: list[float]
) -> None:
    output = output_of("arithmetic", given)
    expected = reference.arithmetic_mean(MEMBERS.tolist(), scaled, temperature)
    assert probs(output, temperature) == [pytest.approx(row) for row in expected]
    assert isinstance(output, EnsembleOutput)
    assert output.weights.tolist() == pytest.approx(scaled)
    # Its logits are those of temperature 1, and tempering them would be another distribution.
    tempered = Output(output.logits).log_probs(temperature).exp().tolist()
    assert (tempered == [pytest.approx(row, rel=1e-3) for row in expected]) == (
        temperature == 1.0
    )


@pytest.mark.parametrize(
    ("given", "scaled"), [(None, [1 / 3] * 3), ([1.0, 2.0, 5.0], [0.125, 0.25, 0.625])]
)
def test_geometric_mean_is_the_mean_of_logits(
    given: list[float] | None, scaled: list[float]
) -> None:
    output = output_of("geometric", given)
    for row, members in zip(output.logits.tolist(), MEMBERS.tolist(), strict=True):
        columns = zip(*members, strict=True)
        assert row == pytest.approx(
            [math.fsum(w * z for w, z in zip(scaled, c, strict=True)) for c in columns]
        )
    for temperature in TEMPERATURES:
        expected = reference.geometric_mean(MEMBERS.tolist(), scaled, temperature)
        assert probs(output, temperature) == [pytest.approx(row) for row in expected]


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_the_order_of_members_does_not_matter(
    mean: Literal["arithmetic", "geometric"],
) -> None:
    order, weights = [2, 0, 1], [1.0, 2.0, 5.0]
    first, second = (
        output_of(mean, weights),
        output_of(mean, [weights[i] for i in order], MEMBERS[:, order]),
    )
    for temperature in TEMPERATURES:
        assert torch.allclose(
            first.log_probs(temperature),
            second.log_probs(temperature),
            rtol=1e-12,
            atol=1e-12,
        )
    # Weights go with their members: left in place they would give another mean.
    assert not torch.allclose(
        first.logits, output_of(mean, weights, MEMBERS[:, order]).logits, rtol=1e-3
    )


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_members_that_agree(mean: Literal["arithmetic", "geometric"]) -> None:
    output = output_of(mean, [0.2, 0.7], MEMBERS[:, [1, 1]])
    for temperature in TEMPERATURES:
        assert torch.allclose(
            output.log_probs(temperature), Output(MEMBERS[:, 1]).log_probs(temperature)
        )


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_half_precision_members_are_averaged_in_single(
    mean: Literal["arithmetic", "geometric"],
) -> None:
    half = MEMBERS.to(torch.bfloat16)
    output, exact = output_of(mean, None, half), output_of(mean, None, half.double())
    assert output.logits.dtype == torch.float32
    assert torch.allclose(output.logits.double(), exact.logits, atol=1e-5)


def test_of_checkpoints(
    teacher_run: RunResult, checkpoint: Path, data: DigitsDataModule
) -> None:
    other = mlp(8)
    teacher = EnsembleTeacher(
        [ModelTeacher(network=other)],
        checkpoints=[str(checkpoint)],
        mean="geometric",
        weights=[1, 3],
    )
    teacher.prepare(data)
    batch = samples(data, "test", 16)
    trained = teacher_run.module.net.eval()
    expected = 0.25 * other(batch.inputs) + 0.75 * trained(batch.inputs)
    assert torch.allclose(teacher(batch).logits, expected, atol=1e-6)
    assert [source["network"] for source in teacher.sources()] == ["MLP", "MLP"]
    assert teacher.sources()[1]["path"] == str(checkpoint.resolve())


def test_teaches_and_stays_as_it_is(data: DigitsDataModule) -> None:
    teacher = EnsembleTeacher(
        [ModelTeacher(network=shaky()), ModelTeacher(network=shaky())]
    )
    module = distillation(teacher=teacher)
    module.attach(data)
    batch = samples(data, "train", 64)
    before = teacher(batch).logits
    trainer().fit(module, datamodule=data)
    module.train()
    assert torch.equal(teacher(batch).logits, before)
    assert not any(m.training for m in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not any("teacher" in key for key in module.state_dict())


def test_a_member_that_is_missing_or_does_not_fit(
    checkpoint: Path, tmp_path: Path, data: DigitsDataModule
) -> None:
    missing = EnsembleTeacher(
        checkpoints=[str(checkpoint), str(tmp_path / "none.ckpt")]
    )
    assert "none.ckpt" in complaint(lambda: missing.prepare(data))
    assert not missing.ready
    unfit = EnsembleTeacher(
        [ModelTeacher(network=mlp())], checkpoints=[str(checkpoint)]
    )
    assert "expects inputs of shape [1, 8, 8]" in complaint(
        lambda: unfit.prepare(DigitsDataModule(channels=3))
    )
    assert not unfit.ready


@pytest.mark.parametrize(
    "weights",
    [
        [1.0],
        [1.0] * 4,
        [1.0, 0.0, 1.0],
        [1.0, -1.0, 1.0],
        [1.0, math.nan, 1.0],
        [1.0, math.inf, 1.0],
    ],
)
def test_bad_weights(weights: list[float]) -> None:
    assert "weights must be 3 positive numbers, one per member" in complaint(
        lambda: output_of("arithmetic", weights)
    )


@pytest.mark.parametrize("arguments", [{}, {"teachers": [], "checkpoints": []}])
def test_no_members(arguments: dict[str, Any]) -> None:
    assert "EnsembleTeacher has no members" in complaint(
        lambda: EnsembleTeacher(**arguments)
    )


def test_no_features(data: DigitsDataModule) -> None:
    teacher = EnsembleTeacher([ModelTeacher(network=mlp())])
    assert "EnsembleTeacher has no features for hidden" in complaint(
        lambda: teacher.tap({"hidden"})
    )


def test_features_of_members_by_number(data: DigitsDataModule) -> None:
    layers = {"hidden": "body"}
    members = [ModelTeacher(network=mlp(width), layers=layers) for width in (6, 9)]
    teacher = EnsembleTeacher([*members])
    teacher.prepare(data)
    modules = teacher.tap({"0.hidden", "1.hidden"})
    assert modules.keys() == {"0.hidden", "1.hidden"}
    for number, member in enumerate(members):
        assert member.network is not None
        assert modules[f"{number}.hidden"] is member.network.get_submodule("body")
    batch = data.source("train").batch(torch.arange(4), -1)
    found = teacher(batch).features
    assert [found[role].shape[1] for role in sorted(found)] == [6, 9]
    for role in ("2.hidden", "0.", "hidden.0"):
        with pytest.raises(UserError, match=f"no features for {role}"):
            teacher.tap({role})
    # Without roles nothing is captured any more.
    teacher.tap(set())
    assert teacher(batch).features == {}


def test_layers_of_checkpoints(checkpoint: Path, data: DigitsDataModule) -> None:
    """Checkpoints have no layers of their own, so the ensemble names those of all."""
    layers = {"hidden": "body"}
    teacher = EnsembleTeacher(checkpoints=[str(checkpoint)] * 2, layers=layers)
    teacher.prepare(data)
    assert teacher.tap({"0.hidden", "1.hidden"}).keys() == {"0.hidden", "1.hidden"}
    with pytest.raises(UserError, match="layers is for members that checkpoints names"):
        EnsembleTeacher([ModelTeacher(network=mlp())], layers=layers)

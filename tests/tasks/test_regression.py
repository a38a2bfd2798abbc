"""Real values: rows, losses and metrics by hand, and distillation end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from torch import Tensor

from kd_lightning.data import SklearnTableDataModule
from kd_lightning.errors import UserError
from kd_lightning.losses import KD, CrossEntropy, DistillLoss, LogitMSE, TargetMSE
from kd_lightning.models import MLP
from kd_lightning.runs.launch import RunResult
from kd_lightning.spec import Spec
from kd_lightning.tasks import Regression
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import DistillationModule
from kd_lightning.types import Batch, Output
from tests.tasks.runs import cached, check_best, column, fit

TASK = Regression()


def batch_of(target: Tensor) -> Batch:
    samples = len(target)
    return Batch(torch.zeros(samples, 1), target, torch.arange(samples))


def output_of(values: Tensor, batch: Batch) -> Output:
    return Output(TASK.rows(values, batch))


@pytest.fixture
def values() -> tuple[Tensor, Tensor]:
    """Of a student and a teacher, `(B, D)`."""
    student, teacher = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    return student, teacher


@pytest.fixture
def target() -> Tensor:
    """Three of the 24 values are unknown."""
    target = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    target[0, 0] = target[3, 2] = target[5, 0] = torch.nan
    return target


def test_rows_have_width_one(values: tuple[Tensor, Tensor], target: Tensor) -> None:
    rows = TASK.rows(values[0], batch_of(target))
    assert rows.shape == (24, 1)
    assert torch.equal(rows.view(8, 3), values[0])


@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_another_number_of_outputs_is_refused(outputs: int, target: Tensor) -> None:
    """Also one output for three targets, which looks like rows of width one."""
    with pytest.raises(
        UserError, match=rf"\[8, {outputs}\] for targets of shape \[8, 3\]"
    ):
        TASK.rows(torch.zeros(8, outputs), batch_of(target))


def test_an_unknown_target_counts_nowhere_in_the_hard_loss(
    values: tuple[Tensor, Tensor], target: Tensor
) -> None:
    student = values[0].clone().requires_grad_()
    batch = batch_of(target)
    value = TargetMSE()(output_of(student, batch), None, batch)
    known = ~target.isnan()
    expected = (values[0] - target)[known].double().square().mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    value.backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert not student.grad[~known].any()


def test_an_unknown_target_counts_in_the_soft_loss(
    values: tuple[Tensor, Tensor], target: Tensor
) -> None:
    student = values[0].clone().requires_grad_()
    batch = batch_of(target)
    value = LogitMSE()(output_of(student, batch), output_of(values[1], batch), batch)
    expected = 0.5 * (values[0] - values[1]).double().square().mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    value.backward()
    assert student.grad is not None
    assert student.grad.all()


def test_metrics_equal_scikit_learns(
    values: tuple[Tensor, Tensor], target: Tensor
) -> None:
    """R^2 is that of all known values together."""
    metrics = TASK.metrics(Spec(num_classes=3))
    for part in (slice(0, 5), slice(5, 8)):
        batch = batch_of(target[part])
        metrics.update(
            output_of(values[0][part], batch), output_of(values[1][part], batch), batch
        )
    computed = metrics.compute()
    known = ~target.isnan()
    truth = target[known].numpy()
    given = values[0][known].numpy()
    assert computed["mse"].item() == pytest.approx(
        mean_squared_error(truth, given), rel=1e-5
    )
    assert computed["mae"].item() == pytest.approx(
        mean_absolute_error(truth, given), rel=1e-5
    )
    assert computed["r2"].item() == pytest.approx(r2_score(truth, given), rel=1e-5)
    distance = (values[0] - values[1]).square().mean()
    assert computed["teacher_mse"].item() == pytest.approx(distance.item(), rel=1e-5)


def test_metrics_of_a_batch_without_targets(values: tuple[Tensor, Tensor]) -> None:
    metrics = TASK.metrics(Spec(num_classes=3))
    batch = batch_of(torch.full((8, 3), torch.nan))
    metrics.update(output_of(values[0], batch), output_of(values[1], batch), batch)
    assert set(metrics.compute()) == {"teacher_mse"}


def test_the_counts_of_samples_average_to_the_mse(
    values: tuple[Tensor, Tensor],
) -> None:
    batch = batch_of(torch.zeros(8, 3))
    output = output_of(values[0], batch)
    counts = TASK.sample_counts(TASK.test_outputs(output, batch))
    assert counts.mean().item() == pytest.approx(
        values[0].square().mean().item(), rel=1e-5
    )


def test_targets_are_read_from_columns_of_numbers() -> None:
    columns = {"a": np.array(["1.5", "", "-2e3"]), "b": np.array([0.0, 1.0, np.nan])}
    encoded = TASK.encode_target(columns, TASK.target_names(columns))
    expected = torch.tensor([[1.5, 0.0], [torch.nan, 1.0], [-2000.0, torch.nan]])
    torch.testing.assert_close(encoded, expected, equal_nan=True, rtol=0, atol=0)
    with pytest.raises(
        UserError, match="column 'a' must hold numbers, but it holds 'tall'"
    ):
        TASK.encode_target({"a": np.array(["1", "tall"])}, ("a",))


# -- end to end -------------------------------------------------------------------------------------

MATCHING = ["--data.validation=0.2", "--trainer.max_epochs=6"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")  # whatever the run sets is undone
        folder = tmp_path_factory.mktemp("runs") / "teacher"
        return fit(folder, ["data/diabetes", "teachers/diabetes_mlp"], *MATCHING)


def test_a_teacher_learns(teacher: RunResult) -> None:
    values = column(teacher, "val_mse")
    assert values[-1] < values[0]
    check_best(teacher, "val_mse", min)


def test_a_student_learns_from_a_live_and_from_a_cached_teacher(
    teacher: RunResult, tmp_path: Path
) -> None:
    configs = [
        "data/diabetes",
        "pairs/table_mlp128_mlp8",
        "methods/targetmse",
        "methods/logitmse",
    ]
    arguments = [*MATCHING, "--data.label_fraction=0.5"]
    given = f"--model.teacher.checkpoint={teacher.folder / 'checkpoints' / 'last.ckpt'}"
    live = fit(tmp_path / "live", configs, *arguments, given)
    check_best(live, "val_mse", min)
    assert (
        column(live, "train_loss_logitmse")[-1] < column(live, "train_loss_logitmse")[0]
    )
    for name in ("test_mse", "test_mae", "test_r2", "test_teacher_mse"):
        assert np.isfinite(live.metrics[name])

    data = SklearnTableDataModule("diabetes", validation=0.2)
    replayed = fit(
        tmp_path / "cached",
        configs,
        *arguments,
        *cached(teacher, data, tmp_path / "cache"),
    )
    for name in ("train_loss", "train_loss_targetmse", "train_loss_logitmse"):
        assert column(replayed, name) == pytest.approx(column(live, name), rel=1e-6)


@pytest.mark.parametrize("loss", [CrossEntropy(), KD()], ids=["ce", "kd"])
def test_losses_over_classes_are_refused(loss: DistillLoss) -> None:
    data = SklearnTableDataModule("diabetes")
    network = MLP([4], input_shape=list(data.spec.input_shape or ()), num_classes=1)
    module = DistillationModule(network, ModelTeacher(network=network), {"mine": loss})
    with pytest.raises(
        UserError, match=r"the loss 'mine' compares distributions over classes"
    ):
        module.attach(data)

"""Several labels per sample: rows, losses and metrics by hand, and distillation end to end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import make_multilabel_classification
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

from kd_lightning.data import TabularDataModule
from kd_lightning.errors import UserError
from kd_lightning.losses import KD, CrossEntropy
from kd_lightning.runs.launch import RunResult
from kd_lightning.spec import Spec
from kd_lightning.tasks import MultilabelClassification
from kd_lightning.types import UNLABELLED, Batch, Output
from tests.tasks.runs import cached, check_best, column, fit

TASK = MultilabelClassification()
LABELS = ("red", "green", "blue")


def batch_of(target: Tensor) -> Batch:
    samples = len(target)
    return Batch(torch.zeros(samples, 1), target, torch.arange(samples))


def output_of(logits: Tensor, batch: Batch) -> Output:
    return Output(TASK.rows(logits, batch))


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """Of a student and a teacher, `(B, C)`."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 2 * torch.randn(2, 8, 3, generator=generator)
    return student, teacher


@pytest.fixture
def target() -> Tensor:
    """Labels of all three values."""
    target = torch.randint(0, 2, (8, 3), generator=torch.Generator().manual_seed(1))
    target[0, 0] = target[3, 2] = target[5, 0] = UNLABELLED
    return target


def test_rows_are_the_binary_logits_of_each_pair(
    logits: tuple[Tensor, Tensor], target: Tensor
) -> None:
    rows = TASK.rows(logits[0], batch_of(target))
    assert rows.shape == (24, 2)
    assert not rows[:, 0].any()
    assert torch.equal(rows[:, 1].view(8, 3), logits[0])


@pytest.mark.parametrize("outputs", [1, 2, 4])
def test_another_number_of_outputs_is_refused(outputs: int, target: Tensor) -> None:
    """Also two outputs for three labels, which look like binary rows."""
    with pytest.raises(
        UserError, match=rf"\[8, {outputs}\] for targets of shape \[8, 3\]"
    ):
        TASK.rows(torch.zeros(8, outputs), batch_of(target))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_the_mean_kl_of_bernoulli_distributions(
    logits: tuple[Tensor, Tensor], target: Tensor, temperature: float
) -> None:
    student, teacher = logits
    batch = batch_of(target)
    value = KD(temperature)(output_of(student, batch), output_of(teacher, batch), batch)
    q = torch.sigmoid(student.double() / temperature)
    p = torch.sigmoid(teacher.double() / temperature)
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    # Pairs with an unknown label count, too.
    expected = temperature**2 * kl.mean()
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_cross_entropy_is_binary_and_skips_unknown_labels(
    logits: tuple[Tensor, Tensor], target: Tensor
) -> None:
    student = logits[0].clone().requires_grad_()
    batch = batch_of(target)
    value = CrossEntropy()(output_of(student, batch), None, batch)
    known = target != UNLABELLED
    p = torch.sigmoid(logits[0].double())
    costs = -torch.where(target == 1, p, 1 - p).log()
    assert value.item() == pytest.approx(costs[known].mean().item(), rel=1e-5)
    value.backward()
    assert student.grad is not None
    assert not student.grad[~known].any()


def test_metrics_equal_scikit_learns(
    logits: tuple[Tensor, Tensor], target: Tensor
) -> None:
    metrics = TASK.metrics(Spec(num_classes=3))
    for part in (slice(0, 5), slice(5, 8)):
        batch = batch_of(target[part])
        metrics.update(
            output_of(logits[0][part], batch), output_of(logits[1][part], batch), batch
        )
    values = metrics.compute()
    precisions = []
    f1 = []
    for label in range(3):
        known = target[:, label] != UNLABELLED
        truth = target[known, label].numpy()
        scores = logits[0][known, label].numpy()
        precisions.append(average_precision_score(truth, scores))
        f1.append(f1_score(truth, scores > 0))
    known = target != UNLABELLED
    wrong = ((logits[0] > 0).long() != target) & known
    assert values["map"].item() == pytest.approx(np.mean(precisions), rel=1e-5)
    assert values["f1"].item() == pytest.approx(np.mean(f1), rel=1e-5)
    assert values["errors"].item() == wrong.sum().item()
    agreement = ((logits[0] > 0) == (logits[1] > 0)).float().mean()
    assert values["teacher_agreement"].item() == pytest.approx(agreement.item())


def test_the_counts_of_samples_sum_to_the_errors(
    logits: tuple[Tensor, Tensor], target: Tensor
) -> None:
    batch = batch_of(target)
    output = output_of(logits[0], batch)
    metrics = TASK.metrics(Spec(num_classes=3))
    metrics.update(output, None, batch)
    counts = TASK.sample_counts(TASK.test_outputs(output, batch))
    assert counts.sum().item() == metrics.compute()["errors"].item()


def test_labels_are_read_from_columns_of_zeros_and_ones() -> None:
    columns = {"a": np.array(["1", "0", ""]), "b": np.array([0.0, np.nan, 1.0])}
    names = TASK.target_names(columns)
    assert names == ("a", "b")
    expected = torch.tensor([[1, 0], [0, UNLABELLED], [UNLABELLED, 1]])
    assert torch.equal(TASK.encode_target(columns, names), expected)
    with pytest.raises(
        UserError, match="column 'a' must hold 0 or 1 in each row, got '2'"
    ):
        TASK.encode_target({"a": np.array(["2", "0"])}, ("a",))


# -- end to end -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A CSV file of synthetic samples; one in five has an unknown label."""
    inputs, labels = make_multilabel_classification(
        n_samples=200, n_features=6, n_classes=3, random_state=0
    )
    root = tmp_path_factory.mktemp("data")
    lines = [",".join([*(f"x{at}" for at in range(6)), *LABELS])]
    for row, (x, y) in enumerate(zip(inputs, labels, strict=True)):
        cells = [str(value) for value in (*x.tolist(), *y.tolist())]
        if row % 5 == 0:
            cells[-1] = ""
        lines.append(",".join(cells))
    (root / "table.csv").write_text("\n".join(lines))
    return [
        f"--data.root={root}",
        f"--data.target=[{','.join(LABELS)}]",
        "--data.task=kd_lightning.tasks.MultilabelClassification",
        "--data.validation=0.2",
    ]


@pytest.fixture(scope="module")
def teacher(
    arguments: list[str], tmp_path_factory: pytest.TempPathFactory
) -> RunResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")  # whatever the run sets is undone
        folder = tmp_path_factory.mktemp("runs") / "teacher"
        return fit(folder, ["data/tabular", "teachers/breast_cancer_mlp"], *arguments)


def test_a_teacher_learns(teacher: RunResult) -> None:
    values = column(teacher, "val_map")
    assert values[-1] > max(values[0], 0.7)
    check_best(teacher, "val_map", max)


def test_a_student_learns_from_a_live_and_from_a_cached_teacher(
    teacher: RunResult, arguments: list[str], tmp_path: Path
) -> None:
    configs = ["data/tabular", "pairs/table_mlp128_mlp8", "methods/kd"]
    given = f"--model.teacher.checkpoint={teacher.folder / 'checkpoints' / 'last.ckpt'}"
    live = fit(tmp_path / "live", configs, *arguments, given)
    check_best(live, "val_map", max)
    assert column(live, "train_loss_kd")[-1] < column(live, "train_loss_kd")[0]
    for name in ("test_map", "test_f1", "test_nll", "test_teacher_kl"):
        assert np.isfinite(live.metrics[name])

    root = arguments[0].partition("=")[2]
    data = TabularDataModule(list(LABELS), TASK, root, "table.csv", validation=0.2)
    replayed = fit(
        tmp_path / "cached",
        configs,
        *arguments,
        *cached(teacher, data, tmp_path / "cache"),
    )
    for name in ("train_loss", "train_loss_ce", "train_loss_kd"):
        assert column(replayed, name) == pytest.approx(column(live, name), rel=1e-6)

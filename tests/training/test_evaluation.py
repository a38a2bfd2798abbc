"""What is measured, against sums over the stored logits in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.data import DigitsDataModule
from kd_lightning.metrics import ClassificationMetrics
from kd_lightning.types import UNLABELLED, Batch, Output
from tests.training.small import distillation, samples, trainer

Array = NDArray[np.float64]


def log_softmax(logits: Tensor) -> Array:
    z = logits.double().numpy()
    z = z - z.max(1, keepdims=True)
    rows: Array = z - np.log(np.exp(z).sum(1, keepdims=True))
    return rows


def calibration_error(q: Array, target: NDArray[np.int64]) -> float:
    """Sum over 15 equal bins of their share of the samples times |accuracy - confidence| (Naeini et al. 2015)."""
    confidence, right = q.max(1), q.argmax(1) == target
    bins = np.digitize(confidence, np.linspace(0, 1, 16))
    gaps = [
        (bins == b).mean() * abs(right[bins == b].mean() - confidence[bins == b].mean())
        for b in set(bins.tolist())
    ]
    return float(sum(gaps))


def by_hand(
    student: Tensor, teacher: Tensor | None, target: Tensor
) -> dict[str, float]:
    log_q, known = log_softmax(student), target.numpy() != UNLABELLED
    values = {}
    if teacher is not None:
        log_p = log_softmax(teacher)
        values["teacher_agreement"] = (log_q.argmax(1) == log_p.argmax(1)).mean()
        values["teacher_kl"] = (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
    log_q, label = log_q[known], target.numpy()[known]
    if len(label):
        wrong = log_q.argmax(1) != label
        values |= {
            "accuracy": 1 - wrong.mean(),
            "errors": wrong.sum(),
            "nll": -log_q[np.arange(len(label)), label].mean(),
        }
        values["calibration_error"] = calibration_error(np.exp(log_q), label)
    return {name: float(value) for name, value in values.items()}


def accuracy_by_hand(logits: Tensor, target: Tensor) -> float:
    return float((logits.argmax(1).numpy() == target.numpy()).mean())


def random_case(rows: int = 200) -> tuple[Output, Output, Tensor]:
    """Right half of the time, however sure: some bins are too confident and others not enough."""
    rng = torch.Generator().manual_seed(3)
    sure = 3 * torch.rand(rows, 1, generator=rng)
    student, teacher = (
        Output(sure * torch.randn(rows, 10, generator=rng)) for _ in range(2)
    )
    right = torch.rand(rows, generator=rng) < 0.5
    return (
        student,
        teacher,
        torch.where(
            right,
            student.logits.argmax(-1),
            torch.randint(0, 10, (rows,), generator=rng),
        ),
    )


def measured(*batches: tuple[Output, Output | None, Tensor]) -> dict[str, float]:
    metrics = ClassificationMetrics(10)
    for batch in batches:
        student, teacher, target = batch
        metrics.update(student, teacher, Batch(target, target, target))
    values = {name: value.item() for name, value in metrics.compute().items()}
    metrics.reset()
    assert metrics.compute() == {}
    return values


@pytest.mark.parametrize(
    "precision",
    [
        "32-true",
        "bf16-mixed",
        "bf16-true",
        "64-true",
    ],
)
def test_after_a_fit(precision: str) -> None:
    # 602 test samples in batches of 100: the last one is of two, so that a mean over batches would differ.
    data = DigitsDataModule(eval_batch_size=100)
    module, fit = distillation(), trainer(precision=precision)
    fit.fit(module, datamodule=data)
    validation = {
        name: value.item()
        for name, value in fit.callback_metrics.items()
        if name.startswith("val_")
    }
    for _ in range(2):  # the second test starts from nothing
        (tested,) = fit.test(module, datamodule=data, verbose=False)
    outputs: Any = fit.predict(module, datamodule=data)
    logits = torch.cat([o["logits"] for o in outputs])
    assert len(outputs) == 7
    batch = samples(data, "test")
    module.float()
    wide = {"32-true": 1e-5, "64-true": 1e-5}.get(
        precision, 2e-2
    )  # the teacher's logits are taken again in single
    teacher = module.teacher(batch).logits
    expected = by_hand(logits, teacher, batch.target)
    expected["teacher_accuracy"] = accuracy_by_hand(teacher, batch.target)
    for name, value in expected.items():
        own = name.startswith("teacher") or precision == "64-true"
        assert tested[f"test_{name}"] == pytest.approx(
            value, rel=wide if own else 1e-5
        ), name
    assert tested.keys() == {f"test_{name}" for name in expected}
    assert validation.keys() == {f"val_{name}" for name in expected}


def test_validation_by_hand(data: DigitsDataModule) -> None:
    module = distillation()
    (values,) = trainer().validate(module, datamodule=data, verbose=False)
    batch = samples(data, "validation")
    teacher = module.teacher(batch).logits
    expected = by_hand(module.eval()(batch.inputs).detach(), teacher, batch.target)
    expected["teacher_accuracy"] = accuracy_by_hand(teacher, batch.target)
    assert values == {
        f"val_{name}": pytest.approx(value, rel=1e-5)
        for name, value in expected.items()
    }


def test_the_teacher_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is frozen: later validations repeat its value, and the student alone is measured."""
    data = DigitsDataModule()
    module, fit = distillation(), trainer(max_epochs=3)
    seen: list[int] = []
    original = ClassificationMetrics.update

    def update(self: ClassificationMetrics, *args: Any) -> None:
        seen.append(id(self))
        original(self, *args)

    monkeypatch.setattr(ClassificationMetrics, "update", update)
    fit.fit(module, datamodule=data)
    assert module.metrics is not None
    assert module.teacher_metric is not None
    assert seen.count(id(module.metrics)) == 3
    assert seen.count(id(module.teacher_metric.metrics)) == 1
    batch = samples(data, "validation")
    expected = accuracy_by_hand(module.teacher(batch).logits, batch.target)
    assert float(fit.callback_metrics["val_teacher_accuracy"]) == pytest.approx(
        expected
    )
    fit.validate(
        module, DigitsDataModule(validation=0.5), verbose=False
    )  # other samples
    assert seen.count(id(module.teacher_metric.metrics)) == 2


def test_batches_of_any_size() -> None:
    student, teacher, target = random_case()
    cuts = [(0, 7), (7, 8), (8, 200)]
    parts = [
        (Output(student.logits[a:b]), Output(teacher.logits[a:b]), target[a:b])
        for a, b in cuts
    ]
    expected = by_hand(student.logits, teacher.logits, target)
    assert measured(*parts) == {
        name: pytest.approx(value, rel=1e-5) for name, value in expected.items()
    }
    # By hand for one row: class 1 of (0, 0) with a half; the teacher (0, ln 3) says 1/4, 3/4.
    row = ClassificationMetrics(2)
    label = torch.tensor([1])
    teacher = Output(torch.tensor([[0.0, np.log(3)]]))
    row.update(Output(torch.zeros(1, 2)), teacher, Batch(torch.zeros(1), label, label))
    values = row.compute()
    assert values["nll"].item() == pytest.approx(np.log(2))
    assert values["teacher_kl"].item() == pytest.approx(
        0.25 * np.log(0.5) + 0.75 * np.log(1.5)
    )


def test_unlabelled_rows_count_for_the_teacher_alone() -> None:
    student, teacher, target = random_case()
    target[::3] = UNLABELLED
    expected = by_hand(student.logits, teacher.logits, target)
    assert measured((student, teacher, target)) == {
        n: pytest.approx(v, rel=1e-5) for n, v in expected.items()
    }
    none = torch.full_like(target, UNLABELLED)
    assert measured((student, teacher, none)).keys() == {
        "teacher_agreement",
        "teacher_kl",
    }
    assert measured((student, None, none)) == {}


def test_without_a_teacher() -> None:
    student, teacher, target = random_case()
    alone, both = (
        measured((student, None, target)),
        measured((student, teacher, target)),
    )
    assert alone.keys() == {"accuracy", "errors", "nll", "calibration_error"}
    assert both.items() > alone.items()


def test_a_perfect_copy() -> None:
    student, _, target = random_case()
    values = measured((student, student, target))
    assert values["teacher_agreement"] == 1.0
    assert values["teacher_kl"] == pytest.approx(0.0, abs=1e-6)


def test_calibration_of_small_logits() -> None:
    student, _, target = random_case()
    student = Output(student.logits.sigmoid())
    expected = by_hand(student.logits, None, target)["calibration_error"]
    assert measured((student, None, target))["calibration_error"] == pytest.approx(
        expected, rel=1e-5
    )

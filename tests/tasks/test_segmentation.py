"""One label per pixel: mean IoU by hand, void pixels that count nowhere, and what a test stores."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.spec import Spec
from kd_lightning.tasks.segmentation import Segmentation
from kd_lightning.types import UNLABELLED, Batch, Output

SPEC = Spec(
    data="two by three",
    task="segmentation",
    input_shape=(3, 2, 3),
    num_classes=3,
    classes=("a", "b", "c"),
    target_shape=(2, 3),
)
VOID = torch.tensor([[False, False, True], [False, False, False]])
TARGET = torch.tensor(
    [
        [[0, 0, UNLABELLED], [1, 1, 2]],
        [[0, 1, UNLABELLED], [1, UNLABELLED, 0]],
    ]
)
"""In each image the pixel at the upper right is void; one more of the second has no label."""

PREDICTED = torch.tensor(
    [
        [[0, 1, 2], [1, 1, 1]],
        [[0, 1, 2], [0, 2, 0]],
    ]
)


def logits_of(classes: Tensor) -> Tensor:
    """Logits `(B, K, H, W)` of networks that predict these classes, each with its own certainty."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(len(classes), 3, 2, 3, generator=generator)
    return noise + 2 * F.one_hot(classes, 3).movedim(-1, 1)


def batch() -> Batch:
    exists = ~VOID.expand(2, -1, -1)
    return Batch(
        inputs=torch.zeros(2, 3, 2, 3),
        target=TARGET,
        index=torch.tensor([7, 3]),
        positions=exists.flatten().nonzero().flatten(),
    )


def output(classes: Tensor = PREDICTED) -> Output:
    return Output(Segmentation().rows(logits_of(classes), batch()))


def test_rows_are_the_pixels_that_exist() -> None:
    rows = output().logits
    assert rows.shape == (10, 3)
    expected = [logits_of(PREDICTED)[b, :, y, x] for b in (0, 1) for y, x in PIXELS]
    assert torch.equal(rows, torch.stack(expected))


PIXELS = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_metrics_by_hand() -> None:
    metrics = Segmentation().metrics(SPEC)
    metrics.update(output(), None, batch())
    values = {name: float(value) for name, value in metrics.compute().items()}
    # Labels 0 0 1 1 2 | 0 1 1 . 0 against 0 1 1 1 1 | 0 1 0 . 0, without the unlabelled pixel:
    # class 0: 3 of 5; class 1: 3 of 6; class 2: 0 of 1.
    assert values["miou"] == pytest.approx((3 / 5 + 3 / 6 + 0 / 1) / 3)
    assert values["accuracy"] == pytest.approx(6 / 9)
    assert values["errors"] == 3
    labels = batch().labels
    known = labels != UNLABELLED
    nll = F.cross_entropy(output().logits[known], labels[known])
    assert values["nll"] == pytest.approx(float(nll))
    assert "teacher_kl" not in values


def test_a_class_that_appears_nowhere_does_not_lower_the_mean() -> None:
    metrics = Segmentation().metrics(SPEC)
    without_c = batch()
    without_c.target = torch.where(TARGET == 2, UNLABELLED, TARGET)
    predicted = PREDICTED.masked_fill(PREDICTED == 2, 0)
    metrics.update(output(predicted), None, without_c)
    # Class 0: 3 of 5; class 1: 3 of 5.
    assert float(metrics.compute()["miou"]) == pytest.approx(3 / 5)


def test_void_pixels_count_nowhere() -> None:
    changed = PREDICTED.clone()
    changed[:, 0, 2] = 1
    values = []
    for predicted in (PREDICTED, changed):
        metrics = Segmentation().metrics(SPEC)
        metrics.update(output(predicted), output(PREDICTED.flip(1)), batch())
        values.append(metrics.compute())
    assert values[0].keys() == {
        *("miou", "accuracy", "errors", "nll"),
        *("teacher_agreement", "teacher_kl"),
    }
    for name, value in values[0].items():
        # The noise under the logits is the same, so that other pixels do not change.
        assert torch.equal(value, values[1][name]), name


def test_unlabelled_pixels_count_in_the_comparison_with_the_teacher() -> None:
    teacher = PREDICTED.clone()
    teacher[1, 1, 1] = 0
    metrics = Segmentation().metrics(SPEC)
    metrics.update(output(), output(teacher), batch())
    assert float(metrics.compute()["teacher_agreement"]) == pytest.approx(9 / 10)


def test_metrics_do_not_depend_on_the_batches() -> None:
    whole = batch()
    metrics = Segmentation().metrics(SPEC)
    metrics.update(output(), None, whole)
    rows = output().logits
    split = Segmentation().metrics(SPEC)
    for number in range(2):
        one = Batch(
            inputs=torch.zeros(1, 3, 2, 3),
            target=TARGET[number : number + 1],
            index=whole.index[number : number + 1],
            positions=(~VOID).flatten().nonzero().flatten(),
        )
        split.update(Output(rows[5 * number : 5 * number + 5]), None, one)
    for name, value in metrics.compute().items():
        torch.testing.assert_close(split.compute()[name], value)


def test_a_test_stores_classes_and_counts_of_each_image() -> None:
    stored = Segmentation().test_outputs(output(), batch())
    assert stored["classes"].dtype == torch.int16
    expected = PREDICTED.masked_fill(VOID, UNLABELLED)
    assert torch.equal(stored["classes"].long(), expected)
    assert stored["wrong_pixels"].tolist() == [2, 1]
    assert stored["labelled_pixels"].tolist() == [5, 4]
    assert stored["index"].tolist() == [7, 3]
    assert Segmentation().sample_counts(stored).tolist() == [2.0, 1.0]


def test_an_image_without_labels_has_no_count() -> None:
    unlabelled = batch()
    unlabelled.target = torch.full_like(TARGET, UNLABELLED)
    unlabelled.target[0, 0, 0] = 1
    stored = Segmentation().test_outputs(output(), unlabelled)
    counts = Segmentation().sample_counts(stored)
    assert counts[0] == 1
    assert bool(counts[1].isnan())


def test_a_prediction_holds_the_class_of_every_pixel() -> None:
    everywhere = Batch(torch.zeros(2, 3, 2, 3), TARGET, torch.tensor([7, 3]))
    task = Segmentation()
    predicted = task.predictions(
        Output(task.rows(logits_of(PREDICTED), everywhere)), everywhere
    )
    assert sorted(predicted) == ["classes", "index"]
    assert torch.equal(predicted["classes"].long(), PREDICTED)


def test_a_network_of_other_classes_is_refused() -> None:
    task = Segmentation()
    blank = Batch(torch.zeros(2, 3, 2, 3), task.blank_target(SPEC, 2), torch.arange(2))
    rows = task.rows(torch.zeros(2, 5, 2, 3), blank)
    problem = task.output_problem("Net", rows, SPEC)
    assert problem is not None
    assert "3 classes" in problem
    assert (
        task.output_problem("Net", task.rows(logits_of(PREDICTED), blank), SPEC) is None
    )

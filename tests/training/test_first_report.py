"""The first-batch report: what it measures, what it warns of, and that training does not notice it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule, SklearnTableDataModule
from kd_lightning.errors import UserError
from kd_lightning.losses.base import DistillLoss
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.losses.crd import CRD
from kd_lightning.losses.kd import KD
from kd_lightning.losses.logitmse import LogitMSE
from kd_lightning.teachers import CachedTeacher, ModelTeacher, Teacher, cache_teacher
from kd_lightning.training import (
    ClassifierModule,
    DistillationModule,
    lightning_compat,
)
from kd_lightning.training.first_report import FirstBatchReport
from kd_lightning.training.untouched import untouched
from kd_lightning.types import Batch, Output
from tests.training.small import (
    copied,
    distillation,
    mlp,
    same,
    samples,
    shaky,
    trainer,
)


class Prototypes(nn.Module):
    """A good classifier of the digits: the nearest mean image of a class."""

    def __init__(self, order: list[int] | None = None) -> None:
        super().__init__()
        batch = samples(DigitsDataModule(), "train")
        inputs = cast(Tensor, batch.inputs).flatten(1)
        means = torch.stack(
            [inputs[batch.target == label].mean(0) for label in range(10)]
        )
        self.means = nn.Parameter(means if order is None else means[order])

    def forward(self, images: Tensor) -> Tensor:
        return -(torch.cdist(images.flatten(1), self.means) ** 2) / 10


class Returning(nn.Module):
    """Logits that are always the same number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, images: Tensor) -> Tensor:
        return self.value.expand(len(images), 10)


class Restless(DistillLoss):
    """Changes buffers, attributes and every random number generator in each call."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.count = 0

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        self.calls += 1
        self.count += 1
        random.random()
        np.random.rand()
        # A loss that depends on its state, so that a trace in it would change the training.
        noise = 0.01 * torch.rand_like(student.logits) * (self.count + self.calls)
        return (student.logits * noise).square().mean()


def reported(
    module: pl.LightningModule, strict: bool = False, **changes: Any
) -> FirstBatchReport:
    """The report of a fit of one step."""
    report = FirstBatchReport(strict=strict, show=False)
    settings = {
        "callbacks": [report],
        "limit_train_batches": 1,
        "limit_val_batches": 0,
        **changes,
    }
    trainer(**settings).fit(module, datamodule=DigitsDataModule())
    return report


def warnings_of(module: pl.LightningModule, **changes: Any) -> list[str]:
    content = reported(module, **changes).content
    assert content is not None
    return cast(list[str], content["warnings"])


def taught_by(
    network: nn.Module, losses: dict[str, DistillLoss] | None = None, **arguments: Any
) -> DistillationModule:
    return distillation(losses, ModelTeacher(network=network), **arguments)


# -- what is measured -------------------------------------------------------------------------------------------------


def test_the_teacher_by_hand() -> None:
    content = reported(taught_by(Prototypes(), {"kd": KD(3.0)})).content
    assert content is not None
    teacher = cast(dict[str, Any], content["teacher"])
    batch = samples(DigitsDataModule(), "validation")
    logits = Prototypes()(batch.inputs).detach()
    accuracy = float((logits.argmax(1) == batch.target).float().mean())
    probs = (logits / 3).softmax(1)
    assert accuracy > 0.8
    assert (teacher["split"], teacher["samples"]) == ("validation", len(batch))
    assert teacher["value"] == pytest.approx(accuracy)
    assert teacher["label_agreement"] == pytest.approx(accuracy)
    measured = teacher["temperatures"]["3"]
    entropy = float(-(probs * probs.log()).sum(1).mean())
    assert measured["mean_entropy"] == pytest.approx(entropy, rel=1e-4)
    assert measured["mean_top_probability"] == pytest.approx(
        float(probs.amax(1).mean()), rel=1e-4
    )
    assert content["warnings"] == []


class FirstLosses(pl.Callback):
    """Computes the losses' gradients in the first step."""

    def __init__(self) -> None:
        self.norms: dict[str, float] = {}
        self.values: dict[str, float] = {}

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        state = torch.get_rng_state()
        student, teacher = pl_module.learner(batch), pl_module.teacher(batch)
        for name, loss in pl_module.objective.named_losses():
            value = loss(student, teacher, batch)
            self.values[name] = float(value.detach())
            parameters = list(pl_module.net.parameters())
            grads = torch.autograd.grad(
                loss.weight * value, parameters, retain_graph=True
            )
            self.norms[name] = float(sum(grad.square().sum() for grad in grads)) ** 0.5
        torch.set_rng_state(state)


def test_the_losses_are_those_of_the_first_step() -> None:
    first = FirstLosses()
    report = FirstBatchReport(show=False)
    torch.manual_seed(0)
    module = taught_by(Prototypes())
    fit = trainer(callbacks=[report, first], limit_train_batches=1)
    fit.fit(module, datamodule=DigitsDataModule())
    assert report.content is not None
    losses = cast(dict[str, dict[str, float]], report.content["losses"])
    total = sum(first.norms.values())
    for name, loss in losses.items():
        assert loss["value"] == pytest.approx(first.values[name], rel=1e-5)
        assert loss["gradient_norm"] == pytest.approx(first.norms[name], rel=1e-4)
        assert loss["gradient_share"] == pytest.approx(
            first.norms[name] / total, rel=1e-4
        )
    assert losses["kd"]["weighted"] == pytest.approx(2 * losses["kd"]["value"])


def test_without_a_teacher() -> None:
    content = reported(ClassifierModule(mlp())).content
    assert content is not None
    assert content["teacher"] is None
    assert content["warnings"] == []
    assert list(cast(Mapping[str, Any], content["losses"])) == ["ce"]


def test_a_cached_teacher_is_measured_alike(tmp_path: Path) -> None:
    teacher = ModelTeacher(network=Prototypes())
    cache_teacher(teacher, DigitsDataModule(), tmp_path / "cache")
    contents = []
    for each in (
        ModelTeacher(network=Prototypes()),
        CachedTeacher(str(tmp_path / "cache")),
    ):
        content = reported(distillation(teacher=each)).content
        assert content is not None
        contents.append(cast(dict[str, Any], content["teacher"]))
    live, cached = contents
    assert cached["value"] == live["value"]
    assert cached["temperatures"]["4"] == pytest.approx(
        live["temperatures"]["4"], rel=1e-4
    )


def test_without_validation_training_samples_are_measured() -> None:
    report = FirstBatchReport(show=False)
    fit = trainer(callbacks=[report], limit_train_batches=1)
    fit.fit(taught_by(Prototypes()), datamodule=DigitsDataModule(validation=0))
    assert report.content is not None
    assert cast(dict[str, Any], report.content["teacher"])["split"] == "train"


def test_loggers_receive_it_once(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    reported(taught_by(Prototypes()), logger=logger)
    rows = [
        row for row in logger.experiment.metrics if "report/teacher_accuracy" in row
    ]
    text = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert rows or "report/teacher_accuracy" in text
    assert text.splitlines()[0].count("report/gradient_share_kd") == 1


def test_it_is_not_repeated_when_a_run_resumes(tmp_path: Path) -> None:
    data = DigitsDataModule()
    fit = trainer()
    fit.fit(taught_by(Prototypes()), datamodule=data)
    fit.save_checkpoint(tmp_path / "last.ckpt")
    report = FirstBatchReport(show=False)
    resumed = trainer(callbacks=[report], max_epochs=2)
    resumed.fit(
        taught_by(Prototypes()), datamodule=data, ckpt_path=str(tmp_path / "last.ckpt")
    )
    assert report.content is None


# -- no trace ---------------------------------------------------------------------------------------------------------


def curve(
    report: bool, teacher: Teacher | None = None
) -> tuple[dict[str, Tensor], list[Any]]:
    """A student with batch normalization, dropout, a memory bank and a restless loss, after two epochs."""
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    losses = {
        "ce": CrossEntropy(),
        "kd": KD(),
        "restless": Restless(),
        "crd": CRD("body", dimensions=8, num_negatives=8),
    }
    module = DistillationModule(
        shaky(),
        teacher or ModelTeacher(network=shaky(), layers={"body": "1"}),
        losses,
        layers={"body": "1"},
    )
    callbacks = [FirstBatchReport(show=False)] if report else []
    fit = trainer(max_epochs=2, callbacks=callbacks)
    fit.fit(module, datamodule=DigitsDataModule())
    restless = cast(Restless, module.losses["restless"])
    draws = [random.random(), np.random.rand(), torch.rand(1).item(), restless.count]
    return copied(module), [*draws, fit.callback_metrics["train_loss"].item()]


def test_training_does_not_notice_it() -> None:
    with_report, draws_with = curve(True)
    without, draws_without = curve(False)
    assert draws_with == draws_without
    assert same(with_report, without)


def test_untouched_undoes_everything() -> None:
    network = shaky()
    before = copied(network)
    statistics = network[2].running_mean
    state = torch.get_rng_state()
    with untouched([network], torch.device("cpu")):
        network.train(not network.training)
        network.train()
        network(torch.randn(8, 1, 8, 8))
        network[2].running_mean = torch.ones(32)
        network.extra = 1  # type: ignore[assignment]
        assert not same(copied(network), before)
    assert same(copied(network), before)
    assert network[2].running_mean is statistics
    assert not hasattr(network, "extra")
    assert torch.equal(torch.get_rng_state(), state)


# -- warnings ---------------------------------------------------------------------------------------------------------


def one_warning(module: pl.LightningModule, *words: str, **changes: Any) -> None:
    found = [
        w for w in warnings_of(module, **changes) if all(word in w for word in words)
    ]
    assert len(found) == 1
    assert "\n" not in found[0]


def test_a_good_teacher_and_sound_losses_give_no_warning() -> None:
    assert warnings_of(taught_by(Prototypes())) == []


def test_a_teacher_at_chance() -> None:
    torch.manual_seed(0)
    one_warning(taught_by(mlp(32)), "not clearly more than chance (10.0%)")


class Overwriting(nn.Module):
    """Clears its inputs after it has read them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images.clone())
        images.zero_()
        return cast(Tensor, logits)


def test_a_network_that_overwrites_its_inputs() -> None:
    expected = "changes its inputs in place, so that the other network reads"
    warnings = warnings_of(taught_by(Overwriting(Prototypes())))
    assert any(f"the teacher {expected}" in line for line in warnings)
    student = Overwriting(mlp())
    (line,) = warnings_of(taught_by(Prototypes(), student=student))
    assert f"the student {expected}" in line


def test_probabilities_in_place_of_logits() -> None:
    expected = "gives probabilities (each row sums to 1), but losses read logits"
    softmax = nn.Sequential(Prototypes(), nn.Softmax(-1))
    (line,) = warnings_of(taught_by(softmax))
    assert f"the teacher {expected}" in line
    student = nn.Sequential(mlp(), nn.Softmax(-1))
    found = warnings_of(ClassifierModule(student))
    assert any(f"the student Sequential {expected}" in line for line in found)
    # The logarithms are logits.
    logarithms = nn.Sequential(Prototypes(), nn.LogSoftmax(-1))
    assert warnings_of(taught_by(logarithms)) == []


class Line(nn.Module):
    """Real values `(N, 1)` that depend on all columns of a table."""

    def __init__(self, weights: Tensor, bias: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)
        self.bias = bias

    def forward(self, columns: Tensor) -> Tensor:
        return (columns @ self.weights + self.bias).unsqueeze(1)


def test_a_teacher_of_real_values_below_their_mean() -> None:
    data = SklearnTableDataModule("diabetes", validation=0.2)
    batch = samples(data, "train")
    columns = cast(Tensor, batch.inputs)
    target = batch.labels.flatten()
    mean = float(target.mean())
    solution = torch.linalg.lstsq(columns, (target - mean).unsqueeze(1)).solution[:, 0]

    def warned(weights: Tensor) -> list[str]:
        module = distillation(
            {"logitmse": LogitMSE()},
            ModelTeacher(network=Line(weights, mean)),
            student=Line(torch.zeros(columns.shape[1]), 0.0),
        )
        report = FirstBatchReport(show=False)
        run = trainer(callbacks=[report], limit_train_batches=1, limit_val_batches=0)
        run.fit(module, datamodule=data)
        assert report.content is not None
        warnings = cast(list[str], report.content["warnings"])
        return [line for line in warnings if "R^2" in line]

    # The least squares fit explains half of the variance, its mirror image none.
    assert warned(solution) == []
    (line,) = warned(-solution)
    assert "explains none of the variance" in line


@pytest.mark.parametrize("order", [[*range(1, 10), 0], [1, 0, 3, 2, *range(4, 10)]])
def test_permuted_classes(order: list[int]) -> None:
    one_warning(taught_by(Prototypes(order)), "another order than the data's")


def test_a_constant_teacher() -> None:
    one_warning(taught_by(Returning(0.0)), "the same output")


def test_a_teacher_that_is_not_finite() -> None:
    report = FirstBatchReport(show=False)
    fit = trainer(callbacks=[report], limit_train_batches=1)
    with pytest.raises(UserError, match="the loss became nan"):
        fit.fit(taught_by(Returning(torch.nan)), datamodule=DigitsDataModule())
    assert report.content is not None
    warnings = cast(list[str], report.content["warnings"])
    assert "the teacher's output is not finite for 123 of 123 rows" in warnings[0]
    assert "the loss 'kd' is nan on the first training batch" in warnings[1]


def test_a_teacher_may_rule_out_classes() -> None:
    class Masked(Prototypes):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images).clone()
            logits[:, 3] = -torch.inf
            return logits

    assert warnings_of(taught_by(Masked())) == []


def test_a_teacher_below_its_student(tmp_path: Path) -> None:
    path = tmp_path / "student.pt"
    torch.save(Prototypes().state_dict(), path)
    poor = Prototypes()
    poor.means.data += 0.9 * torch.randn(
        10, 64, generator=torch.Generator().manual_seed(0)
    )
    module = taught_by(poor, student=Prototypes(), init_from=str(path))
    one_warning(module, "better than its teacher's")
    module = taught_by(Prototypes(), student=Prototypes(), init_from=str(path))
    assert warnings_of(module) == []


def test_losses_that_never_act() -> None:
    losses: dict[str, DistillLoss] = {"ce": CrossEntropy(), "kd": KD(weight=0)}
    one_warning(
        taught_by(Prototypes(), losses), "'kd' has the weight 0", "losses.kd.weight"
    )
    losses = {"ce": CrossEntropy(), "kd": KD(start=3)}
    one_warning(
        taught_by(Prototypes(), losses), "starts in epoch 3, but the run has 1 epochs"
    )
    assert warnings_of(taught_by(Prototypes(), losses), max_epochs=4, max_steps=1) != []


def test_a_loss_that_starts_later_is_fine() -> None:
    losses: dict[str, DistillLoss] = {"ce": CrossEntropy(), "kd": KD(start=1)}
    assert warnings_of(taught_by(Prototypes(), losses), max_epochs=2) == []


class Aside(DistillLoss):
    """Trains nothing."""

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return student.logits.detach().square().mean()


def test_a_loss_without_a_gradient() -> None:
    losses: dict[str, DistillLoss] = {"ce": CrossEntropy(), "aside": Aside()}
    one_warning(taught_by(Prototypes(), losses), "'aside' sends no gradient")


def test_a_loss_that_outweighs_all_others() -> None:
    losses: dict[str, DistillLoss] = {"ce": CrossEntropy(), "kd": KD(weight=1e5)}
    one_warning(
        taught_by(Prototypes(), losses), "gradient of the loss 'kd'", "losses.kd.weight"
    )


def sgd(lr: float) -> Any:
    return partial(torch.optim.SGD, lr=lr)


def test_a_learning_rate_of_zero() -> None:
    one_warning(taught_by(Prototypes(), optimizer=sgd(0.0)), "learning rate is 0")
    schedule = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.0)
    one_warning(
        taught_by(Prototypes(), optimizer=sgd(0.1), scheduler=schedule),
        "learning rate is 0",
    )
    schedule = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1)
    module = taught_by(Prototypes(), optimizer=sgd(0.0), scheduler=schedule)
    assert warnings_of(module, limit_train_batches=8) == []


def notes_of(lr: float, max_lr: float) -> list[str]:
    schedule = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=max_lr)
    module = taught_by(Prototypes(), optimizer=sgd(lr), scheduler=schedule)
    content = reported(module).content
    assert content is not None
    return cast(list[str], content["notes"])


def test_a_learning_rate_without_effect_is_a_note() -> None:
    assert notes_of(0.3, 0.1) == [
        "the scheduler sets the learning rate, at most 0.1 (max_lr); "
        "the optimizer's lr 0.3 has no effect"
    ]
    assert notes_of(0.1, 0.1) == []
    assert notes_of(0.001, 0.1) == []  # the optimizer's default


@pytest.mark.parametrize("temperature", [1e4, 1e5])
def test_soft_targets_that_underflow(temperature: float) -> None:
    losses: dict[str, DistillLoss] = {"ce": CrossEntropy(), "kd": KD(temperature)}
    one_warning(
        taught_by(Prototypes(), losses), "rounding error", "losses.kd.temperature="
    )


def test_a_high_temperature_that_works() -> None:
    losses: dict[str, DistillLoss] = {"ce": CrossEntropy(), "kd": KD(100.0)}
    assert warnings_of(taught_by(Prototypes(), losses)) == []


def test_strict_ends_the_run_before_it_trains() -> None:
    module = taught_by(Returning(0.0))
    before = copied(module.net)
    with pytest.raises(UserError, match=r"--run.strict: .*same output") as caught:
        reported(module, strict=True)
    assert "\n" not in str(caught.value)
    assert same(copied(module.net), before)
    reported(taught_by(Prototypes()), strict=True)


def test_a_sharded_run_says_that_nothing_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lightning_compat, "has_whole_weights", lambda trainer: False)
    stored: list[Mapping[str, Any]] = []
    report = FirstBatchReport(show=False)
    report.store = stored.append
    run = trainer(callbacks=[report], limit_train_batches=1, limit_val_batches=0)
    run.fit(ClassifierModule(mlp()), datamodule=DigitsDataModule())
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: teacher and losses are not measured")
    assert "--trainer.strategy=ddp" in line
    assert stored[0]["warnings"] == [line.removeprefix("warning: ")]
    with pytest.raises(UserError, match=r"--run\.strict: teacher and losses"):
        reported(ClassifierModule(mlp()), strict=True)

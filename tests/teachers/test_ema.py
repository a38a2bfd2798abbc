"""A teacher that averages its student: the steps of a plain loop, what is kept, and what is refused."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule, Jitter
from kd_lightning.data.source import batch_of_views
from kd_lightning.losses.at import AT
from kd_lightning.losses.base import DistillLoss
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.losses.consistency import Consistency
from kd_lightning.losses.kd import KD
from kd_lightning.models import MLP
from kd_lightning.teachers import EMATeacher, EnsembleTeacher, ModelTeacher
from kd_lightning.teachers.cache.fill import cache_teacher
from kd_lightning.teachers.ema import decay_of_update
from kd_lightning.training import DistillationModule
from kd_lightning.types import Output
from tests.reference import mean_teacher as reference
from tests.training.small import (
    complaint,
    copied,
    distillation,
    mlp,
    same,
    samples,
    trainer,
)

STEPS = 20
Buffers = Literal["average", "copy"]


def normalized() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Linear(16, 10),
    )


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def module_of(
    teacher: EMATeacher, student: nn.Module | None = None, **arguments: Any
) -> DistillationModule:
    losses: dict[str, DistillLoss] = {
        "ce": CrossEntropy(),
        "consistency": Consistency(weight=10.0, rampup=0),
    }
    return distillation(
        arguments.pop("losses", losses),
        teacher,
        student=student or normalized(),
        **{"optimizer": momentum, **arguments},
    )


@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_a_fit_takes_the_steps_of_a_plain_loop(buffers: Buffers) -> None:
    """With unlabelled samples, and a decay that is reached within the run."""
    data = DigitsDataModule(batch_size=48, label_fraction=0.3)
    teacher = EMATeacher(decay=0.9, buffers=buffers)
    module = module_of(teacher)
    expected = copy.deepcopy(module.net).double()
    fit = trainer(precision="64-true", limit_train_batches=STEPS, limit_val_batches=0)
    fit.fit(module, datamodule=data)
    batches = []
    for batch in data.train_dataloader():
        assert isinstance(batch.inputs, Tensor)
        batches.append((batch.inputs.double(), batch.target))
    assert any(bool((labels < 0).any()) for _, labels in batches)
    averaged = reference.train(
        expected, batches[:STEPS], 0.9, 10.0, average_buffers=buffers == "average"
    )
    assert teacher.network is not None
    for network, other in ((module.net, expected), (teacher.network, averaged)):
        for name, value in other.state_dict().items():
            assert torch.allclose(
                network.state_dict()[name], value, rtol=1e-9, atol=1e-12
            ), name
    assert int(teacher.updates) == STEPS


def test_by_hand() -> None:
    # w = 0, then 1, 2, 4 under a decay of 0.6: 1/2, 0.4, and 0.6 of the average stay.
    assert [decay_of_update(t, 0.6) for t in (1, 2, 3)] == pytest.approx(
        [0.5, 0.6, 0.6]
    )
    student = nn.Linear(1, 1, bias=False)
    student.weight.data.zero_()
    teacher = EMATeacher(decay=0.6)
    teacher.follow(student, {})
    assert teacher.network is not None
    seen = []
    for weight in (1.0, 2.0, 4.0):
        student.weight.data.fill_(weight)
        teacher.after_step()
        seen.append(next(teacher.network.parameters()).item())
    assert seen == pytest.approx([0.5, 0.3 + 0.8, 0.66 + 1.6])


def test_is_no_part_of_what_is_trained(data: DigitsDataModule) -> None:
    teacher = EMATeacher()
    module = module_of(teacher)
    module.attach(data)
    module.train()
    assert teacher.network is not None
    assert not any(each.training for each in teacher.network.modules())
    assert not any(each.requires_grad for each in teacher.parameters())
    own = {id(parameter) for parameter in teacher.parameters()}
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert not own & {id(p) for p in optimizer.param_groups[0]["params"]}
    # Its copy of the student is the only one.
    assert sum(name.startswith("teacher.") for name in module.state_dict()) == (
        len(module.net.state_dict()) + 1
    )


def test_starts_as_the_students_initial_weights(
    data: DigitsDataModule, checkpoint: Path
) -> None:
    student = MLP([256, 256], dropout=0.3, input_shape=[1, 8, 8], num_classes=10)
    teacher = EMATeacher()
    module = module_of(teacher, student, init_from=str(checkpoint))
    module.attach(data)
    assert teacher.network is not None
    assert same(copied(teacher.network), copied(module.net))
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    name = next(iter(dict(module.net.named_parameters())))
    assert torch.equal(
        dict(teacher.network.named_parameters())[name], saved[f"network.{name}"]
    )


def test_every_evaluation_measures_the_average(data: DigitsDataModule) -> None:
    teacher = EMATeacher(decay=0.8)
    module, fit = module_of(teacher), trainer(max_epochs=2)
    fit.fit(module, datamodule=data)
    batch = samples(data, "validation")
    predicted = teacher(batch).logits.argmax(1)
    expected = float((predicted == batch.target).float().mean())
    measured = float(fit.callback_metrics["val_teacher_accuracy"])
    assert measured == pytest.approx(expected)
    assert expected > 0.5
    fit.test(module, datamodule=data, verbose=False)
    assert float(fit.callback_metrics["test_teacher_accuracy"]) > 0.5
    assert "val_teacher_accuracy" in module.metric_names("val")


def test_the_checkpoint_holds_the_average(
    data: DigitsDataModule, tmp_path: Path
) -> None:
    module, fit = module_of(EMATeacher(0.9)), trainer()
    fit.fit(module, datamodule=data)
    path = tmp_path / "both.ckpt"
    fit.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    names = {f"teacher.network.{name}" for name in module.net.state_dict()}
    assert names | {"teacher.updates"} <= set(state)
    loaded = DistillationModule.load_from_checkpoint(
        path,
        student=normalized(),
        teacher=EMATeacher(0.9),
        losses={"ce": CrossEntropy()},
    )
    assert same(copied(loaded), copied(module))
    trainer().test(loaded, data, verbose=False)
    assert same(copied(loaded), copied(module))
    # The student alone loads, too, and the average can teach another student.
    alone = DistillationModule.load_from_checkpoint(path, student=normalized())
    assert same(copied(alone.net), copied(module.net))
    averaged = ModelTeacher(f"{path}#state_dict.teacher.network", normalized())
    averaged.prepare(data)
    batch = samples(data, "test", 8)
    assert torch.equal(averaged(batch).logits, module.teacher(batch).logits)


def test_a_resumed_fit_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """From within the epochs."""
    saves = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=7)

    def fit(ckpt: Path | None = None, **changes: Any) -> DistillationModule:
        torch.manual_seed(0)
        module = module_of(EMATeacher(0.99), mlp(16, dropout=0.3))
        run = trainer(max_epochs=2, **changes)
        run.fit(module, datamodule=DigitsDataModule(), ckpt_path=ckpt)
        return module

    whole = fit(enable_checkpointing=True, callbacks=[saves])
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert len(paths) >= 2
    for path in paths:
        content = torch.load(path, weights_only=True)
        assert int(content["state_dict"]["teacher.updates"]) == content["global_step"]
        assert same(copied(fit(path)), copied(whole))


@pytest.mark.parametrize(
    "make", [KD, partial(AT, ["hidden"]), partial(Consistency, rampup=2)]
)
def test_any_loss_works_against_it(make: Any, data: DigitsDataModule) -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Conv2d(1, 4, 3)
            self.head = nn.Linear(4 * 36, 10)

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.head(self.hidden(images).relu().flatten(1))
            return logits

    losses = {"ce": CrossEntropy(), "soft": make()}
    layers = {"hidden": "hidden"}
    module = module_of(EMATeacher(), Maps(), losses=losses, layers=layers)
    fit = trainer(limit_train_batches=4)
    fit.fit(module, datamodule=data)
    assert float(fit.callback_metrics["train_loss_soft"]) > 0


def test_without_labels_the_consistency_alone_teaches() -> None:
    module, fit = module_of(EMATeacher(), mlp(16, dropout=0.5)), trainer()
    before = copied(module.net)
    fit.fit(module, datamodule=DigitsDataModule(label_fraction=0.0))
    assert float(fit.callback_metrics["train_loss_ce"]) == 0.0
    assert float(fit.callback_metrics["train_loss_consistency"]) > 0
    assert not same(copied(module.net), before)


def two_views() -> DigitsDataModule:
    return DigitsDataModule(augment=[Jitter(1)], copies=2)


def test_the_teacher_sees_the_other_view() -> None:
    data = two_views()
    teacher = EMATeacher(other_view=True)
    module = module_of(teacher)
    module.attach(data)
    source = data.source("train")
    rows = torch.arange(6)
    batch = batch_of_views(source, rows, (0, 1))
    seen: Output = teacher(batch)
    first = teacher(source.batch(rows, 0)).logits
    second = teacher(source.batch(rows, 1)).logits
    assert not torch.allclose(first, second)
    assert torch.allclose(seen.logits, torch.cat([second, first]), atol=1e-6)
    clean = source.batch(rows, -1)
    plain = EMATeacher()
    plain.follow(module.net, {})
    plain.prepare(data)
    assert torch.equal(teacher(clean).logits, plain(clean).logits)
    trainer(limit_train_batches=2).fit(module, datamodule=data)


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan"), True])
def test_bad_decay(decay: Any) -> None:
    assert "decay must be at least 0 and below 1" in complaint(
        lambda: EMATeacher(decay)
    )


def test_what_cannot_be_averaged_is_refused(
    data: DigitsDataModule, tmp_path: Path
) -> None:
    wrong: Any = "drop"
    assert "'drop'" in complaint(lambda: EMATeacher(buffers=wrong))
    assert "cannot be a member" in complaint(lambda: EnsembleTeacher([EMATeacher()]))
    assert "cannot be cached" in complaint(
        lambda: cache_teacher(EMATeacher(), data, tmp_path / "cache")
    )
    alone = EMATeacher()
    alone.prepare(data)
    assert "follow(student" in complaint(lambda: alone(samples(data, "test", 2)))
    assert "data.copies=2" in complaint(
        lambda: EMATeacher(other_view=True).prepare(data)
    )

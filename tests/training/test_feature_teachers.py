"""Teachers of other classes, or of none: losses on features learn from them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.losses import (
    CATKD,
    KD,
    SEED,
    CrossEntropy,
    DistillLoss,
    FeatureCosine,
    SimKD,
)
from kd_lightning.models import MLP
from kd_lightning.runs.launch import RunResult, launch
from kd_lightning.teachers import ModelTeacher, Teacher
from kd_lightning.training import DistillationModule
from tests.training.small import complaint, distillation, mlp, trainer

LAYERS = {"penultimate": "head:input", "head": "head"}


FEATURES = """
model:
  init_args:
    losses:
      cosine:
        class_path: kd_lightning.losses.FeatureCosine
        init_args: {map_layer: null}
"""


def headless() -> nn.Sequential:
    """An encoder of 24 features, without a classifier."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU())


def encoder(network: nn.Module, layer: str = "head:input") -> ModelTeacher:
    return ModelTeacher(network=network, layers={**LAYERS, "penultimate": layer})


def on_features(teacher: Teacher, *more: DistillLoss) -> DistillationModule:
    losses: dict[str, DistillLoss] = {
        "ce": CrossEntropy(),
        "cosine": FeatureCosine(map_layer=None),
        "seed": SEED(size=64),
    }
    for number, loss in enumerate(more):
        losses[f"more{number}"] = loss
    return distillation(losses, teacher, layers=LAYERS)


@pytest.mark.parametrize("outputs", [7, 24])
def test_features_of_a_teacher_of_other_classes(outputs: int) -> None:
    teacher = encoder(mlp(32, classes=7)) if outputs == 7 else encoder(headless(), "1")
    module = on_features(teacher)
    run = trainer(limit_train_batches=3, limit_val_batches=2)
    run.fit(module, datamodule=DigitsDataModule(batch_size=16))
    logged = run.callback_metrics
    assert 0 < logged["train_loss_cosine"] < 2
    assert "val_accuracy" in logged
    # Nothing compares the student's classes with the teacher's outputs.
    assert [name for name in logged if "teacher" in name] == []
    assert [name for name in module.metric_names("val") if "teacher" in name] == []
    run.test(module, datamodule=DigitsDataModule(batch_size=16), verbose=False)
    assert "test_accuracy" in run.callback_metrics


def test_a_teacher_of_the_same_classes_is_still_compared() -> None:
    module = on_features(encoder(mlp(32)))
    run = trainer(limit_train_batches=1, limit_val_batches=1)
    run.fit(module, datamodule=DigitsDataModule(batch_size=16))
    assert "val_teacher_accuracy" in run.callback_metrics
    assert "val_teacher_agreement" in run.callback_metrics


def test_losses_on_predictions_refuse_it() -> None:
    for classes, loss in ((7, KD()), (24, SimKD("penultimate"))):
        module = on_features(encoder(mlp(32, classes=classes)), loss)
        fit = partial(trainer().fit, module, datamodule=DigitsDataModule())
        assert complaint(fit) == (
            f"the teacher gives outputs of shape [{classes}] per sample; the data digits has 10 "
            "classes"
        )


def test_what_losses_need() -> None:
    assert KD().needs_teacher_classes
    # A classifier that is moved to the student must know the student's classes.
    assert SimKD().needs_teacher_classes
    assert CATKD().needs_teacher_classes
    assert not FeatureCosine().needs_teacher_classes
    assert not CrossEntropy().needs_teacher_classes


def seven(checkpoint: Path, target: Path) -> Path:
    """A copy of the digits teacher that knows seven classes, as a kd checkpoint says."""
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    described = content["kd_lightning"]
    described["spec"] |= {"num_classes": 7, "classes": list("0123456")}
    described["network"]["init_args"]["num_classes"] = 7
    for name in ("network.head.weight", "network.head.bias"):
        content["state_dict"][name] = content["state_dict"][name][:7].clone()
    torch.save(content, target)
    return target


def kd_fit(folder: Path, teacher: Path, *arguments: str) -> RunResult:
    named = ["trainer", "data/digits", "pairs/digits_mlp256_mlp16"]
    files = [word for name in named for word in ("-c", f"configs/{name}.yaml")]
    layers = '{penultimate: "head:input"}'
    return launch(
        [
            "fit",
            *files,
            "-c",
            "configs/loggers/csv.yaml",
            *arguments,
            f"--model.layers={layers}",
            f"--model.teacher.layers={layers}",
            f"--model.teacher.checkpoint={teacher}",
            "--data.fraction=0.1",
            "--trainer.max_epochs=1",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            f"--run.dir={folder}",
        ]
    )


def test_a_checkpoint_of_other_classes(tmp_path: Path, checkpoint: Path) -> None:
    other = seven(checkpoint, tmp_path / "seven.ckpt")
    method = tmp_path / "method.yaml"
    method.write_text(FEATURES)
    cosine = ["-c", str(method)]
    with pytest.raises(UserError, match="the teacher knows 7 classes, the data digits"):
        kd_fit(tmp_path / "refused", other, *cosine)
    allowed = "--model.teacher.features_only=true"
    done = kd_fit(tmp_path / "run", other, *cosine, allowed)
    assert done.metrics["train_loss_cosine"] > 0
    assert not [name for name in done.metrics if "teacher" in name]
    with pytest.raises(UserError, match=r"the teacher gives outputs of shape \[7\]"):
        kd_fit(tmp_path / "kd", other, "-c", "configs/methods/kd.yaml", allowed)


def test_features_only_of_as_many_classes_is_not_compared(checkpoint: Path) -> None:
    teacher = ModelTeacher(str(checkpoint), layers=LAYERS, features_only=True)
    module = on_features(teacher)
    module.attach(DigitsDataModule())
    assert not module.objective.teacher_predicts
    other = distillation(
        {"kd": KD()}, ModelTeacher(str(checkpoint), features_only=True)
    )
    message = complaint(partial(other.attach, DigitsDataModule()))
    assert message.startswith(
        "the teacher has features_only and may know other classes"
    )
    assert isinstance(teacher.network, MLP)

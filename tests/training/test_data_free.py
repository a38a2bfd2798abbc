"""Distillation on a generator's images: gradients, resume, processes, and real digits."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule, NoiseDataModule
from kd_lightning.losses import KD, CrossEntropy
from kd_lightning.losses.generator.dafl import DAFL
from kd_lightning.losses.generator.zskt import ZSKT
from kd_lightning.models import ConvGenerator
from kd_lightning.runs.launch import RunResult, launch
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import DataFreeModule
from tests.data.images.test_noise import TestSplitOnly
from tests.training import two_processes
from tests.training.small import (
    CONFIGS,
    complaint,
    copied,
    distillation,
    last,
    mlp,
    run_fit,
    same,
    trainer,
)


def noise(**options: Any) -> NoiseDataModule:
    settings = {"samples": 320, "batch_size": 32, "latent": 16, **options}
    return NoiseDataModule(TestSplitOnly(), **settings)


def data_free(**options: Any) -> DataFreeModule:
    torch.manual_seed(0)
    teacher = ModelTeacher(network=mlp(32), layers={"penultimate": "head:input"})
    settings: dict[str, Any] = {
        "student": mlp(),
        "teacher": teacher,
        "generator": ConvGenerator(16, 8, input_shape=[1, 8, 8]),
        "generator_losses": {"dafl": DAFL(), "zskt": ZSKT()},
        "losses": {"kd": KD(temperature=1.0)},
        "student_steps": 3,
    }
    return DataFreeModule(**{**settings, **options})


def fitted(module: DataFreeModule, **settings: Any) -> DataFreeModule:
    trainer(**settings).fit(module, datamodule=noise())
    return module


def everything(module: DataFreeModule) -> dict[str, Tensor]:
    """Student and generator with their buffers, and both optimizers' moments."""
    state = {**copied(module.net), **copied(module.generator)}
    optimizers = [module.trainer.optimizers[0], module._generator_optimizer]
    for number, optimizer in enumerate(optimizers):
        assert optimizer is not None
        for row, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    state[f"{number} {row} {name}"] = value.clone()
    return state


# -- steps -----------------------------------------------------------------------------------------


def test_generator_steps_as_often_as_asked() -> None:
    class Counting(torch.optim.SGD):
        steps = 0

        def step(self, closure: Any = None) -> Any:
            Counting.steps += 1
            return super().step(closure)

    # Ten batches: steps before batches 0, 3, 6 and 9.
    fitted(data_free(generator_optimizer=partial(Counting, lr=0.01)))
    assert Counting.steps == 4


def test_a_generator_step_equals_a_plain_loop() -> None:
    module = data_free(
        optimizer=partial(torch.optim.SGD, lr=0.0),
        generator_optimizer=partial(torch.optim.SGD, lr=0.1),
        generator_losses={"zskt": ZSKT()},
        generator_clip=0.01,
    )
    module.attach(noise())
    generator = data_free().generator.requires_grad_(True)
    teacher = data_free().teacher.get_submodule("network")
    student = data_free().net
    batch = next(iter(noise().train_dataloader()))
    images = generator(batch.inputs)
    target = teacher(images).softmax(1)
    own = student(images).log_softmax(1)
    divergence = (target * (target.log() - own)).sum() / 32
    parameters = list(generator.parameters())
    gradients = torch.autograd.grad(-divergence, parameters)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    assert norm > 0.01
    trainer(max_steps=1).fit(module, datamodule=noise())
    for (name, parameter), gradient in zip(
        module.generator.named_parameters(), gradients, strict=True
    ):
        start = generator.get_parameter(name)
        expected = start - 0.1 * gradient * 0.01 / norm
        assert torch.allclose(parameter, expected, atol=1e-7), name


def test_the_generators_losses_see_shifted_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    images = torch.rand(2, 1, 8, 8)
    shifts = set()
    module = data_free(generator_shift=1)
    for step in range(100):
        shifted = module._shifted(images, step)
        # The same in a resumed run and in every process.
        assert torch.equal(module._shifted(images, step), shifted)
        assert torch.equal(shifted.flatten().sort()[0], images.flatten().sort()[0])
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                expected = images.roll((down, right), dims=(2, 3))
                if torch.equal(shifted, expected):
                    shifts.add((down, right))
    assert len(shifts) == 9
    assert torch.equal(data_free()._shifted(images, 0), images)


def test_a_shift_changes_what_the_generator_learns() -> None:
    losses = {"zskt": ZSKT()}
    still = fitted(data_free(generator_losses=losses))
    shifted = fitted(data_free(generator_losses=losses, generator_shift=2))
    assert not same(copied(still.generator), copied(shifted.generator))


def test_no_gradient_reaches_the_networks_from_the_generator() -> None:
    module = data_free()
    teacher = copied(module.teacher)
    module.attach(noise())

    class Watching(torch.optim.Adam):
        """Looks at all gradients when the generator is about to step."""

        def step(self, closure: Any = None) -> Any:
            assert all(p.grad is None for p in module.teacher.parameters())
            student = list(module.net.parameters())
            gradients = [p.grad for p in student if p.grad is not None]
            before = [g.clone() for g in gradients]
            result = super().step(closure)
            assert all(map(torch.equal, before, gradients))
            return result

    module.generator_optimizer = partial(Watching, lr=0.001)
    fitted(module)
    assert same(copied(module.teacher), teacher)
    assert not any(p.requires_grad for p in module.teacher.parameters())
    # The generator's step leaves no gradient in the student: a module that only makes them
    # has none.
    alone = data_free()
    alone.attach(noise())
    run = trainer(max_steps=1)
    run.fit(alone, datamodule=noise())
    for parameter in alone.net.parameters():
        parameter.grad = None
    alone._train_generator(next(iter(noise().train_dataloader())), 0)
    assert all(parameter.grad is None for parameter in alone.net.parameters())


def test_training_images_are_never_read_and_real_ones_are_tested() -> None:
    # `noise` holds digits whose training split raises.
    module = fitted(data_free())
    run = trainer()
    run.test(module, datamodule=noise())
    assert "test_accuracy" in run.callback_metrics


def test_losses_are_logged() -> None:
    module = fitted(data_free())
    logged = module.trainer.callback_metrics
    total = logged["generator_loss_dafl"] + logged["generator_loss_zskt"]
    assert logged["generator_loss"].item() == pytest.approx(total.item(), rel=1e-5)
    assert logged["generator_loss_zskt"] < 0
    assert logged["train_loss_kd"] > 0


# -- resume ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [5, 14])
def test_resume_is_bit_identical(steps: int, tmp_path: Path) -> None:
    # Both end within an epoch of 10 steps and within a cycle of the generator.
    saving = ModelCheckpoint(
        tmp_path, "{step}", every_n_train_steps=steps, save_top_k=-1
    )
    whole = fitted(
        data_free(), max_epochs=3, enable_checkpointing=True, callbacks=[saving]
    )
    second = data_free()
    run = trainer(max_epochs=3)
    path = str(tmp_path / f"step={steps}.ckpt")
    run.fit(second, datamodule=noise(), ckpt_path=path)
    assert same(everything(whole), everything(second))
    for name, value in run.callback_metrics.items():
        assert torch.equal(value, whole.trainer.callback_metrics[name]), name


# -- in runs ---------------------------------------------------------------------------------------


def kd_fit(
    folder: Path, method: str, teacher: Path, *arguments: str, pair: str = "digits"
) -> RunResult:
    files = ["trainer", f"datafree/{pair}", f"datafree/{method}", "loggers/csv"]
    named = [word for name in files for word in ("-c", str(CONFIGS / f"{name}.yaml"))]
    return launch(
        [
            "fit",
            *named,
            f"--model.teacher.checkpoint={teacher}",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            f"--run.dir={folder}",
            *arguments,
        ]
    )


@pytest.mark.parametrize("method", ["dafl", "zskt"])
def test_kd_fit_and_resume(method: str, tmp_path: Path, checkpoint: Path) -> None:
    short = ["--data.samples=640", "--trainer.max_epochs=1", "--model.scheduler=null"]
    done = kd_fit(tmp_path / method, method, checkpoint, *short, "--run.test=last")
    assert {"test_accuracy", "generator_loss"} <= done.metrics.keys()
    generator = copied(done.module.generator)  # type: ignore[arg-type]
    again = launch(["fit", f"--ckpt_path={last(done)}", "--trainer.max_epochs=2"])
    assert not same(copied(again.module.generator), generator)  # type: ignore[arg-type]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    one = two_processes.trained("data-free", devices=1)
    two = two_processes.launched("data-free", tmp_path / "two.pt")
    assert any(name.startswith("generator.") for name in one)
    for name, weight in one.items():
        assert torch.allclose(weight, two[name], atol=1e-9), name


def normalized_teacher(folder: Path, *arguments: str) -> Path:
    """The checkpoint of a small residual network for digits, which has batch normalization."""
    named = ["trainer", "data/digits", "teachers/cifar_resnet20", "loggers/csv"]
    files = [word for name in named for word in ("-c", str(CONFIGS / f"{name}.yaml"))]
    quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    where = ["--model.network.depth=8", f"--run.dir={folder}"]
    return last(launch(["fit", *files, *quiet, *where, *arguments]))


def test_kd_fit_with_the_statistics_of_a_teacher(tmp_path: Path) -> None:
    """The shipped files of DeepInversion, for a teacher with batch normalization."""
    quick = ["--trainer.max_epochs=1", "--data.fraction=0.1"]
    teacher = normalized_teacher(tmp_path / "teacher", *quick)
    options = ["--data.samples=256", "--trainer.max_epochs=1", "--model.scheduler=null"]
    folder = tmp_path / "student"
    done = kd_fit(folder, "deepinversion", teacher, *options, pair="digits_resnet")
    assert done.metrics["generator_loss_deepinversion"] > 0
    assert done.metrics["train_loss_kd"] > 0


@pytest.mark.slow
def test_a_student_learns_digits_from_statistics(tmp_path: Path) -> None:
    teacher = normalized_teacher(tmp_path / "teacher", "--trainer.max_epochs=15")
    options = ["--trainer.max_epochs=2", "--run.test=last"]
    folder = tmp_path / "student"
    done = kd_fit(folder, "deepinversion", teacher, *options, pair="digits_resnet")
    # One class in ten is right by chance.
    assert done.metrics["test_accuracy"] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dafl", "zskt"])
def test_a_student_learns_digits_without_data(method: str, tmp_path: Path) -> None:
    longer = ["--trainer.max_epochs=40", "--model.scheduler.init_args.max_lr=0.03"]
    teacher = run_fit(tmp_path / "teacher", ["teachers/digits_mlp.yaml"], *longer)
    done = kd_fit(
        tmp_path / method,
        method,
        last(teacher),
        "--trainer.max_epochs=5",
        "--run.test=last",
    )
    # One class in ten is right by chance.
    assert done.metrics["test_accuracy"] > 0.5


# -- mistakes --------------------------------------------------------------------------------------


def test_other_data() -> None:
    fit = partial(trainer().fit, data_free(), datamodule=DigitsDataModule())
    assert "NoiseDataModule" in complaint(fit)


def test_a_generator_that_does_not_fit() -> None:
    for generator, word in (
        (ConvGenerator(8, 8, input_shape=[1, 8, 8]), "data.latent"),
        (ConvGenerator(16, 8, input_shape=[3, 8, 8]), "[3, 8, 8]"),
        (nn.Linear(16, 4), "[4]"),
    ):
        module = data_free(generator=generator)
        assert word in complaint(partial(module.attach, noise()))


def test_arguments_out_of_range() -> None:
    assert "student_steps" in complaint(partial(data_free, student_steps=0))
    assert "generator_clip" in complaint(partial(data_free, generator_clip=0.0))
    assert "generator_shift" in complaint(partial(data_free, generator_shift=-1))
    assert "generator_losses" in complaint(partial(data_free, generator_losses={}))


def test_a_generator_loss_does_not_train_a_student() -> None:
    losses: dict[str, Any] = {"ce": CrossEntropy(), "zskt": ZSKT()}
    assert "generator_losses" in complaint(partial(distillation, losses))

"""DOT: two gradients and two momenta, in a plain loop, in `Trainer.fit` and in `kd fit`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.losses import KD, CrossEntropy, FitNets
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import DistillationModule
from kd_lightning.training.dot import DOT
from kd_lightning.training.split_gradients import split_backward
from tests.reference import dot as reference
from tests.training import two_processes
from tests.training.small import (
    complaint,
    copied,
    distillation,
    mlp,
    run_fit,
    same,
    trainer,
)

DELTA = 0.075
KD_YAML = ["pairs/digits_mlp256_mlp16.yaml", "methods/kd.yaml"]
FIXED_MOMENTUM = "--model.scheduler.cycle_momentum=false"


def ordered(batch_size: int = 64) -> DigitsDataModule:
    return DigitsDataModule(batch_size=batch_size, drop_last=True)


def fitted(
    optimizer: Callable[[Iterable[Any]], torch.optim.Optimizer],
    batch_size: int = 64,
    steps: int = 20,
    **settings: Any,
) -> dict[str, Tensor]:
    """The student's weights after some steps in double precision."""
    torch.manual_seed(0)
    module = distillation(optimizer=optimizer)
    run = trainer(precision="64-true", max_steps=steps, max_epochs=-1, **settings)
    run.fit(module, datamodule=ordered(batch_size))
    return copied(module.net)


def looped(steps: int = 20, batch_size: int = 64, **options: Any) -> dict[str, Tensor]:
    """The same by the reference: its losses come from torch's own functions."""
    torch.manual_seed(0)
    module = distillation()
    module.attach(ordered())
    student = module.net.double()
    assert isinstance(module.teacher, ModelTeacher)
    assert module.teacher.network is not None
    teacher = module.teacher.network.double()
    loader = ordered(batch_size).train_dataloader()
    batches = []
    for epoch in range(3):
        loader.set_epoch(epoch)
        batches += list(loader)

    def losses(network: nn.Module, step: int) -> tuple[Tensor, Tensor]:
        batch = batches[step]
        assert isinstance(batch.inputs, Tensor)
        inputs = batch.inputs.double()
        logits = network(inputs)
        with torch.no_grad():
            target = F.softmax(teacher(inputs) / 4, dim=1)
        soft = F.kl_div(F.log_softmax(logits / 4, 1), target, reduction="batchmean")
        return 0.5 * F.cross_entropy(logits, batch.target), 2.0 * 16 * soft

    reference.train(student, losses, steps, **options)
    return copied(student)


def close(first: dict[str, Tensor], second: dict[str, Tensor], error: float) -> bool:
    assert first.keys() == second.keys()
    differences = [float((first[name] - second[name]).abs().max()) for name in first]
    return max(differences) < error


# -- the update ------------------------------------------------------------------------------------


def test_by_hand() -> None:
    weight = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimizer = DOT([weight], lr=0.1, momentum=0.9, delta=DELTA)
    for expected in (0.7, 0.1225):
        optimizer.zero_grad()
        hard = weight * 1.0
        soft = weight * 2.0
        split_backward(hard + soft, [hard], [soft], optimizer)
        optimizer.step()
        assert weight.item() == pytest.approx(expected, abs=1e-12)


def test_twenty_steps_of_a_fit_equal_the_reference() -> None:
    options: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "delta": DELTA}
    fit = fitted(partial(DOT, weight_decay=0.01, **options))
    assert close(fit, looped(decay=0.01, **options), 1e-12)
    # Without the difference of the momenta, the weights are others.
    options["delta"] = 0.0
    assert not close(fit, looped(decay=0.01, **options), 1e-4)


def test_without_delta_it_is_sgd_with_momentum() -> None:
    # In double precision, up to the order of additions.
    own = fitted(partial(DOT, lr=0.05, momentum=0.9, delta=0.0, weight_decay=0.01))
    sgd = fitted(partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01))
    assert close(own, sgd, 1e-12)


def test_two_micro_batches_equal_one_batch() -> None:
    optimizer = partial(DOT, lr=0.05, delta=DELTA)
    whole = fitted(optimizer, batch_size=64, steps=10)
    halves = fitted(optimizer, batch_size=32, steps=10, accumulate_grad_batches=2)
    assert close(whole, halves, 1e-12)


def test_each_gradient_is_clipped_by_itself() -> None:
    options: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "delta": DELTA}
    fit = fitted(partial(DOT, **options), gradient_clip_val=0.5)
    # torch adds 1e-6 to the norm.
    assert close(fit, looped(clip=0.5, **options), 1e-5)
    assert not close(fit, looped(**options), 1e-4)
    by_value = fitted(
        partial(DOT, **options),
        gradient_clip_val=0.01,
        gradient_clip_algorithm="value",
    )
    assert not close(by_value, fit, 1e-4)


def test_mixed_precision_unscales_both_gradients() -> None:
    torch.manual_seed(0)
    network = mlp().double()
    twin = copy.deepcopy(network)
    inputs = torch.randn(8, 1, 8, 8, dtype=torch.float64)
    results = []
    for each, scale in ((network, 1.0), (twin, 1024.0)):
        optimizer = DOT(each.parameters(), lr=0.05, delta=DELTA)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for _ in range(3):
            optimizer.zero_grad()
            hard = each(inputs).square().mean()
            soft = each(inputs).exp().mean()
            split_backward(scaler.scale(hard + soft), [hard], [soft], optimizer)
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        results.append(copied(each))
    assert close(results[0], results[1], 1e-12)
    # An overflow of the soft gradient alone skips the step.
    optimizer.zero_grad()
    hard = twin(inputs).square().mean()
    soft = twin(inputs).mean() * torch.inf
    split_backward(scaler.scale(hard + soft), [hard], [soft], optimizer)
    scaler.step(optimizer)
    assert same(copied(twin), results[1])


def test_parameters_of_one_kind_have_one_buffer_with_the_plain_momentum() -> None:
    both = nn.Parameter(torch.ones(2))
    adapter = nn.Parameter(torch.ones(2))
    head = nn.Parameter(torch.ones(2))
    frozen = nn.Parameter(torch.ones(2))
    optimizer = DOT([both, adapter, head, frozen], lr=0.1, momentum=0.9, delta=DELTA)
    copies = [
        parameter.detach().clone().requires_grad_() for parameter in (adapter, head)
    ]
    sgd = torch.optim.SGD(copies, lr=0.1, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        hard = (both * head).square().sum()
        soft = (both.detach() * adapter).square().sum() + both.sum()
        value = both.detach().clone()
        split_backward(hard + soft, [hard], [soft], optimizer)
        optimizer.step()
        sgd.zero_grad()
        (
            (value * copies[1]).square().sum() + (value * copies[0]).square().sum()
        ).backward()
        sgd.step()
    assert torch.allclose(adapter, copies[0])
    assert torch.allclose(head, copies[1])
    assert torch.equal(frozen, torch.ones(2))


def test_a_loss_that_has_ended_counts_as_zero() -> None:
    weight = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    optimizer = DOT([weight], lr=0.1, momentum=0.9, delta=DELTA)
    hard = weight * 1.0
    soft = weight * 2.0
    split_backward(hard + soft, [hard], [soft], optimizer)
    optimizer.step()
    optimizer.zero_grad()
    hard = weight * 1.0
    split_backward(hard, [hard], [], optimizer)
    optimizer.step()
    # 0.7, less 0.1 times the buffers 0.825 + 1 and 0.975 * 2.
    assert weight.item() == pytest.approx(0.7 - 0.1 * (1.825 + 1.95))


# -- in runs ---------------------------------------------------------------------------------------


def test_adapters_and_groups_train() -> None:
    layers = {"first": "body.0"}
    losses: dict[str, Any] = {"ce": CrossEntropy(), "hint": FitNets("first", "first")}
    teacher = ModelTeacher(network=mlp(32), layers=layers)
    module = distillation(
        losses, teacher, layers=layers, optimizer=partial(DOT, lr=0.01)
    )
    module.attach(DigitsDataModule())
    before = copied(module.losses)
    fit = trainer()
    fit.fit(module, datamodule=DigitsDataModule())
    assert not same(copied(module.losses), before)
    assert fit.callback_metrics["train_loss_hint"] > 0


def test_resume_is_bit_identical(tmp_path: Path) -> None:
    def module() -> DistillationModule:
        torch.manual_seed(0)
        return distillation(optimizer=partial(DOT, lr=0.05, delta=DELTA))

    whole = module()
    trainer(max_epochs=4).fit(whole, datamodule=ordered())
    first = module()
    run = trainer(max_epochs=2)
    run.fit(first, datamodule=ordered())
    run.save_checkpoint(tmp_path / "half.ckpt")
    second = module()
    trainer(max_epochs=4).fit(
        second, datamodule=ordered(), ckpt_path=str(tmp_path / "half.ckpt")
    )
    assert same(copied(whole.net), copied(second.net))
    # Without the buffers of either kind it is another training.
    content = torch.load(tmp_path / "half.ckpt", weights_only=True)
    state = content["optimizer_states"][0]["state"]
    assert len(state) == 2 * len(list(first.net.parameters()))


def test_kd_fit(tmp_path: Path, checkpoint: Path) -> None:
    teacher = f"--model.teacher.checkpoint={checkpoint}"
    files = [*KD_YAML, "optimizers/dot.yaml"]
    done = run_fit(tmp_path / "dot", files, teacher, FIXED_MOMENTUM)
    assert isinstance(done.module.trainer.optimizers[0], DOT)
    assert done.metrics["train_loss_kd"] > 0


def test_two_processes_equal_one(tmp_path: Path) -> None:
    one = two_processes.trained("dot", devices=1)
    assert close(one, two_processes.launched("dot", tmp_path / "two.pt"), 1e-9)


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("momentum", "delta"), [(0.9, 0.1), (0.9, -0.1), (0.05, 0.06), (0.9, float("nan"))]
)
def test_momenta_out_of_range(momentum: float, delta: float) -> None:
    weight = nn.Parameter(torch.zeros(1))
    line = complaint(lambda: DOT([weight], momentum=momentum, delta=delta))
    assert "momentum + delta must be in [0, 1)" in line


@pytest.mark.parametrize(
    ("losses", "missing"),
    [({"ce": CrossEntropy()}, "soft"), ({"kd": KD()}, "hard")],
)
def test_losses_of_one_kind(losses: dict[str, Any], missing: str) -> None:
    module = distillation(losses, optimizer=DOT)
    assert f"no loss is {missing}" in complaint(module.check_optimizer)
    fit = partial(trainer().fit, module, datamodule=DigitsDataModule())
    assert f"no loss is {missing}" in complaint(fit)


def test_a_scheduler_that_moves_the_momentum(tmp_path: Path, checkpoint: Path) -> None:
    teacher = f"--model.teacher.checkpoint={checkpoint}"
    files = [*KD_YAML, "optimizers/dot.yaml"]
    line = complaint(partial(run_fit, tmp_path / "dot", files, teacher))
    assert "cycle_momentum: false" in line

"""Students that teach each other: the steps of a plain loop, what is logged and kept, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.losses.at import AT
from kd_lightning.losses.base import DistillLoss
from kd_lightning.losses.ce import CrossEntropy
from kd_lightning.losses.dkd import DKD
from kd_lightning.losses.fitnets import FitNets
from kd_lightning.losses.kd import KD
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import MutualModule
from kd_lightning.training.dot import DOT
from kd_lightning.training.mutual import Peer
from kd_lightning.types import Batch, Output
from tests.reference import mutual as reference
from tests.training.small import complaint, copied, mlp, same, samples, trainer

STEPS = 20
Update = Literal["in turn", "together"]
UPDATES: list[Update] = ["in turn", "together"]


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def normalized(units: int) -> nn.Sequential:
    """A network with running statistics."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, units),
        nn.BatchNorm1d(units),
        nn.ReLU(),
        nn.Linear(units, 10),
    )


def networks(n: int, seed: int = 0) -> list[nn.Module]:
    torch.manual_seed(seed)
    return [normalized(8 + 4 * number) for number in range(n)]


def mutual(
    n: int = 2, losses: dict[str, DistillLoss] | None = None, **arguments: Any
) -> MutualModule:
    first, *others = arguments.pop("students", None) or networks(n)
    own: dict[str, DistillLoss] = {"ce": CrossEntropy(), "kd": KD(temperature=1.0)}
    return MutualModule(
        first, others, losses or own, **{"optimizer": momentum, **arguments}
    )


def batches_of(data: DigitsDataModule) -> list[tuple[Tensor, Tensor]]:
    pairs = []
    for batch in data.train_dataloader():
        assert isinstance(batch.inputs, Tensor)
        pairs.append((batch.inputs.double(), batch.target))
    return pairs[:STEPS]


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("n", [2, 3])
def test_a_fit_takes_the_steps_of_a_plain_loop(n: int, update: Update) -> None:
    data = DigitsDataModule(batch_size=48)
    module = mutual(n, update=update)
    expected = [copy.deepcopy(network).double() for network in module.students]
    fit = trainer(precision="64-true", limit_train_batches=STEPS, limit_val_batches=0)
    fit.fit(module, datamodule=data)
    assert fit.global_step == STEPS
    losses = reference.train(expected, batches_of(data), update == "in turn")
    for network, other in zip(module.students, expected, strict=True):
        for name, value in other.state_dict().items():
            assert torch.allclose(
                network.state_dict()[name], value, rtol=1e-9, atol=1e-12
            ), name
    for number in range(n):
        mean = sum(step[number] for step in losses) / STEPS
        name = "train_loss" if number == 0 else f"train_peer{number}_loss"
        assert float(fit.callback_metrics[name]) == pytest.approx(mean, rel=1e-6)


def test_the_orders_of_update_differ() -> None:
    data = DigitsDataModule(batch_size=48)
    batches = [(x, y) for x, y in batches_of(data)[:3]]
    first, second = networks(2), networks(2)
    reference.train([each.double() for each in first], batches, True)
    reference.train([each.double() for each in second], batches, False)
    assert not same(copied(first[1]), copied(second[1]))


def fixed(logits: list[list[float]]) -> nn.Module:
    """A network that gives the same logits to every sample."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))

        def forward(self, images: Tensor) -> Tensor:
            return self.logits.expand(len(images), -1)

    return Fixed()


def test_by_hand() -> None:
    # softmax(0, ln 3) = (1/4, 3/4), softmax(0, 0) = (1/2, 1/2), softmax(ln 3, 0) = (3/4, 1/4).
    log3 = torch.tensor(3.0).log().item()
    students = [fixed([[0.0, log3]]), fixed([[0.0, 0.0]]), fixed([[log3, 0.0]])]
    module = mutual(students=students)
    batch = Batch(torch.zeros(1, 1), torch.tensor([1]), torch.tensor([0]))
    outputs = [learner(batch).detached() for learner in module.learners]
    for objective in module.objectives:
        objective.begin_epoch(0)
    total, (ce, kd), _ = module.objective(
        module.learner(batch), tuple(outputs[1:]), batch
    )
    log2 = torch.tensor(2.0).log().item()
    # CE = ln(4/3); KL((1/2, 1/2) || own) = ln 2 - ln(3)/2; KL((3/4, 1/4) || own) = ln(3)/2.
    assert ce.item() == pytest.approx(2 * log2 - log3)
    assert kd.item() == pytest.approx(((log2 - log3 / 2) + log3 / 2) / 2)
    assert total.item() == pytest.approx(ce.item() + kd.item())


@pytest.mark.parametrize("update", UPDATES)
def test_no_gradient_reaches_a_peer(update: Update, data: DigitsDataModule) -> None:
    module = mutual(3, {"kd": KD(1.0)}, update=update)
    module.attach(data)
    module._checks_steps = False
    for objective in module.objectives:
        objective.begin_epoch(0)
    batch = samples(data, "train", 16)
    step = module.training_step(batch, 0)
    step.backward()
    trained = [
        any(p.grad is not None for p in network.parameters())
        for network in module.students
    ]
    assert trained == [True, update == "together", update == "together"]
    if update == "together":
        # Each student's gradient is that of its own loss against constants.
        outputs = [learner(batch) for learner in module.learners]
        kl = reference.kl_from(outputs[1].logits.detach(), outputs[0].logits)
        kl = kl + reference.kl_from(outputs[2].logits.detach(), outputs[0].logits)
        parameters = list(module.net.parameters())
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(kl / 2, parameters), strict=True
        ):
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, gradient, atol=1e-6)


def test_a_peer_predicts_as_in_training_and_leaves_no_trace(
    data: DigitsDataModule,
) -> None:
    module = mutual()
    module.attach(data)
    module.train()
    batch = samples(data, "train", 16)
    before = copied(module.net)
    prediction = Peer(module.learner)(batch).logits
    assert not prediction.requires_grad
    assert same(copied(module.net), before)
    assert torch.equal(module.learner(batch).logits, prediction)
    assert not same(copied(module.net), before)


@pytest.mark.parametrize("n", [2, 3])
def test_any_response_loss_can_take_the_place_of_kl(
    n: int, data: DigitsDataModule
) -> None:
    module, fit = mutual(n, {"ce": CrossEntropy(), "dkd": DKD()}), trainer()
    fit.fit(module, datamodule=data)
    assert float(fit.callback_metrics[f"train_peer{n - 1}_loss_dkd"]) > 0


def test_losses_on_layers_have_adapters_for_each_student(
    data: DigitsDataModule,
) -> None:
    layers = {"hidden": "3"}
    module = mutual(2, {"fitnets": FitNets("hidden", "hidden")}, layers=layers)
    trainer(limit_train_batches=3).fit(module, datamodule=data)
    names = [name for name in module.state_dict() if "losses" in name]
    assert any(name.startswith("losses.fitnets") for name in names)
    assert any(name.startswith("peer_losses.0.fitnets") for name in names)
    three = mutual(3, {"fitnets": FitNets("hidden", "hidden")}, layers=layers)
    assert "'fitnets' has adapters" in complaint(lambda: three.attach(data))


def test_each_student_is_evaluated(data: DigitsDataModule) -> None:
    module, fit = mutual(3), trainer()
    fit.fit(module, datamodule=data)
    batch = samples(data, "validation")
    names = ["val_accuracy", "val_peer1_accuracy", "val_peer2_accuracy"]
    assert set(names) <= set(module.metric_names("val"))
    assert set(module.metric_names("val")) <= set(fit.callback_metrics)
    assert set(module.loss_names()) <= set(fit.callback_metrics)
    for name, network in zip(names, module.students, strict=True):
        predicted = network.eval()(batch.inputs).argmax(1)
        expected = float((predicted == batch.target).float().mean())
        assert float(fit.callback_metrics[name]) == pytest.approx(expected)
    fit.test(module, datamodule=data, verbose=False)
    assert {"test_accuracy", "test_peer2_accuracy"} <= set(fit.callback_metrics)


def test_the_checkpoint_holds_all_students(
    data: DigitsDataModule, tmp_path: Path
) -> None:
    module, fit = mutual(3), trainer(limit_train_batches=3)
    fit.fit(module, datamodule=data)
    path = tmp_path / "students.ckpt"
    fit.save_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    prefixes = {name.rpartition(".")[0].rpartition(".")[0] for name in state}
    assert prefixes == {"student", "peers.0", "peers.1"}
    loaded = mutual(3, students=networks(3, seed=1))
    trainer().test(loaded, data, ckpt_path=path, verbose=False)
    for network, other in zip(module.students, loaded.students, strict=True):
        assert same(copied(network), copied(other))
    # The exported network is the first student.
    teacher = ModelTeacher(str(path), network=networks(1)[0])
    teacher.prepare(data)
    assert teacher.network is not None
    assert same(copied(teacher.network), copied(module.net))
    fewer = mutual(2)
    assert "holds 3 students, this run has 2" in complaint(
        lambda: trainer().test(fewer, data, ckpt_path=path, verbose=False)
    )


@pytest.mark.parametrize("update", UPDATES)
def test_a_resumed_fit_is_the_uninterrupted_one(update: Update, tmp_path: Path) -> None:
    saves = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=7)

    def fit(ckpt: Path | None = None, **changes: Any) -> MutualModule:
        torch.manual_seed(0)
        students = [mlp(8, dropout=0.3), mlp(12, dropout=0.3)]
        module = mutual(students=students, update=update)
        run = trainer(max_epochs=2, **changes)
        run.fit(module, datamodule=DigitsDataModule(), ckpt_path=ckpt)
        return module

    whole = fit(enable_checkpointing=True, callbacks=[saves])
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert len(paths) >= 2
    for path in paths:
        assert same(copied(fit(path)), copied(whole))


def test_clipping_is_per_student(data: DigitsDataModule) -> None:
    def plain(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=1.0)

    module = mutual(2, update="together", optimizer=plain)
    before = [copied(network) for network in module.students]
    trainer(gradient_clip_val=0.01, limit_train_batches=1).fit(module, datamodule=data)
    for network, earlier in zip(module.students, before, strict=True):
        squares = [
            (p.detach() - earlier[name]).square().sum()
            for name, p in network.named_parameters()
        ]
        assert torch.stack(squares).sum().sqrt().item() == pytest.approx(0.01, rel=1e-3)


# -- what is refused ----------------------------------------------------------------------------------


def test_one_student_is_refused() -> None:
    message = complaint(lambda: mutual(1))
    assert message == (
        "mutual learning needs at least two students; name the others in model.peers"
    )


def test_a_peer_for_other_classes_is_refused(data: DigitsDataModule) -> None:
    module = mutual(students=[mlp(), mlp(classes=7)])
    assert "peer 1 MLP gives outputs of shape [7]" in complaint(
        lambda: module.attach(data)
    )


def test_equal_students_are_refused(data: DigitsDataModule) -> None:
    first = mlp()
    module = mutual(students=[first, mlp(), copy.deepcopy(first)])
    assert "students 1 and 3 start with the same weights" in complaint(
        lambda: module.attach(data)
    )


def test_bad_arguments_are_refused(data: DigitsDataModule) -> None:
    assert "'both'" in complaint(lambda: mutual(update="both"))
    assert "peer_layers" in complaint(lambda: mutual(3, peer_layers=[{}]))
    gathering = trainer(accumulate_grad_batches=2)
    assert "--model.update=together" in complaint(
        lambda: gathering.fit(mutual(), datamodule=data)
    )
    module = mutual(2, {"at": AT(["map"])})
    assert "'map'" in complaint(lambda: module.attach(data))


def test_an_optimizer_for_two_gradients_is_refused() -> None:
    module = mutual()
    module.optimizer = lambda parameters: DOT(parameters, lr=0.1)
    with pytest.raises(UserError, match="DOT updates one student"):
        module.check_optimizer()


def test_a_loss_that_is_not_finite_names_its_student(data: DigitsDataModule) -> None:
    class Broken(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images.flatten(1))
            return logits * float("nan") if self.training else logits

    module = mutual(2, {"ce": CrossEntropy()}, students=[mlp(), Broken(64, 10)])
    message = complaint(lambda: trainer().fit(module, datamodule=data))
    assert "the loss of student 2 became nan" in message
    assert "student's logits" in message


def test_accumulated_gradients_reach_all_students(data: DigitsDataModule) -> None:
    module = mutual(2, update="together")
    before = [copied(network) for network in module.students]
    trainer(accumulate_grad_batches=2).fit(module, datamodule=data)
    for network, earlier in zip(module.students, before, strict=True):
        assert not same(copied(network), earlier)


def test_several_teachers_in_a_plain_loop() -> None:
    module = mutual(3)
    batch = Batch(torch.rand(4, 1, 8, 8), torch.arange(4), torch.arange(4))
    outputs: tuple[Output, ...] = tuple(each(batch) for each in module.learners[1:])
    module.objective.begin_epoch(0)
    student = module.learner(batch)
    value = module.objective(student, outputs, batch).total
    logits = [output.logits for output in outputs]
    assert torch.allclose(
        value, reference.loss_of(student.logits, logits, batch.target)
    )

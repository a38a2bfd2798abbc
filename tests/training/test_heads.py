"""Networks that return something else in training, or have several heads."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.losses import CrossEntropy, FitNets
from kd_lightning.runs.parsing import parse_config
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import ClassifierModule
from tests.runs import PAIR
from tests.training.small import complaint, copied, distillation, mlp, same, trainer

Outputs = namedtuple("Outputs", ["logits", "aux_logits"])


class TwoHeads(nn.Module):
    """Two heads in training, and what `evaluate` makes of both in evaluation."""

    def __init__(self, evaluate: str = "first", kind: Any = Outputs) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.2)
        )
        self.head = nn.Linear(8, 10)
        self.aux = nn.Linear(8, 10)
        self.evaluate = evaluate
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        hidden = self.body(x)
        if self.training:
            return self.kind(self.head(hidden), self.aux(hidden))
        first: Tensor = self.head(hidden)
        return first if self.evaluate == "first" else (first + self.aux(hidden)) / 2


def pair(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    return first, second


def fit(module: Any) -> None:
    trainer(limit_train_batches=2).fit(module, datamodule=DigitsDataModule())


def test_a_head_without_a_loss_is_refused() -> None:
    module = ClassifierModule(TwoHeads())
    message = complaint(lambda: module.attach(DigitsDataModule()))
    assert (
        "the network TwoHeads returns another head in training (aux_logits)" in message
    )
    assert "--model.outputs=logits" in message


def test_a_tuple_of_heads_is_refused_before_training() -> None:
    message = complaint(
        lambda: ClassifierModule(TwoHeads(kind=pair)).attach(DigitsDataModule())
    )
    assert "0 [10], 1 [10]" in message
    assert "--model.outputs=ENTRY" in message


@pytest.mark.parametrize(("outputs", "kind"), [("logits", Outputs), (0, pair)])
def test_the_setting_leaves_a_head_untrained(outputs: int | str, kind: Any) -> None:
    network = TwoHeads(kind=kind)
    before = copied(network)
    fit(ClassifierModule(network, outputs=outputs))
    after = copied(network)
    assert torch.equal(before["aux.weight"], after["aux.weight"])
    assert not torch.equal(before["head.weight"], after["head.weight"])


def test_a_head_that_evaluation_uses_must_be_trained() -> None:
    network = TwoHeads(evaluate="mean", kind=pair)
    message = complaint(
        lambda: ClassifierModule(network, outputs=0).attach(DigitsDataModule())
    )
    assert (
        "predicts in evaluation with a head that no loss trains (aux.bias, aux.weight)"
        in message
    )


@pytest.mark.parametrize("evaluate", ["first", "mean"])
def test_a_head_with_a_loss_of_its_own_is_trained(evaluate: str) -> None:
    network = TwoHeads(evaluate=evaluate)
    before = copied(network)
    losses: dict[str, Any] = {
        "ce": CrossEntropy(),
        "aux": CrossEntropy(head="aux", weight=0.3),
    }
    fit(ClassifierModule(network, losses, layers={"aux": "aux"}))
    assert not torch.equal(before["aux.weight"], copied(network)["aux.weight"])


def test_the_trial_in_training_mode_changes_nothing() -> None:
    network = TwoHeads(evaluate="first")
    network.body[3].eval()  # frozen by its owner
    before = copied(network)
    state = torch.get_rng_state()
    ClassifierModule(network, outputs="logits").attach(DigitsDataModule())
    assert torch.equal(state, torch.get_rng_state())
    assert same(before, copied(network))
    assert network.training
    assert not network.body[3].training


class FailsInTraining(nn.Linear):
    """Works in evaluation alone."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("kernel size can't be greater than input size")
        return super().forward(x.flatten(1))


def test_a_failure_in_training_is_found_before() -> None:
    module = distillation(student=FailsInTraining(64, 10))
    message = complaint(lambda: module.attach(DigitsDataModule()))
    assert message.startswith(
        "the student FailsInTraining fails in training on inputs of shape"
    )
    assert message.endswith("kernel size can't be greater than input size")


class Wrapped(nn.Module):
    """Returns two tensors in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.network = mlp()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits: Tensor = self.network(x)
        return torch.zeros(len(x), 3), logits


def test_the_teacher_has_a_setting_of_its_own() -> None:
    module = distillation(teacher=ModelTeacher(network=Wrapped()))
    message = complaint(lambda: module.attach(DigitsDataModule()))
    assert message.startswith("the teacher returned 2 entries")
    assert message.endswith("--model.teacher.outputs=ENTRY")
    fit(distillation(teacher=ModelTeacher(network=Wrapped(), outputs=1)))


def test_a_role_without_a_layer_names_network_option_and_candidates() -> None:
    losses: dict[str, Any] = {"ce": CrossEntropy(), "aux": CrossEntropy(head="aux")}
    module = distillation(losses, student=TwoHeads())
    message = complaint(lambda: module.attach(DigitsDataModule()))
    assert message == (
        "the student TwoHeads: a loss reads the role 'aux', which no layer is named for (named "
        "roles: none); set --model.layers='{aux: MODULE}' with a module such as body, head, aux"
    )


def test_a_role_that_the_teacher_lacks() -> None:
    losses: dict[str, Any] = {"ce": CrossEntropy(), "hint": FitNets("first", "first")}
    module = distillation(losses, layers={"first": "body.1"})
    message = complaint(lambda: module.attach(DigitsDataModule()))
    assert message.startswith("the teacher MLP: a loss reads the role 'first'")
    assert "set --model.teacher.layers='{first: MODULE}'" in message
    assert message.endswith("such as body, head")


def test_the_settings_on_a_command_line() -> None:
    config = parse_config(
        [*PAIR, "--model.outputs=logits", "--model.teacher.outputs=1"]
    )
    arguments = config["model"]["init_args"]
    assert arguments["outputs"] == "logits"
    assert arguments["teacher"]["init_args"]["outputs"] == 1

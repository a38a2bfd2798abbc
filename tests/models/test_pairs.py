"""The pairs of the CIFAR-100 benchmark: networks, recipes and roles of each config."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from kd_lightning.data import DigitsDataModule
from kd_lightning.features import Taps, find_layer, run_network
from kd_lightning.losses import DistillLoss, Probe
from kd_lightning.networks import build_network
from kd_lightning.runs.parsing import parse_config
from kd_lightning.teachers import ModelTeacher
from kd_lightning.training import DistillationModule
from kd_lightning.types import Batch, Output
from tests.models.test_cifar_networks import NETWORKS
from tests.training.small import CONFIGS, last, run_fit, samples

BENCHMARK = {
    "wrn40-2_wrn16-2": 0.05,
    "wrn40-2_wrn40-1": 0.05,
    "resnet56_resnet20": 0.05,
    "resnet110_resnet20": 0.05,
    "resnet110_resnet32": 0.05,
    "resnet32x4_resnet8x4": 0.05,
    "vgg13_vgg8": 0.05,
    "vgg13_mobilenetv2": 0.01,
    "resnet50_mobilenetv2": 0.01,
    "resnet50_vgg8": 0.05,
    "resnet32x4_shufflenetv1": 0.01,
    "resnet32x4_shufflenetv2": 0.01,
    "wrn40-2_shufflenetv1": 0.01,
}
"""The thirteen pairs and the initial learning rate of each student (Tian et al. 2020)."""

PAIRS = [*BENCHMARK, "resnet20_resnet8"]
TEACHERS = sorted({name.partition("_")[0] for name in PAIRS})

ROLES = {
    *("stem", "stage1", "stage2", "stage3"),
    *("preact1", "preact2", "preact3"),
    *("map", "penultimate", "head"),
}
NORMS = {"norm1", "norm2", "norm3"}
"""The batch norms before the ReLU of each stage: of teachers alone."""
FOUR = ("vgg", "mobilenet", "resnet50")
"""Networks with four stages."""

_networks: dict[str, nn.Module] = {}
_configs: dict[str, dict[str, Any]] = {}


def parsed(name: str) -> dict[str, Any]:
    """The resolved config of a pair with the KD loss, cached per pair."""
    if name not in _configs:
        files = [
            "trainer.yaml",
            "data/digits.yaml",
            f"pairs/{name}.yaml",
            "methods/kd.yaml",
        ]
        _configs[name] = parse_config(
            ["fit", *(word for file in files for word in ("-c", str(CONFIGS / file)))]
        )
    return _configs[name]


def teacher_config(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(
        (CONFIGS / "teachers" / f"cifar_{name}.yaml").read_text()
    )
    return content


def built(name: str, config: dict[str, Any]) -> nn.Module:
    """The network of a config for CIFAR-100 on the meta device: it computes shapes only."""
    if name not in _networks:
        shapes = {"input_shape": [3, 32, 32], "num_classes": 100}
        with torch.device("meta"):
            _networks[name] = build_network(
                {**config, "init_args": {**config.get("init_args", {}), **shapes}}
            )
    return _networks[name]


def assert_is(network: nn.Module, name: str) -> None:
    """The number of parameters identifies the network."""
    assert sum(p.numel() for p in network.parameters()) == NETWORKS[name][1]


def assert_mapped(name: str, network: nn.Module, layers: dict[str, str]) -> None:
    """Every role exists, and its features have the expected kind of shape."""
    norms = set(layers) & (NORMS | {"norm4"})
    fourth = {"stage4", "preact4"} if name.startswith(FOUR) else set()
    assert set(layers) - norms == ROLES | fourth
    blank = torch.zeros(2, 3, 32, 32, device="meta")
    features = run_network(network, blank, Taps(network, layers, set(layers))).features
    maps = [
        features[role].shape
        for role in (
            "stem",
            *sorted(role for role in layers if role.startswith("stage")),
        )
    ]
    assert all(len(shape) == 4 for shape in maps)
    stages = [role.removeprefix("stage") for role in layers if role.startswith("stage")]
    for stage in stages:
        assert features[f"preact{stage}"].shape == features[f"stage{stage}"].shape
        if norms:
            norm = find_layer(network, layers[f"norm{stage}"])
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.num_features == features[f"stage{stage}"].shape[1]
    channels = network.get_submodule("head").in_features
    assert features["map"].shape[1] == channels
    sizes = [shape[-1] for shape in maps]
    assert sizes == sorted(sizes, reverse=True)
    assert features["penultimate"].shape == (2, channels)
    assert features["head"].shape == (2, 100)


def test_every_pair_and_teacher_is_tested() -> None:
    """A config that is missing in the lists above would not be tested."""
    contents = {
        path.stem: yaml.safe_load(path.read_text())
        for path in (CONFIGS / "pairs").glob("*.yaml")
    }
    students = {
        name: content["model"]["init_args"]["student"]["class_path"]
        for name, content in contents.items()
    }
    classes = ("kd_lightning.models.CIFAR", "kd_lightning.models.WideResNet")
    assert sorted(
        name for name, student in students.items() if student.startswith(classes)
    ) == sorted(PAIRS)
    assert (
        sorted(
            path.stem.removeprefix("cifar_")
            for path in (CONFIGS / "teachers").glob("cifar_*.yaml")
        )
        == TEACHERS
    )


@pytest.mark.parametrize("name", PAIRS)
def test_networks_and_roles_of_a_pair(name: str) -> None:
    teacher_name, student_name = name.split("_")
    arguments = parsed(name)["model"]["init_args"]
    student = built(student_name, arguments["student"])
    teacher = built(
        teacher_name, teacher_config(teacher_name)["model"]["init_args"]["network"]
    )
    assert_is(student, student_name)
    assert_is(teacher, teacher_name)
    assert_mapped(student_name, student, arguments["layers"])
    assert arguments["teacher"]["class_path"] == "kd_lightning.teachers.ModelTeacher"
    # The checkpoint defines the network: a configured network could be used without its weights.
    assert arguments["teacher"]["init_args"]["network"] is None
    assert_mapped(teacher_name, teacher, arguments["teacher"]["init_args"]["layers"])


def assert_recipe(arguments: dict[str, Any], rate: float, epochs: int) -> None:
    optimizer, scheduler = arguments["optimizer"], arguments["scheduler"]
    expected = {"lr": rate, "momentum": 0.9, "weight_decay": 5e-4}
    assert optimizer["class_path"] == "torch.optim.SGD"
    assert {name: optimizer["init_args"][name] for name in expected} == expected
    assert not optimizer["init_args"].get("nesterov")
    assert epochs == 240
    # Learning rate per epoch: divided by ten after 150, 180 and 210 epochs.
    module, _, factory = scheduler["class_path"].rpartition(".")
    assert module == "torch.optim.lr_scheduler"
    parameters = [nn.Parameter(torch.zeros(1))]
    sgd = torch.optim.SGD(parameters, lr=rate)
    schedule = getattr(torch.optim.lr_scheduler, factory)(sgd, **scheduler["init_args"])
    rates = []
    for _ in range(epochs):
        rates.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()
    assert rates == pytest.approx(
        [rate] * 150 + [rate / 10] * 30 + [rate / 100] * 30 + [rate / 1000] * 30
    )


@pytest.mark.parametrize("name", BENCHMARK)
def test_recipe_of_a_pair(name: str) -> None:
    config = parsed(name)
    assert_recipe(
        config["model"]["init_args"], BENCHMARK[name], config["trainer"]["max_epochs"]
    )


@pytest.mark.parametrize("name", [name for name in TEACHERS if name != "resnet20"])
def test_recipe_of_a_teacher(name: str) -> None:
    config = teacher_config(name)
    assert_recipe(config["model"]["init_args"], 0.05, config["trainer"]["max_epochs"])


class Reader(DistillLoss):
    """Reads every role of both networks and records the shapes from `build`."""

    seen: tuple[dict[str, torch.Size], ...] = ()

    @property
    def student_roles(self) -> set[str]:
        return ROLES

    @property
    def teacher_roles(self) -> set[str]:
        return ROLES

    def build(self, student: Probe, teacher: Probe | None) -> None:
        assert teacher is not None
        self.seen = tuple(
            {role: f.shape for role, f in probe.output.features.items()}
            for probe in (student, teacher)
        )

    def forward(
        self, student: Output, teacher: Output | None, batch: Batch
    ) -> torch.Tensor:
        assert teacher is not None
        return (
            (student.features["penultimate"] - teacher.features["penultimate"])
            .square()
            .mean()
        )


def test_a_pair_trains_from_its_teachers_checkpoint(tmp_path: Path) -> None:
    few = [
        "--data.channels=3",
        "--trainer.limit_train_batches=2",
        "--trainer.limit_val_batches=1",
        "--run.test=no",
    ]
    teacher = run_fit(tmp_path / "teacher", ["teachers/cifar_resnet20.yaml"], *few)
    configs = ["pairs/resnet20_resnet8.yaml", "methods/dkd.yaml"]
    run = run_fit(
        tmp_path / "student",
        configs,
        *few,
        f"--model.teacher.checkpoint={last(teacher)}",
    )
    assert math.isfinite(run.metrics["train_loss_dkd"])
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] + run.metrics["train_loss_dkd"] / 20, rel=1e-5
    )
    assert isinstance(run.module, DistillationModule)
    # A loss can read every role of both networks, and its gradient reaches the student.
    arguments = parsed("resnet20_resnet8")["model"]["init_args"]
    source = ModelTeacher(
        str(last(teacher)), layers=arguments["teacher"]["init_args"]["layers"]
    )
    reader, student = Reader(), run.module.net
    module = DistillationModule(
        student, source, {"reader": reader}, layers=arguments["layers"]
    )
    data = DigitsDataModule(channels=3)
    module.attach(data)
    assert [set(shapes) for shapes in reader.seen] == [ROLES, ROLES]
    assert (
        reader.seen[0] == reader.seen[1]
    )  # same channels and sizes; only the depth differs
    batch = samples(data, "train", 4)
    output = module.learner(batch)
    torch.autograd.backward(reader(output, module.teacher(batch), batch))
    assert all(
        p.grad is not None
        for name, p in student.named_parameters()
        if not name.startswith("head")
    )

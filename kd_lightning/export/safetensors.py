"""The network's weights alone, with a description from which it can be built again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kd_lightning import tasks
from kd_lightning.data.images.normalization import PixelNormalization
from kd_lightning.errors import UserError
from kd_lightning.export.deployed import DeployedNetwork
from kd_lightning.export.formats import Format, Predictor
from kd_lightning.export.student import TrainedStudent
from kd_lightning.networks import build_network
from kd_lightning.outputs import Reading
from kd_lightning.tasks.base import Task
from kd_lightning.training.learner import Learner
from kd_lightning.values import Values
from kd_lightning.weights import KEY, load_file_weights, read_file
from kd_lightning.weights.reading import EXPORTED_WEIGHTS

_Part = TypeVar("_Part")

DEPLOYMENT = "deployment"
"""The entry of the file's header that says what belongs around the network."""


class Safetensors(Format):
    """Weights by the network's own names, and the class and arguments of the network.

    The folder is a valid `model.teacher.checkpoint` and `model.init_from`.
    """

    file: ClassVar[str] = EXPORTED_WEIGHTS

    def __init__(self) -> None:
        # Of the student that was written: no file describes code of the user's own.
        self._task: Task | None = None
        self._preprocessing: nn.Module | None = None

    def write(self, student: TrainedStudent, folder: Path) -> None:
        # The file would hold the network alone and predict something else than the
        # student.
        if student.module.objective.predicts:
            raise UserError(
                "this student predicts through an adapter of its loss, which is no "
                "part of its "
                "network; use --format torch-export or onnx"
            )
        # `read` builds the network from its class and arguments.
        if not student.described["network"]:
            raise UserError(
                "the checkpoint does not name its network's class, because the network "
                "was built "
                "in Python; use --format torch-export or onnx"
            )
        described = {
            **student.described,
            "role": "network",
            "teacher": [],
        }
        weights = {}
        for name, tensor in student.module.net.state_dict().items():
            # A copy: tied weights share memory, which the format does not allow.
            weights[name] = tensor.detach().cpu().contiguous().clone()
        header = {
            KEY: json.dumps(described),
            DEPLOYMENT: json.dumps(_deployment(student)),
        }
        save_file(weights, folder / self.file, metadata=header)
        self._task = student.datamodule.task
        self._preprocessing = student.datamodule.preprocessing()

    def read(self, folder: Path) -> Predictor:
        owner = f"the export {folder}"
        with safe_open(folder / self.file, framework="pt") as opened:
            header = opened.metadata() or {}
        # Without it, the network would read inputs that are not normalized.
        if DEPLOYMENT not in header:
            raise UserError(
                f"{owner} was written by an older version, which stored no "
                "preprocessing; export "
                "the run again"
            )
        deployment: Values = json.loads(header[DEPLOYMENT])
        network = read_network(folder)
        reading = Reading(cast("int | str | None", deployment["outputs"]))
        learner = Learner(network.eval(), reading=reading)
        # The file does not describe the user's own code; use that of the written
        # student.
        task = _task_named(str(deployment["task"])) or _own(self._task, owner)
        preprocessing = _described_preprocessing(deployment)
        preprocessing = preprocessing or _own(self._preprocessing, owner)
        input_names = cast(Sequence[str], deployment["inputs"])
        deployed = DeployedNetwork(learner, None, task, preprocessing, input_names)
        deployed.eval()

        def predict(raw: tuple[Tensor, ...]) -> Tensor:
            with torch.no_grad():
                probabilities: Tensor = deployed(*raw)
            return probabilities

        return predict

    def example(self, student: TrainedStudent) -> str:
        network = student.described["network"] or {}
        module, _, name = str(network["class_path"]).rpartition(".")
        arguments: dict[str, object] = {}
        # Arguments of the signature, and those that it takes as **kwargs.
        for part in ("init_args", "dict_kwargs"):
            given = cast(Mapping[str, object], network.get(part) or {})
            arguments.update(given)
        return "\n".join(
            [
                f'"""Loads the weights into the network. Needs torch, safetensors and {module}."""',
                "",
                "from pathlib import Path",
                "",
                "from safetensors.torch import load_file",
                "",
                f"from {module} import {name}",
                "",
                f"network = {name}(**{arguments!r})",
                f'weights = load_file(Path(__file__).with_name("{self.file}"))',
                "network.load_state_dict(weights)",
                "network.eval()",
                "print(sum(parameter.numel() for parameter in network.parameters()))",
                "",
            ]
        )


def read_network(folder: Path) -> nn.Module:
    """The exported network alone, in eval mode.

    Args:
        folder: of the export.

    Raises:
        UserError: if it cannot be read.
    """
    owner = f"the export {folder}"
    content = read_file(folder, owner)
    network = build_network(content[KEY]["network"])
    load_file_weights(network, content, owner)
    return network.eval()


def _deployment(student: TrainedStudent) -> Values:
    """What belongs around the network: task, inputs and preprocessing."""
    preprocessing = student.datamodule.preprocessing()
    # Three cases: no preprocessing, one that values describe, and code of the user's
    # own.
    described: Values | None = None
    if isinstance(preprocessing, nn.Identity):
        described = {}
    elif isinstance(preprocessing, PixelNormalization):
        described = {
            "mean": preprocessing.mean.tolist(),
            "std": preprocessing.std.tolist(),
            "channels": preprocessing.channels,
        }
    return {
        "task": student.spec.task,
        "inputs": list(student.input_names),
        "outputs": student.module.learner.reading.entry,
        "preprocessing": described,
    }


def _described_preprocessing(deployment: Values) -> nn.Module | None:
    """The preprocessing in values; `None` if it is code of the user's own."""
    described = deployment["preprocessing"]
    if described is None:
        return None
    pixels = cast(Values, described)
    # An empty entry means inputs that need no preprocessing.
    if not pixels:
        return nn.Identity()
    return PixelNormalization(
        cast(Sequence[float], pixels["mean"]),
        cast(Sequence[float], pixels["std"]),
        cast(int, pixels["channels"]),
    )


def _task_named(name: str) -> Task | None:
    """The task of that name, with its default options: they change metrics only."""
    for candidate in tasks.__all__:
        task_class = getattr(tasks, candidate)
        if task_class is not Task and task_class.name == name:
            task: Task = task_class()
            return task
    return None


def _own(part: _Part | None, owner: str) -> _Part:
    if part is None:
        raise UserError(
            f"{owner} needs code of its own, which weights do not contain; export the "
            "run with "
            "--format torch-export or onnx"
        )
    return part

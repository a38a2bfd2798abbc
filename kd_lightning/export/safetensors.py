"""The network's weights alone, with a description from which it can be built again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.export.deployed import DeployedNetwork
from kd_lightning.export.formats import Format, Predictor
from kd_lightning.export.student import TrainedStudent
from kd_lightning.networks import build_network
from kd_lightning.training.learner import Learner
from kd_lightning.weights import KEY, load_file_weights, read_file
from kd_lightning.weights.reading import EXPORTED_WEIGHTS


class Safetensors(Format):
    """Weights by the network's own names; the file's header names its class and arguments.

    The folder is a valid `model.teacher.checkpoint` and `model.init_from`.
    """

    file: ClassVar[str] = EXPORTED_WEIGHTS

    def __init__(self) -> None:
        self._student: TrainedStudent | None = None

    def write(self, student: TrainedStudent, folder: Path) -> None:
        if student.module.objective.predicts:
            raise UserError(
                "this student predicts through an adapter of its loss, which is no part of its "
                "network; use --format torch-export or onnx"
            )
        if not student.described["network"]:
            raise UserError(
                "the checkpoint does not name its network's class, because the network was built "
                "in Python; use --format torch-export or onnx"
            )
        # Checked by `read`, which needs the data's preprocessing.
        self._student = student
        described = {
            **student.described,
            "role": "network",
            "teacher": [],
        }
        weights = {}
        for name, tensor in student.module.net.state_dict().items():
            # A copy: tied weights share memory, which the format does not allow.
            weights[name] = tensor.detach().cpu().contiguous().clone()
        header = {KEY: json.dumps(described)}
        save_file(weights, folder / self.file, metadata=header)

    def read(self, folder: Path) -> Predictor:
        assert self._student is not None, "write() comes first"
        owner = f"the export {folder}"
        content = read_file(folder, owner)
        network = build_network(content[KEY]["network"])
        load_file_weights(network, content, owner)
        module = self._student.module
        deployed = DeployedNetwork(
            Learner(network.eval(), reading=module.learner.reading),
            None,
            self._student.datamodule.task,
            self._student.datamodule.preprocessing(),
            self._student.input_names,
        )
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

"""The interface of a file format, and the formats by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.export.student import TrainedStudent

Predictor = Callable[[tuple[Tensor, ...]], Tensor]
"""From the raw inputs of a batch to its probabilities."""

FORMATS: Mapping[str, str] = {
    "safetensors": "kd_lightning.export.safetensors.Safetensors",
    "torch-export": "kd_lightning.export.torch_export.TorchExport",
    "onnx": "kd_lightning.export.onnx.Onnx",
    "aoti": "kd_lightning.export.aoti.Aoti",
    "transformers": "kd_lightning.export.transformers_folder.TransformersFolder",
}
"""The class of each format. A format imports its libraries only if it is used."""

TRACED_SAMPLES = 2
"""A batch of one would make the exported graph accept batches of one only."""


class Format(ABC):
    """Writes a deployed network to a folder, and reads it back.

    Attributes:
        file: name of the file that holds the network.
        library: that loads the file, as model hubs call it.
        tolerance: the largest difference of a probability from the checkpoint's that is accepted.
    """

    file: ClassVar[str]
    library: ClassVar[str] = "kd_lightning"
    tolerance: ClassVar[float] = 1e-5

    @abstractmethod
    def write(self, student: TrainedStudent, folder: Path) -> None:
        """Write the network, with what is needed to use it, to a folder.

        Raises:
            UserError: if the network cannot be written in this format.
        """

    @abstractmethod
    def read(self, folder: Path) -> Predictor:
        """Read what `write` wrote, from the files alone."""

    @abstractmethod
    def example(self, student: TrainedStudent) -> str:
        """A short Python program that runs the exported network."""


def find_format(name: str) -> Format:
    """The format of that name.

    Raises:
        UserError: if there is none, or a library that it needs is not installed.
    """
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}; valid formats: {', '.join(FORMATS)}")
    module, _, class_name = FORMATS[name].rpartition(".")
    try:
        # Imported by name: each format needs other optional packages.
        found: type[Format] = getattr(import_module(module), class_name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"--format {name} needs the package {error.name}; install it with "
            "pip install 'kd_lightning[export]'"
        ) from error
    return found()


def predictor_of(network: Callable[..., Tensor]) -> Predictor:
    """A network of PyTorch, called without gradients.

    Args:
        network: takes the raw inputs of a batch one by one and returns its probabilities.
    """

    def predict(raw: tuple[Tensor, ...]) -> Tensor:
        with torch.no_grad():
            return network(*raw)

    return predict


def traced_program(student: TrainedStudent) -> torch.export.ExportedProgram:
    """The graph of the deployed network, for batches of any size.

    Raises:
        UserError: if torch cannot trace the network.
    """
    samples = student.raw_inputs("test", torch.arange(TRACED_SAMPLES))
    # Dimension 0 is the batch; the others keep the sizes of the samples.
    axes = tuple({0: torch.export.Dim.AUTO} for _ in samples)
    try:
        with torch.no_grad():
            return torch.export.export(
                student.deployed(), samples, dynamic_shapes=(axes,)
            )
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise UserError(
            f"torch.export cannot trace {type(student.module.net).__name__} ({reason}); "
            "--format safetensors exports its weights"
        ) from error

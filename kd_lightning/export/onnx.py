"""The network as an ONNX file, for onnxruntime and the many programs that read the format."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import onnx
import onnxruntime
import onnxscript  # noqa: F401 - torch's exporter needs it, and would fail much later
import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.export.examples import example_inputs
from kd_lightning.export.formats import Format, Predictor, traced_program
from kd_lightning.export.metadata import description
from kd_lightning.export.student import TrainedStudent

OUTPUT = "probabilities"


class Onnx(Format):
    """An ONNX file that contains the preprocessing, the names of the classes and the data's spec."""

    file: ClassVar[str] = "student.onnx"

    def write(self, student: TrainedStudent, folder: Path) -> None:
        program = traced_program(student)
        path = folder / self.file
        try:
            with _silent():
                torch.onnx.export(
                    program,
                    f=path,
                    dynamo=True,
                    input_names=list(student.input_names),
                    output_names=[OUTPUT],
                    external_data=False,
                )
        except Exception as error:
            lines = str(error).strip().splitlines()
            reason = lines[0] if lines else type(error).__name__
            raise UserError(
                f"{type(student.module.net).__name__} cannot be written as ONNX ({reason}); "
                "use --format torch-export or safetensors"
            ) from error
        add_metadata(path, student)

    def read(self, folder: Path) -> Predictor:
        session = onnxruntime.InferenceSession(
            folder / self.file, providers=["CPUExecutionProvider"]
        )
        names = [described.name for described in session.get_inputs()]

        def predict(raw: tuple[Tensor, ...]) -> Tensor:
            # ONNX Runtime reads inputs by name, as NumPy arrays in consecutive memory.
            feed = {}
            for name, tensor in zip(names, raw, strict=True):
                feed[name] = tensor.contiguous().numpy()
            (probabilities,) = session.run([OUTPUT], feed)
            return torch.from_numpy(probabilities)

        return predict

    def example(self, student: TrainedStudent) -> str:
        return "\n".join(
            [
                '"""Runs the exported network. Needs numpy and onnxruntime, and nothing else."""',
                "",
                "import json",
                "from pathlib import Path",
                "",
                "import numpy as np",
                "import onnxruntime",
                "",
                f'path = Path(__file__).with_name("{self.file}")',
                "session = onnxruntime.InferenceSession(path)",
                "metadata = session.get_modelmeta().custom_metadata_map",
                'labels = json.loads(metadata["classes"])',
                "",
                "# Replace these zeros with samples of your own.",
                *example_inputs(student, "np"),
                "names = [described.name for described in session.get_inputs()]",
                "(probabilities,) = session.run(None, dict(zip(names, inputs)))",
                "print(probabilities.shape, labels[:10])",
                "",
            ]
        )


def add_metadata(path: Path, student: TrainedStudent) -> None:
    """Store the description of the network and its data in the ONNX file itself.

    Args:
        path: of the file, which is written again.
        student: whose description is stored; every value is JSON.
    """
    model = onnx.load(path)
    for name, value in description(student).items():
        entry = model.metadata_props.add()
        entry.key = name
        entry.value = json.dumps(value)
    onnx.save(model, path)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hide what torch's exporter prints and logs about its steps."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        # The exporter reports each step, and the user waits for one line.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

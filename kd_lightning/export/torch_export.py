"""The network as a graph that plain PyTorch loads and runs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from kd_lightning.export.examples import example_inputs
from kd_lightning.export.formats import Format, Predictor, traced_program
from kd_lightning.export.student import TrainedStudent


class TorchExport(Format):
    """A `.pt2` archive of `torch.export`, which contains the preprocessing."""

    file: ClassVar[str] = "student.pt2"

    def write(self, student: TrainedStudent, folder: Path) -> None:
        torch.export.save(traced_program(student), folder / self.file)

    def read(self, folder: Path) -> Predictor:
        network = torch.export.load(folder / self.file).module()

        def predict(raw: tuple[Tensor, ...]) -> Tensor:
            with torch.no_grad():
                probabilities: Tensor = network(*raw)
            return probabilities

        return predict

    def example(self, student: TrainedStudent) -> str:
        return "\n".join(
            [
                '"""Runs the exported network. Needs torch, and nothing else."""',
                "",
                "import json",
                "from pathlib import Path",
                "",
                "import torch",
                "",
                "folder = Path(__file__).parent",
                f'network = torch.export.load(folder / "{self.file}").module()',
                'labels = json.loads((folder / "student.json").read_text())["classes"]',
                "",
                "# Replace these zeros with samples of your own.",
                *example_inputs(student, "torch"),
                "probabilities = network(*inputs)",
                "print(probabilities.shape, labels[:10])",
                "",
            ]
        )

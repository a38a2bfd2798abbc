"""The network as a graph that plain PyTorch loads and runs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch

from kd_lightning.export import programs
from kd_lightning.export.examples import torch_example
from kd_lightning.export.formats import Format, Predictor, predictor_of, traced_program
from kd_lightning.export.student import TrainedStudent

TRUST = "torch_export"
"""What `--trust` must name before a program of another user is loaded."""


class TorchExport(Format):
    """A `.pt2` archive of `torch.export`, which contains the preprocessing."""

    file: ClassVar[str] = "student.pt2"

    def write(self, student: TrainedStudent, folder: Path) -> None:
        torch.export.save(traced_program(student), folder / self.file)
        programs.remember(folder / self.file)

    def read(self, folder: Path) -> Predictor:
        # torch falls back to pickles, and evaluates the expressions of sizes.
        programs.check(folder / self.file, "a program of torch.export", TRUST)
        network = torch.export.load(folder / self.file).module()
        return predictor_of(network)

    def example(self, student: TrainedStudent) -> str:
        return torch_example(
            student,
            [
                f'network = torch.export.load(folder / "{self.file}").module()',
            ],
        )

"""The network compiled to machine code, by the ahead-of-time compiler of torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import ClassVar

import torch

from kd_lightning.errors import UserError
from kd_lightning.export import programs
from kd_lightning.export.examples import torch_example
from kd_lightning.export.formats import Format, Predictor, predictor_of, traced_program
from kd_lightning.export.student import TrainedStudent

TRUST = "aoti"
"""What `--trust` must name before machine code of a file is run."""


class Aoti(Format):
    """A package of `torch._inductor`, for processors like this one."""

    file: ClassVar[str] = "student.aoti.pt2"

    def write(self, student: TrainedStudent, folder: Path) -> None:
        # The variable and the default that the compiler of torch uses, too.
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise UserError(
                f"--format aoti needs a C++ compiler, and there is no {compiler}; "
                "install g++, or "
                "set CXX to another one"
            )
        program = traced_program(student)
        try:
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(folder / self.file)
            )
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{type(student.module.net).__name__} cannot be compiled ({reason}); "
                "use --format torch-export or onnx"
            ) from error
        programs.remember(folder / self.file)

    def read(self, folder: Path) -> Predictor:
        programs.check(folder / self.file, "machine code", TRUST)
        network = torch._inductor.aoti_load_package(str(folder / self.file))
        return predictor_of(network)

    def example(self, student: TrainedStudent) -> str:
        return torch_example(
            student,
            [
                f'path = str(folder / "{self.file}")',
                "network = torch._inductor.aoti_load_package(path)",
            ],
        )

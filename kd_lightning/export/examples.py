"""Lines of the example programs that every format shares."""

from __future__ import annotations

import torch

from kd_lightning.export.student import TrainedStudent


def example_inputs(student: TrainedStudent, library: str) -> list[str]:
    """Python lines that define `inputs`, zeros of the right shapes and types.

    Args:
        student: whose inputs are described.
        library: the name under which the program imported `torch` or `numpy`.
    """
    lines = ["inputs = ["]
    samples = student.raw_inputs("test", torch.zeros(1, dtype=torch.int64))
    for name, tensor in zip(student.input_names, samples, strict=True):
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = tuple(tensor.shape)
        lines.append(
            f"    {library}.zeros({shape}, dtype={library}.{dtype}),  # {name}"
        )
    lines.append("]")
    return lines

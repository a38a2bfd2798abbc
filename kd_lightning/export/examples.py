"""Lines of the example programs that every format shares."""

from __future__ import annotations

from kd_lightning.export.student import TrainedStudent


def example_inputs(student: TrainedStudent, library: str) -> list[str]:
    """Python lines that define `inputs`, zeros of the right shapes and types.

    Args:
        student: whose inputs are described.
        library: the name under which the program imported `torch` or `numpy`.
    """
    lines = ["inputs = ["]
    for name, tensor in zip(student.input_names, student.sample, strict=True):
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape = tuple(tensor.shape)
        lines.append(
            f"    {library}.zeros({shape}, dtype={library}.{dtype}),  # {name}"
        )
    lines.append("]")
    return lines

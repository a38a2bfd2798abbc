"""What an export says about its network and data, in plain values."""

from __future__ import annotations

from kd_lightning.export.student import TrainedStudent


def description(student: TrainedStudent) -> dict[str, object]:
    """The task, the classes, and the inputs in the order of the network's arguments.

    Returns:
        `task`, `data`, `classes`, `inputs` and `output`. Images also have `mean` and
        `std`, which exported graphs contain already.
    """
    spec = student.spec
    inputs = []
    for name, tensor in zip(student.input_names, student.sample, strict=True):
        inputs.append(
            {
                "name": name,
                "shape": ["batch", *tensor.shape[1:]],
                "dtype": str(tensor.dtype).removeprefix("torch."),
            }
        )
    content: dict[str, object] = {
        "task": spec.task,
        "data": spec.data,
        "classes": list(spec.classes),
        "inputs": inputs,
        "output": "values" if spec.task == "regression" else "probabilities",
        "network": type(student.module.net).__name__,
    }
    if spec.mean is not None and spec.std is not None:
        content["mean"] = list(spec.mean)
        content["std"] = list(spec.std)
    return content

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


def transformers_example(purpose: str, auto_class: str, using: list[str]) -> str:
    """A program that runs a folder of transformers on a text.

    Args:
        purpose: what the program does, as in "Classifies a text."
        auto_class: the class of transformers that loads the model.
        using: Python lines that use `model` and the tokenized text `inputs`.
    """
    lines = [
        f'"""{purpose} Needs torch and transformers, and nothing else."""',
        "",
        "from pathlib import Path",
        "",
        "import torch",
        f"from transformers import {auto_class}, AutoTokenizer",
        "",
        "folder = Path(__file__).parent",
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        f"model = {auto_class}.from_pretrained(folder)",
        'text = "Your own text."',
        'inputs = tokenizer(text, truncation=True, return_tensors="pt")',
        *using,
        "",
    ]
    return "\n".join(lines)


def torch_example(student: TrainedStudent, loading: list[str]) -> str:
    """A program that runs an export in plain PyTorch.

    Args:
        student: that was exported.
        loading: Python lines that set `network` from a file in `folder`.
    """
    lines = [
        '"""Runs the exported network. Needs torch, and nothing else."""',
        "",
        "import json",
        "from pathlib import Path",
        "",
        "import torch",
        "",
        "folder = Path(__file__).parent",
        *loading,
        'labels = json.loads((folder / "student.json").read_text())["classes"]',
        "",
        "# Replace these zeros with samples of your own.",
        *example_inputs(student, "torch"),
        "probabilities = network(*inputs)",
        "print(probabilities.shape, labels[:10])",
        "",
    ]
    return "\n".join(lines)

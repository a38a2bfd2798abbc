"""The table of predictions that `kd predict` writes for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor


def write_prediction_table(
    path: Path,
    predictions: Mapping[str, Tensor],
    classes: Sequence[str],
    samples: Sequence[Sequence[str]],
    columns: Sequence[str],
) -> Path:
    """Write tab-separated values: per sample its class, the probability of each class, its texts.

    Args:
        path: of the file.
        predictions: `index` `(N,)` and `logits` `(N, K)`.
        classes: names of the K classes.
        samples: for each row that `index` may name, what identifies it to a person.
        columns: names of the entries of a sample.

    Returns:
        The path.
    """
    probs = predictions["logits"].float().softmax(-1)
    lines = ["\t".join(["label", *classes, *columns])]
    for index, row in zip(predictions["index"].tolist(), probs, strict=True):
        label = classes[int(row.argmax())]
        probabilities = [f"{probability:.6f}" for probability in row.tolist()]
        # Tabs and line ends within a text would break the table.
        cleaned = [" ".join(text.split()) for text in samples[index]]
        lines.append("\t".join([label, *probabilities, *cleaned]))
    # Names of files may hold bytes that are no text.
    path.write_text(
        "\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace"
    )
    return path

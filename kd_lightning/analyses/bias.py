"""Classes that the transfer set lacks: what a correction of the learned biases gives (Hinton et al. 2015, section 3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Row, Runs

SHIFTS = np.round(np.arange(-20, 20.05, 0.1), 1)
"""Amounts that are tried, added to the biases of the chosen classes."""


def errors_by_shift(logits: Tensor, target: Tensor, classes: list[int]) -> NDArray[np.int64]:
    """Errors after each of `SHIFTS` is added to the logits of `classes`.

    Args:
        logits: `(N, K)`.
        target: `(N,)`.
        classes: whose biases are shifted together.

    Returns:
        `(len(SHIFTS),)`. Only the best of the shifted and the best of the other classes can win, so that each sample changes
        its prediction once, at the shift that makes both equal.
    """
    chosen = torch.zeros(logits.shape[1], dtype=torch.bool)
    chosen[classes] = True
    if chosen.all() or not chosen.any():
        raise UserError(
            f"bias correction: some classes must be shifted and some not, got {classes} of {len(chosen)}"
        )
    columns = torch.arange(logits.shape[1])
    ours, others = columns[chosen], columns[~chosen]
    best, rest = logits[:, ours].max(1), logits[:, others].max(1)
    wins = torch.from_numpy(SHIFTS)[:, None] > (rest.values - best.values)[None].double()
    predicted = torch.where(wins, ours[best.indices][None], others[rest.indices][None])
    found: NDArray[np.int64] = (predicted != target[None]).sum(1).numpy()
    return found


def best_shift(errors: NDArray[np.int64]) -> float:
    """The shift of fewest errors; the middle one where several are equal."""
    best = np.flatnonzero(errors == errors.min())
    return float(SHIFTS[best[len(best) // 2]])


def correct(
    runs: Runs, output: Path, run: str, classes: list[int], report: list[int] | None = None
) -> list[Row]:
    """Errors before and after the biases of `classes` are shifted.

    The shift is chosen on the test set, as the paper did, and honestly, on validation data.

    Args:
        run: the student's run.
        classes: whose biases are shifted together.
        report: classes whose own errors are told apart; `classes` where left out.

    Returns:
        Rows of `run` itself and of `run, bias chosen on ...`: `test_errors`, `shift` and the errors on the reported classes.
    """
    told = report if report is not None else classes
    names = {
        "": run,
        "test": f"{run}, bias chosen on the test set",
        "validation": f"{run}, bias chosen on validation data",
    }
    values: dict[str, dict[str, list[float]]] = {label: {} for label in names}
    curves = []
    for one in runs[run]:
        test, held_out = one.predictions("test"), one.predictions("validation")
        by_shift = {
            name: errors_by_shift(p["logits"], p["target"], classes)
            for name, p in (("test", test), ("validation", held_out))
        }
        curves.append(by_shift["test"])
        special = torch.isin(test["target"], torch.tensor(told))
        for label, found in values.items():
            shift = best_shift(by_shift[label]) if label else 0.0
            shifted = test["logits"].clone()
            shifted[:, classes] += shift
            wrong = shifted.argmax(1) != test["target"]
            numbers = {"errors_on_these_classes": float((wrong & special).sum())}
            if label:
                numbers = {"test_errors": float(wrong.sum()), **numbers, "shift": shift}
            for metric, value in numbers.items():
                found.setdefault(metric, []).append(value)
    _plot(
        np.stack(curves),
        {label: values[label]["shift"] for label in ("test", "validation")},
        output / "bias.png",
    )
    return [
        Row(names[label], metric, each)
        for label, found in values.items()
        for metric, each in found.items()
    ]


def _plot(curves: NDArray[np.int64], chosen: dict[str, list[float]], path: Path) -> None:
    """Test errors against the shift, each seed a line, the chosen shifts marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for curve in curves:
        axes.plot(SHIFTS, curve, color="C0", alpha=0.6)
    for colour, (label, shifts) in zip(("C3", "C2"), chosen.items(), strict=True):
        for at, shift in enumerate(shifts):
            name = (
                f"chosen on {'the test set' if label == 'test' else 'validation data'}"
                if at == 0
                else None
            )
            axes.axvline(
                shift,
                color=colour,
                alpha=0.5,
                linestyle="dashed" if label == "test" else "dotted",
                label=name,
            )
    axes.set_yscale("log")
    axes.set_xlabel("added to the biases")
    axes.set_ylabel("test errors")
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)

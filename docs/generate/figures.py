"""The figures of the page "The idea in pictures", as SVG.

The digit and its soft targets come from scikit-learn's data and a small teacher that is trained
here; the measured curves come from the committed results.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TEMPERATURES = (1.0, 4.0, 20.0)
USUAL_CONFIDENCE = 0.95
BLUE = "#4c72b0"
ORANGE = "#dd8452"
GREEN = "#55a868"
LIGHT = "#eef2f9"


@dataclass(frozen=True)
class Teacher:
    """What a teacher says about one image.

    Attributes:
        image: `(8, 8)`, gray values from 0 to 16.
        label: the digit.
        log_probs: `(10,)`, at temperature 1.
    """

    image: NDArray[np.float64]
    label: int
    log_probs: NDArray[np.float64]


@cache
def teacher() -> Teacher:
    """A network's opinion about an image that it recognizes with the usual confidence."""
    digits = load_digits()
    network = MLPClassifier((64,), alpha=1.0, max_iter=60, random_state=0)
    with warnings.catch_warnings():
        # A short training is enough for the figure.
        warnings.simplefilter("ignore", ConvergenceWarning)
        network.fit(digits.data[:1200], digits.target[:1200])
    images = digits.data[1200:]
    labels = digits.target[1200:]
    log_probs = network.predict_log_proba(images)
    is_right = log_probs.argmax(1) == labels
    confidence = np.where(is_right, np.exp(log_probs.max(1)), 0.0)
    row = int(np.abs(confidence - USUAL_CONFIDENCE).argmin())
    return Teacher(images[row].reshape(8, 8), int(labels[row]), log_probs[row])


def softmax(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Probabilities `(K,)` of logits `(K,)` at a temperature."""
    scaled = logits / temperature
    powers = np.exp(scaled - scaled.max())
    return np.asarray(powers / powers.sum())


def svg(figure: Figure) -> str:
    """A figure as the text of an SVG file."""
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata={"Date": None}, facecolor="white")
    return target.getvalue()


def soft_targets() -> str:
    """An image, its hard label, and the teacher's distribution at several temperatures."""
    known = teacher()
    figure = Figure(figsize=(9.5, 2.3), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(1, len(TEMPERATURES) + 2)
    axes[0].imshow(known.image, cmap="gray_r")
    axes[0].set_title(f"a {known.label}")
    axes[0].axis("off")
    classes = np.arange(10)
    axes[1].bar(classes, classes == known.label, color=ORANGE)
    axes[1].set_title("hard label")
    for axis, temperature in zip(axes[2:], TEMPERATURES, strict=True):
        axis.bar(classes, softmax(known.log_probs, temperature), color=BLUE)
        axis.set_title(f"teacher, T = {temperature:g}")
    for axis in axes[1:]:
        axis.set(xticks=classes, ylim=(0, 1.02))
        axis.tick_params(labelsize=7)
    return svg(figure)


def data_flow() -> str:
    """A batch passes through both networks; losses compare what comes out."""
    figure = Figure(figsize=(9.5, 3.2))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 19), ylim=(0, 6.4))
    axis.axis("off")
    _box(axis, (0.3, 2.4), "Batch\ninputs, target, index", LIGHT)
    _box(axis, (5.0, 4.3), "Teacher\nfrozen", "#dfe9d8")
    _box(axis, (5.0, 0.5), "Student\ntrains", "#fbe5d6")
    _box(axis, (10.0, 4.3), "Output\nlogits, features", LIGHT)
    _box(axis, (10.0, 0.5), "Output\nlogits, features", LIGHT)
    _box(axis, (15.2, 4.3), "soft loss: KD, AT, ...", "#f6f0d8")
    _box(axis, (15.2, 0.5), "hard loss: ce", "#f6f0d8")
    _arrow(axis, (3.8, 3.6), (5.0, 4.9))
    _arrow(axis, (3.8, 2.8), (5.0, 1.5))
    _arrow(axis, (8.5, 5.0), (10.0, 5.0))
    _arrow(axis, (8.5, 1.2), (10.0, 1.2))
    _arrow(axis, (13.5, 5.0), (15.2, 5.0))
    _arrow(axis, (13.5, 1.8), (15.2, 4.5))
    _arrow(axis, (13.5, 1.0), (15.2, 1.0))
    return svg(figure)


def families() -> str:
    """What the families of losses compare: outputs, features, or relations between samples."""
    figure = Figure(figsize=(9.5, 3.4))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 19), ylim=(0, 6.8))
    axis.axis("off")
    for height, name in ((4.6, "teacher"), (0.8, "student")):
        _box(axis, (0.3, height), name, LIGHT)
        _box(axis, (5.0, height), "stage1 ... stage3", LIGHT)
        _box(axis, (9.8, height), "penultimate", LIGHT)
        _box(axis, (14.6, height), "logits", LIGHT)
        for start in (3.8, 8.5, 13.3):
            _arrow(axis, (start, height + 0.7), (start + 1.0, height + 0.7))
    labels = (
        (6.7, "features:\nFitNets, AT, OFD, ReviewKD", GREEN),
        (11.5, "relations between samples:\nRKD, SP, CC, CRD", ORANGE),
        (16.3, "outputs:\nKD, DKD, DIST", BLUE),
    )
    for place, text, color in labels:
        axis.annotate(
            "",
            (place, 4.5),
            (place, 2.3),
            arrowprops={"arrowstyle": "<->", "color": color, "lw": 2},
        )
        axis.text(
            place + 0.15,
            3.4,
            text,
            color=color,
            va="center",
            ha="left",
            fontsize=8.5,
            backgroundcolor="white",
        )
    return svg(figure)


def _box(axis: Axes, corner: tuple[float, float], text: str, color: str) -> None:
    """A rounded box of a fixed size with a text in its middle."""
    width = 3.5
    height = 1.4
    axis.add_patch(
        FancyBboxPatch(
            corner, width, height, boxstyle="round,pad=0.05", fc=color, ec="#555555"
        )
    )
    axis.text(
        corner[0] + width / 2,
        corner[1] + height / 2,
        text,
        ha="center",
        va="center",
        fontsize=9,
    )


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axis.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=12, color="#555555"
        )
    )


def rows_of(experiment: str) -> list[dict[str, float | str]]:
    """The rows of an experiment's committed results."""
    paper, _, name = experiment.rpartition("/")
    file = EXPERIMENTS / paper / "results" / name / "results.json"
    rows: list[dict[str, float | str]] = json.loads(file.read_text(encoding="utf-8"))[
        "rows"
    ]
    return rows


def demo_errors() -> str:
    """Test errors of the demo's three runs."""
    figure = Figure(figsize=(6, 2.2), layout="constrained")
    axis = figure.subplots()
    for row in rows_of("demo"):
        if row["metric"] == "test_errors":
            axis.barh(
                str(row["run"]),
                float(row["mean"]),
                xerr=float(row["std"]),
                color=BLUE,
                capsize=4,
            )
    axis.invert_yaxis()
    axis.set_xlabel(
        "test errors of 602 images, mean and standard deviation of five seeds"
    )
    return svg(figure)


def temperature_curve() -> str:
    """Test errors of the smallest MNIST student against the temperature."""
    prefix = "student hidden=[30, 30] temperature="
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axis = figure.subplots()
    temperatures = []
    means = []
    deviations = []
    for row in rows_of("hinton2015/mnist-temperature"):
        run = str(row["run"])
        if run.startswith(prefix) and row["metric"] == "test_errors":
            temperatures.append(float(run.removeprefix(prefix)))
            means.append(float(row["mean"]))
            deviations.append(float(row["std"]))
    axis.errorbar(temperatures, means, deviations, marker="o", capsize=3, color=BLUE)
    axis.set_xscale("log")
    axis.set_xticks(temperatures, [f"{value:g}" for value in temperatures])
    axis.set_xlabel("temperature")
    axis.set_ylabel("test errors of 10,000")
    return svg(figure)


FIGURES: dict[str, Callable[[], str]] = {
    "soft-targets.svg": soft_targets,
    "data-flow.svg": data_flow,
    "families.svg": families,
    "demo-errors.svg": demo_errors,
    "temperature.svg": temperature_curve,
}
"""The function of each file in `figures/`."""


def draw(name: str) -> str:
    """The SVG of one figure.

    Args:
        name: a key of `FIGURES`.
    """
    # A fixed salt and no date make two builds of one commit equal.
    with rc_context(
        {
            "svg.hashsalt": "kd_lightning",
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    ):
        return FIGURES[name]()

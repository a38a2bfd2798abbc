"""The model card: what an exported network is, how it was trained and how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kd_lightning import __version__
from kd_lightning.escaping import markdown
from kd_lightning.export.check import Comparison
from kd_lightning.export.formats import Format
from kd_lightning.export.spread import Spread
from kd_lightning.export.student import TrainedStudent

if TYPE_CHECKING:
    # The package onnxruntime is an extra.
    from kd_lightning.export.quantization import QuantizationCost

SHOWN_CLASSES = 20


def model_card(
    student: TrainedStudent,
    export_format: Format,
    comparison: Comparison,
    cost: QuantizationCost | None,
    license_name: str,
    spread: Sequence[Spread] = (),
) -> str:
    """A README in Markdown, with the YAML header that model hubs read.

    Args:
        student: the exported student.
        export_format: that was written.
        comparison: with the checkpoint.
        cost: of quantization; `None` if the file is not quantized.
        license_name: as the user gave it; "unknown" by default.
        spread: metrics over seeds, of the experiment that the run belongs to.
    """
    spec = student.spec
    network = type(student.module.net).__name__
    parameters = sum(parameter.numel() for parameter in student.module.net.parameters())
    lines = [
        "---",
        f"library_name: {export_format.library}",
        f"license: {license_name}",
        "---",
        "",
        f"# {markdown(network)} for {markdown(spec.data)}",
        "",
        f"`{export_format.file}` predicts {spec.task}: {parameters:,} parameters, exported by kd_lightning "
        f"{__version__}. Run `python example.py`.",
        "",
        *_inputs(student),
        *_classes(spec.classes),
        *_training(student),
        *_metrics(student),
        *_spread(spread),
        *_citations(student),
        *_quantization(cost),
        "## Check",
        "",
        f"The exported network was compared with its checkpoint on {comparison.samples:,} test "
        f"samples, in batches of {', '.join(map(str, comparison.batch_sizes))}. The largest "
        f"difference of a probability is {comparison.largest_difference:.1e}; "
        f"{comparison.tolerance:.0e} is accepted.",
        "",
    ]
    return "\n".join(lines)


def _inputs(student: TrainedStudent) -> list[str]:
    lines = ["## Inputs", ""]
    for name, tensor in zip(student.input_names, student.sample, strict=True):
        # The first dimension of a sample is a batch of one, and any size will do.
        shape = ", ".join(["batch", *map(str, tensor.shape[1:])])
        dtype = str(tensor.dtype).removeprefix("torch.")
        lines.append(f"- `{name}`: {dtype} ({shape})")
    spec = student.spec
    if spec.mean is not None and spec.std is not None:
        lines.append(
            f"- Pixels are normalized with mean {list(spec.mean)} and standard deviation "
            f"{list(spec.std)}, of values in [0, 1]. ONNX and torch.export files contain this."
        )
    return [*lines, ""]


def _classes(classes: Sequence[str]) -> list[str]:
    if not classes:
        return []
    shown = [f"`{markdown(name)}`" for name in classes[:SHOWN_CLASSES]]
    rest = len(classes) - len(shown)
    # A thousand classes would bury the rest of the card.
    more = f" and {rest:,} more, in student.json" if rest > 0 else ""
    return ["## Classes", "", ", ".join(shown) + more, ""]


def _training(student: TrainedStudent) -> list[str]:
    lines = ["## Training", "", f"- Data: {markdown(student.spec.data)}"]
    for split, samples in student.spec.samples.items():
        lines.append(f"- Samples for {split}: {samples:,}")
    for name, loss in student.module.objective.named_losses():
        lines.append(f"- Loss `{name}`: {type(loss).__name__}, weight {loss.weight:g}")
    # An ensemble has several sources, and a student without a teacher none.
    for teacher in student.described["teacher"]:
        lines.append(f"- Teacher: {_teacher(teacher)}")
    if student.run is not None:
        commit = student.run.record.get("commit")
        lines.append(f"- Commit: {commit or 'unknown'}")
        lines.append(f"- Seed: {student.run.seed}")
    return [*lines, ""]


def _teacher(source: Mapping[str, object]) -> str:
    """The parts of a teacher's source that identify it; a path would name a private folder."""
    parts = []
    for name in ("network", "weights", "sha256", "cache", "fingerprint"):
        if name in source:
            value = str(source[name])
            if name == "cache":
                value = Path(value).name
            parts.append(f"{name} {markdown(value)}")
    return ", ".join(parts)


def _metrics(student: TrainedStudent) -> list[str]:
    if student.run is None:
        return []
    lines = []
    for name, value in student.run.metrics.items():
        if name.startswith("test_"):
            lines.append(f"| {markdown(name)} | {value:.6g} |")
    if not lines:
        return []
    # A reader must not take one run for a mean over seeds.
    heading = ["## Metrics", "", "Of one run.", "", "| metric | value |", "|-|-:|"]
    return [*heading, *lines, ""]


def _spread(spread: Sequence[Spread]) -> list[str]:
    if not spread:
        return []
    lines = [
        "## Metrics over seeds",
        "",
        "Mean and standard deviation over runs that differ in their seed alone.",
        "",
        "| metric | value | seeds |",
        "|-|-:|-:|",
    ]
    for one in spread:
        lines.append(f"| {markdown(one.metric)} | {one} | {one.seeds} |")
    return [*lines, ""]


def _citations(student: TrainedStudent) -> list[str]:
    papers: list[str] = []
    for _, loss in student.module.objective.named_losses():
        # The hard loss has no paper, only a name.
        if loss.family != "hard" and loss.paper not in papers:
            papers.append(loss.paper)
    lines = [f"- {markdown(paper)}" for paper in papers]
    if not lines:
        return []
    return ["## Methods", "", *lines, ""]


def _quantization(cost: QuantizationCost | None) -> list[str]:
    if cost is None:
        return []
    lines = [
        "## 8-bit integers",
        "",
        "| | float32 | int8 |",
        "|-|-:|-:|",
        f"| test accuracy | {cost.accuracy_float32:.2%} | {cost.accuracy_int8:.2%} |",
        f"| file, kB | {cost.bytes_float32 / 1000:,.1f} | {cost.bytes_int8 / 1000:,.1f} |",
        "",
        f"Both give the same class to {cost.agreement:.2%} of the test samples.",
    ]
    if cost.teacher_agreement is not None:
        lines.append(
            f"The int8 network gives the teacher's class to {cost.teacher_agreement:.2%}."
        )
    return [*lines, "", "The check below is that of the float32 network.", ""]

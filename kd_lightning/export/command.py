"""`kd export`: writes a run's student to files that run without the framework."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from kd_lightning.errors import UserError
from kd_lightning.escaping import plain

if TYPE_CHECKING:
    from kd_lightning.export.check import Comparison
    from kd_lightning.export.formats import Format
    from kd_lightning.export.quantization import QuantizationCost
    from kd_lightning.export.spread import Spread
    from kd_lightning.export.student import TrainedStudent
    from kd_lightning.values import Values


def parser() -> argparse.ArgumentParser:
    """The options of `kd export`."""
    options = argparse.ArgumentParser(
        prog="kd export",
        description="Write the student of a run to files that run without kd_lightning, and "
        "compare them with its checkpoint on test samples.",
        epilog="Further arguments are those of kd test, such as --data.root=DIR.",
        allow_abbrev=False,
    )
    options.add_argument("run", metavar="RUN", help="folder of a run, or a checkpoint")
    options.add_argument(
        "--format",
        default="onnx",
        metavar="FORMAT",
        help="safetensors (weights), torch-export or onnx (graphs that contain the "
        "preprocessing), aoti (compiled), or transformers (a folder that the library loads); "
        "default: onnx",
    )
    options.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="new folder to write to; default: RUN/export-FORMAT",
    )
    options.add_argument(
        "--int8",
        action="store_true",
        help="quantize an ONNX file to 8-bit integers, calibrated on training samples",
    )
    options.add_argument(
        "--license",
        default="unknown",
        metavar="NAME",
        help="license for the model card, such as apache-2.0; default: unknown",
    )
    options.add_argument(
        "--experiment",
        metavar="RESULTS.json#RUN",
        help="show the metrics of this run of an experiment over seeds in the model card",
    )
    options.add_argument(
        "--push",
        metavar="OWNER/NAME",
        help="upload the export to this repository of the Hugging Face hub; a new repository is "
        "private",
    )
    return options


def main(argv: Sequence[str]) -> None:
    """Run `kd export`.

    Args:
        argv: the arguments.

    Raises:
        UserError: for a user's mistake, or if the export differs from the checkpoint.
    """
    options, settings = parser().parse_known_args(argv)
    # After the options are parsed, because these modules import torch.
    from kd_lightning.export.formats import find_format
    from kd_lightning.export.push import find_hub, push
    from kd_lightning.export.spread import read_spread
    from kd_lightning.export.student import find_checkpoint, load_student

    export_format = find_format(options.format)
    # ONNX Runtime quantizes; the other formats have no such step.
    if options.int8 and options.format != "onnx":
        raise UserError(f"--int8 needs --format onnx, got --format {options.format}")
    checkpoint = find_checkpoint(Path(options.run).expanduser())
    # Everything the user may have mistyped is checked before the student is loaded.
    output = options.output
    if output is None:
        name = f"export-{options.format}{'-int8' if options.int8 else ''}"
        output = checkpoint.parent.parent / name
    if output.exists():
        raise UserError(f"--output {output} exists already; choose a new folder")
    spread = read_spread(options.experiment) if options.experiment else []
    hub = find_hub(options.push) if options.push else None
    student = load_student(str(checkpoint), settings)
    comparison, cost = _write_whole(student, export_format, output, options, spread)
    console = Console()
    size = (output / export_format.file).stat().st_size
    if cost is not None:
        console.print(plain(_cost_line(cost)), soft_wrap=True)
    text = (
        f"{output}: {export_format.file} with {size / 1000:,.1f} kB; the largest difference from "
        f"the checkpoint is {comparison.largest_difference:.1e} on {comparison.samples:,} test "
        "samples"
    )
    console.print(plain(text), soft_wrap=True)
    console.print(plain(f"run it with: python {output}/example.py"), soft_wrap=True)
    if hub is not None:
        push(hub, options.push, output)
        console.print(plain(f"uploaded to {options.push}"), soft_wrap=True)


def _write_whole(
    student: TrainedStudent,
    export_format: Format,
    output: Path,
    options: argparse.Namespace,
    spread: Sequence[Spread],
) -> tuple[Comparison, QuantizationCost | None]:
    """Write all files and check them; the folder appears only if everything is right.

    The comparison with the checkpoint is that of the float32 network, also with `--int8`.
    """
    from kd_lightning.export.card import model_card
    from kd_lightning.export.check import compare
    from kd_lightning.export.metadata import description
    from kd_lightning.weights import sha256_of

    unfinished = _unfinished_folder(output)
    try:
        export_format.write(student, unfinished)
        # Compare what the file computes, not what was meant to be written.
        read_back = export_format.read(unfinished)
        comparison = compare(student, read_back, export_format.tolerance)
        cost = None
        if options.int8:
            cost = _quantize(student, export_format, unfinished)
        content = {
            **description(student),
            "reader": _reader(student),
            "format": options.format,
            "license": options.license,
            "check": asdict(comparison),
            "int8": None if cost is None else asdict(cost),
            **_size(student),
            "metrics": _metrics(student, cost),
            "metrics_over_seeds": [asdict(one) for one in spread],
            "sha256": sha256_of(unfinished / export_format.file),
        }
        _write_text(unfinished / "student.json", json.dumps(content, indent=2))
        card = model_card(
            student, export_format, comparison, cost, options.license, spread
        )
        _write_text(unfinished / "README.md", card)
        _write_text(unfinished / "example.py", export_format.example(student))
        # A temporary folder is for its owner alone; an export is for everybody.
        unfinished.chmod(0o755)
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return comparison, cost


def _unfinished_folder(output: Path) -> Path:
    """A folder beside the output, which becomes the output when all files are right."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # On the same file system, so that renaming it is one step.
        prefix = f".{output.name}."
        return Path(tempfile.mkdtemp(dir=output.parent, prefix=prefix))
    except OSError as error:
        raise UserError(
            f"--output: cannot write to {output.parent} ({error.strerror})"
        ) from error


def _reader(student: TrainedStudent) -> Values | None:
    """How files become inputs; `None` if arrays alone can be given."""
    reader = student.datamodule.input_reader()
    if reader is None:
        return None
    return reader.describe()


def _size(student: TrainedStudent) -> dict[str, float]:
    """The number of parameters, and FLOPs per sample."""
    from kd_lightning.experiments.cost import measure

    costs = measure(student.module.net, student.spec, batches=())
    return {"parameters": costs["parameters"], "flops": costs["flops"]}


def _metrics(
    student: TrainedStudent, cost: QuantizationCost | None
) -> dict[str, float]:
    """The test metrics of the run, which are also those of the checked export."""
    if cost is not None:
        return {"test_accuracy": cost.accuracy_int8}
    if student.run is None:
        return {}
    metrics = {}
    for name, value in student.run.metrics.items():
        if name.startswith("test_"):
            metrics[name] = value
    return metrics


def _quantize(
    student: TrainedStudent,
    export_format: Format,
    folder: Path,
) -> QuantizationCost:
    """Quantize the exported file in place, and measure what that costs."""
    from kd_lightning.export.quantization import (
        check_can_quantize,
        measure_cost,
        quantize,
    )

    check_can_quantize(student)
    path = folder / export_format.file
    float32 = export_format.read(folder)
    float32_size = path.stat().st_size
    quantize(path, student)
    int8 = export_format.read(folder)
    return measure_cost(student, float32, int8, (float32_size, path.stat().st_size))


def _cost_line(cost: QuantizationCost) -> str:
    """One line on what the quantization costs."""
    text = (
        f"int8: test accuracy {cost.accuracy_int8:.2%}, {cost.accuracy_float32:.2%} before; "
        f"{cost.agreement:.2%} of the classes agree"
    )
    if cost.teacher_agreement is not None:
        text += f", {cost.teacher_agreement:.2%} agree with the teacher"
    return text


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")

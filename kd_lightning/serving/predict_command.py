"""`kd predict RUN|EXPORT INPUT...`: predicts files, texts and arrays of a user."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kd_lightning.errors import UserError
from kd_lightning.serving.completion_options import (
    add_completion_options,
    refuse_completion_options,
)
from kd_lightning.serving.progress import Skipped, with_progress

if TYPE_CHECKING:
    from kd_lightning.serving.inputs import Prediction
    from kd_lightning.serving.masks import MaskFolder
    from kd_lightning.serving.network import LoadedNetwork
    from kd_lightning.serving.results import Result

FORMATS = ("csv", "jsonl")

_DATA_OPTIONS = ("-c", "--config", "--ckpt_path")
"""Options that only the prediction of a run's own data has."""


def names_inputs(argv: Sequence[str]) -> bool:
    """Whether `kd predict` is given a network and inputs, not a checkpoint alone.

    Args:
        argv: the arguments after `predict`.
    """
    # These options ask for the prediction of a run's own test data, which takes no
    # inputs.
    for argument in argv:
        if argument.partition("=")[0] in _DATA_OPTIONS:
            return False
    return any(not argument.startswith("-") for argument in argv)


def parser() -> argparse.ArgumentParser:
    """The options of `kd predict RUN|EXPORT INPUT...`."""
    options = argparse.ArgumentParser(
        prog="kd predict",
        description="Predict files with a run or an export: images, tables, texts, "
        "recordings, or arrays. Inputs are preprocessed as the run's data is. A causal "
        "language model completes prompts and writes JSON lines with prompt, completion, "
        "and whether it ended the text; the same seed gives the same completions.",
        epilog="Further arguments are options of the run's data, such as "
        "--data.root=DIR. kd predict --ckpt_path FILE predicts the test set of a run "
        "instead.",
        allow_abbrev=False,
    )
    _add_inputs(options)
    _add_outputs(options)
    add_completion_options(options)
    return options


def _add_inputs(options: argparse.ArgumentParser) -> None:
    """Add what is predicted, and by which network."""
    options.add_argument(
        "network",
        metavar="RUN|EXPORT",
        help="folder of a run or an export, or a checkpoint; for prompts also a folder "
        "of transformers",
    )
    options.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="images or folders of them, CSV files, files with one text per line (- "
        "for standard input), WAV files, or NPZ files with the network's raw inputs; "
        "prompts: files with one per line, or JSONL files with the field prompt",
    )


def _add_outputs(options: argparse.ArgumentParser) -> None:
    """Add how the predictions are made and written."""
    options.add_argument(
        "--format",
        metavar="FORMAT",
        help="csv or jsonl; default: by the suffix of --output, else csv; for prompts "
        "always jsonl",
    )
    options.add_argument(
        "--output", type=Path, metavar="FILE", help="default: standard output"
    )
    options.add_argument(
        "--top",
        type=int,
        default=0,
        metavar="K",
        help="also write the K next most probable classes; default: 0",
    )
    options.add_argument(
        "--batch-size",
        type=int,
        default=64,
        metavar="N",
        help="inputs per forward pass; default: 64",
    )
    options.add_argument(
        "--on-error",
        default="stop",
        metavar="WHAT",
        help="stop at an input that cannot be predicted, or skip it; default: stop",
    )
    options.add_argument(
        "--masks",
        type=Path,
        metavar="DIR",
        help="folder for the masks of a segmentation",
    )


def main(argv: Sequence[str]) -> None:
    """Run `kd predict RUN|EXPORT INPUT...`.

    Args:
        argv: the arguments.

    Raises:
        UserError: for a user's mistake, or an input that cannot be predicted.
    """
    options, settings = parser().parse_known_args(argv)
    _check(options)
    # After the options are checked, because these modules import torch.
    from kd_lightning.serving.completion import complete
    from kd_lightning.serving.inputs import check_inputs
    from kd_lightning.serving.network import load_network
    from kd_lightning.serving.results import check_task, has_masks
    from kd_lightning.tasks import LanguageModelling

    network = load_network(Path(options.network).expanduser(), settings)
    skipped = Skipped(options.on_error == "skip")
    if network.task == LanguageModelling.name:
        skipped.report(complete(network, options, skipped))
        return
    check_task(network)
    refuse_completion_options(options, network.task)
    check_inputs(network, options.inputs)
    # A mask per input does not fit into a line of a table.
    if has_masks(network) and options.masks is None:
        raise UserError(
            "this network predicts a class for each pixel; give --masks DIR"
        )
    if options.masks is not None and not has_masks(network):
        raise UserError(
            f"--masks is for segmentation; this network is for {network.task}"
        )
    written = _write(network, options, skipped)
    skipped.report(written)


def _write(
    network: LoadedNetwork,
    options: argparse.Namespace,
    skipped: Skipped,
) -> int:
    """Predict all inputs, and write the results one after the other.

    Args:
        network: that predicts.
        options: of the command.
        skipped: counts the inputs that cannot be predicted.

    Returns:
        How many results were written.

    Raises:
        UserError: for an input that cannot be predicted, unless it may be skipped.
    """
    from kd_lightning.serving.inputs import predict_samples, samples_of
    from kd_lightning.serving.masks import MaskFolder
    from kd_lightning.serving.writers import opened, writer_of

    masks = None if options.masks is None else MaskFolder(options.masks)
    samples = samples_of(network, options.inputs)
    predictions = predict_samples(network, samples, options.batch_size)
    written = 0
    with opened(options.output) as stream:
        writer = writer_of(_format(options), stream)
        for prediction in with_progress(predictions):
            result = _result(network, prediction, options.top, masks)
            if result is None:
                skipped.add(prediction.line)
                continue
            writer.write(result)
            written += 1
            # Whoever reads our output gets each batch as soon as it is there.
            if written % options.batch_size == 0:
                stream.flush()
        # Inside the block, so that an output file is not replaced by an empty one.
        if written == 0:
            raise UserError(skipped.nothing_left)
    return written


def _check(options: argparse.Namespace) -> None:
    """Check the options.

    Raises:
        UserError: for an option out of range.
    """
    if options.format not in (None, *FORMATS):
        raise UserError(f"--format must be csv or jsonl, got {options.format}")
    if options.on_error not in ("stop", "skip"):
        raise UserError(f"--on-error must be stop or skip, got {options.on_error}")
    if options.batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, got {options.batch_size}")
    if options.top < 0:
        raise UserError(f"--top must be at least 0, got {options.top}")


def _format(options: argparse.Namespace) -> str:
    """The format that is given, or else that of the output's suffix."""
    if options.format is not None:
        return str(options.format)
    suffix = "" if options.output is None else options.output.suffix
    return "jsonl" if suffix in (".json", ".jsonl") else "csv"


def _result(
    network: LoadedNetwork,
    prediction: Prediction,
    top: int,
    masks: MaskFolder | None,
) -> Result | None:
    """What is written about a prediction; `None` if there is none."""
    from kd_lightning.serving.results import result_of

    if prediction.values is None:
        return None
    # The pixels go to a file of their own; the line names it.
    if masks is not None:
        path = masks.write(prediction.name, prediction.values)
        return {"input": prediction.name, "mask": str(path)}
    return {
        "input": prediction.name,
        **result_of(network, prediction.values, top),
    }

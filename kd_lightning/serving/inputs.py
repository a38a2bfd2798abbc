"""Finds the samples that a command names, and predicts them in batches."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from torch import Tensor

from kd_lightning.data.corpus.prompts import PromptReader
from kd_lightning.data.images.tree import open_tree
from kd_lightning.data.new_samples import Content, NewSample
from kd_lightning.data.text.new_samples import TextReader
from kd_lightning.errors import UserError, printable
from kd_lightning.serving.arrays import SUFFIX, npz_samples
from kd_lightning.serving.network import LoadedNetwork

STANDARD_INPUT = "-"

LINE_READERS = (TextReader, PromptReader)
"""The readers of lines of text, which may come from standard input."""


@dataclass(frozen=True)
class Prediction:
    """What a network predicts for one sample.

    Attributes:
        name: of the sample.
        values: `(K,)` or `(K, *S)`; `None` if the sample cannot be predicted.
        problem: why not.
    """

    name: str
    values: Tensor | None
    problem: str = ""

    @property
    def line(self) -> str:
        """The name and the problem, which may name the sample already."""
        if self.problem.startswith(self.name):
            return printable(self.problem)
        return printable(f"{self.name}: {self.problem}")


def check_inputs(network: LoadedNetwork, inputs: Sequence[str]) -> None:
    """Refuse inputs that do not exist or fit, before anything is predicted.

    Raises:
        UserError: if there is no such file, or standard input does not fit.
    """
    for name in inputs:
        if name == STANDARD_INPUT:
            if not isinstance(network.reader, LINE_READERS):
                reads = _reads(network)
                raise UserError(
                    f"- is standard input, for texts; this network reads {reads}"
                )
        elif not Path(name).exists():
            remedy = ""
            if isinstance(network.reader, LINE_READERS):
                remedy = "; write texts to a file, or give - for standard input"
            raise UserError(f"there is no file or folder {name}{remedy}")


def _reads(network: LoadedNetwork) -> str:
    if network.reader is None:
        return "arrays"
    return network.reader.kind


def samples_of(network: LoadedNetwork, inputs: Sequence[str]) -> Iterator[NewSample]:
    """All samples of files and folders; one that cannot be read has a problem.

    Args:
        network: that decides how files are read.
        inputs: names of files and folders, or `-` for lines of standard input.
    """
    for name in inputs:
        try:
            if name == STANDARD_INPUT:
                assert isinstance(network.reader, LINE_READERS)
                yield from network.reader.lines("stdin", sys.stdin)
                continue
            files = _files_below(network, Path(name))
        except (UserError, UnicodeDecodeError) as error:
            yield NewSample(name, None, UserError(str(error)))
            continue
        for path in files:
            try:
                yield from _samples_of_file(network, path)
            except UserError as error:
                yield NewSample(str(path), None, error)


def _files_below(network: LoadedNetwork, path: Path) -> list[Path]:
    """The file itself, or the files of a folder that the network reads, by name."""
    if not path.is_dir():
        return [path]
    # Every network reads raw inputs from NPZ files.
    suffixes: tuple[str, ...] = (SUFFIX,)
    if network.reader is not None:
        suffixes += network.reader.suffixes
    tree = open_tree(path, keep_top=True)
    names = sorted(name for name in tree.files if name.lower().endswith(suffixes))
    if not names:
        known = ", ".join(suffix[1:] for suffix in suffixes)
        raise UserError(f"{path} holds no {_reads(network)} ({known})")
    return [path / name for name in names]


def _samples_of_file(network: LoadedNetwork, path: Path) -> Iterator[NewSample]:
    if path.suffix.lower() == SUFFIX:
        yield from npz_samples(path, network.inputs)
        return
    if network.reader is None:
        raise UserError(network.needs_arrays)
    yield from network.reader.samples(path)


def predict_samples(
    network: LoadedNetwork,
    samples: Iterable[NewSample],
    batch_size: int,
) -> Iterator[Prediction]:
    """Predict samples in their order, reading one batch at a time.

    Args:
        network: that predicts.
        samples: of any number.
        batch_size: samples per forward pass.
    """
    remaining = iter(samples)
    while batch := list(islice(remaining, batch_size)):
        yield from _predict_batch(network, batch)


def _predict_batch(
    network: LoadedNetwork, batch: Sequence[NewSample]
) -> Iterator[Prediction]:
    contents = [sample.content for sample in batch if sample.content is not None]
    rows: Iterator[Tensor | str] = iter(())
    try:
        if contents:
            raw = network.encode(contents)
            rows = iter(network.predict(raw))
    except UserError:
        # One of them does not fit. The others must not fail with it.
        rows = iter([_predict_alone(network, content) for content in contents])
    for sample in batch:
        if sample.content is None:
            yield Prediction(sample.name, None, str(sample.problem))
            continue
        row = next(rows)
        if isinstance(row, str):
            yield Prediction(sample.name, None, row)
        else:
            yield Prediction(sample.name, row)


def _predict_alone(network: LoadedNetwork, content: Content) -> Tensor | str:
    """The prediction of one sample, or what is wrong with it."""
    try:
        return network.predict(network.encode([content]))[0]
    except UserError as error:
        return str(error)

"""Loads a run or an export as one thing: raw inputs in, probabilities out."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from kd_lightning.data.corpus.prompts import PromptReader
from kd_lightning.data.new_samples import Content, InputReader
from kd_lightning.data.reader_of import reader_of
from kd_lightning.errors import UserError
from kd_lightning.export.formats import Predictor, find_format
from kd_lightning.export.safetensors import Safetensors, read_network
from kd_lightning.export.student import TrainedStudent, load_student
from kd_lightning.serving.completer import (
    Completer,
    completer_of,
    pretrained_completer,
)
from kd_lightning.tasks import LanguageModelling
from kd_lightning.types import Inputs
from kd_lightning.values import Values


@dataclass(frozen=True)
class NetworkInput:
    """One tensor that a network reads.

    Attributes:
        name: of the input.
        shape: of one sample; `None` for a length that varies.
        dtype: of the tensor.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether one sample may have this shape."""
        if len(shape) != len(self.shape):
            return False
        # `None` stands for any size, such as the length of a text.
        pairs = zip(shape, self.shape, strict=True)
        return all(wanted in (None, size) for size, wanted in pairs)

    def __str__(self) -> str:
        sizes = ["any" if size is None else str(size) for size in self.shape]
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name}: {dtype} ({', '.join(sizes)})"


@dataclass(frozen=True)
class LoadedNetwork:
    """A network that is ready to predict.

    Attributes:
        name: the run or the export.
        task: the name of its task.
        classes: names of its classes, labels or values; empty if they have none.
        inputs: what it reads, in the order of the arguments of `predictor`.
        reader: reads files; `None` if only arrays can be given.
        predictor: from raw inputs to probabilities.
        completer: completes prompts; `None` if the network is no causal language model.
    """

    name: str
    task: str
    classes: tuple[str, ...]
    inputs: tuple[NetworkInput, ...]
    reader: InputReader | None
    predictor: Predictor
    completer: Completer | None = None

    def encode(self, contents: Sequence[Content]) -> tuple[Tensor, ...]:
        """The raw inputs of B samples, one tensor `(B, ...)` per input.

        Raises:
            UserError: if a sample does not fit the network.
        """
        if all(self._reads(content) for content in contents):
            # Arrays go to the network as they are.
            return _stacked(cast(Sequence[tuple[Tensor, ...]], contents))
        if self.reader is None:
            raise UserError(self.needs_arrays)
        return _as_tuple(self.reader.encode(contents), self.inputs)

    def _reads(self, content: Content) -> bool:
        """Whether a sample is raw inputs of this network."""
        if not is_arrays(content) or len(content) != len(self.inputs):
            return False
        pairs = zip(self.inputs, cast(tuple[Tensor, ...], content), strict=True)
        return all(wanted.fits(tensor.shape) for wanted, tensor in pairs)

    @property
    def needs_arrays(self) -> str:
        """Why files cannot be read, and what to give instead."""
        described = "; ".join(map(str, self.inputs))
        return (
            f"{self.name} cannot read files, texts or recordings; give an NPZ file with "
            f"arrays ({described}), or use the run instead of its export"
        )

    def predict(self, raw: tuple[Tensor, ...]) -> Tensor:
        """Probabilities or real values in the network's layout, such as `(B, K)`.

        Args:
            raw: one tensor `(B, ...)` for each of `inputs`.

        Raises:
            UserError: if the network fails, as on inputs of another length.
        """
        try:
            with torch.inference_mode():
                return self.predictor(raw)
        except Exception as error:
            # Other libraries report failures in many ways, and with many lines.
            lines = str(error).strip().splitlines()
            reason = lines[0] if lines else type(error).__name__
            raise UserError(
                f"{self.name} cannot read these inputs: {reason}"
            ) from error


def is_arrays(content: Content) -> bool:
    """Whether a sample consists of tensors."""
    return isinstance(content, tuple) and all(
        isinstance(part, Tensor) for part in content
    )


def _stacked(samples: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Samples as one tensor `(B, ...)` per input."""
    try:
        return tuple(torch.stack(parts) for parts in zip(*samples, strict=True))
    except RuntimeError as error:
        raise UserError("samples of one batch differ in their shapes") from error


def _as_tuple(inputs: Inputs, described: Sequence[NetworkInput]) -> tuple[Tensor, ...]:
    if isinstance(inputs, Tensor):
        return (inputs,)
    return tuple(inputs[one.name] for one in described)


def _is_hub_folder(target: Path) -> bool:
    """Whether a folder is one of transformers, and not that of a run."""
    is_run = (target / "config.yaml").is_file()
    return (target / "config.json").is_file() and not is_run


def load_network(target: Path, settings: Sequence[str]) -> LoadedNetwork:
    """Load the folder of an export or a run, or a checkpoint.

    A folder of transformers with a causal language model is read, too.

    Args:
        target: its path.
        settings: further arguments of `kd predict` for a run, such as
            `--data.root=DIR`.

    Raises:
        UserError: if there is neither, or it cannot be read.
    """
    is_export = (target / "student.json").is_file()
    if is_export or _is_hub_folder(target):
        if settings:
            raise UserError(
                f"unknown option {settings[0].partition('=')[0]}; an export has no "
                "data options"
            )
        return _load_export(target) if is_export else _load_pretrained(target)
    # Notices about data would come between the predictions.
    with contextlib.redirect_stdout(io.StringIO()):
        student = load_student(str(target), settings, reads_test=False)
        return _of_run(target, student)


def _of_run(target: Path, student: TrainedStudent) -> LoadedNetwork:
    spec = student.spec
    inputs = []
    if spec.inputs is not None:
        # Texts are padded to the longest of a batch, as in training.
        for name, described in spec.inputs.items():
            shape = (None,) * len(described.shape)
            inputs.append(NetworkInput(name, shape, torch.int64))
    else:
        for name, tensor in zip(student.input_names, student.sample, strict=True):
            inputs.append(NetworkInput(name, tuple(tensor.shape[1:]), tensor.dtype))
    deployed = student.deployed_for(tuple(one.name for one in inputs))
    reader = student.datamodule.input_reader()

    def predict(raw: tuple[Tensor, ...]) -> Tensor:
        probabilities: Tensor = deployed(*raw)
        return probabilities

    return LoadedNetwork(
        name=str(target),
        task=spec.task,
        classes=tuple(spec.classes),
        inputs=tuple(inputs),
        reader=reader,
        predictor=predict,
        completer=completer_of(student.module.net, reader),
    )


def _load_pretrained(folder: Path) -> LoadedNetwork:
    """A causal language model of transformers."""
    completer = pretrained_completer(folder)

    def predict(raw: tuple[Tensor, ...]) -> Tensor:
        logits: Tensor = completer.network(*raw)
        return logits.softmax(-1)

    return LoadedNetwork(
        name=str(folder),
        task=LanguageModelling.name,
        classes=(),
        inputs=(NetworkInput("input_ids", (None,), torch.int64),),
        reader=completer.reader,
        predictor=predict,
        completer=completer,
    )


def _load_export(folder: Path) -> LoadedNetwork:
    owner = f"{folder}/student.json"
    try:
        content: Values = json.loads(
            (folder / "student.json").read_text(encoding="utf-8")
        )
        inputs = []
        for described in cast(Sequence[Values], content["inputs"]):
            _, *shape = cast(Sequence[int], described["shape"])
            dtype = getattr(torch, str(described["dtype"]))
            inputs.append(NetworkInput(str(described["name"]), tuple(shape), dtype))
        classes = tuple(cast(Sequence[str], content["classes"]))
        export_format = find_format(str(content["format"]))
        task = str(content["task"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{owner} is damaged; export the run again") from error
    described_reader = content.get("reader")
    reader = None
    if isinstance(described_reader, Mapping):
        reader = reader_of(described_reader, owner)
    try:
        predictor = export_format.read(folder)
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} cannot be loaded: {reason}") from error
    completer = None
    # A graph predicts probabilities alone, and cannot continue from its own tokens.
    if isinstance(export_format, Safetensors) and isinstance(reader, PromptReader):
        completer = completer_of(read_network(folder), reader)
    return LoadedNetwork(
        str(folder), task, classes, tuple(inputs), reader, predictor, completer
    )

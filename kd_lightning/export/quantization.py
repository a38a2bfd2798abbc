"""Quantizes an ONNX file to 8-bit integers, and measures what that costs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.export.formats import Predictor
from kd_lightning.export.student import TrainedStudent
from kd_lightning.tasks.classification import Classification
from kd_lightning.training.distillation import DistillationModule
from kd_lightning.types import CLEAN, full

CALIBRATION_SAMPLES = 256
"""Training samples from which the ranges of the activations are measured."""

CALIBRATION_BATCH = 32

EVALUATION_BATCH = 256


@dataclass(frozen=True)
class QuantizationCost:
    """How an int8 network compares with the float32 network on the test set.

    Attributes:
        accuracy_float32, accuracy_int8: share of labelled test samples that are classified right.
        agreement: share of test samples that both give the same class.
        teacher_agreement: share of test samples to which the int8 network gives the teacher's
            class; `None` without a teacher.
        bytes_float32, bytes_int8: sizes of the files.
    """

    accuracy_float32: float
    accuracy_int8: float
    agreement: float
    teacher_agreement: float | None
    bytes_float32: int
    bytes_int8: int


class TrainingSamples(CalibrationDataReader):  # type: ignore[misc]
    """Training samples without augmentation, in the form in which the network receives them.

    Args:
        student: whose data is read.
        names: of the network's inputs.
    """

    def __init__(self, student: TrainedStudent, names: list[str]) -> None:
        self._batches = self._read(student, names)

    @staticmethod
    def _read(
        student: TrainedStudent, names: list[str]
    ) -> Iterator[dict[str, np.ndarray]]:
        samples = len(student.datamodule.source("train"))
        # Spread over the training set, which may be sorted by class.
        rows = torch.linspace(0, samples - 1, min(samples, CALIBRATION_SAMPLES)).long()
        for chunk in rows.split(CALIBRATION_BATCH):
            raw = student.raw_inputs("train", chunk)
            feed = {}
            for name, tensor in zip(names, raw, strict=True):
                feed[name] = tensor.contiguous().numpy()
            yield feed

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch by the names of the inputs; `None` after the last."""
        return next(self._batches, None)


def check_can_quantize(student: TrainedStudent) -> None:
    """Refuse a task whose cost of quantization is not measured.

    Raises:
        UserError: if the task is not classification with one label per sample.
    """
    if not isinstance(student.datamodule.task, Classification):
        raise UserError(
            f"--int8 is for classification, and this student is for {student.spec.task}; "
            "export it without --int8"
        )


def quantize(path: Path, student: TrainedStudent) -> None:
    """Replace an ONNX file by its quantized version.

    Networks that read tensors get weights and activations in int8, with ranges measured on
    training samples. Networks that read token ids get int8 weights, because their activations
    differ too much between samples for fixed ranges.

    Args:
        path: of the file.
        student: whose training samples calibrate the activations.

    Raises:
        UserError: if onnxruntime cannot quantize the network.
    """
    prepared = path.with_suffix(".prepared.onnx")
    # The library advises on every file to prepare it, which was done.
    logging.getLogger().setLevel(logging.ERROR)
    try:
        quant_pre_process(path, prepared)
        if len(student.input_names) > 1:
            quantize_dynamic(prepared, path, weight_type=QuantType.QInt8)
        else:
            session = onnxruntime.InferenceSession(
                path, providers=["CPUExecutionProvider"]
            )
            names = [described.name for described in session.get_inputs()]
            quantize_static(
                prepared,
                path,
                TrainingSamples(student, names),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
            )
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"onnxruntime cannot quantize {type(student.module.net).__name__} ({reason}); "
            "export it without --int8"
        ) from error
    finally:
        prepared.unlink(missing_ok=True)


def measure_cost(
    student: TrainedStudent,
    float32: Predictor,
    int8: Predictor,
    sizes: tuple[int, int],
) -> QuantizationCost:
    """Classify the test set with both networks, and with the teacher if it is available.

    Args:
        student: whose test samples are classified.
        float32, int8: the networks before and after quantization.
        sizes: of their files in bytes.
    """
    source = student.datamodule.source("test")
    target = source.target[source.rows]
    labelled = target >= 0
    before = []
    after = []
    for rows in torch.arange(len(source)).split(EVALUATION_BATCH):
        raw = student.raw_inputs("test", rows)
        before.append(float32(raw).argmax(-1))
        after.append(int8(raw).argmax(-1))
    classes = torch.cat(before)
    int8_classes = torch.cat(after)
    teacher = _teacher_classes(student)
    return QuantizationCost(
        accuracy_float32=_share(classes[labelled] == target[labelled]),
        accuracy_int8=_share(int8_classes[labelled] == target[labelled]),
        agreement=_share(classes == int8_classes),
        teacher_agreement=None if teacher is None else _share(teacher == int8_classes),
        bytes_float32=sizes[0],
        bytes_int8=sizes[1],
    )


def _share(equal: Tensor) -> float:
    return float(equal.double().mean())


def _teacher_classes(student: TrainedStudent) -> Tensor | None:
    """The teacher's class for each test sample; `None` if there is no teacher any more."""
    module = student.module
    if not isinstance(module, DistillationModule) or module.teacher is None:
        return None
    try:
        module.teacher.prepare(student.datamodule)
    except UserError:
        # An export must not need the teacher, whose file may be elsewhere by now.
        return None
    source = student.datamodule.source("test")
    classes = []
    for rows in torch.arange(len(source)).split(EVALUATION_BATCH):
        with torch.no_grad():
            output = module.teacher(source.batch(rows, CLEAN))
        classes.append(full(output.logits).argmax(-1))
    return torch.cat(classes)

"""Which samples a run reads: their checksums, and test samples that are also trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import torch

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.source import Source
from kd_lightning.types import CLEAN, Batch

MOST_BYTES = 2**30
"""Above this size of all inputs, test samples are not looked for in the training data."""

MOST_SAMPLES = 500_000
"""Above this number of samples, of unknown size each, they are not looked for either."""

CHUNK = 1000
"""Samples that are hashed at once."""


def data_fingerprint(datamodule: DataModule) -> dict[str, str]:
    """The checksum of the samples of each source split: the sha256 of inputs and targets.

    All samples are in memory, so this takes about a second per gigabyte.

    Args:
        datamodule: of the run.
    """
    samples = datamodule.fingerprint().get("samples")
    if not isinstance(samples, Mapping):
        return {}
    checksums = {}
    for split, checksum in samples.items():
        checksums[str(split)] = str(checksum)
    return checksums


def shared_samples(datamodule: DataModule) -> int | None:
    """Count the test samples whose inputs are also those of a training sample.

    Args:
        datamodule: of the run.

    Returns:
        The count; `None` if the data is larger than `MOST_BYTES`.
    """
    train = datamodule.source("train")
    test = datamodule.source("test")
    if _is_large(train, test):
        return None
    trained_on = set(_hashes(train))
    # Each test sample counts, also two that are equal.
    return sum(digest in trained_on for digest in _hashes(test))


def _is_large(*sources: Source) -> bool:
    """Whether hashing every sample would take longer than a start of a run may."""
    samples = sum(len(source) for source in sources)
    sample_bytes = max(source.sample_bytes for source in sources)
    return samples > MOST_SAMPLES or samples * sample_bytes > MOST_BYTES


def _hashes(source: Source) -> Iterator[bytes]:
    """A hash of the inputs of each sample, without augmentation."""
    for rows in torch.arange(len(source)).split(CHUNK):
        yield from _hashes_of_batch(source.batch(rows, CLEAN))


def _hashes_of_batch(batch: Batch) -> Iterator[bytes]:
    """A hash of the inputs of each sample of a batch."""
    inputs = batch.inputs
    if isinstance(inputs, Mapping):
        # Texts are padded to the longest of their batch, and padding is not content.
        mask = inputs.get("attention_mask")
        columns = [inputs[name] for name in sorted(inputs)]
        for row in range(len(batch)):
            content = b""
            for column in columns:
                cell = column[row]
                if mask is not None:
                    cell = cell[mask[row].bool()]
                content += cell.numpy().tobytes()
            yield _hash(content)
        return
    for values in inputs.contiguous().numpy():
        yield _hash(values.tobytes())


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()

"""Finds out what plain loaders of `(inputs, labels)` batches hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import lightning.pytorch as pl
import torch
from torch import Tensor

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.plain import PlainData, as_batch
from kd_lightning.errors import UserError
from kd_lightning.features import evaluating, run_network
from kd_lightning.spec import InputSpec, Spec
from kd_lightning.training import lightning_compat, probing
from kd_lightning.training.learner import Learner
from kd_lightning.types import Batch


def data_of(trainer: pl.Trainer, learner: Learner) -> DataModule:
    """The Trainer's datamodule of ours, or a description of the plain loaders that it was given.

    Args:
        trainer: that runs.
        learner: its network decides the number of classes of plain data.

    Raises:
        UserError: if the loaders do not yield `(inputs, labels)` or Batch objects.
    """
    datamodule = lightning_compat.datamodule_of(trainer)
    if isinstance(datamodule, DataModule):
        return datamodule
    name = "loaders"
    if datamodule is not None:
        name = type(datamodule).__name__.lower()
    batch = _first_batch(lightning_compat.loader_in_use(trainer))
    if batch.target.ndim != 1 or batch.target.is_floating_point():
        raise UserError(
            "loaders without a datamodule serve classification with one label per sample; for other "
            "tasks give the Trainer a datamodule of kd_lightning: trainer.fit(module, datamodule=...)"
        )
    # Only the network knows the number of classes; one batch may not have samples of all.
    network = learner.network
    with evaluating(network), probing.unchanged(network), torch.no_grad():
        output = run_network(network, batch.inputs, reading=learner.reading)
    width = output.logits.shape[-1]
    highest = int(batch.target.max())
    if highest >= width:
        raise UserError(
            f"the data has a sample of class {highest}, but {learner.name} returns {width} logits; "
            "classes count from 0"
        )
    return PlainData(_describe(name, batch, width))


def _first_batch(loader: object) -> Batch:
    """The first batch of a loader; the global random state is left unchanged."""
    # Lightning accepts several loaders, in a list.
    if isinstance(loader, list | tuple) and loader:
        loader = loader[0]
    if not isinstance(loader, Iterable) or isinstance(loader, Mapping):
        raise UserError(
            f"give the Trainer a DataLoader of (inputs, labels), not {type(loader).__name__}"
        )
    with torch.random.fork_rng(devices=[]):
        for value in loader:
            return as_batch(value)
    raise UserError("the DataLoader is empty")


def _describe(name: str, batch: Batch, num_classes: int) -> Spec:
    """The spec of plain classification data, as far as one batch tells it."""
    input_shape = None
    inputs = None
    if isinstance(batch.inputs, Tensor):
        input_shape = tuple(batch.inputs.shape[1:])
    else:
        # Named inputs, such as token ids; 0 fills a blank one.
        inputs = {}
        for key, tensor in batch.inputs.items():
            inputs[key] = InputSpec(tuple(tensor.shape[1:]), 0)
    return Spec(
        data=name, input_shape=input_shape, num_classes=num_classes, inputs=inputs
    )

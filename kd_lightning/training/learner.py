"""A network that learns: its layers by role, the features it yields, and its output per batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.features import (
    Rows,
    Taps,
    evaluating,
    run_in_chunks,
    run_network,
    run_on_batch,
)
from kd_lightning.outputs import PLAIN_READING, Reading, as_logits
from kd_lightning.row_chunks import SplitNetwork, first_rows
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task
from kd_lightning.training import probing
from kd_lightning.training.deferred import DeferredNetwork
from kd_lightning.types import Batch, Inputs, Output


@runtime_checkable
class ConstrainedModule(Protocol):
    """A module that changes its weights after each optimizer step, such as a max-norm layer."""

    def after_step(self) -> None:
        """Enforce the constraint."""


def logits_as_rows(logits: Tensor, batch: Batch) -> Tensor:
    """The rows of a task with one position per sample: the logits themselves."""
    return logits


class Learner(nn.Module):
    """A network in training; `learner(batch)` returns an Output with one row per position.

    Plain torch: it works in a Lightning module and in a loop of your own.

    Args:
        network: any nn.Module that returns logits, or a `DeferredNetwork` that builds one later.
        layers: module name for each role that a loss may ask for; `NAME:input` captures the
            module's input.
        task: what is predicted; one label per sample if left out.
        reading: which entry of the network's output holds the logits, and how messages name it.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Mapping[str, str] | None = None,
        task: Task | None = None,
        reading: Reading = PLAIN_READING,
    ) -> None:
        super().__init__()
        self.reading = reading
        self.network = network
        self.layers = dict(layers or {})
        self.taps: Taps | None = None
        self._rows: Rows = logits_as_rows if task is None else task.rows
        self._constrained = _constrained_modules(network)
        self.row_chunk: int | None = None
        """Rows whose logits are in memory together in a step; `None`: all."""

    @property
    def is_built(self) -> bool:
        """False while a `DeferredNetwork` stands for the network."""
        return not isinstance(self.network, DeferredNetwork)

    def build(self) -> None:
        """Build the network if that was deferred."""
        if isinstance(self.network, DeferredNetwork):
            self.network = self.network.build()
            self._constrained = _constrained_modules(self.network)

    @property
    def name(self) -> str:
        """What messages call the network: the student or the network, and its class."""
        return f"{self.reading.owner} {type(self.network).__name__}"

    def set_task(self, task: Task) -> None:
        """Predict the positions of this task from now on."""
        self._rows = task.rows

    def forward(self, batch: Batch) -> Output:
        """Logits `(N, K)` and the tapped features.

        Args:
            batch: of B samples with N positions.
        """
        if self.row_chunk is not None:
            return run_in_chunks(
                self.network, batch.inputs, batch, self._rows, self.row_chunk, self.taps
            )
        return run_on_batch(self.network, batch, self._rows, self.taps, self.reading)

    def logits(self, inputs: Inputs) -> Tensor:
        """The network's logits as it returns them, at temperature 1, as in deployment."""
        return run_network(self.network, inputs, reading=self.reading).logits

    def tap(self, roles: set[str]) -> dict[str, nn.Module]:
        """Capture the features of these roles from now on; returns the tapped modules by role.

        Raises:
            UserError: if a role has no layer.
        """
        # The hooks of earlier roles would capture features that nothing reads.
        if self.taps is not None:
            self.taps.close()
            self.taps = None
        if roles:
            self.taps = Taps(self.network, self.layers, roles, self.reading)
        return self.taps.modules if self.taps is not None else {}

    def probe(self, blank: Batch) -> Output:
        """The output for a blank batch, in eval mode, without a graph.

        With `row_chunk`, the logits are those of the first rows alone.

        Raises:
            UserError: if the network cannot read inputs of this shape.
        """
        self._check_head()
        try:
            with evaluating(self.network), torch.no_grad():
                return first_rows(self.forward(blank))
        except UserError:
            raise
        except Exception as error:
            shape = _shape_of(blank.inputs)
            raise UserError(
                f"{self.name} cannot read inputs of shape {shape}: {probing.reason_of(error)}"
            ) from error

    def _check_head(self) -> None:
        """Refuse `row_chunk` for a network whose logits cannot be computed row by row."""
        if self.row_chunk is None:
            return
        if not isinstance(self.network, SplitNetwork):
            raise UserError(
                f"model.row_chunk is for language models, and {self.name} is none; "
                "leave out row_chunk"
            )
        self.network.check_head()

    def check_output(self, blank: Batch, task: Task, spec: Spec) -> None:
        """Refuse a network whose output does not fit the task and the data.

        Args:
            blank: a batch of the data's shapes.
            task: what is predicted.
            spec: of the data.

        Raises:
            UserError: one line that names both shapes.
        """
        output = self.probe(blank)
        problem = task.output_problem(self.name, output.logits, spec)
        if problem is not None:
            raise UserError(problem)

    def check_training(self, blank: Batch, task: Task, spec: Spec) -> None:
        """Run the network once as in training, where it may return something else, or fail.

        Buffers and random generators are restored.

        Args:
            blank: a batch of the data's shapes.
            task: what is predicted.
            spec: of the data.

        Raises:
            UserError: if it fails, does not fit the task, or has a head that no loss trains.
        """
        # Gradients need the buffers as the forward pass left them: all of it comes before they
        # are restored.
        with probing.unchanged(self.network), torch.enable_grad():
            if self.row_chunk is not None:
                # Such a network has one head, and its logits are too large for a check.
                self.forward(blank)
                return
            raw = self._run_as_in_training(blank)
            features = self.taps.take() if self.taps is not None else {}
            logits = as_logits(raw, self.reading)
            rows = self._rows(logits, blank)
            problem = task.output_problem(self.name, rows, spec)
            if problem is not None:
                raise UserError(f"in training {problem}")
            if raw is logits:
                return
            # A head whose output is tapped is trained by the loss that reads it.
            used = []
            for feature in features.values():
                if isinstance(feature, Tensor):
                    used.append(feature)
            probing.check_heads(
                self.network, blank.inputs, raw, logits, used, self.reading
            )

    def check_single_sample(self, blank: Batch) -> None:
        """Refuse a network that cannot train on a batch of one sample, such as the blank one.

        Raises:
            UserError: one line, with what to change.
        """
        probing.check_single_sample(self.network, blank.inputs, self.name)
        # Hooks have captured this forward pass, too.
        if self.taps is not None:
            self.taps.overwritten()
            self.taps.take()

    def _run_as_in_training(self, blank: Batch) -> object:
        """What the network returns in the mode in which it trains, with a graph."""
        try:
            raw = probing.forward(self.network, blank.inputs)
            # Features that later layers change in place are copied from the next pass on.
            if self.taps is not None and self.taps.overwritten():
                raw = probing.forward(self.network, blank.inputs)
        except Exception as error:
            shape = _shape_of(blank.inputs)
            raise UserError(
                f"{self.name} fails in training on inputs of shape {shape}: "
                f"{probing.reason_of(error)}"
            ) from error
        return raw

    def after_step(self) -> None:
        """Let the network's constrained modules act after an optimizer step."""
        for module in self._constrained:
            module.after_step()


def _constrained_modules(network: nn.Module) -> list[ConstrainedModule]:
    """The modules that act after each optimizer step."""
    constrained: list[ConstrainedModule] = []
    for module in network.modules():
        if isinstance(module, ConstrainedModule):
            constrained.append(module)
    return constrained


def _shape_of(inputs: Inputs) -> list[int]:
    """The shape of one sample."""
    if isinstance(inputs, Tensor):
        return list(inputs.shape[1:])
    # The first of several inputs, such as the token ids.
    tensor = next(iter(inputs.values()))
    return list(tensor.shape[1:])

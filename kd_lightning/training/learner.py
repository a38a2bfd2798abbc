"""A network that learns: its layers by role, the features it yields, and its output per batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.features import Rows, Taps, run_network, run_on_batch
from kd_lightning.spec import Spec
from kd_lightning.tasks.base import Task
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
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Mapping[str, str] | None = None,
        task: Task | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.layers = dict(layers or {})
        self.taps: Taps | None = None
        self._rows: Rows = logits_as_rows if task is None else task.rows
        self._constrained = _constrained_modules(network)

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
        """The class name of the network, for messages."""
        return type(self.network).__name__

    def set_task(self, task: Task) -> None:
        """Predict the positions of this task from now on."""
        self._rows = task.rows

    def forward(self, batch: Batch) -> Output:
        """Logits `(N, K)` and the tapped features."""
        return run_on_batch(self.network, batch, self._rows, self.taps)

    def logits(self, inputs: Inputs) -> Tensor:
        """The network's logits as it returns them, at temperature 1, as in deployment."""
        return run_network(self.network, inputs).logits

    def tap(self, roles: set[str]) -> dict[str, nn.Module]:
        """Capture the features of these roles from now on; returns the tapped modules by role.

        Raises:
            UserError: if a role has no layer.
        """
        if self.taps is not None:
            self.taps.close()
            self.taps = None
        if roles:
            self.taps = Taps(self.network, self.layers, roles)
        return self.taps.modules if self.taps is not None else {}

    def probe(self, blank: Batch) -> Output:
        """The output for a blank batch, in eval mode, without a graph.

        Raises:
            UserError: if the network cannot read inputs of this shape.
        """
        training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                return self.forward(blank)
        except UserError:
            raise
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            shape = _shape_of(blank.inputs)
            raise UserError(f"{self.name} cannot read inputs of shape {shape}: {reason}") from error
        finally:
            self.network.train(training)

    def check_output(self, blank: Batch, task: Task, spec: Spec) -> None:
        """Refuse a network whose output does not fit the task and the data.

        Raises:
            UserError: one line that names both shapes.
        """
        problem = task.output_problem(self.name, self.probe(blank).logits, spec)
        if problem is not None:
            raise UserError(problem)

    def after_step(self) -> None:
        """Let the network's constrained modules act after an optimizer step."""
        for module in self._constrained:
            module.after_step()


def _constrained_modules(network: nn.Module) -> list[ConstrainedModule]:
    """The modules that act after each optimizer step."""
    return [module for module in network.modules() if isinstance(module, ConstrainedModule)]


def _shape_of(inputs: Inputs) -> list[int]:
    """The shape of one sample."""
    tensor = inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))
    return list(tensor.shape[1:])

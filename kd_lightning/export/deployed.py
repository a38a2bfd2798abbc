"""The network as other programs run it: raw inputs in, probabilities out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kd_lightning.tasks.base import Task
from kd_lightning.training.learner import Learner
from kd_lightning.training.objective import Objective
from kd_lightning.types import CLEAN, Batch, Inputs, full


class DeployedNetwork(nn.Module):
    """Preprocessing, network and probabilities at temperature 1 in one module.

    Args:
        learner: the trained network.
        objective: the losses, if one of them changes what the student predicts, as SimKD does.
        task: turns logits into probabilities.
        preprocessing: from raw inputs to what the network reads.
        names: of the network's inputs, in the order of the arguments of `forward`.
    """

    def __init__(
        self,
        learner: Learner,
        objective: Objective | None,
        task: Task,
        preprocessing: nn.Module,
        names: Sequence[str],
    ) -> None:
        super().__init__()
        self.learner = learner
        self.objective = objective
        self.task = task
        self.preprocessing = preprocessing
        self.names = tuple(names)

    def forward(self, *raw: Tensor) -> Tensor:
        """Predict.

        Args:
            raw: one tensor `(B, ...)` for each of `names`.

        Returns:
            Probabilities in the network's own layout: `(B, K)` for one label per sample.
        """
        inputs: Inputs = dict(zip(self.names, raw, strict=True))
        if len(self.names) == 1 and self.names[0] == "inputs":
            inputs = self.preprocessing(raw[0])
        return self.task.probabilities(self._logits(inputs, raw[0]))

    def _logits(self, inputs: Inputs, first: Tensor) -> Tensor:
        if self.objective is None:
            return self.learner.logits(inputs)
        # The losses predict from a batch; only its inputs matter to them.
        # `len(first)` would fix the batch size of an exported graph.
        placeholder = torch.zeros(first.shape[0], dtype=torch.int64)
        batch = Batch(inputs, placeholder, placeholder, CLEAN, "test")
        return full(self.objective.predict(self.learner(batch), batch).logits)

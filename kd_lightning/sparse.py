"""Outputs that hold the largest logits of each row, as a top-k teacher cache stores them."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.types import Output, TensorMap, full


class TopKOutput(Output):
    """The largest logits of each row, and the log-sum-exp of all others per temperature.

    A teacher that knows only some classes is compared over k + 1 events, for both networks: the k
    classes, and one for the rest. `paired_log_probs` returns these; the KL between them is at least
    0, at most the KL over all classes, and 0 if the student equals the teacher.

    The dense form, `logits` and `log_probs`, spreads the probability of the rest evenly over the
    other classes. It is exact on the stored classes, and meant for metrics and reports. It is no
    target: a student that equals the teacher does not match it.

    Attributes:
        values: `(N, k)`, the largest logits.
        indices: integers `(N, k)`, their classes.
        rest: `(N, R)`, the log-sum-exp of all other logits divided by each of R temperatures.
        temperatures: the R temperatures.
        num_classes: K of the data.
    """

    __slots__ = ("indices", "num_classes", "rest", "temperatures", "values")

    def __init__(
        self,
        values: Tensor,
        indices: Tensor,
        rest: Tensor,
        temperatures: tuple[float, ...],
        num_classes: int,
        features: dict[str, Tensor] | None = None,
    ) -> None:
        self.values = values
        self.indices = indices
        self.rest = rest
        self.temperatures = temperatures
        self.num_classes = num_classes
        self.features = features or {}

    @property
    def logits(self) -> Tensor:  # type: ignore[override]
        """The dense form at temperature 1, `(N, K)`."""
        return self.tempered_logits(1.0)

    def tempered_logits(self, temperature: float = 1.0) -> Tensor:
        """The dense form at a temperature, `(N, K)`.

        Raises:
            UserError: if the temperature is not stored.
        """
        stored_classes = self.values.shape[-1]
        # No class is left if all are stored; the value is then not used.
        other_classes = max(1, self.num_classes - stored_classes)
        spread = self._rest_at(temperature) - math.log(other_classes)
        stored = full(self.values) / temperature
        dense = spread.to(stored).expand(len(stored), self.num_classes)
        return dense.scatter(-1, self.indices.long(), stored)

    def paired_log_probs(
        self, student: Output, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities of both networks over the stored classes and the rest.

        Args:
            student: with logits `(N, K)`.
            temperature: one of those that are stored.

        Returns:
            The student's and the teacher's, `(N, k + 1)`; `(N, k)` if all classes are stored.

        Raises:
            UserError: if the temperature is not stored.
        """
        indices = self.indices.long()
        scores = student.tempered_logits(temperature)
        prediction = scores.gather(-1, indices)
        target = full(self.values) / temperature
        if indices.shape[-1] < self.num_classes:
            # The log-sum-exp of the rest is the logit of the event "any other class".
            others = log_sum_of_others(scores, indices)
            prediction = torch.cat([prediction, others], -1)
            target = torch.cat([target, self._rest_at(temperature)], -1)
        log_q = torch.log_softmax(prediction, dim=-1)
        log_p = torch.log_softmax(target, dim=-1)
        return log_q, log_p

    def truncated(self, count: int) -> TopKOutput:
        """The same output as a cache of fewer classes would hold it.

        Args:
            count: classes to keep of each row, at most k; the others join the rest.
        """
        kept = self.values[:, :count]
        dropped = full(self.values[:, count:])
        rests = []
        for number, temperature in enumerate(self.temperatures):
            others = (dropped / temperature).logsumexp(-1)
            rests.append(torch.logaddexp(self.rest[:, number], others))
        return TopKOutput(
            kept,
            self.indices[:, :count],
            torch.stack(rests, dim=-1),
            self.temperatures,
            self.num_classes,
            self.features,
        )

    def without_rest(self) -> TopKOutput:
        """The stored classes alone, whose probabilities then add up to 1.

        A student learns to give the other classes no probability at all, so this is no
        approximation of the teacher; other frameworks do it.
        """
        # Finite, so that no difference of two such numbers is NaN.
        nothing = torch.full_like(self.rest, torch.finfo(self.rest.dtype).min)
        return TopKOutput(
            self.values,
            self.indices,
            nothing,
            self.temperatures,
            self.num_classes,
            self.features,
        )

    def _rest_at(self, temperature: float) -> Tensor:
        """The log-sum-exp of the other logits divided by a temperature, `(N, 1)`."""
        if temperature not in self.temperatures:
            stored = ", ".join(f"{value:g}" for value in self.temperatures)
            raise UserError(
                f"these top-k outputs hold the temperatures {stored}, not {temperature:g}; make the "
                f"cache again with kd cache ... --temperatures {stored.replace(',', '')} "
                f"{temperature:g}"
            )
        number = self.temperatures.index(temperature)
        return self.rest[:, number : number + 1]

    def map(self, change: TensorMap) -> Self:
        """The same output with `change` applied to every tensor."""
        return type(self)(
            change(self.values),
            change(self.indices),
            change(self.rest),
            self.temperatures,
            self.num_classes,
            self._map_features(change),
        )


def log_sum_of_others(logits: Tensor, indices: Tensor) -> Tensor:
    """Log-sum-exp of the logits of all classes but those in `indices`.

    Args:
        logits: `(N, K)`.
        indices: int64 `(N, k)`, classes of each row.

    Returns:
        `(N, 1)`; minus infinity if no class is left.
    """
    return logits.scatter(-1, indices, float("-inf")).logsumexp(-1, keepdim=True)

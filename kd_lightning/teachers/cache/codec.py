"""How a teacher's outputs are stored: in full, or the K largest logits of each sample."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.teachers.cache.manifest import Column
from kd_lightning.types import EnsembleOutput, Output, full, mean_log_probs


@dataclass
class Codec:
    """Turns Outputs into columns and back.

    With `top_k` only the K largest logits of a sample are kept, and the log-sum-exp of all others, which is spread evenly
    over them when read: at every temperature the result is a distribution over all classes, exact on the K classes at T = 1.

    Attributes:
        dtype: "fp32", exact; or "fp16", half the size, a relative error of up to 2**-11 a logit.
        top_k: how many logits of each sample are kept; None: all.
        classes: K of the data.
        weights: of an arithmetic ensemble's members, whose logits are then kept apart.
        features: roles of the features that are kept besides.
    """

    dtype: str = "fp32"
    top_k: int | None = None
    classes: int = 0
    weights: list[float] | None = None
    features: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        return {**asdict(self), "features": list(self.features)}

    @classmethod
    def for_output(cls, output: Output, dtype: str, top_k: int | None) -> Codec:
        """The codec for outputs like this one.

        Raises:
            UserError: for a K that is no part of the classes, or top-k of an arithmetic ensemble.
        """
        classes = output.logits.shape[-1]
        ensemble = isinstance(output, EnsembleOutput)
        if top_k is not None and not 1 <= top_k < classes:
            raise UserError(
                f"--top-k must be at least 1 and less than the {classes} classes, got {top_k}"
            )
        if top_k is not None and ensemble:
            raise UserError(
                "--top-k cannot hold an arithmetic ensemble: its mean differs at every temperature; "
                "cache it in full, or use --model.teacher.mean=geometric"
            )
        weights = output.weights.double().tolist() if isinstance(output, EnsembleOutput) else None
        return cls(dtype, top_k, classes, weights, tuple(sorted(output.features)))

    @property
    def _float(self) -> torch.dtype:
        return torch.float16 if self.dtype == "fp16" else torch.float32

    def encode(self, output: Output) -> dict[str, Tensor]:
        """The columns of a batch, on the CPU."""
        if self.top_k is not None:
            logits = full(output.logits)
            values, indices = logits.topk(self.top_k, dim=-1)
            rest = logits.scatter(-1, indices, float("-inf")).logsumexp(-1)
            small = torch.int16 if self.classes <= 2**15 else torch.int32
            columns = {
                "values": values.to(self._float),
                "indices": indices.to(small),
                "rest": rest.float(),
            }
        elif isinstance(output, EnsembleOutput):
            columns = {"members": output.members.to(self._float)}
        else:
            columns = {"logits": output.logits.to(self._float)}
        columns |= {
            f"feature.{role}": output.features[role].to(self._float) for role in self.features
        }
        return {name: tensor.detach().cpu() for name, tensor in columns.items()}

    def columns(self, example: dict[str, Tensor]) -> dict[str, Column]:
        return {
            name: Column(str(t.numpy().dtype), tuple(t.shape[1:])) for name, t in example.items()
        }

    def decode(self, columns: dict[str, Tensor], device: torch.device) -> Output:
        """The Output that was stored."""
        tensors = {name: column.to(device) for name, column in columns.items()}
        features = {role: tensors[f"feature.{role}"] for role in self.features}
        if self.top_k is not None:
            values, indices = tensors["values"].float(), tensors["indices"].long()
            spread = tensors["rest"] - float(np.log(self.classes - self.top_k))
            logits = spread[:, None].expand(-1, self.classes).scatter(-1, indices, values)
            return Output(logits, features)
        if self.weights is not None:
            weights = torch.tensor(
                self.weights, device=device, dtype=full(tensors["members"]).dtype
            )
            mean = mean_log_probs(tensors["members"], weights)
            return EnsembleOutput(mean, features, members=tensors["members"], weights=weights)
        return Output(tensors["logits"], features)

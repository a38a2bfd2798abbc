"""One network as a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kd_lightning.errors import UserError
from kd_lightning.features import Taps, run_network
from kd_lightning.networks import build_network
from kd_lightning.spec import check_spec
from kd_lightning.teachers.base import Teacher
from kd_lightning.types import Batch, Output
from kd_lightning.weights import (
    KEY,
    load_weights,
    network_weights,
    read_file,
    sha256_of,
    weights_sha256,
)


class ModelTeacher(Teacher):
    """A trained network.

    Give one of: `checkpoint` of a `kd` run; `network` and `checkpoint` (any state_dict or safetensors file); `weights`, a
    torchvision weights enum such as `ResNet18_Weights.IMAGENET1K_V1`; in Python also `network` alone, trained already.

    Args:
        checkpoint: path of a checkpoint, a state_dict or a safetensors file.
        network: the network that a bare file's weights belong to.
        weights: name of a torchvision weights enum.
        layers: module name for each role that a loss may ask for.
        sha256: refuse a checkpoint file with another checksum.

    Raises:
        UserError: from `prepare`, where files are missing, corrupt, changed or do not fit the network or the data.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        network: nn.Module | None = None,
        weights: str | None = None,
        layers: dict[str, str] | None = None,
        sha256: str | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.checkpoint, self.weights, self.layers, self.sha256 = (
            checkpoint,
            weights,
            dict(layers or {}),
            sha256,
        )
        self.spec: Mapping[str, Any] | None = None
        self.taps: Taps | None = None
        self._source: dict[str, Any] = {}

    def prepare(self, datamodule: Any) -> None:
        if not self.ready:
            if self.checkpoint is None and self.network is None and self.weights is None:
                raise UserError(
                    "the teacher has no weights; give --model.teacher.checkpoint=PATH of a trained teacher"
                )
            if self.weights is not None:
                self._load_torchvision(self.weights)
            elif self.checkpoint is not None:
                self._load_file(Path(self.checkpoint).expanduser())
            elif self.network is not None:
                self._source = {
                    "sha256": weights_sha256(self.network),
                    "network": type(self.network).__name__,
                }
        check_spec("the teacher", self.spec, datamodule.spec)
        super().prepare(datamodule)

    def _load_file(self, path: Path) -> None:
        content = read_file(path, "the teacher")
        digest = sha256_of(path)
        if self.sha256 not in (None, digest):
            raise UserError(
                f"the teacher {path} has sha256 {digest}, not {self.sha256}: the file is another one"
            )
        ours = content.get(KEY)
        if self.network is None:
            if not ours or not ours.get("network"):
                raise UserError(
                    f"{path} does not say which network its weights belong to; name it as model.teacher.network"
                )
            self.network = build_network(ours["network"])
        load_weights(self.network, network_weights(content), f"the teacher {path}")
        self.spec = ours["spec"] if ours else None
        self._source = {
            "path": str(path.resolve()),
            "sha256": digest,
            "network": type(self.network).__name__,
        }

    def _load_torchvision(self, name: str) -> None:
        from torchvision import models

        try:
            weights = models.get_weight(name)
            builder = next(
                b for b in models.list_models() if models.get_model_weights(b) is type(weights)
            )
        except (ValueError, KeyError, AttributeError, StopIteration) as error:
            raise UserError(
                f"torchvision has no weights {name!r}; they are written like ResNet18_Weights.IMAGENET1K_V1"
            ) from error
        try:
            with torch.random.fork_rng():
                self.network = models.get_model(builder, weights=weights)
        except Exception as error:
            raise UserError(
                f"the weights {name} are not in torchvision's cache and cannot be downloaded: {weights.url}"
            ) from error
        self.spec = {
            "num_classes": len(weights.meta["categories"]),
            "classes": list(weights.meta["categories"]),
        }
        self._source = {"weights": name, "url": weights.url, "network": type(self.network).__name__}

    def tap(self, roles: set[str]) -> dict[str, nn.Module]:
        if not roles:
            return {}
        assert self.network is not None, "prepare() comes first"
        self.taps = Taps(self.network, self.layers, roles)
        return self.taps.modules

    def outputs(self, batch: Batch) -> Output:
        assert self.network is not None
        inputs = batch.inputs if batch.teacher_inputs is None else batch.teacher_inputs
        return run_network(self.network, inputs, self.taps)

    def sources(self) -> list[dict[str, Any]]:
        return [self._source] if self._source else []

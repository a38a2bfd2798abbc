"""One network as a teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from kd_lightning.data.blank import blank_inputs
from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.features import (
    Taps,
    create_lazy_weights,
    has_lazy_weights,
    run_teacher_on_batch,
)
from kd_lightning.networks import build_network
from kd_lightning.outputs import Reading
from kd_lightning.spec import Spec, check_spec
from kd_lightning.tasks.base import Task
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

    Give one of: `checkpoint` of a `kd` run; `network` and `checkpoint` (any state_dict or
    safetensors file); `weights`, a torchvision weights enum such as
    `ResNet18_Weights.IMAGENET1K_V1`; in Python also a trained `network` alone.

    Args:
        checkpoint: path of a checkpoint, a state_dict or a safetensors file.
        network: the network that a bare file's weights belong to.
        weights: name of a torchvision weights enum.
        layers: module name for each role that a loss may ask for.
        sha256: refuse a checkpoint file with another checksum.
        outputs: which entry of the network's output holds the logits: the index in a tuple, or the
            key or attribute. By default the output is a tensor or has an entry `logits`.

    Raises:
        UserError: from `prepare`, if files are missing, corrupt or changed, or do not fit the
            network or the data.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        network: nn.Module | None = None,
        weights: str | None = None,
        layers: dict[str, str] | None = None,
        sha256: str | None = None,
        outputs: int | str | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.checkpoint = checkpoint
        self.weights = weights
        self.layers = dict(layers or {})
        self.sha256 = sha256
        self.reading = Reading(outputs, owner="the teacher", option="--model.teacher")
        self.spec: Spec | None = None
        self.taps: Taps | None = None
        self._task: Task | None = None
        self._source: dict[str, object] = {}

    def prepare(self, datamodule: DataModule) -> None:
        self.prepare_for(datamodule.spec, datamodule.task)

    def prepare_for(self, spec: Spec, task: Task) -> None:
        """Load the network, and check it against a spec and a task instead of a datamodule.

        Raises:
            UserError: one line, if the teacher is not available or does not fit.
        """
        if not self.ready:
            self._load(spec.for_teacher())
        check_spec("the teacher", self.spec, spec)
        self._task = task
        self.requires_grad_(False)
        self.train(False)
        self.ready = True

    def _load(self, data: Spec) -> None:
        if self.weights is not None:
            self._load_torchvision(self.weights)
        elif self.checkpoint is not None:
            self._load_file(Path(self.checkpoint).expanduser(), data)
        elif self.network is not None:
            if has_lazy_weights(self.network):
                raise UserError("the teacher's network has lazy layers that were never trained")
            digest = weights_sha256(self.network)
            self._source = {"sha256": digest, "network": type(self.network).__name__}
        else:
            raise UserError(
                "the teacher has no weights; give --model.teacher.checkpoint=PATH of a trained "
                "teacher"
            )

    def _load_file(self, path: Path, data: Spec) -> None:
        content = read_file(path, "the teacher")
        digest = sha256_of(path)
        if self.sha256 not in (None, digest):
            raise UserError(
                f"the teacher {path} has sha256 {digest}, not {self.sha256}: the file is another one"
            )
        described = content.get(KEY)
        if self.network is None:
            if not described or not described.get("network"):
                raise UserError(
                    f"{path} does not name the network its weights belong to; set "
                    "model.teacher.network"
                )
            self.network = build_network(described["network"])
        if has_lazy_weights(self.network):
            create_lazy_weights(self.network, blank_inputs(data, samples=2), "the teacher")
        load_weights(self.network, network_weights(content), f"the teacher {path}")
        if described and described.get("spec"):
            self.spec = Spec.from_dict(described["spec"])
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
                builder
                for builder in models.list_models()
                if models.get_model_weights(builder) is type(weights)
            )
        except (ValueError, KeyError, AttributeError, StopIteration) as error:
            raise UserError(
                f"torchvision has no weights {name!r}; a valid name looks like "
                "ResNet18_Weights.IMAGENET1K_V1"
            ) from error
        try:
            with torch.random.fork_rng():
                self.network = models.get_model(builder, weights=weights)
        except Exception as error:
            raise UserError(
                f"the weights {name} are not in torchvision's cache and cannot be downloaded: "
                f"{weights.url}"
            ) from error
        classes = tuple(weights.meta["categories"])
        self.spec = Spec(data=name, num_classes=len(classes), classes=classes)
        self._source = {"weights": name, "url": weights.url, "network": type(self.network).__name__}

    def tap(self, roles: set[str]) -> dict[str, nn.Module]:
        assert self.network is not None, "prepare() comes first"
        if self.taps is not None:
            self.taps.close()
            self.taps = None
        if not roles:
            return {}
        self.taps = Taps(self.network, self.layers, roles, self.reading)
        return self.taps.modules

    def outputs(self, batch: Batch) -> Output:
        assert self.network is not None, "prepare() comes first"
        assert self._task is not None, "prepare() comes first"
        rows = self._task.rows
        return run_teacher_on_batch(self.network, batch, rows, self.taps, self.reading)

    def sources(self) -> list[dict[str, object]]:
        return [self._source] if self._source else []

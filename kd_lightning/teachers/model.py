"""One network as a teacher."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from kd_lightning.data.blank import blank_inputs
from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.features import (
    Taps,
    create_lazy_weights,
    has_lazy_weights,
    run_in_chunks,
    run_teacher_on_batch,
)
from kd_lightning.networks import KnowsItsClasses, build_network, weights_in_folder
from kd_lightning.outputs import Reading
from kd_lightning.row_chunks import SplitNetwork
from kd_lightning.spec import Spec, check_spec
from kd_lightning.tasks.base import Task
from kd_lightning.teachers import preprocessing
from kd_lightning.teachers.base import Teacher
from kd_lightning.teachers.input_adapter import (
    InputAdapter,
    adapter_between,
    described_as_spec,
)
from kd_lightning.teachers.preprocessing import Preprocessing
from kd_lightning.types import Batch, Output
from kd_lightning.weights import (
    KEY,
    load_file_weights,
    load_weights,
    read_file,
    sha256_of,
    split_choice,
    torchvision_download,
    torchvision_enum,
    weights_sha256,
)

FileContent: TypeAlias = "dict[str, Any]"
"""What a file of weights holds: a checkpoint's entries, or tensors by name."""

HUB_CLASSIFIER = "kd_lightning.models.HubClassifier"
"""The class path of the network that a folder of transformers holds."""


class ModelTeacher(Teacher):
    """A trained network.

    Give one of: `checkpoint` of a `kd` run; `checkpoint`, a folder that `save_pretrained` of
    transformers wrote for a classifier; `network` and `checkpoint` (any state_dict or safetensors
    file); `weights`, a torchvision weights enum such as `ResNet18_Weights.IMAGENET1K_V1`; in
    Python also a trained `network` alone.

    Images are adapted to what the network was trained on, as far as that is known: from the `kd`
    checkpoint, from torchvision, timm or a Hugging Face image processor, or from the arguments
    below. `notes` then say what is adapted.

    Args:
        checkpoint: path of a checkpoint, a state_dict, a safetensors file or a folder of
            transformers. `FILE#NAME` selects one of several weights in a file, such as
            `run.pt#state_dict_ema`.
        network: the network that a bare file's weights belong to.
        weights: name of a torchvision weights enum.
        layers: module name for each role that a loss may ask for.
        sha256: refuse a checkpoint file with another checksum.
        mean, std: the network expects images normalized with these, per channel, of pixel values
            in [0, 1].
        input_size: height and width of the images that the network expects.
        outputs: which entry of the network's output holds the logits: the index in a tuple, or the
            key or attribute. By default the output is a tensor or has an entry `logits`.
        features_only: the network need not know the task and the classes of the data, because
            losses read its features alone, such as `FeatureCosine`. It is then not compared with
            the student in evaluation.

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
        mean: list[float] | None = None,
        std: list[float] | None = None,
        input_size: list[int] | None = None,
        outputs: int | str | None = None,
        features_only: bool | None = None,
    ) -> None:
        super().__init__()
        self.predicts = not features_only
        self.network = network
        self.checkpoint = checkpoint
        self.weights = weights
        self.layers = dict(layers or {})
        self.sha256 = sha256
        self._given = preprocessing.of_arguments(mean, std, input_size)
        self._described = Preprocessing()
        self.adapter: InputAdapter | None = None
        self.reading = Reading(outputs, owner="the teacher", option="--model.teacher")
        self.spec: Spec | None = None
        self.taps: Taps | None = None
        self._task: Task | None = None
        self._row_chunk: int | None = None
        self._source: dict[str, object] = {}

    def prepare(self, datamodule: DataModule) -> None:
        """Load the network, and check it against the data.

        Args:
            datamodule: the data.

        Raises:
            UserError: one line, if the teacher is not available or does not fit.
        """
        self.prepare_for(datamodule.spec, datamodule.task)

    def prepare_for(self, spec: Spec, task: Task) -> None:
        """Load the network, and check it against a spec and a task instead of a datamodule.

        Args:
            spec: of the data.
            task: what is predicted.

        Raises:
            UserError: one line, if the teacher is not available or does not fit.
        """
        if not self.ready:
            self._load(spec)
        # What can be adapted is no mismatch; the comparison then leaves the images out.
        expected = self._expected_inputs()
        adapter = adapter_between(spec, expected)
        trained_on = described_as_spec(self.spec, spec, expected)
        check_spec(
            "the teacher",
            trained_on,
            spec,
            inputs=adapter is None,
            predicts=self.predicts,
        )
        # An adapter that changes nothing would only cost time.
        self.adapter = None
        if adapter is not None and adapter.changes_inputs:
            self.adapter = adapter
        self._task = task
        self.requires_grad_(False)
        self.train(False)
        self.ready = True

    def _expected_inputs(self) -> Preprocessing:
        """The images that the network expects; the arguments win over what the files say."""
        known = self._described.overridden_by(Preprocessing.of_spec(self.spec))
        return known.overridden_by(self._given)

    def _load(self, spec: Spec) -> None:
        """Load the network from whatever the arguments name."""
        # The most specific argument wins: each of them names weights.
        if self.weights is not None:
            self._load_torchvision(self.weights)
        elif self.checkpoint is not None:
            folder = Path(self.checkpoint).expanduser()
            if self.network is None and _is_hub_folder(folder):
                self._load_hub_classifier(folder, spec)
            elif _is_hub_folder(folder):
                self._load_hub_weights(folder)
            else:
                self._load_file(self.checkpoint, spec)
        elif self.network is not None:
            if has_lazy_weights(self.network):
                raise UserError(
                    "the teacher's network has lazy layers that were never trained"
                )
            self._described = preprocessing.of_network(self.network)
            # There is no file, so the tensors themselves are hashed.
            digest = weights_sha256(self.network)
            self._source = {"sha256": digest, "network": type(self.network).__name__}
        else:
            raise UserError(
                "the teacher has no weights; give --model.teacher.checkpoint=PATH of a trained "
                "teacher"
            )

    def _load_hub_classifier(self, folder: Path, spec: Spec) -> None:
        """A classifier of transformers with its head."""
        # By its class path, as that of a kd checkpoint: most runs need nothing of transformers.
        network = build_network(
            {"class_path": HUB_CLASSIFIER, "init_args": {"folder": str(folder)}}
        )
        assert isinstance(network, KnowsItsClasses)
        self.network = network
        self.spec = network.trained_on(spec)
        self._keep_source_of_folder(folder)

    def _load_hub_weights(self, folder: Path) -> None:
        """The weights of a folder of transformers for a network that the user built."""
        assert self.network is not None
        weights = weights_in_folder(self.network, folder)
        if weights is None:
            raise UserError(
                f"the teacher {folder} is a folder of transformers, but "
                f"{type(self.network).__name__} is no network of that library; leave out "
                "model.teacher.network"
            )
        # Strict: a tensor that is missing would stay random.
        load_weights(self.network, weights, f"the teacher {folder}")
        self._keep_source_of_folder(folder)

    def _keep_source_of_folder(self, folder: Path) -> None:
        """Note where the weights came from, and which images they were trained on."""
        assert self.network is not None
        digest = weights_sha256(self.network)
        self._check_sha256(folder, digest)
        self._described = preprocessing.of_processor(folder)
        self._source = {
            "path": str(folder.resolve()),
            "sha256": digest,
            "network": type(self.network).__name__,
        }

    def _check_sha256(self, path: Path, digest: str) -> None:
        """Refuse weights with another checksum than the user expects."""
        if self.sha256 not in (None, digest):
            raise UserError(
                f"the teacher {path} has sha256 {digest}, not {self.sha256}: the file is another one"
            )

    def _load_file(self, checkpoint: str, spec: Spec) -> None:
        """Load a kd checkpoint, a state_dict or a safetensors file."""
        content = read_file(checkpoint, "the teacher")
        path, choice = split_choice(checkpoint)
        digest = sha256_of(path)
        self._check_sha256(path, digest)
        # Only kd checkpoints describe what they hold.
        described = content.get(KEY)
        # A bare file of weights needs a network of the user's.
        if self.network is None:
            if not described or not described.get("network"):
                raise UserError(
                    f"{path} does not name the network its weights belong to; set "
                    "model.teacher.network"
                )
            self.network = build_network(described["network"])
        # Lazy layers get their shapes from an input, and only then have weights to load.
        if has_lazy_weights(self.network):
            inputs = blank_inputs(spec.for_teacher(), samples=2)
            create_lazy_weights(self.network, inputs, "the teacher")
        self._load_content(content, path)
        if described and described.get("spec"):
            self.spec = Spec.from_dict(described["spec"])
        else:
            self._described = preprocessing.of_file(path, self.network)
        self._source = {
            "path": str(path.resolve()),
            "sha256": digest,
            "network": type(self.network).__name__,
        }
        if choice is not None:
            self._source["entry"] = choice

    def _load_content(self, content: FileContent, path: Path) -> None:
        """Give the network the weights of a file, by their names or by those of transformers."""
        assert self.network is not None
        try:
            load_file_weights(self.network, content, f"the teacher {path}")
        except UserError as error:
            if not _is_hub_folder(path.parent):
                raise
            # Its tensors may have other names in the file than in the running model.
            weights = weights_in_folder(self.network, path.parent)
            if weights is None:
                raise UserError(
                    f"{error} It lies in a folder of transformers: to use that classifier with "
                    f"its head, give --model.teacher.checkpoint={path.parent} and no network"
                ) from error
            load_weights(self.network, weights, f"the teacher {path}")

    def _load_torchvision(self, name: str) -> None:
        """Build the network that a torchvision weights enum belongs to, with these weights."""
        from torchvision import models

        weights = torchvision_enum(name)
        # Torchvision knows the weights of each builder, but not the builder of weights.
        builder = next(
            builder
            for builder in models.list_models()
            if models.get_model_weights(builder) is type(weights)
        )
        # The builder draws initial weights before it loads others.
        with torchvision_download(name, weights.url), torch.random.fork_rng():
            self.network = models.get_model(builder, weights=weights)
        classes = tuple(weights.meta["categories"])
        self.spec = Spec(data=name, num_classes=len(classes), classes=classes)
        preset = cast(nn.Module, weights.transforms())
        self._described = preprocessing.of_torchvision(preset)
        self._source = {
            "weights": name,
            "url": weights.url,
            "network": type(self.network).__name__,
        }

    def tap(self, roles: set[str]) -> dict[str, nn.Module]:
        """Capture the features of these roles from now on; returns the tapped modules by role.

        Args:
            roles: that losses read.

        Raises:
            UserError: if a role has no layer.
        """
        assert self.network is not None, "prepare() comes first"
        # The hooks of earlier roles would capture features that nothing reads.
        if self.taps is not None:
            self.taps.close()
            self.taps = None
        if not roles:
            return {}
        self.taps = Taps(self.network, self.layers, roles, self.reading)
        return self.taps.modules

    def use_row_chunk(self, row_chunk: int) -> None:
        """Give the logits of a few rows at a time, if the network is a language model.

        Args:
            row_chunk: rows whose logits are in memory together.
        """
        network: object = self.network
        if not isinstance(network, SplitNetwork):
            return
        # All logits at once are right for every network.
        with contextlib.suppress(UserError):
            network.check_head()
            self._row_chunk = row_chunk

    def outputs(self, batch: Batch) -> Output:
        """Logits `(N, K)` and the tapped features.

        Args:
            batch: as the student reads it; images are adapted here.
        """
        assert self.network is not None, "prepare() comes first"
        assert self._task is not None, "prepare() comes first"
        if self.adapter is not None:
            batch = self.adapter.adapt(batch)
        rows = self._task.rows
        if self._row_chunk is not None:
            inputs = batch.inputs
            if batch.teacher_inputs is not None:
                inputs = batch.teacher_inputs
            return run_in_chunks(
                self.network, inputs, batch, rows, self._row_chunk, self.taps
            )
        return run_teacher_on_batch(self.network, batch, rows, self.taps, self.reading)

    def sources(self) -> list[dict[str, object]]:
        """Where the weights came from, and how the inputs are adapted; empty before `prepare`."""
        if not self._source:
            return []
        if self.adapter is None:
            return [self._source]
        return [{**self._source, "adapted_inputs": self.adapter.settings()}]

    @property
    def notes(self) -> list[str]:
        """How the inputs are adapted, if they are."""
        if self.adapter is None:
            return []
        return [f"the teacher's inputs are adapted: {self.adapter.note}"]


def _is_hub_folder(path: Path) -> bool:
    """Whether a folder was written by `save_pretrained` of transformers."""
    return (path / "config.json").is_file()

"""The student of a finished run, ready to be exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.export.deployed import DeployedNetwork
from kd_lightning.runs.build import build_run
from kd_lightning.runs.configs import resolve_configs, with_own_config
from kd_lightning.runs.folder import RunFolder
from kd_lightning.runs.parsing import parse_resolved, run_parser
from kd_lightning.runs.quiet import quiet
from kd_lightning.spec import Spec
from kd_lightning.training.checkpointing import Described
from kd_lightning.training.module import TrainingModule
from kd_lightning.types import CLEAN, Batch, full
from kd_lightning.weights import KEY


@dataclass
class TrainedStudent:
    """A student with its trained weights, its data and the record of its run.

    Attributes:
        module: of the run, in eval mode.
        datamodule: of the run.
        checkpoint: the file that the weights come from.
        described: what the checkpoint says about its network.
        run: the folder of the run; `None` if the checkpoint lies in no run folder.
    """

    module: TrainingModule
    datamodule: DataModule
    checkpoint: Path
    described: Described
    run: RunFolder | None

    @property
    def spec(self) -> Spec:
        """The description of the data."""
        return self.datamodule.spec

    def deployed(self) -> DeployedNetwork:
        """The network as other programs run it: from raw inputs to probabilities."""
        return self.deployed_for(self.input_names)

    def deployed_for(self, input_names: Sequence[str]) -> DeployedNetwork:
        """The deployed network, without reading the data for the names of its inputs.

        Args:
            input_names: as `input_names` returns them.
        """
        deployed = DeployedNetwork(
            self.module.learner,
            self.module.objective if self.module.objective.predicts else None,
            self.datamodule.task,
            self.datamodule.preprocessing(),
            input_names,
        )
        return deployed.eval()

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the network's inputs; `("inputs",)` if it reads a single tensor."""
        # One sample is enough to know the names.
        inputs = self.datamodule.raw_inputs("test", torch.zeros(1, dtype=torch.int64))
        if isinstance(inputs, Mapping):
            return tuple(inputs)
        return ("inputs",)

    @property
    def sample(self) -> tuple[Tensor, ...]:
        """The first test sample, as a batch of one; see `raw_inputs`."""
        return self.raw_inputs("test", torch.zeros(1, dtype=torch.int64))

    def raw_inputs(self, stage: str, rows: Tensor) -> tuple[Tensor, ...]:
        """Samples in the form in which the deployed network receives them.

        Args:
            stage: "train" or "test".
            rows: int64 `(B,)`, positions in the source of the stage.
        """
        inputs = self.datamodule.raw_inputs(stage, rows)
        if isinstance(inputs, Tensor):
            return (inputs,)
        return tuple(self._padded(name, tensor) for name, tensor in inputs.items())

    def _padded(self, name: str, tensor: Tensor) -> Tensor:
        """Token ids or masks `(B, L)` at the length that all exported networks read.

        A graph cannot have loops over a length that varies, such as those of an LSTM.
        """
        vocabulary = self.spec.vocabulary
        # Exported graphs of texts have one length, the longest that the tokenizer
        # makes.
        if vocabulary is None or tensor.ndim != 2:
            return tensor
        missing = vocabulary.max_length - tensor.shape[1]
        value = vocabulary.pad if name == "input_ids" else 0
        return F.pad(tensor, (0, max(0, missing)), value=value)

    def reference(self, rows: Tensor) -> Tensor:
        """What the framework itself predicts for test samples, in the network's own layout.

        Args:
            rows: int64 `(B,)`, positions in the test split.
        """
        batch = self.datamodule.source("test").batch(rows, CLEAN)
        with torch.no_grad():
            logits = self._logits(batch)
            return self.datamodule.task.probabilities(logits)

    def _logits(self, batch: Batch) -> Tensor:
        # Some losses predict through an adapter, which then belongs to the student.
        if not self.module.objective.predicts:
            return self.module.learner.logits(batch.inputs)
        own = self.module.learner(batch)
        return full(self.module.objective.predict(own, batch).logits)


def load_student(
    run: str,
    settings: Sequence[str],
    reads_test: bool = True,
) -> TrainedStudent:
    """Build the network and the data of a run again, and load its weights.

    Args:
        run: a run's folder, or a checkpoint.
        settings: further arguments of `kd test`, such as `--data.root=DIR`.
        reads_test: check that the test samples can be read.

    Raises:
        UserError: if there is no such run, or it cannot be built again.
    """
    checkpoint = find_checkpoint(Path(run).expanduser())
    # Hide Lightning's notes about devices, which do not concern an export.
    quiet()
    # As `kd predict` does it, so that the same options of the data are understood.
    arguments = ["predict", "--ckpt_path", str(checkpoint), *settings]
    parser = run_parser("predict")
    resolved = resolve_configs(with_own_config(arguments))
    config = parse_resolved(parser, resolved[1:])
    built = build_run("predict", parser, config)
    built.check(reads_predicted=reads_test)
    state = cast(Mapping[str, Tensor], built.checkpoint_content["state_dict"])
    built.module.load_state_dict(state)
    built.module.eval()
    folder = checkpoint.parent.parent
    has_record = (folder / "run.json").is_file()
    return TrainedStudent(
        module=built.module,
        datamodule=built.datamodule,
        checkpoint=checkpoint,
        described=cast(Described, built.checkpoint_content[KEY]),
        run=RunFolder(folder) if has_record else None,
    )


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: the file itself, or the one that its run tested.

    Args:
        path: of a checkpoint or a run's folder.

    Raises:
        UserError: if there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"there is no run or checkpoint {path}")
    if not (path / "config.yaml").is_file():
        raise UserError(
            f"{path} has no config.yaml; give the folder of a run that kd fit wrote, or a "
            "checkpoint"
        )
    # The checkpoint that the run tested, so that its test metrics are those of the export.
    options = RunFolder(path).config.get("run") or {}
    tested = options.get("test")
    name = "best.ckpt" if tested == "best" else "last.ckpt"
    checkpoint = path / "checkpoints" / name
    if not checkpoint.is_file():
        raise UserError(
            f"{path} has no checkpoints/{name}; give the folder of a run that kd fit wrote, "
            "or a checkpoint"
        )
    return checkpoint

"""Builds the data, the module and the Trainer's settings of a run from its config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.masking import missing_secret
from kd_lightning.runs.config_errors import config_errors
from kd_lightning.runs.folder import read_json
from kd_lightning.runs.options import RunOptions
from kd_lightning.runs.parsing import plain_config
from kd_lightning.runs.pretrained import timm_models, timm_weights
from kd_lightning.runs.random_teacher import check_teachers_are_trained
from kd_lightning.runs.ranges import check_limits
from kd_lightning.runs.settings import check_secrets, find_files
from kd_lightning.runs.spec_arguments import fill_from_spec
from kd_lightning.runs.trainer_checks import check_trainer
from kd_lightning.spec import Spec, check_spec
from kd_lightning.training import lightning_compat
from kd_lightning.training.checkpointing import Described
from kd_lightning.training.module import TrainingModule
from kd_lightning.trust import import_factory
from kd_lightning.weights import (
    KEY,
    check_lightning_entries,
    check_weights,
    network_weights,
    read_file,
)


@dataclass
class BuiltRun:
    """Everything that a run needs, before its folder exists.

    Attributes:
        command: "fit", "validate", "test" or "predict".
        config: as parsed, with the arguments that come from the data.
        datamodule: of the run.
        module: of the run, with its initial weights.
        trainer_settings: arguments of the Trainer.
        options: `--run.*`.
        checkpoint: `--ckpt_path`.
        checkpoint_content: of that file; empty without one.
        settings: the config as it was given, without what a checkpoint replaces; for config.yaml.
    """

    command: str
    config: Namespace
    datamodule: DataModule
    module: TrainingModule
    trainer_settings: dict[str, Any]
    options: RunOptions
    checkpoint: Path | None
    checkpoint_content: Mapping[str, Any]
    settings: dict[str, Any]

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return int(self.config.seed_everything)

    @property
    def job_type(self) -> str:
        """The kind of run: "teacher", "student", "distill" or what the user called it."""
        return self.options.job_type or self.module.job_type

    @property
    def has_validation(self) -> bool:
        """Whether the data has a validation split."""
        return self.datamodule.spec.samples.get("validation", 0) > 0

    def check(self, reads_predicted: bool = True) -> None:
        """Find every mistake that can be found before a folder is made.

        Args:
            reads_predicted: also read what a command predicts.

        Raises:
            UserError: if something does not fit.
        """
        # Reads all data, and runs the networks on a blank batch.
        self.module.attach(self.datamodule, self.command)
        if self.command == "predict" and reads_predicted:
            # Reads what is to be predicted.
            self.datamodule.predict_dataloader()
        # Fractions of an epoch can select no batch at all.
        check_limits(self.trainer_settings, self._batches())
        if self.command == "fit":
            self.module.check_optimizer()
            check_trainer(
                self.trainer_settings, self.options, self.module, self.has_validation
            )
        if self.options.test == "best":
            self._check_best_checkpoint()
        if self.checkpoint is not None:
            self._check_checkpoint(self.checkpoint)
        elif self.command != "fit":
            raise UserError(
                f"kd {self.command} needs trained weights; give "
                "--ckpt_path=RUN/checkpoints/last.ckpt"
            )

    def _batches(self) -> dict[str, int]:
        """The number of batches by stage on one device, for the stages of the command."""
        data = self.datamodule
        stages = {
            "fit": ("train", "validation"),
            "validate": ("validation",),
            "test": ("test",),
        }
        batches = {}
        for stage in stages.get(self.command, ()):
            size = data.batch_size if stage == "train" else data.eval_batch_size
            name = "val" if stage == "validation" else stage
            samples = data.spec.samples.get(stage, 0)
            batches[name] = math.ceil(samples / size)
        return batches

    def _check_best_checkpoint(self) -> None:
        """Refuse to test the best checkpoint if none will be written."""
        if not self.has_validation:
            raise UserError(
                "--run.test=best needs a validation split; use --run.test=last, or set "
                "data.validation"
            )
        if self.trainer_settings["enable_checkpointing"] is False:
            raise UserError(
                "--run.test=best needs best.ckpt; use --run.test=last, or remove "
                "--trainer.enable_checkpointing=false"
            )

    def _check_checkpoint(self, path: Path) -> None:
        """Refuse a checkpoint of another module, network or data, or one that cannot be resumed."""
        content = self.checkpoint_content
        described = content.get(KEY, {})
        if described.get("role") != self.module.role:
            raise UserError(
                f"--ckpt_path: {path} is not a checkpoint of a {type(self.module).__name__}; "
                "give one with its config"
            )
        # Damage is reported here, before Lightning meets it in the middle of its set-up.
        owner = f"--ckpt_path {path}"
        check_lightning_entries(content, owner, resumes=False)
        check_weights(self.module.net, network_weights(content), owner)
        self._check_spec(path)
        # Whoever tests needs weights only.
        if self.command != "fit":
            return
        if not content.get("optimizer_states"):
            raise UserError(
                f"--ckpt_path: {path} holds no optimizer state to resume; give it as "
                "--model.init_from"
            )
        check_lightning_entries(content, owner, resumes=True)

    def _check_spec(self, path: Path) -> None:
        """Compare the data with the data that the checkpoint was trained on."""
        described = self.checkpoint_content[KEY].get("spec")
        if described:
            # The network of the checkpoint reads the student's inputs, not the teacher's.
            data = replace(
                self.datamodule.spec, teacher_inputs=None, teacher_vocabulary=None
            )
            owner = f"--ckpt_path: the network of {path}"
            check_spec(owner, Spec.from_dict(described), data)


def build_run(
    command: str,
    parser: LightningArgumentParser,
    config: Namespace,
) -> BuiltRun:
    """Build the data, then the model for that data.

    Args:
        command: "fit", "validate", "test" or "predict".
        parser: that parsed the config.
        config: arguments that come from the data are filled in.

    Raises:
        UserError: if a setting is wrong.
    """
    with config_errors():
        return _build_run(command, parser, config)


def _build_run(
    command: str,
    parser: LightningArgumentParser,
    config: Namespace,
) -> BuiltRun:
    """See `build_run`; errors of the parser have not been put into words yet."""
    torch.set_float32_matmul_precision(config.matmul_precision)
    _set_seed(config)
    _find_files(config)
    check_secrets({"data": plain_config(config)["data"]})
    datamodule = _build_data(parser, config)
    # Read once: the file is as large as the network, and several checks need it.
    checkpoint = Path(config.ckpt_path) if config.ckpt_path else None
    content = read_file(checkpoint, "--ckpt_path") if checkpoint else {}
    # The run's config.yaml names the files that a checkpoint replaces here.
    given = config.clone()
    _restore_from_checkpoint(content.get(KEY), config.model, datamodule)
    # A checkpoint may have brought back what config.yaml does not store.
    check_secrets(plain_config(config))
    fill_from_spec(config.model, datamodule.spec)
    fill_from_spec(given.model, datamodule.spec)
    lightning_compat.keep_arguments_of(
        parser, TrainingModule, plain_config(config)["model"]
    )
    _check_factories(config.model)
    # A test may compare with any teacher, but training with a random one is a mistake.
    if command == "fit":
        check_teachers_are_trained(plain_config(config)["model"])
    # The initial weights depend on the seed alone, not on what the data has drawn.
    torch.manual_seed(config.seed_everything)
    with timm_weights(timm_models(config.model)):
        module = parser.instantiate_classes(Namespace(model=config.model)).model
    rest = parser.instantiate_classes(Namespace(trainer=config.trainer, run=config.run))
    return BuiltRun(
        command=command,
        config=config,
        datamodule=datamodule,
        module=module,
        trainer_settings=dict(rest.trainer.items()),
        options=rest.run,
        checkpoint=checkpoint,
        checkpoint_content=content,
        settings=plain_config(given),
    )


def _build_data(parser: LightningArgumentParser, config: Namespace) -> DataModule:
    """Build the datamodule, so that its checkpoints hold its arguments."""
    arguments = plain_config(config)["data"]
    lightning_compat.keep_arguments_of(parser, pl.LightningDataModule, arguments)
    datamodule = parser.instantiate_classes(Namespace(data=config.data)).data
    if not isinstance(datamodule, DataModule):
        raise UserError(
            f"data: {type(datamodule).__name__} is not a datamodule of kd_lightning; derive it "
            "from kd_lightning.data.TensorDataModule (tensors in memory) or "
            "kd_lightning.data.DataModule"
        )
    return datamodule


def _check_factories(model: Namespace) -> None:
    """Refuse an optimizer or scheduler that is neither a class nor a function that makes one.

    The parser accepts any callable there, and would call it to build the module.
    """
    # The class path is checked and not the object, because building it would call it.
    kinds: dict[str, type] = {
        "optimizer": Optimizer,
        "scheduler": LRScheduler,
        "generator_optimizer": Optimizer,
    }
    for name, base in kinds.items():
        value = model.init_args.get(name)
        class_path = value.get("class_path") if isinstance(value, Namespace) else value
        if isinstance(class_path, str):
            import_factory(class_path, base, name)


def _find_files(config: Namespace) -> None:
    """Find the relative paths of a resumed or tested run from where it was started."""
    if not config.ckpt_path:
        return
    folder = Path(config.ckpt_path).resolve().parents[1]
    start = read_json(folder / "run.json").get("cwd")
    if isinstance(start, str):
        find_files(config.model, Path(start))
        find_files(config.data, Path(start))


def _set_seed(config: Namespace) -> None:
    """Seed all random numbers; a seed that was drawn is noted in the config."""
    # A user who seeds nothing gets other numbers in every run.
    if config.seed_everything is False:
        return
    seed = None if config.seed_everything is True else config.seed_everything
    config.seed_everything = pl.seed_everything(seed, workers=True)


def _restore_from_checkpoint(
    saved: Described | None,
    model: Namespace,
    datamodule: DataModule,
) -> None:
    """Use what a checkpoint stores of its network and data instead of the files they came from.

    Args:
        saved: the checkpoint's entry of this package; `None` without a checkpoint.
        model: the config of the module, changed in place.
        datamodule: of the run.
    """
    if not saved:
        return
    # Older checkpoints lack some of the entries.
    network = model.init_args.get(saved.get("role") or "") or {}
    saved_network = saved.get("network") or {}
    class_path = network.get("class_path")
    if class_path == saved_network.get("class_path", class_path):
        for name, value in (saved.get("without_files") or {}).items():
            # A secret that the checkpoint does not store is given again.
            if missing_secret(value) is None:
                network["init_args"][name] = value
    if "init_from" in model.init_args:
        model.init_args["init_from"] = None
    data = saved.get("data")
    spec = saved.get("spec")
    if data:
        assert spec is not None
        datamodule.restore(data, Spec.from_dict(spec))

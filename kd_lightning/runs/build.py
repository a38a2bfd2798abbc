"""From arguments to what runs: config, datamodule, module and Trainer settings, checked before anything is written."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.filled import fill_from_spec
from kd_lightning.runs.messages import config_errors
from kd_lightning.runs.options import RunOptions
from kd_lightning.spec import Spec
from kd_lightning.training.distillation import DistillationModule
from kd_lightning.training.module import TrainingModule
from kd_lightning.weights import KEY, check_weights, network_weights, read_file


class Builder(LightningCLI):
    """LightningCLI in steps: parse; build the data, then the model for that data; check. `Launcher` runs what was built."""

    def __init__(self, argv: list[str]) -> None:
        self.command = argv[0]
        keep_going = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            TrainingModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults={
                "enable_model_summary": False,
                "use_distributed_sampler": False,
                "num_sanity_val_steps": 0,
            },
            parser_kwargs={**keep_going, self.command: keep_going},
            auto_configure_optimizers=False,
            args=argv,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The one command that is run: building the parsers of the others takes a second."""
        return {self.command: LightningCLI.subcommands()[self.command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunOptions, "run")
        parser.add_argument(
            "--matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="highest",
            help="of float32 matrix products: medium computes them in bfloat16, two to three times as fast where the "
            "processor has units for it (AMX, tensor cores); weights and sums stay float32",
        )

    def _parse_ckpt_path(self) -> None:
        """A checkpoint's hyper-parameters are never laid over the command line."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Launcher.run does, when the folder is known."""

    def instantiate_classes(self) -> None:
        config, parser = self.config[self.command], self._parser(self.command)
        torch.set_float32_matmul_precision(config.matmul_precision)
        build = getattr(parser, "instantiate", parser.instantiate_classes)
        datamodule = build(Namespace(data=config.data)).data
        if not isinstance(datamodule, DataModule):
            raise UserError(
                f"data: {type(datamodule).__name__} is not a datamodule of kd_lightning; derive it "
                "from kd_lightning.data.DataModule"
            )
        self.datamodule: DataModule = datamodule
        self.content = read_file(self.checkpoint, "--ckpt_path") if self.checkpoint else {}
        self._take_from(self.content.get(KEY) or {}, config.model)
        fill_from_spec(config.model, self.datamodule.spec)
        self.config_dump = self.dump()  # where the modules' hyper-parameters come from
        torch.manual_seed(
            config.seed_everything
        )  # the student's first weights depend on the seed alone
        self.model = build(Namespace(model=config.model)).model
        self.config_init = Namespace(
            {self.command: build(Namespace(trainer=config.trainer, run=config.run))}
        )
        self.options: RunOptions = self.config_init[self.command].run

    def _take_from(self, ours: Mapping[str, Any], model: Namespace) -> None:
        """What a checkpoint keeps of its network and its data stands in for the files that both once came from."""
        network, theirs = (
            model.init_args.get(ours.get("role") or "") or {},
            ours.get("network") or {},
        )
        if network.get("class_path") == theirs.get("class_path", network.get("class_path")):
            for name, value in (ours.get("without_files") or {}).items():
                network["init_args"][name] = value
        if ours and "init_from" in model.init_args:
            model.init_args["init_from"] = None
        if ours.get("data"):
            self.datamodule.restore(ours["data"], Spec.from_dict(ours["spec"]))

    def dump(self) -> dict[str, Any]:
        """The resolved config in builtins."""
        text = self._parser(self.command).dump(self.config[self.command], skip_none=False)
        return dict(yaml.safe_load(text))

    @property
    def checkpoint(self) -> Path | None:
        path = self.config[self.command].get("ckpt_path")
        return Path(path) if path else None

    def job_type(self) -> str:
        if self.options.job_type:
            return self.options.job_type
        if isinstance(self.model, DistillationModule):
            return "distill" if self.model.learns_from_teacher else "student"
        return "teacher"

    @property
    def has_validation(self) -> bool:
        return self.datamodule.spec.samples.get("validation", 0) > 0

    def check(self) -> dict[str, Any]:
        """Everything that can be wrong and can be known before a folder is made; returns the checkpoint's content."""
        self.model.attach(self.datamodule, self.command)
        if self.command == "predict":
            self.datamodule.predict_dataloader()  # which reads what it is to predict
        if self.command == "fit":
            self.model.check_optimizer()
        if self.options.test == "best" and not self.has_validation:
            raise UserError(
                "--run.test=best needs a validation split; use --run.test=last, or set data.validation"
            )
        if (
            self.options.test == "best"
            and self.config[self.command].trainer.enable_checkpointing is False
        ):
            raise UserError(
                "--run.test=best needs best.ckpt; use --run.test=last, or leave out --trainer.enable_checkpointing=false"
            )
        if self.checkpoint is None:
            if self.command != "fit":
                raise UserError(
                    f"kd {self.command} needs trained weights; give --ckpt_path=RUN/checkpoints/last.ckpt"
                )
            return {}
        content = self.content
        if KEY not in content or content[KEY]["role"] != self.model.role:
            raise UserError(
                f"--ckpt_path: {self.checkpoint} is not a checkpoint of a {type(self.model).__name__}; give one with its config"
            )
        check_weights(self.model.net, network_weights(content), f"--ckpt_path {self.checkpoint}")
        if self.command == "fit" and not content.get("optimizer_states"):
            raise UserError(
                f"--ckpt_path: {self.checkpoint} holds no optimizer state to resume; give it as --model.init_from"
            )
        return content


class _Parser(Builder):
    """Parses and builds nothing."""

    def instantiate_classes(self) -> None:
        """The config is all that is wanted."""

    def _set_seed(self) -> None:
        """Nothing is drawn."""


def parse_config(argv: list[str]) -> dict[str, Any]:
    """The resolved config of `kd` arguments, in builtins."""
    quiet()
    with config_errors():
        return _Parser(resolve_configs(argv)).dump()


def quiet() -> None:
    """Nothing that a user need not act on: standard error is for the one line that matters."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    warnings.filterwarnings("ignore", module=r"(lightning|torchmetrics|jsonargparse|torch)(\..*)?")
    warnings.filterwarnings(
        "ignore", message=".*(eval mode|num_workers|logged metrics|batch_size|lr_scheduler.step).*"
    )

"""From arguments to a finished run: `kd fit|validate|test|predict`, the same for the command line and for experiments."""

from __future__ import annotations

import logging
import os
import signal
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from safetensors.torch import save_file

from kd_lightning.checkpoints import KEY, check_weights, network_weights, read_file
from kd_lightning.errors import UserError
from kd_lightning.modules.base import BaseModule
from kd_lightning.modules.distillation import DistillationModule
from kd_lightning.runs.checkpoints import RunCheckpoint, StopAtStep
from kd_lightning.runs.configs import resolve_configs, with_own_config
from kd_lightning.runs.csv_logger import EpochCSVLogger
from kd_lightning.runs.filled import fill_from_spec
from kd_lightning.runs.folder import RunRecord, is_main, make_folder
from kd_lightning.runs.lean import NoProfiler
from kd_lightning.runs.messages import config_errors, one_line
from kd_lightning.runs.options import RunOptions
from kd_lightning.runs.predictions import SavePredictions, gathered, joined
from kd_lightning.runs.progress import RunProgress
from kd_lightning.runs.wandb import log_test, wandb_logger


@dataclass
class RunResult:
    """What a run left behind."""

    folder: Path
    metrics: dict[str, float]
    module: BaseModule


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal; the message says how to go on."""


class Launcher(LightningCLI):
    """LightningCLI in three steps: parse; build the data, then the model for that data; run in a folder of its own."""

    def __init__(self, argv: list[str]) -> None:
        self.command = argv[0]
        keep_going = {"exit_on_error": False, "allow_abbrev": False}
        super().__init__(
            BaseModule,
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
        """`run` below does, when the folder is known."""

    def instantiate_classes(self) -> None:
        config, parser = self.config[self.command], self._parser(self.command)
        torch.set_float32_matmul_precision(config.matmul_precision)
        build = getattr(parser, "instantiate", parser.instantiate_classes)
        self.datamodule = build(Namespace(data=config.data)).data
        self.content = read_file(self.checkpoint, "--ckpt_path") if self.checkpoint else {}
        self._take_from(self.content.get(KEY) or {}, config.model)
        fill_from_spec(config.model, self.datamodule.spec)
        self.config_dump = self.dump()  # where the modules' hyper-parameters come from
        torch.manual_seed(config.seed_everything)  # the student's first weights depend on the seed alone
        self.model = build(Namespace(model=config.model)).model
        self.config_init = Namespace({self.command: build(Namespace(trainer=config.trainer, run=config.run))})
        self.options: RunOptions = self.config_init[self.command].run

    def _take_from(self, ours: Mapping[str, Any], model: Namespace) -> None:
        """What a checkpoint keeps of its network and its data stands in for the files that both once came from."""
        network, theirs = model.init_args.get(ours.get("role") or "") or {}, ours.get("network") or {}
        if network.get("class_path") == theirs.get("class_path", network.get("class_path")):
            for name, value in (ours.get("without_files") or {}).items():
                network["init_args"][name] = value
        if ours and "init_from" in model.init_args:
            model.init_args["init_from"] = None
        if ours.get("data") and callable(restore := getattr(self.datamodule, "restore", None)):
            restore(ours["data"], ours["spec"])

    def dump(self) -> dict[str, Any]:
        """The resolved config in builtins."""
        text = self._parser(self.command).dump(self.config[self.command], skip_none=False)
        return dict(yaml.safe_load(text))

    # -- the run ------------------------------------------------------------------------------------------------------

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

    def check(self) -> dict[str, Any]:
        """Everything that can be wrong and can be known before a folder is made; returns the checkpoint's content."""
        self.model.attach(self.datamodule, self.command)
        if self.command == "predict":
            self.datamodule.predict_dataloader()  # which reads what it is to predict
        if self.command == "fit":
            self.model.check_optimizer()
        if self.options.test == "best" and not self.has_validation:
            raise UserError("--run.test=best needs a validation split; use --run.test=last, or set data.validation")
        if self.options.test == "best" and self.config[self.command].trainer.enable_checkpointing is False:
            raise UserError(
                "--run.test=best needs best.ckpt; use --run.test=last, or leave out --trainer.enable_checkpointing=false"
            )
        if self.checkpoint is None:
            if self.command != "fit":
                raise UserError(f"kd {self.command} needs trained weights; give --ckpt_path=RUN/checkpoints/last.ckpt")
            return {}
        content = self.content
        if KEY not in content or content[KEY]["role"] != self.model.role:
            raise UserError(
                f"--ckpt_path: {self.checkpoint} is not a checkpoint of a {type(self.model).__name__}; give one with its config"
            )
        check_weights(self.model.net, network_weights(content), f"--ckpt_path {self.checkpoint}")
        if self.command == "fit" and not content.get("optimizer_states"):
            raise UserError(f"--ckpt_path: {self.checkpoint} holds no optimizer state to resume; give it as --model.init_from")
        return content

    def _folder(self) -> Path:
        own = self.checkpoint.resolve().parent.parent if self.checkpoint else None
        resumed = self.command == "fit" and own is not None and (own / "config.yaml").is_file()
        if resumed and own is not None:
            return make_folder(own, True)
        if self.options.dir:
            wanted = Path(self.options.dir)
            if wanted.exists() and not (wanted.is_dir() and not any(wanted.iterdir())):
                raise UserError(f"--run.dir {wanted} exists already; choose a new folder, or resume with --ckpt_path")
            if wanted.exists():
                return wanted
        else:
            data = self.datamodule.spec["data"]
            name = self.options.name or f"{data}-{type(self.model.net).__name__.lower()}-{self.job_type()}"
            wanted = Path(self.options.root) / (name if self.command == "fit" else f"{name}-{self.command}")
        return make_folder(wanted, False)

    @property
    def has_validation(self) -> bool:
        return int(self.datamodule.spec["samples"].get("validation", 0)) > 0

    def _checkpoints(self, folder: Path) -> list[pl.Callback]:
        """`last.ckpt` after every epoch and where a signal stops one; `best.ckpt` after each that validates best so far."""
        every: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
        last = [StopAtStep(folder / "last.ckpt"), RunCheckpoint(folder, filename="last", **every)]
        if not self.has_validation:
            return last
        return [RunCheckpoint(folder, filename="best", monitor="val_accuracy", mode="max", **every), *last]

    def _trainer(self, folder: Path, first_epoch: int) -> pl.Trainer:
        settings = dict(self.config_init[self.command].trainer.items())
        own = settings.get("callbacks") or []
        callbacks = [*(own if isinstance(own, list) else [own]), SavePredictions(folder)]
        if settings.get("enable_progress_bar") is not False:
            callbacks.append(RunProgress(f"{folder.name}"))
        if self.command == "fit" and settings.get("enable_checkpointing") is not False:
            callbacks += self._checkpoints(folder / "checkpoints")
        extra = settings.get("logger")
        loggers = [] if extra in (None, True, False) else extra if isinstance(extra, list) else [extra]
        loggers = [EpochCSVLogger(folder, first_epoch), *loggers]
        settings["profiler"] = settings.get("profiler") or NoProfiler()
        return pl.Trainer(**{**settings, "callbacks": callbacks, "logger": loggers, "default_root_dir": str(folder)})

    def run(self) -> RunResult:
        content = self.check()
        main = is_main()
        folder = self._folder() if main else Path(os.environ.get("KD_RUN_FOLDER", self.options.root))
        os.environ["KD_RUN_FOLDER"] = str(folder)  # where the other processes of this run look
        first_epoch = int(content["epoch"]) + 1 if self.command == "fit" and content else 0
        try:
            with config_errors():
                trainer = self._trainer(folder, first_epoch)
        except UserError:
            if main and not any(folder.iterdir()):
                folder.rmdir()
            raise
        record = logger = None
        if main:
            config = self.save_config(folder)
            record = self._record(folder)
            logger = wandb_logger(self.options, folder, config, record.content)
            trainer.loggers = [*trainer.loggers, *([logger] if logger else [])]
        status, error, metrics = "failed", None, {}
        try:
            metrics = self._execute(trainer, folder, logger)
            status = "finished"
        except (KeyboardInterrupt, SystemExit) as stop:
            status = "interrupted"
            last = folder / "checkpoints" / "last.ckpt"
            how = f"go on with: kd fit --ckpt_path {last}" if last.is_file() else "nothing was kept yet; start it again"
            raise Interrupted(f"interrupted; {how}") from stop
        except Exception as problem:
            error = one_line(str(problem))
            if "not used in producing the loss" in error:
                how = "on several devices that needs --trainer.strategy=ddp_find_unused_parameters_true"
                raise UserError(f"some weights get no gradient from these losses; {how}") from problem
            raise
        finally:
            if record is not None:
                metrics = {**record.content["metrics"], **metrics}  # a resumed run that was finished measures nothing new
                record.write(status=status, error=error, metrics=metrics, teacher=self.model.provenance())
            if logger is not None:
                logger.experiment.finish(exit_code=int(status != "finished"))
        return RunResult(folder, metrics, self.model)

    def _execute(self, trainer: pl.Trainer, folder: Path, logger: Any) -> dict[str, float]:
        path = str(self.checkpoint) if self.checkpoint else None
        if self.command == "predict":
            outputs: Any = trainer.predict(self.model, datamodule=self.datamodule, ckpt_path=path)
            outputs = gathered(trainer, outputs)
            if trainer.is_global_zero:
                said = joined(outputs)
                save_file(said, folder / "predictions.safetensors")
                if callable(write := getattr(self.datamodule, "write_predictions", None)):
                    write(said, folder)  # in words, where the data can be read by people
            return {}
        getattr(trainer, self.command)(
            self.model,
            datamodule=self.datamodule,
            ckpt_path=path,
            **({} if self.command == "fit" else {"verbose": False}),
        )
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self.command == "fit" and self.options.test != "no":
            if self.options.test == "best":
                best = folder / "checkpoints" / "best.ckpt"
                self.model.load_state_dict(torch.load(best, weights_only=True)["state_dict"])
            trainer.test(self.model, datamodule=self.datamodule, verbose=False)
            metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        tested = next((c.saved for c in trainer.callbacks if isinstance(c, SavePredictions)), None)  # type: ignore[attr-defined]
        if logger is not None and tested is not None:
            log_test(logger, tested, self.datamodule)
        return metrics

    def save_config(self, folder: Path) -> dict[str, Any]:
        """Write the resolved config, once: a resumed run keeps its own. Another run of it gets another folder."""
        config = self.config[self.command].clone()
        config.run.dir = None
        text = self._parser(self.command).dump(config)
        if not (folder / "config.yaml").is_file():
            (folder / "config.yaml").write_text(text)
        return dict(yaml.safe_load(text))

    def _record(self, folder: Path) -> RunRecord:
        return RunRecord(
            folder,
            {
                "name": folder.name,
                "job_type": self.job_type(),
                "seed": self.config[self.command].seed_everything,
                "data": self.datamodule.spec,
                "teacher": self.model.provenance(),
                "resumed_from": str(self.checkpoint) if self.checkpoint and self.command == "fit" else None,
            },
        )


class _Parser(Launcher):
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
    warnings.filterwarnings("ignore", message=".*(eval mode|num_workers|logged metrics|batch_size|lr_scheduler.step).*")


def launch(argv: list[str]) -> RunResult:
    """Run `kd` arguments such as `["fit", "-c", ...]` to the end; configs are found by their path, else among the shipped.

    Raises:
        UserError: for a user's mistake.
        Interrupted: after SIGINT or SIGTERM.
    """
    quiet()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    with config_errors():
        launcher = Launcher(with_own_config(resolve_configs(argv)))
    return launcher.run()


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt

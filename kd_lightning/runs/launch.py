"""From arguments to a finished run: `kd fit|validate|test|predict`, the same for the command line and for experiments."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml
from safetensors.torch import save_file

from kd_lightning.errors import UserError
from kd_lightning.runs.build import Builder, quiet
from kd_lightning.runs.checkpoints import RunCheckpoint, StopAtStep
from kd_lightning.runs.configs import resolve_configs, with_own_config
from kd_lightning.runs.csv_logger import EpochCSVLogger
from kd_lightning.runs.folder import RunRecord, is_main, make_folder
from kd_lightning.runs.lean import NoProfiler, keep_memory
from kd_lightning.runs.messages import config_errors, one_line
from kd_lightning.runs.predictions import SavePredictions, gathered, joined
from kd_lightning.runs.progress import RunProgress
from kd_lightning.runs.wandb import log_test, wandb_logger
from kd_lightning.training.module import TrainingModule


@dataclass
class RunResult:
    """What a run left behind."""

    folder: Path
    metrics: dict[str, float]
    module: TrainingModule


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal; the message says how to go on."""


class Launcher(Builder):
    """Runs what was built, in a folder of its own."""

    def _folder(self) -> Path:
        own = self.checkpoint.resolve().parent.parent if self.checkpoint else None
        resumed = self.command == "fit" and own is not None and (own / "config.yaml").is_file()
        if resumed and own is not None:
            return make_folder(own, True)
        if self.options.dir:
            wanted = Path(self.options.dir)
            if wanted.exists() and not (wanted.is_dir() and not any(wanted.iterdir())):
                raise UserError(
                    f"--run.dir {wanted} exists already; choose a new folder, or resume with --ckpt_path"
                )
            if wanted.exists():
                return wanted
        else:
            data = self.datamodule.spec.data
            name = (
                self.options.name
                or f"{data}-{type(self.model.net).__name__.lower()}-{self.job_type()}"
            )
            wanted = Path(self.options.root) / (
                name if self.command == "fit" else f"{name}-{self.command}"
            )
        return make_folder(wanted, False)

    def _checkpoints(self, folder: Path) -> list[pl.Callback]:
        """`last.ckpt` after every epoch and where a signal stops one; `best.ckpt` after each that validates best so far."""
        every: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
        last = [StopAtStep(folder / "last.ckpt"), RunCheckpoint(folder, filename="last", **every)]
        if not self.has_validation:
            return last
        return [
            RunCheckpoint(
                folder,
                filename="best",
                monitor=f"val_{self.datamodule.task.monitor}",
                mode=self.datamodule.task.mode,
                **every,
            ),
            *last,
        ]

    def _trainer(self, folder: Path, first_epoch: int) -> pl.Trainer:
        settings = dict(self.config_init[self.command].trainer.items())
        own = settings.get("callbacks") or []
        callbacks = [*(own if isinstance(own, list) else [own]), SavePredictions(folder)]
        if settings.get("enable_progress_bar") is not False:
            callbacks.append(RunProgress(folder.name, f"val_{self.datamodule.task.monitor}"))
        if self.command == "fit" and settings.get("enable_checkpointing") is not False:
            callbacks += self._checkpoints(folder / "checkpoints")
        extra = settings.get("logger")
        loggers = (
            [] if extra in (None, True, False) else extra if isinstance(extra, list) else [extra]
        )
        loggers = [EpochCSVLogger(folder, first_epoch), *loggers]
        settings["profiler"] = settings.get("profiler") or NoProfiler()
        return pl.Trainer(
            **{
                **settings,
                "callbacks": callbacks,
                "logger": loggers,
                "default_root_dir": str(folder),
            }
        )

    def run(self) -> RunResult:
        content = self.check()
        main = is_main()
        folder = (
            self._folder() if main else Path(os.environ.get("KD_RUN_FOLDER", self.options.root))
        )
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
            how = (
                f"go on with: kd fit --ckpt_path {last}"
                if last.is_file()
                else "nothing was kept yet; start it again"
            )
            raise Interrupted(f"interrupted; {how}") from stop
        except Exception as problem:
            error = one_line(str(problem))
            if "not used in producing the loss" in error:
                how = "on several devices that needs --trainer.strategy=ddp_find_unused_parameters_true"
                raise UserError(
                    f"some weights get no gradient from these losses; {how}"
                ) from problem
            raise
        finally:
            if record is not None:
                metrics = {
                    **record.content["metrics"],
                    **metrics,
                }  # a resumed run that was finished measures nothing new
                record.write(
                    status=status, error=error, metrics=metrics, teacher=self.model.provenance()
                )
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
                self.datamodule.write_predictions(said, folder)
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
        # With nulls: an argument whose default is not null may have been set to null.
        text = self._parser(self.command).dump(config, skip_none=False)
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
                "data": self.datamodule.spec.to_dict(),
                "task": self.datamodule.task.describe(),
                "teacher": self.model.provenance(),
                "resumed_from": str(self.checkpoint)
                if self.checkpoint and self.command == "fit"
                else None,
            },
        )


def launch(argv: list[str]) -> RunResult:
    """Run `kd` arguments such as `["fit", "-c", ...]` to the end; configs are found by their path, else among the shipped.

    Raises:
        UserError: for a user's mistake.
        Interrupted: after SIGINT or SIGTERM.
    """
    quiet()
    keep_memory()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    with config_errors():
        launcher = Launcher(with_own_config(resolve_configs(argv)))
    return launcher.run()


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt

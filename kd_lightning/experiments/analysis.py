"""What an experiment's own analysis is given, and what it answers.

An analysis is a function `f(runs, output, **options)`: `runs` maps each run's name to its finished seeds, `output` is the
folder of the results, where it may put plots, and the options are those that the experiment's YAML lists beside it. It knows
the paper, so that the runner need not.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from lightning.pytorch import LightningDataModule
from safetensors.torch import load_file
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.experiments.planning import Job
from kd_lightning.features import run_network
from kd_lightning.networks import build_network
from kd_lightning.runs.configs import with_current_class_paths
from kd_lightning.weights import KEY, load_weights, network_weights, read_file


@dataclass
class Finished:
    """One run with one seed, finished.

    Attributes:
        seed: its seed.
        folder: where it is kept.
        metrics: what its run.json holds.
        root: where the data sets are now, if not where the run found them.
    """

    seed: int
    folder: Path
    metrics: dict[str, float]
    root: str | None = None

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoints" / "last.ckpt"

    def network(self) -> nn.Module:
        """The trained network, in eval mode."""
        content = read_file(self.checkpoint, "the checkpoint")
        network = build_network(content[KEY]["network"])
        load_weights(network, network_weights(content), str(self.checkpoint))
        return network.eval()

    def datamodule(self) -> Any:
        """The data as this run had it."""
        from jsonargparse import ArgumentParser

        config = with_current_class_paths(yaml.safe_load((self.folder / "config.yaml").read_text()))
        inner = config["data"]
        while isinstance(inner["init_args"].get("data"), dict):
            inner = inner["init_args"]["data"]
        if self.root is not None:
            inner["init_args"]["root"] = self.root
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--data", type=LightningDataModule)
        parser.add_argument("--seed", type=int)
        torch_seed = {"data": config["data"], "seed": self.seed}
        return parser.instantiate_classes(parser.parse_object(torch_seed)).data

    def predictions(self, stage: str = "test", datamodule: Any = None) -> dict[str, Tensor]:
        """Logits `(N, K)`, target `(N,)` and index `(N,)` of "test", "validation" or "train" (without augmentation).

        Those of the test set were kept by the run; others are computed.
        """
        if stage == "test":
            return load_file(self.folder / "predictions-test.safetensors")
        loader = (datamodule or self.datamodule()).loader(stage)
        loader.views, loader.shuffle, loader.batch_size = 0, False, 1000
        network = self.network()
        with torch.inference_mode():
            found = [
                (run_network(network, batch.inputs).logits, batch.target, batch.index)
                for batch in loader
            ]
        logits, target, index = (torch.cat(parts) for parts in zip(*found, strict=True))
        return {"logits": logits, "target": target, "index": index}


@dataclass
class Row:
    """One line of the results: a metric of a run, a value for each seed."""

    run: str
    metric: str
    values: list[float]
    paper: float | None = None


Runs = Mapping[str, Sequence[Finished]]


def finished(jobs: Mapping[str, Sequence[Job]]) -> Runs:
    """The jobs of a plan as an analysis sees them."""
    return {
        name: [
            Finished(job.seed, job.folder, job.record["metrics"], job.data_root)
            for job in group
            if job.finished
        ]
        for name, group in jobs.items()
    }


def analyse(label: str, described: Mapping[str, Any], runs: Runs, output: Path) -> list[Row]:
    """Run one analysis of an experiment's YAML.

    Raises:
        UserError: where its function does not exist, or does not take its options.
    """
    options = dict(described)
    path = options.pop("function")
    module, _, name = path.rpartition(".")
    try:
        function = getattr(import_module(module), name)
        inspect.signature(function).bind(runs, output, **options)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"the analysis {label!r}: {path}: {error}") from error
    return cast(list[Row], function(runs, output, **options))

"""Runs the analyses that an experiment's YAML lists, and defines their input and output.

An analysis is a function `f(runs, output, **options) -> list[Row]`. `runs` maps each run's name to
its finished seeds, `output` is the folder of the results, where an analysis may write plots and
tables, and the options are those that the YAML lists next to `function`. The YAML names a function
by its dotted path, or by a file's path relative to the YAML's own folder:

    analyses:
      ties: {function: kd_lightning.analyses.ties.tie_groups, metric: test_errors, names: [a, b]}
      recognition: {function: analysis/speech.py:recognition}

The knowledge about one paper stays in its analyses, and the runner knows no paper.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import LightningDataModule
from safetensors.torch import load_file
from torch import Tensor, nn

from kd_lightning.data.datamodule import DataModule
from kd_lightning.errors import UserError
from kd_lightning.experiments.functions import load_function
from kd_lightning.experiments.planning import Job
from kd_lightning.features import run_network
from kd_lightning.masking import missing_secret
from kd_lightning.networks import build_network
from kd_lightning.runs.configs import with_current_names
from kd_lightning.trust import check_config
from kd_lightning.weights import KEY, load_weights, network_weights, read_file
from kd_lightning.yaml_files import YamlValue, read_yaml_file

Stage = Literal["train", "validation", "test"]

EVAL_BATCH_SIZE = 1000
"""Samples per batch if predictions are computed again."""


@dataclass
class Finished:
    """One finished run with one seed.

    Attributes:
        seed: the run's seed.
        folder: the run's folder.
        metrics: the metrics in its run.json.
        root: the folder of the data sets, if it differs from the one in the run's config.
    """

    seed: int
    folder: Path
    metrics: dict[str, float]
    root: str | None = None

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that `network` loads."""
        return self.folder / "checkpoints" / "last.ckpt"

    def network(self) -> nn.Module:
        """Load the trained network, in eval mode."""
        content = read_file(self.checkpoint, "the checkpoint")
        network = build_network(content[KEY]["network"])
        load_weights(network, network_weights(content), str(self.checkpoint))
        return network.eval()

    def datamodule(self) -> DataModule:
        """Build the run's data again from its config.yaml.

        Raises:
            UserError: if its class is not trusted, or needs a secret.
        """
        from jsonargparse import ArgumentParser

        path = self.folder / "config.yaml"
        # Configs of earlier versions name classes that have moved since.
        data = with_current_names(read_yaml_file(path, str(path)))["data"]
        check_config(data, str(path))
        secret = missing_secret(data, "data")
        if secret is not None:
            raise UserError(
                f"{path} does not store the secret {secret!r}, so that an analysis cannot read the "
                "data of this run; let the data's class read it from an environment variable"
            )
        if self.root is not None:
            _innermost_arguments(data)["root"] = self.root
        # Without this option, jsonargparse would end the process at the first error.
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--data", type=LightningDataModule)
        config = parser.parse_object({"data": data})
        return cast(DataModule, parser.instantiate_classes(config).data)

    def predictions(
        self, stage: Stage = "test", datamodule: DataModule | None = None
    ) -> dict[str, Tensor]:
        """Return the predictions on the samples of a stage, without augmentation.

        Those on the test set are read from the run's folder; others are computed.

        Args:
            stage: the samples.
            datamodule: the run's data, if it is already built.

        Returns:
            `logits` of shape `(N, K)`, `target` `(N,)` and `index` `(N,)`.
        """
        if stage == "test":
            return load_file(self.folder / "predictions-test.safetensors")
        if datamodule is None:
            datamodule = self.datamodule()
        loader = datamodule.loader(stage)
        # The loader of the training samples shuffles and augments by default.
        loader.views = 0
        loader.shuffle = False
        loader.batch_size = EVAL_BATCH_SIZE
        network = self.network()
        logits = []
        targets = []
        indices = []
        with torch.inference_mode():
            for batch in loader:
                output = run_network(network, batch.inputs)
                logits.append(output.logits)
                targets.append(batch.target)
                indices.append(batch.index)
        return {
            "logits": torch.cat(logits),
            "target": torch.cat(targets),
            "index": torch.cat(indices),
        }


def _innermost_arguments(data: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the data itself; a specialist's data, for one, wraps other data."""
    arguments: dict[str, Any] = data["init_args"]
    while isinstance(arguments.get("data"), dict):
        arguments = arguments["data"]["init_args"]
    return arguments


@dataclass
class Row:
    """One line of the results: a metric of a run.

    Attributes:
        run: name of the run.
        metric: name of the metric.
        values: one value per seed.
        paper: the value in the paper.
    """

    run: str
    metric: str
    values: list[float]
    paper: float | None = None


Runs = Mapping[str, Sequence[Finished]]
"""The finished seeds of each run, by the run's name."""

Analysis = Callable[..., list[Row]]


def finished(jobs: Mapping[str, Sequence[Job]]) -> Runs:
    """Convert the finished jobs of a plan, grouped by run, to the input of an analysis."""
    runs = {}
    for name, group in jobs.items():
        seeds = []
        for job in group:
            if job.finished:
                metrics = job.record["metrics"]
                seeds.append(Finished(job.seed, job.folder, metrics, job.data_root))
        runs[name] = seeds
    return runs


def check_analyses(analyses: Mapping[str, Mapping[str, YamlValue]]) -> None:
    """Load the functions of all analyses and check their options, before anything is trained.

    Args:
        analyses: each analysis's entry in the YAML, by its key.

    Raises:
        UserError: if a function does not exist, is no analysis, or does not accept its options.
    """
    for label, described in analyses.items():
        _analysis(label, described, {}, Path())


def analyse(
    label: str,
    described: Mapping[str, YamlValue],
    runs: Runs,
    output: Path,
) -> list[Row]:
    """Run one analysis of an experiment.

    Args:
        label: the analysis's key in the YAML, for messages.
        described: the analysis's entry in the YAML: `function` and its options.
        runs: the finished runs.
        output: folder of the results.

    Raises:
        UserError: if the function does not exist or does not accept its options.
    """
    # Errors of the analysis itself are not the user's mistake, so they are raised as they are.
    return _analysis(label, described, runs, output)()


def _analysis(
    label: str,
    described: Mapping[str, YamlValue],
    runs: Runs,
    output: Path,
) -> Callable[[], list[Row]]:
    """The call of an analysis, with arguments that its function accepts."""
    options = dict(described)
    name = str(options.pop("function"))
    try:
        function: Analysis = load_function(name)
        inspect.signature(function).bind(runs, output, **options)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"the analysis {label!r}: {name}: {error}") from error
    return partial(function, runs, output, **options)

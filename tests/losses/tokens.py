"""What the tests of losses between transformers share: cases with padding, and a fit of tiny transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.runs.launch import RunResult, launch
from kd_lightning.types import Batch
from tests.losses.features import Shapes, feature_case
from tests.losses.properties import Case, Make, change, gradients_of, value_of
from tests.sentences import write_sst2
from tests.training.small import CONFIGS

LENGTHS = [4, 1, 3, 2]


def token_case(
    student: Shapes, teacher: Shapes, lengths: list[int] | None = None, seed: int = 0
) -> Case:
    """Random states or scores by role, of sentences of these lengths, padded to the longest."""
    case = feature_case(student, teacher, seed=seed)
    return case if lengths is None else replace(case, batch=masked(case.batch, lengths))


def masked(batch: Batch, lengths: list[int]) -> Batch:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return replace(batch, inputs={"input_ids": mask, "attention_mask": mask})


def padding_is_left_out(make: Make, case: Case, lengths: list[int]) -> None:
    """Whatever stands in the padding, on either side: the same value, and no gradient there."""

    def spoiled(tensor: Tensor) -> Tensor:
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        if tensor.ndim == 4:
            return tensor.where(real[:, None, :, None] & real[:, None, None, :], 1e3)
        return tensor.where(real[..., None], 1e3) if tensor.ndim == 3 else tensor

    other = Case(
        change(case.student, spoiled), change(case.teacher, spoiled), case.batch
    )
    value, gradients = gradients_of(make, case)
    other_value, other_gradients = gradients_of(make, other)
    torch.testing.assert_close(other_value, value)
    torch.testing.assert_close(other_gradients, gradients)
    every = replace(
        case, batch=replace(case.batch, inputs=torch.zeros(len(lengths), 1))
    )
    assert value_of(make, every) != value, "padding would count without the mask"


ROLES = "{states0: states.0, states1: states.1, states2: states.2, scores1: scores.1, scores2: scores.2}"
SKIP = "{states0: states.0, states1: states.2, states2: states.4, scores1: scores.2, scores2: scores.4}"


def _network(layers: int, width: int) -> str:
    return (
        "{class_path: kd_lightning.models.TransformerClassifier, init_args: {architecture: {model_type: bert, "
        f"hidden_size: {width}, num_hidden_layers: {layers}, num_attention_heads: 2, intermediate_size: 32}}}}}}"
    )


def run_method(
    name: str, folder: Path, *arguments: str, teacher_width: int = 16
) -> RunResult:
    """`kd fit` with the method's shipped file on two tiny transformers; an epoch of four steps on small data."""
    pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")
    folder.mkdir(parents=True, exist_ok=True)
    root = write_sst2(folder / "data")
    (folder / "pair.yaml").write_text(f"""
model:
  class_path: kd_lightning.DistillationModule
  init_args:
    student: {_network(2, 16)}
    teacher:
      class_path: kd_lightning.teachers.ModelTeacher
      init_args: {{network: {_network(4, teacher_width)}, layers: {SKIP}}}
    layers: {ROLES}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.001}}}}
""")
    files = [
        "trainer.yaml",
        "data/sst2.yaml",
        str(folder / "pair.yaml"),
        f"methods/{name}.yaml",
        "loggers/csv.yaml",
    ]
    named = [word for file in files for word in ("-c", str(CONFIGS / file))]
    quick = [
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    data = [
        f"--data.root={root}",
        "--data.batch_size=15",
        f"--run.dir={folder / 'run'}",
    ]
    return launch(["fit", *named, *quick, *data, *arguments])


def losses_of(run: RunResult) -> Any:
    return run.module.losses

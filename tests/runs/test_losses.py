"""Several methods in one run, and what a resumed run says where they have changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor, nn

from kd_lightning.runs.parsing import parse_config
from tests.runs import Kd, student

LAYERS = [f"--model.{side}layers={{penultimate: body}}" for side in ("", "teacher.")]
CRD = "--model.losses.crd={class_path: kd_lightning.losses.CRD, init_args: {num_negatives: 8, dimensions: 8}}"


class Recurrent(nn.Module):
    """Has a layer that gives a tuple."""

    def __init__(
        self, input_shape: list[int] | None = None, num_classes: int = 10
    ) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x[:, 0])[0][:, -1])
        return out


def test_method_files_are_taken_together(teacher: Path, kd: Kd) -> None:
    argv = [
        *student(teacher),
        "-c",
        "configs/methods/dkd.yaml",
        "-c",
        "configs/methods/logitmse.yaml",
    ]
    assert kd(*argv, "--model.losses.kd.temperature=3", "--run.name=all").code == 0
    columns = Path("runs/all/metrics.csv").read_text().splitlines()[0].split(",")
    assert {c for c in columns if c.startswith("train_loss_")} == {
        f"train_loss_{n}" for n in ("ce", "kd", "dkd", "logitmse")
    }
    losses = parse_config([*argv, "--model.losses.kd.temperature=3"])["model"][
        "init_args"
    ]["losses"]
    assert losses["kd"]["init_args"]["temperature"] == 3
    assert (
        losses["ce"]["init_args"]["weight"] == 1.0
    )  # the last file's; kd.yaml says .1


@pytest.mark.parametrize(
    "change", ["crd.dimensions=4", "crd.in_batch=true", "sp=kd_lightning.losses.VID"]
)
def test_resuming_with_other_losses_is_one_line(
    change: str, teacher: Path, kd: Kd
) -> None:
    assert kd(*student(teacher), CRD, *LAYERS, "--run.name=crd").code == 0
    last = "--ckpt_path=runs/crd/checkpoints/last.ckpt"
    more = ["--model.losses.sp.layers=[penultimate]"] if "VID" in change else []
    outcome = kd("fit", last, f"--model.losses.{change}", *more)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    option = change.partition("=")[0]
    assert outcome.err.startswith(f"kd: --model.losses.{option} is ")
    assert "start a new run from its weights with --model.init_from=" in outcome.err
    assert kd("fit", last).code == 0


def test_resuming_for_more_steps_than_the_schedule_has_is_one_line(
    teacher: Path, kd: Kd
) -> None:
    assert kd(*student(teacher), "--run.name=short").code == 0
    outcome = kd(
        "fit", "--ckpt_path=runs/short/checkpoints/last.ckpt", "--trainer.max_epochs=2"
    )
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith(
        "kd: the checkpoint's learning rates were planned for"
    )


@pytest.mark.parametrize("loss", ["SP", "RKD", "CRD"])
def test_a_layer_that_gives_no_tensor_is_one_line(
    loss: str, teacher: Path, kd: Kd
) -> None:
    layers = [
        "--model.layers={stage3: rnn, penultimate: rnn}",
        "--model.teacher.layers={stage3: body, penultimate: body}",
    ]
    network = "--model.student=tests.runs.test_losses.Recurrent"
    outcome = kd(
        *student(teacher),
        network,
        *layers,
        f"--model.losses.it=kd_lightning.losses.{loss}",
    )
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "gives a tuple, not a tensor" in outcome.err

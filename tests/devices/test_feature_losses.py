"""Losses between layers: two processes (gloo, on the CPU) train adapters and student as one does on the joined batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.runs import finish, spawn

ROOT = Path(__file__).parent.parent.parent


class Stages(nn.Module):
    """Three stages of convolutions without batch statistics: with them, halves of a batch are not the batch."""

    def __init__(self, width: int, num_classes: int = 10) -> None:
        super().__init__()
        widths = [1, width, 2 * width, 2 * width]
        for at in range(3):
            stride = 1 if at == 0 else 2
            setattr(
                self,
                f"stage{at + 1}",
                nn.Sequential(
                    nn.Conv2d(widths[at], widths[at + 1], 3, stride, 1), nn.ReLU()
                ),
            )
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for at in range(3):
            x = self.get_submodule(f"stage{at + 1}")(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


LAYERS = "{stage1: stage1, stage2: stage2, stage3: stage3}"
NETWORK = "class_path: tests.devices.test_feature_losses.Stages, init_args"
CONFIG = f"""
trainer: {{max_epochs: 1, accelerator: cpu}}
run: {{wandb: "off"}}
data: {{class_path: kd_lightning.data.DigitsDataModule, init_args: {{fraction: 0.1, validation: 0.0}}}}
model:
  class_path: kd_lightning.DistillationModule
  init_args:
    student: {{{NETWORK}: {{width: 4}}}}
    teacher:
      class_path: kd_lightning.teachers.ModelTeacher
      init_args: {{checkpoint: TEACHER, network: {{{NETWORK}: {{width: 6}}}}, layers: {LAYERS}}}
    layers: {LAYERS}
    optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.5}}}}
    losses:
      ce: {{class_path: kd_lightning.losses.CrossEntropy}}
      at: {{class_path: kd_lightning.losses.AT}}
      vid: {{class_path: kd_lightning.losses.VID, init_args: {{convention: benchmark}}}}
      fitnets: {{class_path: kd_lightning.losses.FitNets, init_args: {{weight: 0.1}}}}
      nst: {{class_path: kd_lightning.losses.NST, init_args: {{weight: 0.1}}}}
      ft: {{class_path: kd_lightning.losses.FT, init_args: {{layer: stage3}}}}
      paraphraser: {{class_path: kd_lightning.losses.FT, init_args: {{layer: stage3, stage: paraphraser}}}}
      cwd: {{class_path: kd_lightning.losses.CWD, init_args: {{layer: stage3, weight: 0.1}}}}
      mgd: {{class_path: kd_lightning.losses.MGD, init_args: {{layer: stage3, weight: 0.01}}}}
      srd: {{class_path: kd_lightning.losses.SRD, init_args: {{layer: stage3, weight: 0.01}}}}
      vkd: {{class_path: kd_lightning.losses.VkD, init_args: {{layer: stage3, weight: 0.1}}}}
"""
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """123 samples: three steps of 32, and one of 27 that does not halve."""
    root = tmp_path_factory.mktemp("features")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(Stages(width=6).state_dict(), root / "teacher.pt")
    config = CONFIG.replace("TEACHER", str(root / "teacher.pt"))
    (root / "config.yaml").write_text(config)
    folders = [root / "one", root / "two"]
    for folder, arguments in zip(
        folders, (["--data.batch_size=32"], ["--data.batch_size=16", *TWO]), strict=True
    ):
        argv = [
            "fit",
            "-c",
            str(root / "config.yaml"),
            f"--run.dir={folder}",
            *arguments,
        ]
        outcome = finish(spawn(argv, ROOT, WANDB_MODE="disabled"), timeout_s=300)
        assert outcome.code == 0, outcome.err
    return folders


def test_student_and_adapters_are_those_of_one_process(both: list[Path]) -> None:
    contents = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in both
    ]
    assert [content["global_step"] for content in contents] == [4, 4]
    one, two = (content["state_dict"] for content in contents)
    assert one.keys() == two.keys()
    assert any(name.endswith("alpha") for name in one)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)


def test_losses_are_those_of_one_process(both: list[Path]) -> None:
    one, two = (
        json.loads((folder / "run.json").read_text())["metrics"] for folder in both
    )
    names = [name for name in one if name.startswith("train_loss")]
    assert len(names) == 12
    for name in names:
        assert two[name] == pytest.approx(one[name], rel=1e-4)

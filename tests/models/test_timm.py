"""A timm network with layers mapped to roles; for torchvision see tests/test_features.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from kd_lightning.features import Taps, run_network
from kd_lightning.runs.launch import launch
from tests.training.small import CONFIGS

timm = pytest.importorskip("timm")

LAYERS = {
    "stage1": "blocks.0",
    "stage2": "blocks.1",
    "stage3": "blocks.3",
    "penultimate": "classifier:input",
}


def test_roles_of_a_timm_network() -> None:
    network = timm.create_model("mobilenetv3_small_050", num_classes=7).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = network(x)
        output = run_network(network, x, Taps(network, LAYERS, set(LAYERS)))
        last = network.classifier(output.features["penultimate"])
    assert [tuple(output.features[role].shape[1:]) for role in LAYERS] == [
        (8, 16, 16),
        (16, 8, 8),
        (24, 4, 4),
        (1024,),
    ]
    torch.testing.assert_close(output.logits, plain)
    assert torch.equal(last, output.logits)


def test_a_timm_network_trains_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    files = [
        "trainer.yaml",
        "data/digits.yaml",
        "teachers/digits_mlp.yaml",
        "loggers/csv.yaml",
    ]
    argv = ["fit", *(word for name in files for word in ("-c", str(CONFIGS / name)))]
    own = ["--model.network=timm.create_model", "--model.network.model_name=resnet18"]
    own += [
        "--model.network.dict_kwargs={num_classes: 10}",
        "--data.channels=3",
        "--data.fraction=0.05",
    ]
    quick = [
        "--trainer.max_epochs=1",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
    ]
    assert math.isfinite(
        launch([*argv, *own, *quick, f"--run.dir={tmp_path / 'run'}"]).metrics[
            "train_loss"
        ]
    )

"""A network of timm's, mapped to roles like any other; torchvision's is in tests/test_features.py."""

from __future__ import annotations

import pytest
import torch

from kd_lightning.features import Taps, run_network

timm = pytest.importorskip("timm")

LAYERS = {"stage1": "blocks.0", "stage2": "blocks.1", "stage3": "blocks.3", "penultimate": "classifier:input"}


def test_roles_of_a_timm_network() -> None:
    network = timm.create_model("mobilenetv3_small_050", num_classes=7).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = network(x)
        output = run_network(network, x, Taps(network, LAYERS, set(LAYERS)))
        last = network.classifier(output.features["penultimate"])
    assert [tuple(output.features[role].shape[1:]) for role in LAYERS] == [(8, 16, 16), (16, 8, 8), (24, 4, 4), (1024,)]
    torch.testing.assert_close(output.logits, plain)
    assert torch.equal(last, output.logits)

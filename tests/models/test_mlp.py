"""The MLP against numpy and against sizes computed by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.models import MLP


def mlp(hidden: list[int], **options: Any) -> MLP:
    torch.manual_seed(0)
    return MLP(hidden, input_shape=[1, 4, 5], num_classes=3, **options)


def linears(network: MLP) -> list[nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


def array(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


@pytest.mark.parametrize(
    "options", [{}, {"dropout": 0.5, "input_dropout": 0.2, "max_norm": 1.0}]
)
@pytest.mark.parametrize("hidden", [[7], [7, 6], [8, 8, 8]])
def test_the_network_matches_its_docstring(
    hidden: list[int], options: dict[str, float]
) -> None:
    network = mlp(hidden, **options).eval()
    x = torch.randn(9, 1, 4, 5)
    expected = array(x).reshape(9, 20)
    *body, head = linears(network)
    for layer in body:
        expected = np.maximum(expected @ array(layer.weight).T + array(layer.bias), 0)
    expected = expected @ array(head.weight).T + array(head.bias)
    assert [layer.out_features for layer in body] == hidden
    assert network(x).shape == (9, 3)
    np.testing.assert_allclose(array(network(x)), expected, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_number_of_parameters_of_the_papers_teacher(dropout: float) -> None:
    network = MLP(
        [1200, 1200], dropout=dropout, input_shape=[1, 28, 28], num_classes=10
    )
    expected = (784 * 1200 + 1200) + (1200 * 1200 + 1200) + (1200 * 10 + 10)
    assert sum(p.numel() for p in network.parameters()) == expected


def test_dropout_only_in_training() -> None:
    network, x = mlp([50, 50], dropout=0.5, input_dropout=0.2), torch.randn(6, 1, 4, 5)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))
    plain = mlp([50, 50])
    assert torch.equal(plain(x), plain(x))


def test_dropout_has_its_rates() -> None:
    network = mlp([40, 40], dropout=0.5, input_dropout=0.2)
    inputs: list[Tensor] = []
    for layer in linears(network):
        layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        nn.init.zeros_(layer.weight)
        nn.init.ones_(layer.bias)  # every hidden unit is 1 before dropout
    network(torch.ones(2000, 1, 4, 5))
    for seen, rate in zip(inputs, (0.2, 0.5, 0.5), strict=True):
        # Other elements are scaled up to preserve the mean. At least 40,000 draws: deviation < 0.0025.
        assert torch.allclose(seen[seen != 0], torch.tensor(1 / (1 - rate)))
        assert abs(float((seen == 0).double().mean()) - rate) < 0.0125


def test_after_step_only_scales_long_rows_to_the_norm() -> None:
    network = mlp([6, 6], max_norm=2.0)
    lengths = torch.tensor([0.0, 0.5, 1.99, 2.01, 5.0, 100.0])
    before: list[Tensor] = []
    for layer in linears(network):
        rows = (
            nn.functional.normalize(torch.randn_like(layer.weight))
            * lengths[: layer.out_features, None]
        )
        layer.weight.data.copy_(rows * (50 if layer is network.head else 1))
        before.append(layer.weight.detach().clone())
    biases = [layer.bias.detach().clone() for layer in linears(network)]
    network.after_step()
    *body, head = linears(network)
    for layer, old in zip(body, before, strict=False):
        assert torch.equal(layer.weight[:3], old[:3])
        torch.testing.assert_close(
            layer.weight[3:].norm(dim=1), torch.full((3,), 2.0), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            layer.weight[3:], old[3:] * (2 / lengths[3:, None]), atol=1e-5, rtol=0
        )
        assert layer.weight.requires_grad
    assert torch.equal(head.weight, before[-1])
    assert all(
        torch.equal(layer.bias, old)
        for layer, old in zip(linears(network), biases, strict=True)
    )


def test_without_max_norm_after_step_changes_nothing() -> None:
    network = mlp([6])
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(1000)
    before = [p.detach().clone() for p in network.parameters()]
    network.after_step()
    assert all(
        torch.equal(p, old) for p, old in zip(network.parameters(), before, strict=True)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": []}, "hidden must list at least one layer"),
        ({"hidden": [5, 0]}, "hidden must list at least one layer"),
        ({"dropout": 1.0}, r"must be in \[0, 1\)"),
        ({"dropout": -0.1}, r"must be in \[0, 1\)"),
        ({"input_dropout": 1.0}, r"must be in \[0, 1\)"),
        ({"dropout": math.nan}, r"must be in \[0, 1\)"),
        ({"max_norm": 0.0}, "max_norm must be greater than 0"),
        ({"max_norm": -1.0}, "max_norm must be greater than 0"),
        ({"input_shape": None}, "input_shape or num_classes is missing"),
        ({"num_classes": None}, "input_shape or num_classes is missing"),
    ],
)
def test_invalid_arguments_are_one_line_errors(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        MLP(**{"hidden": [5], "input_shape": [4], "num_classes": 3, **options})
    assert "\n" not in str(caught.value)

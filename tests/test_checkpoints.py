"""Reading weights, and checking that they fit the network and the data."""

from __future__ import annotations

import http
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights

from kd_lightning.spec import Spec, check_spec
from kd_lightning.training.optimizers import default_optimizer
from kd_lightning.weights import (
    KEY,
    check_weights,
    load_weights,
    network_weights,
    plain,
    read_file,
    sha256_of,
    weights_sha256,
)
from tests.training.small import complaint, copied, mlp, same

SPEC: dict[str, Any] = {
    "data": "pictures",
    "num_classes": 3,
    "classes": ["cat", "dog", "eel"],
    "input_shape": [1, 8, 8],
    "mean": [0.5],
    "std": [0.25],
}


def state() -> dict[str, Tensor]:
    return {"a": torch.arange(3.0), "b.weight": torch.ones(2, 2, dtype=torch.float64)}


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt", "a.safetensors"])
def test_reads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(
        state(), tmp_path / name
    )
    assert same(read_file(tmp_path / name, "here"), state())
    assert same(read_file(str(tmp_path / name), "here"), state())
    monkeypatch.setenv("HOME", str(tmp_path))
    assert same(read_file(f"~/{name}", "here"), state())


def test_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    assert (
        complaint(lambda: read_file(path, "the thing"))
        == f"the thing: there is no file {path}"
    )
    assert "there is no file" in complaint(lambda: read_file(tmp_path, "the thing"))
    path.write_bytes(b"")
    assert f"the thing: {path} cannot be read (it is corrupt)" in complaint(
        lambda: read_file(path, "the thing")
    )
    torch.save(
        {"path": tmp_path}, path
    )  # no code, but a class that only code could restore
    assert "it holds more than tensors and plain values" in complaint(
        lambda: read_file(path, "the thing")
    )
    for value, name in (
        (torch.zeros(1), "Tensor"),
        ([state()], "list"),
        (None, "NoneType"),
    ):
        torch.save(value, path)
        assert f"holds a {name}, not a checkpoint" in complaint(
            lambda: read_file(path, "the thing")
        )


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # the example of FIPS 180-2
    assert (
        sha256_of(tmp_path / "abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


def test_checksum_of_weights() -> None:
    network = mlp()
    own = weights_sha256(network)
    again = mlp()
    assert weights_sha256(again) != own
    again.load_state_dict(network.state_dict())
    assert weights_sha256(again) == own
    again.head.bias.data[3] = torch.nextafter(again.head.bias[3], torch.tensor(9.0))
    assert weights_sha256(again) != own
    assert weights_sha256(network.double()) != own


def test_checksum_of_a_scalar() -> None:
    def of(value: float) -> str:
        return weights_sha256(
            nn.ParameterDict({"scale": nn.Parameter(torch.tensor(value))})
        )

    assert of(1.00001) != of(1.00002)


MIXED = {
    "student.a": state()["a"],
    "losses.kd.w": torch.ones(1),
    "teacher.a": torch.ones(1),
}
CONTENT: dict[str, tuple[Mapping[str, Any], set[str]]] = {
    "ours": ({KEY: {"role": "student"}, "epoch": 1, "state_dict": MIXED}, {"a"}),
    "of a classifier": (
        {KEY: {"role": "network"}, "state_dict": {"network.network.a": state()["a"]}},
        {"network.a"},
    ),
    "of Lightning": ({"state_dict": state(), "epoch": 1}, set(state())),
    "of many trainers": (
        {"model": state(), "optimizer": {"x": torch.ones(1)}},
        set(state()),
    ),
    "bare": ({**state(), "epoch": 3, "name": "x"}, set(state())),
    "bare, of a module called model": ({"model": torch.ones(1)}, {"model"}),
    "of tensors and others": (
        {"state_dict": {**state(), "extra_state": {"x": 1}}},
        set(state()),
    ),
    "empty": ({}, set()),
}


@pytest.mark.parametrize("kind", CONTENT)
def test_network_weights(kind: str) -> None:
    content, names = CONTENT[kind]
    weights = network_weights(content)
    assert weights.keys() == names
    assert all(
        torch.equal(weights[name], state()[name])
        for name in weights.keys() & state().keys()
    )


def test_weights_that_fit_are_loaded() -> None:
    network, wanted = mlp(), copied(mlp())
    check_weights(network, wanted, "here")
    assert not same(copied(network), wanted)  # checking loads nothing
    load_weights(network, wanted, "here")
    assert same(copied(network), wanted)


def test_weights_that_do_not_fit() -> None:
    network = mlp()
    before = copied(network)

    def said(**changes: Tensor | None) -> str:
        weights = {
            **before,
            **{name.replace("__", "."): tensor for name, tensor in changes.items()},
        }
        kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
        return complaint(lambda: load_weights(network, kept, "the thing"))

    assert "the thing: the weights hold no 'head.bias' for MLP" in said(head__bias=None)
    assert "'head.bias' is (7,) in the weights and (10,) in MLP" in said(
        head__bias=torch.zeros(7)
    )
    assert "the weights hold 'tail.bias', which MLP does not" in said(
        tail__bias=torch.zeros(7)
    )
    assert same(copied(network), before)


def test_data_that_fits() -> None:
    partial: list[dict[str, Any]] = [
        {"num_classes": 3},
        {"classes": []},
        {"classes": None},
        {"classes": ["cat"]},
    ]
    whole = Spec.from_dict(SPEC)
    check_spec("the owner", None, whole)
    for described in ({}, SPEC, *partial):
        check_spec("the owner", Spec.from_dict(described), whole)
    unnamed = replace(whole, data="unknown", classes=())
    check_spec("the owner", whole, unnamed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_classes": 4}, "the owner knows 4 classes, the data pictures has 3"),
        (
            {"classes": ["cat", "eel", "dog"]},
            "the owner calls class 1 'eel', the data pictures calls it 'dog': the classes",
        ),
        (
            {"input_shape": [3, 8, 8]},
            "the owner expects inputs of shape [3, 8, 8], the data pictures gives [1, 8, 8]",
        ),
        (
            {"mean": [0.1]},
            "the owner expects inputs normalized by mean [0.1], the data pictures gives [0.5]",
        ),
        (
            {"std": [0.1]},
            "the owner expects inputs normalized by std [0.1], the data pictures gives [0.25]",
        ),
    ],
)
def test_data_that_does_not_fit(change: dict[str, Any], words: str) -> None:
    whole = Spec.from_dict(SPEC)
    for described in ({**SPEC, **change}, change):
        trained_on = Spec.from_dict(described)
        assert words in complaint(partial(check_spec, "the owner", trained_on, whole))


def test_enums_are_plain_as_their_names() -> None:
    described = plain([ResNet18_Weights.IMAGENET1K_V1, http.HTTPMethod.GET])
    assert described == ["IMAGENET1K_V1", "GET"]
    # An enum of texts is a text itself, which YAML refuses to write.
    assert type(described[1]) is str


def test_functions_and_classes_are_plain_as_their_import_path() -> None:
    """The text of a function object would differ in every process, and with it a run's key."""
    described = plain({"optimizer": default_optimizer, "kind": torch.nn.Linear})
    assert described == {
        "optimizer": "kd_lightning.training.optimizers.default_optimizer",
        "kind": "torch.nn.modules.linear.Linear",
    }

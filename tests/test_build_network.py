"""Building the network that a checkpoint describes, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import ResNet

from kd_lightning.models import MLP
from kd_lightning.networks import build_network, resolve_network
from tests.training.small import complaint, copied, same

MLP_CONFIG: dict[str, Any] = {
    "class_path": "kd_lightning.models.MLP",
    "init_args": {"hidden": [4], "input_shape": [1, 8, 8], "num_classes": 10},
}


class Holder(nn.Module):
    """A network made of another one."""

    def __init__(self, inner: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.inner, self.scale = inner, scale


class Bare(nn.Module):
    """Has no arguments."""


class Refusing(nn.Module):
    """Cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("out of paper\nand of ink")


def annotated() -> Holder:
    return Holder(Bare(), 5.0)


def unannotated():  # type: ignore[no-untyped-def]  # noqa: ANN201
    return Bare()


def misannotated() -> Nowhere:  # type: ignore[name-defined]  # noqa: F821
    return Bare()


def of_plain_values() -> dict[str, nn.Module]:
    return {"network": Bare()}


def test_builds() -> None:
    def made(class_path: str, **arguments: Any) -> nn.Module:
        return build_network(
            {"class_path": f"{__name__}.{class_path}", "init_args": arguments}
        )

    assert isinstance(build_network(MLP_CONFIG), MLP)
    assert isinstance(build_network({"class_path": f"{__name__}.Bare"}), Bare)
    assert isinstance(
        build_network({"class_path": f"{__name__}.Bare", "init_args": None}), Bare
    )
    holder = made("Holder", inner=MLP_CONFIG, scale=2.0)
    assert isinstance(holder, Holder)
    assert isinstance(holder.inner, MLP)
    assert holder.scale == 2.0
    assert made("annotated").scale == 5.0
    resnet = build_network(
        {
            "class_path": "torchvision.models.resnet18",
            "init_args": {"weights": None, "num_classes": 3},
        }
    )
    assert isinstance(resnet, ResNet)


def test_building_leaves_the_random_state() -> None:
    before = torch.get_rng_state()
    first = build_network(MLP_CONFIG)
    assert torch.equal(torch.get_rng_state(), before)
    assert same(copied(first), copied(build_network(MLP_CONFIG)))
    torch.rand(1)
    assert not same(copied(first), copied(build_network(MLP_CONFIG)))


@pytest.mark.parametrize(
    "name",
    [
        "unannotated",
        "misannotated",
        "of_plain_values",
        "complaint",
        "MLP_CONFIG",
        "Any",
    ],
)
def test_makes_no_network(name: str) -> None:
    assert f"'{__name__}.{name}'" in complaint(
        lambda: resolve_network(f"{__name__}.{name}")
    )


@pytest.mark.parametrize(
    "class_path",
    ["", "Bare", ".Bare", "no_such_package.Bare", "torch.nn.NoSuchLayer", "torch..nn"],
)
def test_cannot_be_imported(class_path: str) -> None:
    assert f"the network {class_path!r} cannot be imported" in complaint(
        lambda: resolve_network(class_path)
    )


@pytest.mark.parametrize(
    "config",
    [
        {**MLP_CONFIG, "init_args": {"hiden": [4]}},  # the class has changed since
        {"class_path": f"{__name__}.Refusing"},
        {"init_args": {}},
    ],
)
def test_cannot_be_built(config: dict[str, Any]) -> None:
    complaint(lambda: build_network(config))


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def reading(path: str) -> Bare:
    """As timm and others do, on the request of a file."""
    torch.load(path, weights_only=False)
    return Bare()


def test_a_function_that_unpickles_is_kept_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    path, executed = tmp_path / "weights.pt", tmp_path / "executed"
    torch.save({"weights": Payload(executed)}, path)
    described = {"class_path": f"{__name__}.reading", "init_args": {"path": str(path)}}
    assert "cannot be built" in complaint(lambda: build_network(described))
    assert not executed.exists()
    # The user's own code may still read such files.
    reading(str(path))
    assert executed.exists()


def test_a_secret_of_the_checkpoint_is_asked_for() -> None:
    described = {**MLP_CONFIG, "dict_kwargs": {"hub_token": "***"}}
    message = complaint(lambda: build_network(described))
    assert "built with the secret 'hub_token'" in message
    shown = {"class_path": f"{__name__}.reading", "init_args": {"api_key": "abc"}}
    assert "abc" not in complaint(lambda: build_network(shown))

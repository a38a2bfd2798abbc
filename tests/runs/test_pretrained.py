"""Pretrained weights of timm without a network."""

from __future__ import annotations

import socket
from importlib import import_module

import pytest
from jsonargparse import Namespace

from kd_lightning.errors import UserError
from kd_lightning.runs.pretrained import timm_models, timm_weights


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", fail)


def timm(name: str, pretrained: bool) -> Namespace:
    arguments = Namespace(model_name=name, pretrained=pretrained)
    return Namespace(class_path="timm.create_model", init_args=arguments)


def test_the_models_that_download_are_found_at_any_depth() -> None:
    teacher = Namespace(
        class_path="a.Teacher", init_args=Namespace(networks=[timm("deep", True)])
    )
    model = Namespace(
        student=timm("random", False), teacher=teacher, network={"class_path": "b"}
    )
    assert timm_models(Namespace(class_path="c", init_args=model)) == ["deep"]
    assert timm_models(None) == []


def test_missing_weights_are_one_line_that_names_the_model(no_network: None) -> None:
    constants = import_module("huggingface_hub.constants")
    errors = import_module("huggingface_hub.errors")

    def build() -> None:
        with timm_weights(["resnet18"]):
            # So the hub tries no file several times.
            assert constants.HF_HUB_OFFLINE
            raise RuntimeError("wrapped") from errors.OfflineModeIsEnabled("offline")

    with pytest.raises(UserError, match=r"timm: .*resnet18 .*no network"):
        build()
    assert not constants.HF_HUB_OFFLINE


def test_other_errors_and_other_models_are_left_alone(no_network: None) -> None:
    with pytest.raises(ValueError, match="other"), timm_weights(["resnet18"]):
        raise ValueError("other")
    constants = import_module("huggingface_hub.constants")
    with timm_weights([]):
        assert not constants.HF_HUB_OFFLINE


def test_timm_itself_does_not_wait(
    no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_model = pytest.importorskip("timm").create_model
    monkeypatch.setattr(
        import_module("huggingface_hub.constants"), "HF_HUB_CACHE", "/nowhere"
    )
    with pytest.raises(UserError, match="resnet10t"), timm_weights(["resnet10t"]):
        create_model("resnet10t", pretrained=True)

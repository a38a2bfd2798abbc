"""Files that are not weights, in whole or in part: one line each."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.weights import (
    KEY,
    check_lightning_entries,
    load_file_weights,
    network_weights,
    read_file,
)
from tests.training.small import complaint, copied, mlp, same

HEAD = "head.bias"


def with_head(change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    state = copied(mlp())
    state[HEAD] = change(state[HEAD])
    return state


def quantized(tensor: Tensor) -> Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


TENSORS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "bool": (lambda t: t.bool(), "is bool in the weights and float32"),
    "int8": (lambda t: t.to(torch.int8), "is int8 in the weights"),
    "int64": (lambda t: t.long(), "is int64 in the weights"),
    "complex": (lambda t: t.to(torch.complex64), "is complex64 in the weights"),
    "sparse": (lambda t: t.to_sparse(), "of layout torch.sparse_coo"),
    "meta": (lambda t: t.to("meta"), "on the meta device"),
    "quantized": (quantized, "is quantized"),
    "NaN": (lambda t: t * float("nan"), "holds NaN"),
    "infinite": (lambda t: t / 0.0, "holds"),
    "too large for float32": (lambda t: t.double() + 1e300, "holds an infinite value"),
    "shape": (lambda t: t[:3], "(3,) in the weights and (10,) in MLP"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", TENSORS)
def test_a_tensor_that_is_no_weight(kind: str, tmp_path: Path) -> None:
    change, words = TENSORS[kind]
    torch.save(with_head(change), tmp_path / "file.pt")
    network = mlp()
    before = copied(network)
    content = read_file(tmp_path / "file.pt", "the teacher")
    message = complaint(lambda: load_file_weights(network, content, "the teacher"))
    assert f"the teacher: {HEAD!r}" in message
    assert words in message
    assert same(copied(network), before)


def test_keys_that_are_no_names(tmp_path: Path) -> None:
    state = dict(enumerate(copied(mlp()).values()))
    for content in (state, {"state_dict": state}):
        torch.save(content, tmp_path / "file.pt")
        message = complaint(
            lambda: load_file_weights(
                mlp(), read_file(tmp_path / "file.pt", "here"), "here"
            )
        )
        assert "tensors under keys that are no names, such as 0" in message


def test_no_tensors(tmp_path: Path) -> None:
    contents: list[dict[str, Any]] = [
        {},
        {"a": 1},
        {"state_dict": []},
        {"model": {"a": "b"}},
    ]
    for content in contents:
        torch.save(content, tmp_path / "file.pt")
        message = complaint(
            lambda: load_file_weights(
                mlp(), read_file(tmp_path / "file.pt", "here"), "here"
            )
        )
        assert "here holds no tensors" in message


def described(**changes: Any) -> dict[str, Any]:
    own = {
        "role": "network",
        "network": {
            "class_path": "kd_lightning.models.MLP",
            "init_args": {"hidden": [16]},
        },
        "without_files": {},
        "spec": {"data": "digits", "num_classes": 10, "classes": list("0123456789")},
        "data": None,
        "teacher": [],
        **changes,
    }
    state = {f"network.{name}": tensor for name, tensor in copied(mlp()).items()}
    return {KEY: own, "state_dict": state, "epoch": 0}


METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "a list": ({KEY: []}, "kd_lightning is a list"),
    "a text": ({KEY: "network"}, "kd_lightning is a str"),
    "nothing": ({KEY: None}, "kd_lightning is missing"),
    "a number as role": (described(role=1), "kd_lightning.role is a int"),
    "a text as network": (described(network="MLP"), "kd_lightning.network is a str"),
    "no class path": (
        described(network={}),
        "kd_lightning.network.class_path is missing",
    ),
    "a list as arguments": (
        described(network={"class_path": "a.B", "init_args": [1]}),
        "kd_lightning.network.init_args is a list",
    ),
    "numbers as names of arguments": (
        described(network={"class_path": "a.B", "dict_kwargs": {1: 2}}),
        "a key of kd_lightning.network.dict_kwargs is a int",
    ),
    "a list as spec": (described(spec=[1]), "kd_lightning.spec is a list"),
    "a text as number of classes": (
        described(spec={"num_classes": "ten"}),
        "kd_lightning.spec.num_classes is a str",
    ),
    "negative classes": (described(spec={"num_classes": -1}), "num_classes is -1"),
    "a number as classes": (described(spec={"classes": 10}), "spec.classes is a int"),
    "numbers as classes": (
        described(spec={"classes": [1]}),
        "spec.classes[0] is a int",
    ),
    "a text as shape": (
        described(spec={"input_shape": "1x8"}),
        "spec.input_shape is a str",
    ),
    "texts as mean": (described(spec={"mean": ["a"]}), "spec.mean[0] is a str"),
    "a list as vocabulary": (
        described(spec={"vocabulary": [3]}),
        "spec.vocabulary is a list",
    ),
    "half a vocabulary": (
        described(spec={"vocabulary": {"size": 3}}),
        "vocabulary.pad is missing",
    ),
    "a number as input": (
        described(spec={"inputs": {"a": 1}}),
        "spec.inputs.a is a int",
    ),
    "a text as samples": (
        described(spec={"samples": {"train": "x"}}),
        "samples.train is a str",
    ),
    "a list as data": (described(data=[1]), "kd_lightning.data is a list"),
    "data without a spec": (
        described(data={"a": 1}, spec=None),
        "kd_lightning.spec is missing",
    ),
    "a text as teacher": (described(teacher="x"), "kd_lightning.teacher is a str"),
    "texts as teachers": (described(teacher=["x"]), "kd_lightning.teacher[0] is a str"),
    "a list as state": ({**described(), "state_dict": [1]}, "state_dict is a list"),
    "a text as weight": (
        {**described(), "state_dict": {"a": "b"}},
        "state_dict.a is a str",
    ),
    "a number as name": (
        {**described(), "state_dict": {1: torch.ones(1)}},
        "a key of state_dict",
    ),
}


@pytest.mark.parametrize("kind", METADATA)
def test_our_own_metadata_in_another_form(kind: str, tmp_path: Path) -> None:
    content, words = METADATA[kind]
    path = tmp_path / "last.ckpt"
    torch.save(content, path)
    message = complaint(lambda: read_file(path, "the teacher"))
    assert message.startswith(f"the teacher: {path} is damaged (")
    assert words in message


def test_our_own_metadata_in_the_right_form(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(described(), path)
    assert network_weights(read_file(path, "here")).keys() == mlp().state_dict().keys()
    content = described()
    del content[KEY]["role"]
    torch.save(content, path)
    assert "kd_lightning.role is missing" in complaint(
        lambda: network_weights(read_file(path, "here"), "here")
    )


def complete(**changes: Any) -> dict[str, Any]:
    group = {"params": [0], "lr": 0.1}
    return {
        **described(),
        "global_step": 3,
        "pytorch-lightning_version": "2.6.0",
        "loops": {"fit_loop": {}},
        "callbacks": {},
        "optimizer_states": [{"state": {}, "param_groups": [group]}],
        "lr_schedulers": [{"last_epoch": 1}],
        **changes,
    }


LIGHTNING: dict[str, tuple[dict[str, Any], str]] = {
    "no epoch": ({"epoch": None}, "epoch is missing"),
    "a text as epoch": ({"epoch": "three"}, "epoch is a str"),
    "no step": ({"global_step": None}, "global_step is missing"),
    "no version": ({"pytorch-lightning_version": None}, "version is missing"),
    "a garbage version": ({"pytorch-lightning_version": "x.y"}, "version is 'x.y'"),
    "a list as callbacks": ({"callbacks": [1]}, "callbacks is a list"),
    "no loops": ({"loops": None}, "loops is missing"),
    "numbers as loops": ({"loops": {"fit_loop": 3}}, "loops.fit_loop is a int"),
    "a text as optimizers": ({"optimizer_states": "adam"}, "optimizer_states is a str"),
    "half an optimizer": (
        {"optimizer_states": [{"state": {}}]},
        "param_groups is missing",
    ),
    "garbage as schedulers": ({"lr_schedulers": "cosine"}, "lr_schedulers is a str"),
    "garbage in schedulers": ({"lr_schedulers": [7]}, "lr_schedulers[0] is a int"),
    "an empty scheduler": (
        {"lr_schedulers": [{}]},
        "lr_schedulers[0].last_epoch is missing",
    ),
}


@pytest.mark.parametrize("kind", LIGHTNING)
def test_entries_of_lightning_in_another_form(kind: str) -> None:
    changes, words = LIGHTNING[kind]
    content = complete(**changes)
    message = complaint(
        lambda: check_lightning_entries(content, "--ckpt_path a", resumes=True)
    )
    assert message.startswith("--ckpt_path a is damaged (")
    assert words in message


def test_entries_of_lightning_in_the_right_form() -> None:
    check_lightning_entries(complete(), "here", resumes=True)
    weights_only = complete()
    del weights_only["optimizer_states"]
    check_lightning_entries(weights_only, "here", resumes=False)


PICKLED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "arguments": (
        lambda: {"state_dict": copied(mlp()), "args": argparse.Namespace(lr=1)},
        "argparse.Namespace",
        "x['state_dict']",
    ),
    "a number of another class": (
        lambda: {"net": copied(mlp()), "best": Fraction(3)},
        "fractions.Fraction",
        "x['net']",
    ),
    "a whole network": (mlp, "kd_lightning.models.mlp.MLP", "x.state_dict()"),
    "loose tensors": (
        lambda: {**copied(mlp()), "best": Fraction(3)},
        "fractions.Fraction",
        "if torch.is_tensor(v)",
    ),
}


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("kind", PICKLED)
def test_a_refused_pickle_names_the_class_and_the_way_out(
    kind: str, is_zip: bool, tmp_path: Path
) -> None:
    make, name, expression = PICKLED[kind]
    path = tmp_path / "net.pth.tar"
    content = make()
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    message = complaint(lambda: read_file(path, "the teacher"))
    assert f"more than tensors and plain values: {name}" in message
    assert expression in message
    # The command in the message, as a user would run it where the file can be trusted.
    _, _, quoted = message.partition('python -c "')
    program = quoted.removesuffix('"')
    with contextlib.chdir(tmp_path):
        exec(program, {})
    network = mlp()
    load_file_weights(network, read_file(tmp_path / "net-weights.pt", "here"), "here")
    state = content.state_dict() if isinstance(content, torch.nn.Module) else content
    inner = state.get("state_dict") or state.get("net") or state
    assert torch.equal(network.state_dict()[HEAD], inner[HEAD])


def test_names_of_a_hostile_pickle_are_shown_as_ascii(tmp_path: Path) -> None:
    kind = type("\x1b[31mred", (), {"__module__": __name__})
    setattr(sys.modules[__name__], "\x1b[31mred", kind)
    path = tmp_path / "file.pt"
    torch.save({"a": kind()}, path)
    message = complaint(lambda: read_file(path, "here"))
    assert "\x1b" not in message


def test_the_command_is_one_that_a_shell_accepts(tmp_path: Path) -> None:
    torch.save(
        {"model": copied(mlp()), "args": argparse.Namespace()}, tmp_path / "my net.pt"
    )
    message = complaint(lambda: read_file(tmp_path / "my net.pt", "here"))
    command = message[message.index("python -c") :].replace("python", sys.executable, 1)
    # `-n` reads the command and executes nothing.
    subprocess.run(["bash", "-n", "-c", command], check=True)

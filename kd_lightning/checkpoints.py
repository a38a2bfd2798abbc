"""Reading weights and checkpoints, never a pickle that could run code, and naming what is wrong in one line."""

from __future__ import annotations

import hashlib
import math
import typing
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError

KEY = "kd_lightning"
"""Where our own checkpoints keep what Lightning's do not: the network's class and arguments, the spec, the teacher's source."""


def plain(value: Any) -> Any:
    """Builtins alone, so that a checkpoint loads without running code."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(network: nn.Module) -> str:
    """One checksum over a network's tensors, their names and shapes."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_file(path: str | Path, what: str) -> dict[str, Any]:
    """The mapping that a checkpoint, state_dict or safetensors file holds, on the CPU.

    Raises:
        UserError: where the file is missing, corrupt, or would need code to be run.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{what}: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = "it holds more than tensors and plain values" if "Weights only" in str(error) else "it is corrupt"
        raise UserError(
            f"{what}: {path} cannot be read ({reason}); give a checkpoint, state_dict or safetensors file"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{what}: {path} holds a {type(content).__name__}, not a checkpoint or a state_dict")
    return content


def network_weights(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The network's own tensors: of a checkpoint of ours or another's, or a bare state_dict."""
    ours = content.get(KEY)
    state = content
    for name in ("state_dict", "model"):
        if isinstance(content.get(name), Mapping):
            state = content[name]
            break
    prefix = f"{ours['role']}." if ours else ""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix) and isinstance(v, Tensor)}


def check_weights(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """UserError names the first key that does not fit the network."""
    own = network.state_dict()
    for key, tensor in own.items():
        if key not in weights:
            raise UserError(f"{what}: the weights hold no {key!r} for {type(network).__name__}; is it another network?")
        if weights[key].shape != tensor.shape:
            raise UserError(
                f"{what}: {key!r} is {tuple(weights[key].shape)} in the weights and {tuple(tensor.shape)} in "
                f"{type(network).__name__}; is it another network, or are there other classes?"
            )
    extra = [key for key in weights if key not in own]
    if extra:
        raise UserError(
            f"{what}: the weights hold {extra[0]!r}, which {type(network).__name__} does not; is it another network?"
        )


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load all weights strictly; UserError names the first key that does not fit."""
    check_weights(network, weights, what)
    network.load_state_dict(dict(weights))


def specialist_weights(
    network: nn.Module, weights: Mapping[str, Tensor], theirs: Mapping[str, Any] | None, data: Mapping[str, Any], what: str
) -> dict[str, Tensor]:
    """Weights that a specialist can start from: of a network of all classes, with the head's rows for its own classes.

    Where the weights are for other classes in number, the rows of the specialist's classes are taken over, and the dustbin
    gets the mean row of all others and, for a bias, the log of their number besides: the log of the sum of the others'
    exponentials, were all of them alike. Weights of as many classes as the data has, and other data, are left as they are.

    Args:
        network: the specialist.
        weights: of the generalist, a network that differs in its number of classes alone.
        theirs: the spec of what the weights were trained on, where it is known.
        data: the spec of the specialist's data.
        what: who asks, for the message.

    Raises:
        UserError: where the weights are for other classes than those of which the specialist knows a part.
    """
    about, own = data.get("specialist"), network.state_dict()
    if about is None:
        return dict(weights)
    ids, classes, found = about["class_ids"], len(about["class_ids"]) + 1, dict(weights)
    for key, tensor in weights.items():
        shape = own[key].shape if key in own else tensor.shape
        if shape == tensor.shape or len(tensor) <= max(ids) or shape != (classes, *tensor.shape[1:]):
            continue
        names = (theirs or {}).get("classes") or []
        for at, name in zip(ids, data["classes"], strict=False):
            if names and names[at] != name:
                raise UserError(
                    f"{what}: the weights call class {at} {names[at]!r}, the data {name!r}; are there other classes?"
                )
        others = [at for at in range(len(tensor)) if at not in set(ids)]
        dustbin = tensor[others].mean(0, keepdim=True) + (math.log(len(others)) if tensor.ndim == 1 else 0.0)
        found[key] = torch.cat([tensor[ids], dustbin])
    return found


def _is_network_factory(factory: Any) -> bool:
    if isinstance(factory, type):
        return issubclass(factory, nn.Module)
    returns = typing.get_type_hints(factory).get("return") if callable(factory) else None
    return isinstance(returns, type) and issubclass(returns, nn.Module)


def resolve_network(class_path: str) -> Any:
    """The class or function of that path, if it makes an nn.Module; nothing else is ever called from a checkpoint."""
    module, _, name = class_path.rpartition(".")
    try:
        factory = getattr(import_module(module), name)
        fits = _is_network_factory(factory)
    except Exception as error:
        raise UserError(f"the network {class_path!r} cannot be imported ({error}); is its package on the path?") from error
    if not fits:
        raise UserError(f"{class_path!r} is not an nn.Module class, nor a function annotated to return one")
    return factory


def build_network(config: Mapping[str, Any]) -> nn.Module:
    """The network that a checkpoint describes as `class_path` and `init_args`; the global random state is left as it was."""

    def built(value: Any) -> Any:
        if isinstance(value, list):
            return [built(item) for item in value]
        return build_network(value) if isinstance(value, Mapping) and "class_path" in value else value

    arguments = {name: built(value) for name, value in (config.get("init_args") or {}).items()}
    factory = resolve_network(str(config.get("class_path")))
    try:
        with torch.random.fork_rng():
            network: nn.Module = factory(**arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the network {config['class_path']} cannot be made from {arguments}: {error}") from error
    return network


def _vocabulary(described: Mapping[str, Any] | None) -> str:
    if not described:
        return "no tokens"
    return f"{described['size']:,} tokens, vocabulary {described['sha256'][:8]}, at most {described['max_length']} a sample"


def check_vocabulary(owner: str, theirs: Mapping[str, Any] | None, data: Mapping[str, Any], tokens: Any) -> None:
    """One line where a network was trained on other tokens than the data gives it."""
    if theirs and theirs.get("vocabulary", tokens) != tokens:
        raise UserError(
            f"{owner} reads {_vocabulary(theirs['vocabulary'])}, the data {data['data']} gives it {_vocabulary(tokens)}; "
            "set data.teacher_tokenizer (or data.tokenizer) to the one that it was trained with, "
            "its checkpoint as that one's argument `checkpoint` where the training sentences are others"
        )


def check_spec(owner: str, theirs: Mapping[str, Any] | None, data: Mapping[str, Any]) -> None:
    """One line where what a network was trained on does not fit the data: classes, their order, input shape, scaling."""
    if not theirs:
        return
    if theirs.get("num_classes", data["num_classes"]) != data["num_classes"]:
        raise UserError(f"{owner} knows {theirs['num_classes']} classes, the data {data['data']} has {data['num_classes']}")
    for at, (a, b) in enumerate(zip(theirs.get("classes") or [], data.get("classes") or [], strict=False)):
        if a != b:
            raise UserError(f"{owner} calls class {at} {a!r}, the data {data['data']} {b!r}: other classes, or another order")
    check_vocabulary(owner, theirs, data, data.get("teacher_vocabulary", data.get("vocabulary")))
    for name, words in (
        ("input_shape", "inputs of shape"),
        ("mean", "inputs normalized by mean"),
        ("std", "inputs normalized by std"),
    ):
        if theirs.get(name, data.get(name)) != data.get(name):
            raise UserError(f"{owner} expects {words} {theirs[name]}, the data {data['data']} gives {data[name]}")

"""What decides a run's result, as a flat mapping; its hash is the run's address in the store."""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from kd_lightning.runs.build import parse_config
from kd_lightning.weights import sha256_of

_IRRELEVANT = (
    "run.",
    "ckpt_path",
    "seed_everything",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "trainer.default_root_dir",
    "data.init_args.root",
    "data.init_args.download",
    "data.init_args.resident",
)
"""Keys that change where a run is kept and how it is shown, not what it results in. The seed is added by the runner."""

_PACKAGE = Path(__file__).parent.parent


def is_relevant(name: str) -> bool:
    """Whether a key decides the result; data within data is asked about as the data itself is."""
    while name.startswith("data.init_args.data."):
        name = name.removeprefix("data.init_args.")
    return not name.startswith(_IRRELEVANT)


def flat(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`a.b.c: value` for every leaf."""
    if isinstance(config, Mapping) and config:
        for name, value in config.items():
            yield from flat(value, f"{prefix}{name}.")
    elif isinstance(config, list) and any(isinstance(item, Mapping) for item in config):
        for at, item in enumerate(config):
            yield from flat(item, f"{prefix}{at}.")
    else:
        yield prefix.rstrip("."), config


def _by_content(name: str, value: Any) -> Any:
    """For the path of a file, or of a folder of a pretrained model, its content: what it holds decides, not where it lies.

    The data's own arguments stay as they are: its samples have a checksum.
    """
    own = name.startswith("data.init_args.") and "." not in name.removeprefix("data.init_args.")
    if own or not isinstance(value, str) or not value:
        return value
    path = Path(value).expanduser()
    if path.is_file():
        return f"sha256:{_sha256(path, path.stat().st_mtime_ns)}"
    if (path / "config.json").is_file():
        files = sorted(found for found in path.iterdir() if found.is_file())
        sums = [f"{found.name} {_sha256(found, found.stat().st_mtime_ns)}" for found in files]
        return f"sha256:{hashlib.sha256(' '.join(sums).encode()).hexdigest()}"
    return value


@cache
def _sha256(path: Path, modified: int) -> str:
    return sha256_of(path)


@cache
def code_version(path: Path) -> str:
    """A hash of what a source file does: comments, docstrings and layout do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [
                s
                for s in body
                if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
            ]
            node.body = kept  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]


def _source_files(class_path: str) -> Iterator[Path]:
    """The files of a class and its bases, as far as they are losses or data of ours."""
    module, _, name = class_path.rpartition(".")
    thing = getattr(import_module(module), name, None)
    for base in thing.__mro__ if isinstance(thing, type) else ():
        path = Path(getattr(import_module(base.__module__), "__file__", None) or "/")
        if path.parent in (_PACKAGE / "losses", _PACKAGE / "data"):
            yield path
            yield from _helpers(path)


@cache
def _helpers(path: Path) -> tuple[Path, ...]:
    """The private modules beside a source file that it imports from."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    names = {
        node.module.rpartition(".")[2]
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module
    }
    return tuple(
        p
        for p in (path.with_name(f"{name}.py") for name in sorted(names) if name.startswith("_"))
        if p.is_file()
    )


def _class_paths(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        if isinstance(config.get("class_path"), str):
            yield config["class_path"]
        for value in config.values():
            yield from _class_paths(value)
    elif isinstance(config, list):
        for item in config:
            yield from _class_paths(item)


@cache
def _data_checksum(class_path: str, arguments: str) -> str:
    module, _, name = class_path.rpartition(".")
    datamodule = getattr(import_module(module), name)(**json.loads(arguments))
    return hashlib.sha256(
        json.dumps(datamodule.fingerprint()["samples"], sort_keys=True).encode()
    ).hexdigest()[:16]


def data_checksum(config: Mapping[str, Any]) -> str:
    """A checksum of the samples, read once a process; where the data is a part of other data, of that data's samples."""
    inner = (config.get("init_args") or {}).get("data")
    if isinstance(inner, Mapping) and "class_path" in inner:
        return data_checksum(inner)
    module, _, name = config["class_path"].rpartition(".")
    own = inspect.signature(
        getattr(import_module(module), name)
    ).parameters  # without those that go on to a base class
    given = {k: v for k, v in (config.get("init_args") or {}).items() if k in own and v is not None}
    plain = {
        k: v
        for k, v in given.items()
        if not any(isinstance(x, Mapping) for x in (v if isinstance(v, list) else [v]))
    }
    return _data_checksum(config["class_path"], json.dumps(plain, sort_keys=True))


def run_key(argv: list[str]) -> dict[str, Any]:
    """Everything that matters for the result of `kd` arguments, but for the seed and for the runs it needs."""
    config = parse_config(argv)
    key = {
        name: _by_content(name, value)
        for name, value in flat(config)
        if is_relevant(name) and value is not None
    }
    key["run.test"] = config["run"][
        "test"
    ]  # the weights that are tested: the last, or the best on validation data
    files = {path for class_path in _class_paths(config) for path in _source_files(class_path)}
    files |= {
        _PACKAGE / "randomness.py",
        _PACKAGE / "data" / "loader.py",
        _PACKAGE / "data" / "subsets.py",
    }
    key |= {
        f"code.{path.relative_to(_PACKAGE).as_posix()}": code_version(path)
        for path in sorted(files)
    }
    return {
        **key,
        "data checksum": data_checksum(config["data"]),
        "threads": torch.get_num_threads(),
    }


def address(key: Mapping[str, Any]) -> str:
    """16 hex digits that stand for a key."""
    text = json.dumps(key, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first keys that differ, in words."""
    changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    shown = ", ".join(f"{k} ({old.get(k, 'unset')} -> {new.get(k, 'unset')})" for k in changed[:3])
    return shown + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")

"""Damaged checkpoints, weights files and teacher caches."""

from __future__ import annotations

import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cases import SHORT, Case, Trained, configs, student

Content = dict[str, Any]


def copy_of(path: Path) -> Content:
    """The content of a checkpoint, to be changed."""
    content: Content = torch.load(path, weights_only=True)
    return content


def truncate(source: Path, share: float, folder: Path) -> None:
    """Keep the first part of a file."""
    content = source.read_bytes()
    (folder / "bad.ckpt").write_bytes(content[: int(len(content) * share)])


def flip_bit(source: Path, seed: int, folder: Path) -> None:
    """Flip one bit in the tensors of a checkpoint."""
    content = bytearray(source.read_bytes())
    generator = random.Random(seed)
    start, size = generator.choice(_tensors_in(source))
    content[start + generator.randrange(size)] ^= 1 << generator.randrange(8)
    (folder / "bad.ckpt").write_bytes(content)


def _tensors_in(source: Path) -> list[tuple[int, int]]:
    """Where the bytes of each tensor lie in a checkpoint: the position and the length."""
    places = []
    with zipfile.ZipFile(source) as archive, source.open("rb") as file:
        for record in archive.infolist():
            if "/data/" not in record.filename:
                continue
            # The local header ends with a name and padding, whose lengths are at bytes 26 to 29.
            file.seek(record.header_offset + 26)
            name_length, extra_length = struct.unpack("<HH", file.read(4))
            start = record.header_offset + 30 + name_length + extra_length
            places.append((start, record.file_size))
    return places


def nothing_changed(content: Content) -> None:
    """Leave a checkpoint as it is."""


def change(source: Path, edit: Callable[[Content], object], folder: Path) -> None:
    """Write a checkpoint with a changed content."""
    content = copy_of(source)
    edit(content)
    torch.save(content, folder / "bad.ckpt")


def save(content: object, folder: Path) -> None:
    """Write any content that can be loaded without running code."""
    torch.save(content, folder / "bad.ckpt")


def save_bytes(content: bytes, folder: Path) -> None:
    """Write a file that is no checkpoint."""
    (folder / "bad.ckpt").write_bytes(content)


def entry(key: str, value: object) -> Callable[[Content], object]:
    """Set an entry of the checkpoint."""
    return lambda content: content.__setitem__(key, value)


def own(key: str, value: object) -> Callable[[Content], object]:
    """Set an entry of what this package stores."""
    return lambda content: content["kd_lightning"].__setitem__(key, value)


def without_own(key: str) -> Callable[[Content], object]:
    """Remove an entry of what this package stores."""
    return lambda content: content["kd_lightning"].pop(key)


def first_weight(
    edit: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[Content], object]:
    """Change the first weight matrix."""

    def change_weight(content: Content) -> None:
        weights = content["state_dict"]
        name = next(name for name, tensor in weights.items() if tensor.ndim == 2)
        weights[name] = edit(weights[name])

    return change_weight


def filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """A matrix with one other value."""

    def fill(weight: torch.Tensor) -> torch.Tensor:
        weight = weight.clone()
        weight[0, 0] = value
        return weight

    return fill


CHANGES: dict[str, Callable[[Content], object]] = {
    "own entry missing": lambda content: content.pop("kd_lightning"),
    "own entry a list": entry("kd_lightning", [1]),
    "own entry a text": entry("kd_lightning", "x"),
    "own entry null": entry("kd_lightning", None),
    "own entry empty": entry("kd_lightning", {}),
    "role missing": without_own("role"),
    "role a number": own("role", 3),
    "role unknown": own("role", "x"),
    "network missing": without_own("network"),
    "network a text": own("network", "x"),
    "network a list": own("network", [1]),
    "network empty": own("network", {}),
    "network without class": own("network", {"init_args": {}}),
    "network class a number": own("network", {"class_path": 3}),
    "network class unknown": own(
        "network", {"class_path": "kd_lightning.models.Nothing"}
    ),
    "network class os.system": own("network", {"class_path": "os.system"}),
    "network arguments a list": own(
        "network", {"class_path": "kd_lightning.models.MLP", "init_args": [1]}
    ),
    "network arguments unknown": own(
        "network", {"class_path": "kd_lightning.models.MLP", "init_args": {"x": 1}}
    ),
    "spec missing": without_own("spec"),
    "spec a list": own("spec", [1]),
    "spec empty": own("spec", {}),
    "spec a text": own("spec", "x"),
    "spec classes a number": lambda c: c["kd_lightning"]["spec"].__setitem__(
        "classes", 3
    ),
    "spec count a text": lambda c: c["kd_lightning"]["spec"].__setitem__(
        "num_classes", "x"
    ),
    "spec count negative": lambda c: c["kd_lightning"]["spec"].__setitem__(
        "num_classes", -1
    ),
    "data a list": own("data", [1]),
    "teacher a text": own("teacher", "x"),
    "weights missing": lambda content: content.pop("state_dict"),
    "weights a list": entry("state_dict", [1]),
    "weights empty": entry("state_dict", {}),
    "weights with integer keys": entry("state_dict", {1: torch.zeros(2)}),
    "weights of text": entry("state_dict", {"network.head.weight": "x"}),
    "weight missing": lambda c: c["state_dict"].pop(next(iter(c["state_dict"]))),
    "weight too many": lambda c: c["state_dict"].__setitem__(
        "network.more", torch.zeros(2)
    ),
    "weight of another shape": first_weight(lambda w: w[:-1].clone()),
    "weight of integers": first_weight(lambda w: w.to(torch.int8)),
    "weight of bools": first_weight(lambda w: w > 0),
    "weight complex": first_weight(lambda w: w.to(torch.complex64)),
    "weight sparse": first_weight(lambda w: w.to_sparse()),
    "weight meta": first_weight(lambda w: w.to("meta")),
    "weight quantized": first_weight(
        lambda w: torch.quantize_per_tensor(w, 0.1, 0, torch.qint8)
    ),
    "weight NaN": first_weight(filled(float("nan"))),
    "weight infinite": first_weight(filled(float("inf"))),
}

RESUME_CHANGES: dict[str, Callable[[Content], object]] = {
    "epoch missing": lambda content: content.pop("epoch"),
    "epoch a text": entry("epoch", "x"),
    "epoch negative": entry("epoch", -5),
    "step missing": lambda content: content.pop("global_step"),
    "step a text": entry("global_step", "x"),
    "loops missing": lambda content: content.pop("loops"),
    "loops a list": entry("loops", [1]),
    "optimizer missing": lambda content: content.pop("optimizer_states"),
    "optimizer empty": entry("optimizer_states", []),
    "optimizer a text": entry("optimizer_states", "x"),
    "optimizer garbage": entry("optimizer_states", [{"state": 1}]),
    "scheduler garbage": entry("lr_schedulers", [{"x": 1}]),
    "scheduler a text": entry("lr_schedulers", "x"),
    "scheduler missing": lambda content: content.pop("lr_schedulers"),
    "callbacks a list": entry("callbacks", [1]),
    "no Lightning version": lambda content: content.pop("pytorch-lightning_version"),
    "Lightning version garbage": entry("pytorch-lightning_version", "x.y"),
}


TOLERATED = (
    # Weights without a description of their data are those of another program.
    "own entry missing",
    "spec missing",
    "spec empty",
    "data a list",
    "teacher a text",
    "callbacks a list",
    "no Lightning version",
)
"""Changes that leave a file with which one can go on."""


FROM_CONFIG = (
    # A resumed run builds its network from its config.
    "network missing",
    "network class unknown",
    "network class os.system",
    "network arguments unknown",
)
"""Changes that a resumed run does not read."""


class NotAllowed:
    """A class that a safe loader does not know."""


CONTENTS: dict[str, object] = {
    "nothing": {},
    "a list": [1, 2],
    "a tensor": torch.zeros(3),
    "a text": "x",
    "null": None,
    "a class of its own": {"state_dict": NotAllowed()},
    "a whole network": torch.nn.Linear(2, 2),
}

BYTES = {
    "empty": b"",
    "text": b"no checkpoint",
    "zeros": b"\0" * 1000,
    "an empty zip": b"PK\x05\x06" + b"\0" * 18,
    "a pickle": b"\x80\x04K\x01.",
    "a pickle cut": b"\x80\x04",
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
}


def checkpoint_cases(trained: Trained) -> Iterator[Case]:
    """Files in place of a teacher's checkpoint, or of one to resume."""
    source = trained.checkpoint
    teach = student("bad.ckpt")
    good = partial(change, source, nothing_changed)
    yield Case("checkpoints", "good", teach, good, "accepted")
    for percent in (0.1, 1, 5, 20, 40, 60, 80, 90, 95, 99, 99.9):
        prepare = partial(truncate, source, percent / 100)
        yield Case("checkpoints", f"first {percent}% of a file", teach, prepare)
    for seed in range(40):
        yield Case(
            "checkpoints", f"flipped bit {seed}", teach, partial(flip_bit, source, seed)
        )
    for name, edit in CHANGES.items():
        odd = name in TOLERATED
        expected = "either" if odd else "refused"
        prepare_change = partial(change, source, edit)
        yield Case("checkpoints", name, teach, prepare_change, expected)  # type: ignore[arg-type]
    for name, content in CONTENTS.items():
        yield Case("checkpoints", f"content {name}", teach, partial(save, content))
    for name, content in BYTES.items():
        yield Case("checkpoints", f"bytes {name}", teach, partial(save_bytes, content))
    resume = ["fit", "--ckpt_path=run/checkpoints/last.ckpt", "--trainer.max_epochs=3"]
    good = partial(change_resumed, trained.teacher, nothing_changed)
    yield Case("resumed", "good", resume, good, "accepted")
    for name, edit in {**RESUME_CHANGES, **CHANGES}.items():
        prepare_resume = partial(change_resumed, trained.teacher, edit)
        odd = name in TOLERATED + FROM_CONFIG
        expected = "either" if odd else "refused"
        yield Case("resumed", name, resume, prepare_resume, expected)  # type: ignore[arg-type]
    for seed in range(15):
        prepare_flip = partial(flip_resumed, trained.teacher, seed)
        yield Case("resumed", f"flipped bit {seed}", resume, prepare_flip)


def change_resumed(run: Path, edit: Callable[[Content], object], folder: Path) -> None:
    """Copy a run and change its last checkpoint."""
    shutil.copytree(run, folder / "run")
    change(run / "checkpoints" / "last.ckpt", edit, folder)
    (folder / "bad.ckpt").replace(folder / "run" / "checkpoints" / "last.ckpt")


def flip_resumed(run: Path, seed: int, folder: Path) -> None:
    """Copy a run and flip a bit of its last checkpoint."""
    shutil.copytree(run, folder / "run")
    flip_bit(run / "checkpoints" / "last.ckpt", seed, folder)
    (folder / "bad.ckpt").replace(folder / "run" / "checkpoints" / "last.ckpt")


MANIFEST: dict[str, object] = {
    "a list": [1],
    "a text": "x",
    "null": None,
    "empty": {},
    "deep": "DEEP",
    "broken": "BROKEN",
}


def copy_cache(cache: Path, folder: Path) -> None:
    """Copy a cache as it is."""
    shutil.copytree(cache, folder / "cache")


def damage_manifest(cache: Path, content: object, folder: Path) -> None:
    """Copy a cache and replace its manifest."""
    shutil.copytree(cache, folder / "cache")
    texts = {"DEEP": "[" * 5000 + "]" * 5000, "BROKEN": "{"}
    text = texts.get(content) if isinstance(content, str) else None
    (folder / "cache" / "manifest.json").write_text(text or json.dumps(content))


def change_manifest(cache: Path, key: str, value: object, folder: Path) -> None:
    """Copy a cache and set or remove a key of its manifest."""
    shutil.copytree(cache, folder / "cache")
    path = folder / "cache" / "manifest.json"
    content = json.loads(path.read_text())
    if value == "REMOVE":
        content.pop(key)
    else:
        content[key] = value
    path.write_text(json.dumps(content))


def damage_file(cache: Path, number: int, how: str, folder: Path) -> None:
    """Copy a cache and damage one of its data files."""
    shutil.copytree(cache, folder / "cache")
    files = sorted(p for p in (folder / "cache").iterdir() if p.suffix != ".json")
    path = files[number % len(files)]
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[random.Random(number).randrange(len(content))] ^= 1
        path.write_bytes(content)
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "longer":
        path.write_bytes(content + b"\0" * 8)
    elif how == "reversed":
        path.write_bytes(bytes(reversed(content)))
    else:
        path.unlink()


def cache_cases(trained: Trained) -> Iterator[Case]:
    """Caches that were damaged after they were filled."""
    names = ("trainer.yaml", "data/digits.yaml", "pairs/digits_mlp256_mlp16.yaml")
    arguments = [
        "fit",
        *configs(*names, "methods/kd.yaml", "loggers/csv.yaml"),
        # All batches, so that every shard is read.
        *(word for word in SHORT if "limit" not in word),
        "--run.test=last",
        "--model.teacher={class_path: kd_lightning.teachers.CachedTeacher, "
        "init_args: {path: cache}}",
    ]
    good = partial(copy_cache, trained.cache)
    yield Case("caches", "good", arguments, good, "accepted")
    for name, content in MANIFEST.items():
        prepare = partial(damage_manifest, trained.cache, content)
        yield Case("caches", f"manifest {name}", arguments, prepare)
    keys = json.loads((trained.cache / "manifest.json").read_text())
    for key, value in keys.items():
        values: list[object] = ["REMOVE", None, [1], {"a": 1}]
        if isinstance(value, int):
            values += [value + 1, -1, "x"]
        for bad in values:
            prepare_key = partial(change_manifest, trained.cache, key, bad)
            # An entry may be optional: then its absence is no error.
            expected = (
                "either"
                if bad is None or bad == "REMOVE" or bad == value
                else "refused"
            )
            name = f"manifest {key} = {bad}"
            yield Case("caches", name, arguments, prepare_key, expected)  # type: ignore[arg-type]
    files = sum(path.suffix != ".json" for path in trained.cache.iterdir())
    for number in range(min(files, 6)):
        for how in ("flipped", "cut", "empty", "longer", "reversed", "missing"):
            prepare_file = partial(damage_file, trained.cache, number, how)
            yield Case("caches", f"file {number} {how}", arguments, prepare_file)


GROUPS = (checkpoint_cases, cache_cases)

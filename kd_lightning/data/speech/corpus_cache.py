"""Features and labels of the spoken digits, computed once and cached on disk."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kd_lightning import randomness
from kd_lightning.data.speech import (
    digit_strings,
    features,
    framing,
    hmm,
    labels,
    recordings,
    spoken_corpus,
    windows,
)
from kd_lightning.data.speech.hmm import Lexicon
from kd_lightning.data.speech.windows import Speech

_SOURCES = (
    digit_strings,
    features,
    framing,
    hmm,
    labels,
    randomness,
    recordings,
    spoken_corpus,
    windows,
)
"""Modules that decide the result. A change of their code leads to another cache file."""
_TENSORS = ("frames", "first", "target", "string")
_LISTS = ("transcripts", "speakers", "parts", "shares")


def load_corpus(
    folder: Path,
    held_out: tuple[str, ...],
    lexicon: Lexicon,
    seed: int,
) -> dict[str, Speech]:
    """Features and labels of the source splits "train" and "test", from the cache if possible.

    They are cached in `kd_lightning/` below `XDG_CACHE_HOME` (default `~/.cache`) under a checksum
    of the recordings, the arguments and the code, and also in memory.

    Args:
        folder: folder of the recordings.
        held_out: speakers of the test set; the official test takes if empty.
        lexicon: the states.
        seed: seed of the order of recordings in strings, and of the gaps.

    Raises:
        UserError: if a recording is missing or damaged, or a part of the data is empty.
    """
    arguments = repr((held_out, lexicon, seed))
    digest = hashlib.sha256(arguments.encode())
    for module in _SOURCES:
        path = Path(str(module.__file__))
        digest.update(path.read_bytes())
    # Versions of librosa may compute other features, but a cached corpus can be read without it.
    with contextlib.suppress(PackageNotFoundError):
        digest.update(version("librosa").encode())
    for path in sorted(folder.glob("*.wav")):
        # A hash per file has a fixed length, so that files cannot be confused with their neighbors.
        content = hashlib.sha256(path.read_bytes())
        digest.update(path.name.encode())
        digest.update(content.digest())
    key = digest.hexdigest()[:32]
    return _load_or_build(key, folder, held_out, lexicon, seed)


@functools.lru_cache(maxsize=4)
def _load_or_build(
    key: str,
    folder: Path,
    held_out: tuple[str, ...],
    lexicon: Lexicon,
    seed: int,
) -> dict[str, Speech]:
    """The corpus of a key, from memory, from the cache file, or built from the recordings."""
    # An empty variable counts as unset, as the XDG specification demands.
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    cache = caches.expanduser() / "kd_lightning"
    path = cache / f"spoken-digits-{key}.safetensors"
    # A missing or damaged file is built anew.
    with contextlib.suppress(OSError, SafetensorError):
        return _read(path)
    corpus = spoken_corpus.build_corpus(folder, held_out, lexicon, seed)
    # If the cache cannot be written, the next process builds the corpus again.
    with contextlib.suppress(OSError, SafetensorError):
        cache.mkdir(parents=True, exist_ok=True)
        _write(path, corpus)
    return corpus


def _read(path: Path) -> dict[str, Speech]:
    """Read what `_write` wrote."""
    corpus = {}
    with safe_open(path, "pt") as file:
        # safetensors holds tensors and text only, so the lists are JSON in its metadata.
        lists_of_splits = json.loads(file.metadata()["speech"])
        for split, lists in lists_of_splits.items():
            tensors = {}
            for name in _TENSORS:
                tensors[name] = file.get_tensor(f"{split}.{name}")
            corpus[split] = Speech(**tensors, **lists)
    return corpus


def _write(path: Path, corpus: dict[str, Speech]) -> None:
    """Write the tensors and lists of all splits to one file."""
    tensors = {}
    lists: dict[str, dict[str, list[object]]] = {}
    for split, speech in corpus.items():
        for name in _TENSORS:
            tensors[f"{split}.{name}"] = getattr(speech, name)
        lists[split] = {}
        for name in _LISTS:
            lists[split][name] = getattr(speech, name)
    # Each process writes a file of its own and renames it, so that no reader sees a partial file.
    temporary = path.with_suffix(f".{os.getpid()}")
    save_file(tensors, temporary, metadata={"speech": json.dumps(lists)})
    temporary.replace(path)

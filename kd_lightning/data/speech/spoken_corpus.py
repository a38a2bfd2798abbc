"""The Free Spoken Digit Dataset on disk: its archive, its parts, and what is computed of it once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tarfile
import tempfile
import urllib.request
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from kd_lightning import randomness
from kd_lightning.data.speech import digit_strings, hmm, windows
from kd_lightning.data.speech.digit_strings import (
    HOP,
    Recording,
    labelled,
    log_mel,
    normalized,
    quiet_level,
    read_recordings,
    strings_of,
)
from kd_lightning.data.speech.hmm import Lexicon
from kd_lightning.data.speech.windows import Speech, joined
from kd_lightning.errors import UserError

URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.tar.gz"
TEST_TAKES, VALIDATION_TAKES = range(5), range(5, 10)
"""The data set's official test takes, and those of the training part that are held out for validation."""
_TENSORS = ("frames", "first", "target", "string")
_LISTS = ("transcripts", "speakers", "parts", "shares")


def fetch(folder: Path, allowed: bool) -> None:
    """Download the public archive and put its recordings into `folder`, all or none.

    Raises:
        UserError: where that is not allowed, or fails.
    """
    how = "put the recordings there, or set --data.root or KD_DATA_ROOT to the folder that holds free-spoken-digit-dataset/"
    if not allowed:
        raise UserError(f"spoken digits: there is no folder {folder} and download is off; {how}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
            with (
                urllib.request.urlopen(URL, timeout=30) as answer,
                tarfile.open(fileobj=answer, mode="r|gz") as archive,
            ):
                archive.extractall(temporary, filter="data")
            [found] = Path(temporary).glob("*/recordings")
            found.rename(folder)
    except (OSError, ValueError, HTTPException, tarfile.TarError) as error:
        raise UserError(
            f"spoken digits: there is no folder {folder}, and the download failed; {how}"
        ) from error


def part_of(recording: Recording, held_out: tuple[str, ...]) -> str:
    """Of "train", "validation" and "test"."""
    if recording.speaker in held_out or (not held_out and recording.take in TEST_TAKES):
        return "test"
    return "validation" if recording.take in VALIDATION_TAKES else "train"


def computed(
    folder: Path, held_out: tuple[str, ...], lexicon: Lexicon, seed: int
) -> dict[str, Speech]:
    """Features and labels of the source splits "train" and "test".

    They are kept under a checksum of the recordings, the arguments and the code, and in this process besides.

    Args:
        folder: of the recordings.
        held_out: the test set's speakers; the official test takes where it is empty.
        lexicon: the states.
        seed: of the order of recordings in strings, and of the gaps.

    Raises:
        UserError: where a recording is missing or broken, or a part of the data is empty.
    """
    digest = hashlib.sha256(repr((held_out, lexicon, seed)).encode())
    for source in (
        __file__,
        digit_strings.__file__,
        hmm.__file__,
        windows.__file__,
        randomness.__file__,
    ):
        digest.update(Path(source).read_bytes())
    with contextlib.suppress(PackageNotFoundError):  # what is kept can be read without it
        digest.update(version("librosa").encode())
    for path in sorted(folder.glob("*.wav")):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return _load_or_make(digest.hexdigest()[:32], folder, held_out, lexicon, seed)


@functools.lru_cache(maxsize=4)
def _load_or_make(
    key: str, folder: Path, held_out: tuple[str, ...], lexicon: Lexicon, seed: int
) -> dict[str, Speech]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kd_lightning"
    path = kept / f"spoken-digits-{key}.safetensors"
    with contextlib.suppress(OSError, SafetensorError), safe_open(path, "pt") as file:
        lists = json.loads(file.metadata()["speech"])
        return {
            s: Speech(**{n: file.get_tensor(f"{s}.{n}") for n in _TENSORS}, **lists[s])
            for s in lists
        }
    made = make(folder, held_out, lexicon, seed)
    tensors = {
        f"{split}.{name}": getattr(part, name) for split, part in made.items() for name in _TENSORS
    }
    lists = {split: {name: getattr(part, name) for name in _LISTS} for split, part in made.items()}
    with contextlib.suppress(
        OSError, SafetensorError
    ):  # a folder that cannot be written costs time, nothing else
        kept.mkdir(parents=True, exist_ok=True)
        own = path.with_suffix(f".{os.getpid()}")
        save_file(tensors, own, metadata={"speech": json.dumps(lists)})
        own.replace(path)
    return made


def make(folder: Path, held_out: tuple[str, ...], lexicon: Lexicon, seed: int) -> dict[str, Speech]:
    """See `computed`."""
    recordings = read_recordings(folder)
    speakers = sorted({r.speaker for r in recordings})
    if unknown := [name for name in held_out if name not in speakers]:
        raise UserError(
            f"data.held_out: there is no speaker {unknown[0]!r}; they are {', '.join(speakers)}"
        )
    if not set(speakers) - set(held_out):
        raise UserError(
            f"data.held_out names all of the {len(speakers)} speakers; leave some to train on"
        )
    shortest = min(recordings, key=lambda recording: len(recording.samples))
    if lexicon.states > (pieces := len(shortest.samples) // HOP):
        name = f"{shortest.digit}_{shortest.speaker}_{shortest.take}.wav"
        raise UserError(
            f"data.states={lexicon.states}: {name} has {pieces} frames, and each state takes one; choose fewer"
        )
    groups: dict[tuple[str, str], list[Recording]] = {}
    for recording in recordings:
        groups.setdefault((recording.speaker, part_of(recording, held_out)), []).append(recording)
    for part in ("train", "validation", "test"):
        if not any(part == other for _, other in groups):
            raise UserError(
                f"spoken digits: no recording in {folder} is of the {part} part; takes 0 to 10 are needed"
            )
    level = {
        name: quiet_level(groups.get((name, "train")) or groups[name, "test"]) for name in speakers
    }
    strings = [
        s
        for (name, part), own in groups.items()
        for s in strings_of(own, part, level[name], lexicon, seed)
    ]
    frames = normalized(strings, log_mel(strings))
    targets = labelled(strings, frames, lexicon)
    made = {}
    for split in ("train", "test"):
        chosen = [at for at, s in enumerate(strings) if (s.part == "test") == (split == "test")]
        made[split] = joined(
            [strings[i] for i in chosen], [frames[i] for i in chosen], [targets[i] for i in chosen]
        )
    return made

"""The Free Spoken Digit Dataset on disk: its archive, its parts, features and labels."""

from __future__ import annotations

import tarfile
import tempfile
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

from kd_lightning.data.files import no_empty_folders
from kd_lightning.data.speech.digit_strings import DigitString, make_strings, select
from kd_lightning.data.speech.features import log_mel, normalize
from kd_lightning.data.speech.framing import HOP
from kd_lightning.data.speech.hmm import Lexicon
from kd_lightning.data.speech.labels import label_frames
from kd_lightning.data.speech.recordings import Recording, noise_level, read_recordings
from kd_lightning.data.speech.windows import Speech, concatenate
from kd_lightning.errors import UserError

URL = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.tar.gz"
"""The public archive of the data set."""
TEST_TAKES = range(5)
"""Takes of the official test set."""
VALIDATION_TAKES = range(5, 10)
"""Takes of the training part that are held out for validation."""


def fetch(folder: Path, allowed: bool) -> None:
    """Download the public archive and move its recordings to `folder`, all or none.

    Raises:
        UserError: if downloading is not allowed or fails.
    """
    remedy = (
        "put the recordings there, or set --data.root or KD_DATA_ROOT "
        "to the folder that holds free-spoken-digit-dataset/"
    )
    if not allowed:
        raise UserError(
            f"spoken digits: {folder} does not exist and download is off; {remedy}"
        )
    try:
        with no_empty_folders(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Only a complete archive is renamed to `folder`; a partial one is deleted.
            with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
                with (
                    urllib.request.urlopen(URL, timeout=30) as response,
                    tarfile.open(fileobj=response, mode="r|gz") as archive,
                ):
                    archive.extractall(temporary, filter="data")
                # The archive has one folder, named after the branch; else this is a ValueError.
                [recordings] = Path(temporary).glob("*/recordings")
                recordings.rename(folder)
    except (OSError, ValueError, HTTPException, tarfile.TarError) as error:
        raise UserError(
            f"spoken digits: {folder} does not exist, and the download failed; {remedy}"
        ) from error


def part_of(recording: Recording, held_out: tuple[str, ...]) -> str:
    """The part of a recording: "train", "validation" or "test".

    The test set consists of the held-out speakers or, if there are none, of the official takes.
    """
    if recording.speaker in held_out:
        return "test"
    if not held_out and recording.take in TEST_TAKES:
        return "test"
    if recording.take in VALIDATION_TAKES:
        return "validation"
    return "train"


def build_corpus(
    folder: Path,
    held_out: tuple[str, ...],
    lexicon: Lexicon,
    seed: int,
) -> dict[str, Speech]:
    """Features and labels of the source splits "train" and "test".

    Args:
        folder: folder of the recordings.
        held_out: speakers of the test set; the official test takes if empty.
        lexicon: the states.
        seed: seed of the order of recordings in strings, and of the gaps.

    Raises:
        UserError: if a recording is missing or damaged, or a part of the data is empty.
    """
    recordings = read_recordings(folder)
    speakers = sorted({recording.speaker for recording in recordings})
    _check_held_out(held_out, speakers)
    _check_states(lexicon, recordings)
    groups = _group(recordings, held_out)
    _check_parts(groups, folder)

    strings: list[DigitString] = []
    for (speaker, part), group in groups.items():
        # The noise of a held-out speaker, who has no training part, comes from its test part.
        reference = groups.get((speaker, "train")) or groups[speaker, "test"]
        level = noise_level(reference)
        strings.extend(make_strings(group, part, level, lexicon, seed))
    # Alignment reads normalized features: its variance floor assumes a variance of 1.
    frames = normalize(strings, log_mel(strings))
    targets = label_frames(strings, frames, lexicon)

    # Validation strings belong to the source split "train".
    split_rows: dict[str, list[int]] = {"train": [], "test": []}
    for row, string in enumerate(strings):
        split = "test" if string.part == "test" else "train"
        split_rows[split].append(row)
    corpus = {}
    for split, rows in split_rows.items():
        corpus[split] = concatenate(
            select(strings, rows),
            select(frames, rows),
            select(targets, rows),
        )
    return corpus


def _group(
    recordings: Sequence[Recording], held_out: tuple[str, ...]
) -> dict[tuple[str, str], list[Recording]]:
    """Recordings by speaker and part, in their order."""
    groups: dict[tuple[str, str], list[Recording]] = {}
    for recording in recordings:
        key = (recording.speaker, part_of(recording, held_out))
        groups.setdefault(key, []).append(recording)
    return groups


def _check_held_out(held_out: tuple[str, ...], speakers: Sequence[str]) -> None:
    """Refuse held-out speakers that do not exist, or that leave nobody to train on."""
    for name in held_out:
        if name not in speakers:
            raise UserError(
                f"data.held_out: unknown speaker {name!r}; valid speakers: {', '.join(speakers)}"
            )
    if not set(speakers) - set(held_out):
        raise UserError(
            f"data.held_out names all {len(speakers)} speakers; leave some to train on"
        )


def _check_states(lexicon: Lexicon, recordings: Sequence[Recording]) -> None:
    """Refuse more states than the shortest recording has frames."""
    # A path through a digit needs at least one frame per state.
    shortest = min(recordings, key=lambda recording: len(recording.samples))
    frames = len(shortest.samples) // HOP
    if lexicon.states > frames:
        name = f"{shortest.digit}_{shortest.speaker}_{shortest.take}.wav"
        raise UserError(
            f"data.states={lexicon.states}: {name} has {frames} frames, "
            "and each state needs at least one; choose fewer states"
        )


def _check_parts(groups: dict[tuple[str, str], list[Recording]], folder: Path) -> None:
    """Refuse recordings of which a part would be empty."""
    present = {part for _, part in groups}
    for part in ("train", "validation", "test"):
        if part not in present:
            raise UserError(
                f"spoken digits: the {part} part of {folder} is empty; takes 0 to 10 are needed"
            )

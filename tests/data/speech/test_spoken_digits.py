"""Spoken digits: files made in the true format, and the true set where it is."""

from __future__ import annotations

import http.client
import io
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kd_lightning.data.speech import digit_strings
from kd_lightning.data.speech.digit_strings import (
    FFT,
    HOP,
    frames_in,
    labelled,
    lengths_of,
    log_mel,
    normalized,
    quiet_level,
    read_recordings,
    strings_of,
)
from kd_lightning.data.speech.hmm import Lexicon, align_all, train_alignment
from kd_lightning.data.speech.spoken_digits import SpokenDigitsDataModule
from kd_lightning.data.speech.windows import CONTEXT, PREDICTED
from kd_lightning.errors import UserError
from kd_lightning.types import CLEAN
from tests.data.speech.spoken import record, spoken_digits

SPEAKERS = ("ann", "bob", "cat")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("spoken")
    spoken_digits(root, SPEAKERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield root


@pytest.fixture
def copy(small: Path, tmp_path: Path) -> Path:
    """Recordings that a test may spoil."""
    shutil.copytree(small / "free-spoken-digit-dataset", tmp_path / "free-spoken-digit-dataset")
    return tmp_path / "free-spoken-digit-dataset" / "recordings"


def module(root: Path, **arguments: Any) -> SpokenDigitsDataModule:
    return SpokenDigitsDataModule(root=str(root), download=False, **arguments)


def said(data: SpokenDigitsDataModule, split: str, part: str) -> list[tuple[str, int]]:
    """Speaker and digit of every recording of a part, in order."""
    speech = data.raw(split)
    strings = zip(speech.speakers, speech.parts, speech.transcripts, strict=True)
    return sorted(
        (speaker, digit) for speaker, own, digits in strings if own == part for digit in digits
    )


# -- what is served ---------------------------------------------------------------------------------------------------


def test_every_recording_is_in_one_string_of_one_part(small: Path) -> None:
    data = module(small)
    takes = {"train": 2, "validation": 5, "test": 5}
    for part, count in takes.items():
        every = sorted(
            (speaker, digit) for speaker in SPEAKERS for digit in range(10) for _ in range(count)
        )
        assert said(data, "test" if part == "test" else "train", part) == every
    for split in ("train", "test"):
        assert {len(digits) for digits in data.raw(split).transcripts} <= set(range(3, 8))


def test_a_window_is_26_frames_and_ends_5_after_its_own(small: Path) -> None:
    assert (CONTEXT, PREDICTED + 1) == (26, 21)  # the paper's
    data = module(small)
    source, speech = data.source("test"), data.raw("test")
    lengths = speech.lengths.tolist()
    at = lengths[0] + 40  # within the second string
    batch = source.batch(torch.tensor([at, lengths[0], lengths[0] - 1]), 3)
    inputs: Any = batch.inputs
    assert inputs.shape == (3, 1, CONTEXT, 40)
    assert (batch.view, batch.split, batch.index.tolist()) == (
        CLEAN,
        "test",
        [at, lengths[0], lengths[0] - 1],
    )
    second = speech.frames[lengths[0] + CONTEXT - 1 + PREDICTED :][: lengths[1]]  # unpadded
    assert torch.equal(inputs[0, 0], second[40 - PREDICTED : 40 - PREDICTED + CONTEXT])
    assert torch.equal(
        inputs[1, 0, : PREDICTED + 1], second[:1].expand(PREDICTED + 1, -1)
    )  # nothing of the string before
    first = speech.frames[PREDICTED:][: lengths[0]]
    assert torch.equal(
        inputs[2, 0, PREDICTED:], first[-1:].expand(CONTEXT - PREDICTED, -1)
    )  # nor of the next


def test_features_are_librosas_and_normalized_by_speaker(small: Path) -> None:
    from librosa.feature import melspectrogram

    recordings = [
        r
        for r in read_recordings(small / "free-spoken-digit-dataset/recordings")
        if r.speaker == "ann"
    ]
    strings = strings_of(recordings, "train", quiet_level(recordings), Lexicon(10, 5), 0)
    for string, frames in zip(strings, digit_strings.log_mel(strings), strict=True):
        alone = melspectrogram(
            y=string.samples,
            sr=8000,
            n_fft=256,
            win_length=200,
            hop_length=80,
            n_mels=40,
            center=False,
        )
        assert tuple(frames.shape) == (frames_in(len(string.samples)), 40)
        assert np.allclose(frames.numpy(), np.log(np.maximum(alone, 1)).T, atol=1e-4)
    speech = module(small).raw("train")
    for speaker in SPEAKERS:
        pairs = zip(speech.speakers, speech.parts, strict=True)
        own = torch.tensor([(name, part) == (speaker, "train") for name, part in pairs])[
            speech.string
        ]
        frames = speech.windows[speech.first[own]].view(-1, CONTEXT, 40)[:, PREDICTED]
        assert frames.mean(0).abs().max() < 1e-4
        assert (frames.std(0) - 1).abs().max() < 1e-3


def test_the_alignment_says_silence_in_the_gaps_and_the_digits_in_order(small: Path) -> None:
    data = module(small)
    for split in ("train", "test"):
        speech = data.raw(split)
        for at, digits in enumerate(speech.transcripts):
            states = torch.unique_consecutive(speech.target[speech.string == at])
            assert states.tolist() == data.lexicon.chain(digits).tolist()
    recordings = read_recordings(small / "free-spoken-digit-dataset/recordings")
    own = [r for r in recordings if r.speaker == "bob" and r.take < 5]
    known = [r for r in recordings if r.speaker == "bob" and r.take >= 10]
    strings = strings_of(own, "test", quiet_level(known), data.lexicon, 0)
    flat = torch.cat([s.flat for s in strings])
    pairs = torch.tensor([name == "bob" for name in speech.speakers])[speech.string]
    silent = speech.target[pairs] == data.lexicon.silence
    assert float((silent == (flat == data.lexicon.silence)).double().mean()) > 0.9


def test_labels_are_those_of_several_realignments(small: Path) -> None:
    lexicon = Lexicon(10, 5)
    strings = strings_of(
        read_recordings(small / "free-spoken-digit-dataset/recordings")[:120],
        "train",
        50.0,
        lexicon,
        0,
    )
    frames = normalized(strings, log_mel(strings))
    chains, flat = [lexicon.chain(s.digits) for s in strings], torch.cat([s.flat for s in strings])
    found = {}
    for rounds in (0, 5):
        found[rounds] = align_all(
            train_alignment(frames, chains, flat, lexicon.size, rounds), frames, chains
        )
    made = torch.cat(labelled(strings, frames, lexicon))
    assert torch.equal(made, found[5])
    assert not torch.equal(made, found[0])


def test_more_states_than_frames_is_one_line(small: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"data\.states=60: \d_\w+_\d+\.wav has \d+ frames, and each state takes one",
    ):
        module(small, states=60).raw("test")


def test_training_knows_nothing_of_the_other_parts(small: Path, copy: Path) -> None:
    """Other validation and test recordings change no feature, label, prior or transition of the training part."""
    changed = 0
    for path in copy.glob("*.wav"):
        if int(path.stem.split("_")[2]) < 10:  # the same word, backwards and with noise
            with wave.open(str(path)) as file:
                samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)[::-1]
            noise = np.random.default_rng(changed).normal(0, 300, len(samples))
            with wave.open(str(path), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
                file.writeframes((samples // 2 + noise).astype(np.int16).tobytes())
            changed += 1
    assert changed == 3 * 10 * 10
    ours, theirs = module(small), module(copy.parents[1])
    sides = []
    for data in (ours, theirs):
        speech = data.raw("train")
        rows = torch.tensor([part == "train" for part in speech.parts])[speech.string]
        loop = data.word_loop()
        sides.append(
            (
                speech.windows[speech.first[rows]],
                speech.target[rows],
                loop.prior,
                loop.stay,
                loop.leave,
                loop.word,
            )
        )
    assert all(torch.equal(a, b) for a, b in zip(*sides, strict=True))
    assert not torch.equal(ours.raw("test").frames, theirs.raw("test").frames)


def test_speakers_can_be_held_out(small: Path) -> None:
    data = module(small, split="speakers", held_out=["bob"])
    assert set(data.raw("test").speakers) == {"bob"}
    assert len(said(data, "test", "test")) == 120
    assert set(data.raw("train").speakers) == {"ann", "cat"}
    assert len(said(data, "train", "train")) == 2 * 10 * 7  # takes 0 to 4 are trained on here
    with pytest.raises(UserError, match="held_out names the test set's speakers"):
        module(small, split="speakers")
    with pytest.raises(UserError, match="held_out names the test set's speakers"):
        module(small, held_out=["bob"])
    with pytest.raises(UserError, match="no speaker 'eve'; they are ann, bob, cat"):
        module(small, split="speakers", held_out=["eve"]).raw("test")
    with pytest.raises(
        UserError, match="held_out names all of the 3 speakers; leave some to train on"
    ):
        module(small, split="speakers", held_out=list(SPEAKERS)).raw("test")


def test_validation_is_held_out_or_trained_on(small: Path) -> None:
    held, whole = module(small), module(small, validation=False)
    train, validation = held.source("train").rows, held.source("validation").rows
    assert not set(train.tolist()) & set(validation.tolist())
    assert sorted([*train.tolist(), *validation.tolist()]) == whole.source("train").rows.tolist()
    assert len(whole.source("validation")) == 0
    assert whole.val_dataloader() == []
    assert whole.fingerprint() == held.fingerprint()  # one cache serves both


def test_a_fraction_is_nested_and_stratified(small: Path) -> None:
    data, half = module(small), module(small, fraction=0.5)
    rows = half.source("train").rows
    assert set(rows.tolist()) <= set(data.source("train").rows.tolist())
    assert 0.35 < len(rows) / len(data.source("train")) < 0.65
    speech = half.raw("train")
    kept = sorted({int(s) for s in speech.string[rows]})
    assert {speech.speakers[s] for s in kept} == set(SPEAKERS)
    assert {digit for s in kept for digit in speech.transcripts[s]} == set(range(10))
    assert torch.equal(half.source("test").rows, data.source("test").rows)
    with pytest.raises(
        UserError, match=r"data\.fraction=0\.02 leaves no recording of 'zero' to train on"
    ):
        module(small, fraction=0.02).source("train")


def test_the_spec_is_of_builtins_and_fits_the_loaders(small: Path) -> None:
    data = module(small, states=3, batch_size=64)
    spec = data.spec
    assert (spec["num_classes"], spec["classes"][0], spec["classes"][-1]) == (
        31,
        "zero/1",
        "silence",
    )
    assert spec["source_samples"] == spec["samples"]["train"] + spec["samples"]["validation"]
    for stage in ("train", "validation", "test"):
        served = torch.cat([batch.index for batch in data.loader(stage)])
        assert sorted(served.tolist()) == data.source(stage).rows.tolist()
        assert len(served) == spec["samples"][stage]
    assert data.raw("test").images.shape == (spec["samples"]["test"], 1, CONTEXT, 40)


def test_what_was_computed_once_is_kept_and_follows_the_files(
    small: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kd_lightning.data.speech import spoken_corpus as code

    monkeypatch.setenv("XDG_CACHE_HOME", str(copy.parent / "cache"))
    code._load_or_make.cache_clear()
    before = module(copy.parent.parent).fingerprint()
    [kept] = (copy.parent / "cache" / "kd_lightning").iterdir()
    code._load_or_make.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(code, "make", None)  # what is kept is read, not made
        assert module(copy.parent.parent).fingerprint() == before
    kept.write_bytes(b"spoilt")
    code._load_or_make.cache_clear()
    assert module(copy.parent.parent).fingerprint() == before
    record(copy / "3_ann_11.wav", 1000 * np.sin(np.arange(2000)))
    assert module(copy.parent.parent).fingerprint() != before
    assert module(small).fingerprint() == before


def test_strings_have_3_to_7_digits() -> None:
    for total in range(1, 60):
        lengths = lengths_of(total, 0)
        assert sum(lengths) == total
        assert max(lengths) <= 7
        assert min(lengths) >= min(3, total)
    assert lengths_of(50, 0) != lengths_of(50, 1)


def test_gaps_are_noise_as_low_as_the_speakers_own(small: Path) -> None:
    recordings = [
        r
        for r in read_recordings(small / "free-spoken-digit-dataset/recordings")
        if r.speaker == "bob"
    ]
    level = quiet_level(recordings)
    assert 1 < level < 1000
    string = strings_of(recordings, "train", level, Lexicon(10, 5), 0)[0]
    assert len(string.samples) % HOP == 0
    assert len(string.flat) == frames_in(len(string.samples))
    beginning = string.samples[:800]  # the shortest gap
    assert float(np.sqrt(np.square(beginning).mean())) == pytest.approx(level, rel=0.1)
    loud = string.samples[np.arange(len(string.flat)) * HOP + FFT // 2][string.flat.numpy() != 50]
    assert float(np.sqrt(np.square(loud).mean())) > 3 * level
    again = strings_of(recordings, "train", level, Lexicon(10, 5), 0)[0]
    other = strings_of(recordings, "train", level, Lexicon(10, 5), 1)[0]
    assert np.array_equal(string.samples, again.samples)
    assert not np.array_equal(string.samples[:800], other.samples[:800])


# -- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), r"4_bob_7\.wav is missing"),
        (lambda path: path.write_bytes(b"no sound"), r"4_bob_7\.wav cannot be read as a WAV file"),
        (lambda path: path.write_bytes(b""), r"4_bob_7\.wav cannot be read as a WAV file"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:1000]),
            r"4_bob_7\.wav is shorter than its heading says",
        ),
        (lambda path: record(path, np.zeros(0)), r"4_bob_7\.wav holds 0 samples, too few"),
        (
            lambda path: record(path, np.zeros(4000), channels=2),
            r"4_bob_7\.wav has 2 channel\(s\) at 8000 Hz and 16 bits",
        ),
        (
            lambda path: record(path, np.zeros(4000), rate=16000),
            r"4_bob_7\.wav has 1 channel\(s\) at 16000 Hz and 16 bits",
        ),
    ],
)
def test_a_spoilt_recording_is_one_line(copy: Path, spoil: Any, message: str) -> None:
    spoil(copy / "4_bob_7.wav")
    with pytest.raises(UserError, match=message) as caught:
        module(copy.parent.parent).raw("train")
    assert "\n" not in str(caught.value)


def test_a_digit_that_nobody_says_is_one_line(tmp_path: Path) -> None:
    spoken_digits(tmp_path, ["ann"], digits=9)
    with pytest.raises(UserError, match=r"9_ann_0\.wav is missing"):
        module(tmp_path).raw("train")
    (tmp_path / "empty/free-spoken-digit-dataset/recordings").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no recording like 0_george_0\.wav"):
        module(tmp_path / "empty").raw("train")


def test_without_librosa_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "librosa.feature", None)
    with pytest.raises(UserError, match=r"pip install 'kd_lightning\[speech\]'"):
        digit_strings.log_mel([])


# -- download ---------------------------------------------------------------------------------------------------------


def archive(folder: Path) -> io.BytesIO:
    """The recordings as the public archive holds them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        file.add(folder, "free-spoken-digit-dataset-master/recordings")
    out.seek(0)
    return out


def test_the_public_archive_is_fetched_where_the_folder_is_missing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = archive(small / "free-spoken-digit-dataset/recordings")
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: public)
    data = SpokenDigitsDataModule(root=str(tmp_path))
    assert data.fingerprint() == module(small).fingerprint()
    assert [path.name for path in (tmp_path / "free-spoken-digit-dataset").iterdir()] == [
        "recordings"
    ]


def test_without_a_network_or_a_whole_archive_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(url: str, timeout: int) -> Any:
        raise urllib.error.URLError("no network")

    def cut_off(url: str, timeout: int) -> Any:
        raise http.client.IncompleteRead(b"")

    for answer in (no_network, cut_off, lambda url, timeout: io.BytesIO(b"<html>")):
        monkeypatch.setattr(urllib.request, "urlopen", answer)
        with pytest.raises(
            UserError, match=r"the download failed; put the recordings there, or set --data\.root"
        ):
            SpokenDigitsDataModule(root=str(tmp_path)).raw("train")
        assert not (tmp_path / "free-spoken-digit-dataset" / "recordings").exists()
    with pytest.raises(UserError, match="download is off"):
        module(tmp_path).raw("train")


# -- the true set -----------------------------------------------------------------------------------------------------


def test_the_true_set(data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "free-spoken-digit-dataset" / "recordings"
    if not folder.is_dir():
        pytest.skip(f"no spoken digits below {data_root}")
    recordings = read_recordings(folder)
    assert len(recordings) == 3000
    assert len({r.speaker for r in recordings}) == 6
    strings = strings_of(
        [r for r in recordings if r.speaker == "theo" and r.take < 5],
        "test",
        20.0,
        Lexicon(10, 5),
        0,
    )
    frames = digit_strings.log_mel(strings)
    assert sum(len(s.digits) for s in strings) == 50
    assert all(
        bool(f.isfinite().all()) and len(f) == len(s.flat)
        for f, s in zip(frames, strings, strict=True)
    )


@pytest.mark.parametrize("speaker", ["nicolas", "jackson"])
def test_the_gaps_of_a_true_speaker_are_labelled_silence(speaker: str, data_root: Path) -> None:
    """nicolas is the one with the most noise: Gaussians shared by all speakers took 85% of his gaps for speech."""
    folder = data_root / "free-spoken-digit-dataset" / "recordings"
    if not folder.is_dir():
        pytest.skip(f"no spoken digits below {data_root}")
    lexicon, strings = Lexicon(10, 5), []
    for name in (speaker, "george"):
        own = [r for r in read_recordings(folder) if r.speaker == name and r.take < 20]
        strings += strings_of(own, "train", quiet_level(own), lexicon, 0)
    labels = digit_strings.labelled(
        strings, digit_strings.normalized(strings, digit_strings.log_mel(strings)), lexicon
    )
    known = [at for at, string in enumerate(strings) if string.speaker == speaker]
    gap = torch.cat([strings[at].flat for at in known]) == lexicon.silence
    silent = torch.cat([labels[at] for at in known]) == lexicon.silence
    assert float(silent[gap].double().mean()) > 0.95
    assert float(silent[~gap].double().mean()) < 0.05

"""Spoken digits: generated files in the real format, and the real data set if it is present."""

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

from kd_lightning.data.speech import corpus_cache, spoken_corpus
from kd_lightning.data.speech.digit_strings import draw_lengths, make_strings
from kd_lightning.data.speech.features import log_mel, normalize
from kd_lightning.data.speech.framing import FFT, HOP, frames_in
from kd_lightning.data.speech.hmm import Lexicon, align_all, train_alignment
from kd_lightning.data.speech.labels import label_frames
from kd_lightning.data.speech.recordings import noise_level, read_recordings
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
    """Recordings that a test may damage."""
    shutil.copytree(
        small / "free-spoken-digit-dataset", tmp_path / "free-spoken-digit-dataset"
    )
    return tmp_path / "free-spoken-digit-dataset" / "recordings"


def module(root: Path, **arguments: Any) -> SpokenDigitsDataModule:
    return SpokenDigitsDataModule(root=str(root), download=False, **arguments)


def recordings_of(
    data: SpokenDigitsDataModule, split: str, part: str
) -> list[tuple[str, int]]:
    """Speaker and digit of every recording of a part, in order."""
    speech = data.raw(split)
    strings = zip(speech.speakers, speech.parts, speech.transcripts, strict=True)
    return sorted(
        (speaker, digit)
        for speaker, own, digits in strings
        if own == part
        for digit in digits
    )


# -- samples ---------------------------------------------------------------------------------------


def test_every_recording_is_in_one_string_of_one_part(small: Path) -> None:
    data = module(small)
    takes = {"train": 2, "validation": 5, "test": 5}
    for part, count in takes.items():
        every = sorted(
            (speaker, digit)
            for speaker in SPEAKERS
            for digit in range(10)
            for _ in range(count)
        )
        assert recordings_of(data, "test" if part == "test" else "train", part) == every
    for split in ("train", "test"):
        assert {len(digits) for digits in data.raw(split).transcripts} <= set(
            range(3, 8)
        )


def test_a_window_has_26_frames_and_ends_5_after_the_predicted_one(small: Path) -> None:
    assert (CONTEXT, PREDICTED + 1) == (26, 21)  # as in the paper
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
    second = speech.frames[lengths[0] + CONTEXT - 1 + PREDICTED :][
        : lengths[1]
    ]  # unpadded
    assert torch.equal(inputs[0, 0], second[40 - PREDICTED : 40 - PREDICTED + CONTEXT])
    assert torch.equal(
        inputs[1, 0, : PREDICTED + 1], second[:1].expand(PREDICTED + 1, -1)
    )  # nothing of the string before
    first = speech.frames[PREDICTED:][: lengths[0]]
    assert torch.equal(
        inputs[2, 0, PREDICTED:], first[-1:].expand(CONTEXT - PREDICTED, -1)
    )  # nor of the next


def test_features_match_librosa_and_are_normalized_per_speaker(small: Path) -> None:
    from librosa.feature import melspectrogram

    recordings = [
        r
        for r in read_recordings(small / "free-spoken-digit-dataset/recordings")
        if r.speaker == "ann"
    ]
    strings = make_strings(
        recordings, "train", noise_level(recordings), Lexicon(10, 5), 0
    )
    for string, frames in zip(strings, log_mel(strings), strict=True):
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
        own = torch.tensor(
            [(name, part) == (speaker, "train") for name, part in pairs]
        )[speech.string]
        frames = speech.windows[speech.first[own]].view(-1, CONTEXT, 40)[:, PREDICTED]
        assert frames.mean(0).abs().max() < 1e-4
        assert (frames.std(0) - 1).abs().max() < 1e-3


def test_the_alignment_labels_gaps_as_silence_and_digits_in_order(small: Path) -> None:
    data = module(small)
    for split in ("train", "test"):
        speech = data.raw(split)
        for at, digits in enumerate(speech.transcripts):
            states = torch.unique_consecutive(speech.target[speech.string == at])
            assert states.tolist() == data.lexicon.chain(digits).tolist()
    recordings = read_recordings(small / "free-spoken-digit-dataset/recordings")
    own = [r for r in recordings if r.speaker == "bob" and r.take < 5]
    known = [r for r in recordings if r.speaker == "bob" and r.take >= 10]
    strings = make_strings(own, "test", noise_level(known), data.lexicon, 0)
    flat = torch.cat([s.flat for s in strings])
    pairs = torch.tensor([name == "bob" for name in speech.speakers])[speech.string]
    silent = speech.target[pairs] == data.lexicon.silence
    assert float((silent == (flat == data.lexicon.silence)).double().mean()) > 0.9


def test_labels_come_from_several_realignments(small: Path) -> None:
    lexicon = Lexicon(10, 5)
    strings = make_strings(
        read_recordings(small / "free-spoken-digit-dataset/recordings")[:120],
        "train",
        50.0,
        lexicon,
        0,
    )
    frames = normalize(strings, log_mel(strings))
    chains, flat = (
        [lexicon.chain(s.digits) for s in strings],
        torch.cat([s.flat for s in strings]),
    )
    found = {}
    for rounds in (0, 5):
        found[rounds] = align_all(
            train_alignment(frames, chains, flat, lexicon.size, rounds), frames, chains
        )
    made = torch.cat(label_frames(strings, frames, lexicon))
    assert torch.equal(made, found[5])
    assert not torch.equal(made, found[0])


def test_more_states_than_frames_is_an_error(small: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"data\.states=60: \d_\w+_\d+\.wav has \d+ frames, and each state needs at least one",
    ):
        module(small, states=60).raw("test")


def test_training_does_not_depend_on_the_other_parts(small: Path, copy: Path) -> None:
    """Other validation and test recordings change no feature, label, prior or transition of the training part."""
    changed = 0
    for path in copy.glob("*.wav"):
        if int(path.stem.split("_")[2]) < 10:  # the same word, reversed and with noise
            with wave.open(str(path)) as file:
                samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)[
                    ::-1
                ]
            noise = np.random.default_rng(changed).normal(0, 300, len(samples))
            with wave.open(str(path), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
                file.writeframes((samples // 2 + noise).astype(np.int16).tobytes())
            changed += 1
    assert changed == 3 * 10 * 10
    original, modified = module(small), module(copy.parents[1])
    sides = []
    for data in (original, modified):
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
    assert not torch.equal(original.raw("test").frames, modified.raw("test").frames)


def test_speakers_can_be_held_out(small: Path) -> None:
    data = module(small, split="speakers", held_out=["bob"])
    assert set(data.raw("test").speakers) == {"bob"}
    assert len(recordings_of(data, "test", "test")) == 120
    assert set(data.raw("train").speakers) == {"ann", "cat"}
    assert (
        len(recordings_of(data, "train", "train")) == 2 * 10 * 7
    )  # takes 0 to 4 are trained on here
    with pytest.raises(UserError, match="held_out names the test set's speakers"):
        module(small, split="speakers")
    with pytest.raises(UserError, match="held_out names the test set's speakers"):
        module(small, held_out=["bob"])
    with pytest.raises(
        UserError, match="unknown speaker 'eve'; valid speakers: ann, bob, cat"
    ):
        module(small, split="speakers", held_out=["eve"]).raw("test")
    with pytest.raises(
        UserError, match="held_out names all 3 speakers; leave some to train on"
    ):
        module(small, split="speakers", held_out=list(SPEAKERS)).raw("test")


def test_validation_is_held_out_or_trained_on(small: Path) -> None:
    held, whole = module(small), module(small, validation=False)
    train, validation = held.source("train").rows, held.source("validation").rows
    assert not set(train.tolist()) & set(validation.tolist())
    assert (
        sorted([*train.tolist(), *validation.tolist()])
        == whole.source("train").rows.tolist()
    )
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
        UserError,
        match=r"data\.fraction=0\.02 leaves no recording of 'zero' to train on",
    ):
        module(small, fraction=0.02).source("train")


def test_the_spec_matches_the_loaders(small: Path) -> None:
    data = module(small, states=3, batch_size=64)
    spec = data.spec
    assert (spec.num_classes, spec.classes[0], spec.classes[-1]) == (
        31,
        "zero/1",
        "silence",
    )
    assert spec.source_samples == spec.samples["train"] + spec.samples["validation"]
    for stage in ("train", "validation", "test"):
        served = torch.cat([batch.index for batch in data.loader(stage)])
        assert sorted(served.tolist()) == data.source(stage).rows.tolist()
        assert len(served) == spec.samples[stage]
    assert data.raw("test").images.shape == (spec.samples["test"], 1, CONTEXT, 40)


def test_the_corpus_is_cached_until_a_recording_changes(
    small: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(copy.parent / "cache"))
    corpus_cache._load_or_build.cache_clear()
    before = module(copy.parent.parent).fingerprint()
    [cached] = (copy.parent / "cache" / "kd_lightning").iterdir()
    corpus_cache._load_or_build.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(
            spoken_corpus, "build_corpus", None
        )  # a cached corpus is not built again
        assert module(copy.parent.parent).fingerprint() == before
    cached.write_bytes(b"damaged")
    corpus_cache._load_or_build.cache_clear()
    assert module(copy.parent.parent).fingerprint() == before
    record(copy / "3_ann_11.wav", 1000 * np.sin(np.arange(2000)))
    assert module(copy.parent.parent).fingerprint() != before
    assert module(small).fingerprint() == before


def test_strings_have_3_to_7_digits() -> None:
    for total in range(1, 60):
        lengths = draw_lengths(total, 0)
        assert sum(lengths) == total
        assert max(lengths) <= 7
        assert min(lengths) >= min(3, total)
    assert draw_lengths(50, 0) != draw_lengths(50, 1)


def test_gaps_are_as_quiet_as_the_background_noise(small: Path) -> None:
    recordings = [
        r
        for r in read_recordings(small / "free-spoken-digit-dataset/recordings")
        if r.speaker == "bob"
    ]
    level = noise_level(recordings)
    assert 1 < level < 1000
    string = make_strings(recordings, "train", level, Lexicon(10, 5), 0)[0]
    assert len(string.samples) % HOP == 0
    assert len(string.flat) == frames_in(len(string.samples))
    beginning = string.samples[:800]  # the shortest gap
    assert float(np.sqrt(np.square(beginning).mean())) == pytest.approx(level, rel=0.1)
    loud = string.samples[np.arange(len(string.flat)) * HOP + FFT // 2][
        string.flat.numpy() != 50
    ]
    assert float(np.sqrt(np.square(loud).mean())) > 3 * level
    again = make_strings(recordings, "train", level, Lexicon(10, 5), 0)[0]
    other = make_strings(recordings, "train", level, Lexicon(10, 5), 1)[0]
    assert np.array_equal(string.samples, again.samples)
    assert not np.array_equal(string.samples[:800], other.samples[:800])


# -- user errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), r"4_bob_7\.wav is missing"),
        (
            lambda path: path.write_bytes(b"no sound"),
            r"4_bob_7\.wav is not a readable WAV file",
        ),
        (
            lambda path: path.write_bytes(b""),
            r"4_bob_7\.wav is not a readable WAV file",
        ),
        (
            lambda path: path.write_bytes(path.read_bytes()[:1000]),
            r"4_bob_7\.wav is shorter than its header states",
        ),
        (
            lambda path: record(path, np.zeros(0)),
            r"4_bob_7\.wav has 0 samples, too few",
        ),
        (
            lambda path: record(path, np.zeros(4000), channels=2),
            r"4_bob_7\.wav has 2 channel\(s\), 8000 Hz and 16 bits",
        ),
        (
            lambda path: record(path, np.zeros(4000), rate=16000),
            r"4_bob_7\.wav has 1 channel\(s\), 16000 Hz and 16 bits",
        ),
    ],
)
def test_a_damaged_recording_is_a_one_line_error(
    copy: Path, damage: Any, message: str
) -> None:
    damage(copy / "4_bob_7.wav")
    with pytest.raises(UserError, match=message) as caught:
        module(copy.parent.parent).raw("train")
    assert "\n" not in str(caught.value)


def test_a_missing_digit_is_an_error(tmp_path: Path) -> None:
    spoken_digits(tmp_path, ["ann"], digits=9)
    with pytest.raises(UserError, match=r"9_ann_0\.wav is missing"):
        module(tmp_path).raw("train")
    (tmp_path / "empty/free-spoken-digit-dataset/recordings").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"contains no recording such as 0_george_0\.wav"
    ):
        module(tmp_path / "empty").raw("train")


def test_missing_librosa_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "librosa.feature", None)
    with pytest.raises(UserError, match=r"pip install 'kd_lightning\[speech\]'"):
        log_mel([])


# -- download --------------------------------------------------------------------------------------


def archive(folder: Path) -> io.BytesIO:
    """The recordings in the layout of the public archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        file.add(folder, "free-spoken-digit-dataset-master/recordings")
    out.seek(0)
    return out


def test_the_public_archive_is_downloaded_if_the_folder_is_missing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = archive(small / "free-spoken-digit-dataset/recordings")
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: public)
    data = SpokenDigitsDataModule(root=str(tmp_path))
    assert data.fingerprint() == module(small).fingerprint()
    assert [
        path.name for path in (tmp_path / "free-spoken-digit-dataset").iterdir()
    ] == ["recordings"]


def test_a_failed_download_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(url: str, timeout: int) -> Any:
        raise urllib.error.URLError("no network")

    def cut_off(url: str, timeout: int) -> Any:
        raise http.client.IncompleteRead(b"")

    for answer in (no_network, cut_off, lambda url, timeout: io.BytesIO(b"<html>")):
        monkeypatch.setattr(urllib.request, "urlopen", answer)
        with pytest.raises(
            UserError,
            match=r"the download failed; put the recordings there, or set --data\.root",
        ):
            SpokenDigitsDataModule(root=str(tmp_path)).raw("train")
        assert not (tmp_path / "free-spoken-digit-dataset" / "recordings").exists()
    with pytest.raises(UserError, match="download is off"):
        module(tmp_path).raw("train")


# -- the real data set -----------------------------------------------------------------------------


def test_the_real_data_set(data_root: Path, tmp_path: Path) -> None:
    folder = data_root / "free-spoken-digit-dataset" / "recordings"
    if not folder.is_dir():
        pytest.skip(f"no spoken digits below {data_root}")
    recordings = read_recordings(folder)
    assert len(recordings) == 3000
    assert len({r.speaker for r in recordings}) == 6
    strings = make_strings(
        [r for r in recordings if r.speaker == "theo" and r.take < 5],
        "test",
        20.0,
        Lexicon(10, 5),
        0,
    )
    frames = log_mel(strings)
    assert sum(len(s.digits) for s in strings) == 50
    assert all(
        bool(f.isfinite().all()) and len(f) == len(s.flat)
        for f, s in zip(frames, strings, strict=True)
    )


@pytest.mark.parametrize("speaker", ["nicolas", "jackson"])
def test_the_gaps_of_a_real_speaker_are_labeled_silence(
    speaker: str, data_root: Path
) -> None:
    """nicolas has the most noise: shared Gaussians labeled 85% of his gaps as speech."""
    folder = data_root / "free-spoken-digit-dataset" / "recordings"
    if not folder.is_dir():
        pytest.skip(f"no spoken digits below {data_root}")
    lexicon, strings = Lexicon(10, 5), []
    for name in (speaker, "george"):
        own = [r for r in read_recordings(folder) if r.speaker == name and r.take < 20]
        strings += make_strings(own, "train", noise_level(own), lexicon, 0)
    labels = label_frames(strings, normalize(strings, log_mel(strings)), lexicon)
    known = [at for at, string in enumerate(strings) if string.speaker == speaker]
    gap = torch.cat([strings[at].flat for at in known]) == lexicon.silence
    silent = torch.cat([labels[at] for at in known]) == lexicon.silence
    assert float(silent[gap].double().mean()) > 0.95
    assert float(silent[~gap].double().mean()) < 0.05

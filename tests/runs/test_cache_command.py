"""`kd cache`: what a top-k cache stores by default, its check, and wrong arguments."""

from __future__ import annotations

import json
from pathlib import Path

from tests.runs import Kd, student

CACHED = [
    "--model.teacher=kd_lightning.teachers.CachedTeacher",
    "--model.teacher.path=cache",
]


def test_a_top_k_cache_is_made_for_the_losses_of_its_config(
    teacher: Path, kd: Kd
) -> None:
    argv = student(teacher)[1:]
    hotter = "--model.losses.kd.temperature=3"
    outcome = kd("cache", *argv, hotter, "--output=cache", "--top-k=3", "--dtype=fp16")
    assert (outcome.code, outcome.err) == (0, "")
    settings = json.loads(Path("cache/manifest.json").read_text())["settings"]
    assert settings["temperatures"] == [1.0, 3.0]

    outcome = kd("cache", "--verify", "--output=cache")
    assert (outcome.code, outcome.err) == (0, "")
    assert "cache: all files are intact" in outcome.out

    without_checkpoint = [arg for arg in argv if not arg.startswith("--model.teacher")]
    outcome = kd("fit", *without_checkpoint, *CACHED, hotter)
    assert (outcome.code, outcome.err) == (0, "")
    outcome = kd("fit", *without_checkpoint, *CACHED, "--model.losses.kd.temperature=2")
    assert outcome.code == 2
    assert (
        "holds no temperature 2; delete it and make it again: kd cache ..."
        in outcome.err
    )
    assert "--top-k 3 --dtype fp16 --temperatures 1 2 3" in outcome.err

    path = Path("cache/test.viewclean.00000.bin")
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    outcome = kd("cache", "--verify", "--output=cache")
    assert outcome.code == 2
    assert "test.viewclean.00000.bin was altered" in outcome.err
    assert outcome.err.count("\n") == 1


def test_wrong_arguments_are_named(kd: Kd) -> None:
    for arguments, message in (
        (["--views=1000000000"], "--views must be from 1 to 10,000, got 1000000000"),
        (["--top-k=0"], "--top-k must be at least 1, got 0"),
        (
            ["--verify", "-c", "x.yaml"],
            "kd cache --verify takes nothing but --output, got -c",
        ),
        (["--verify"], "nothing holds no teacher cache"),
    ):
        outcome = kd("cache", "--output=nothing", *arguments)
        assert outcome.code == 2
        assert message in outcome.err
        assert outcome.err.count("\n") == 1
    assert not Path("nothing").exists()


def test_temperatures_are_for_top_k(teacher: Path, kd: Kd) -> None:
    argv = student(teacher)[1:]
    outcome = kd("cache", *argv, "--output=cache", "--temperatures", "2")
    assert outcome.code == 2
    assert "--temperatures is only for --top-k" in outcome.err
    outcome = kd(
        "cache", *argv, "--output=cache", "--top-k=2", "--temperatures", "2", "0"
    )
    assert outcome.code == 2
    assert (
        "--temperatures must be a finite number greater than 0, got 0.0" in outcome.err
    )
    assert not Path("cache").exists()

"""Malformed experiments: exit code 2 and one line with the file and the key, before any planning."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kd_lightning.cli import main
from kd_lightning.errors import UserError
from kd_lightning.experiments import runner
from kd_lightning.experiments.command import _train, help_text, parse_settings
from kd_lightning.experiments.planning import RunnerOptions, plan
from kd_lightning.experiments.schema import MAX_JOBS, MAX_SEEDS
from kd_lightning.experiments.spec import find, load
from tests.experiments import HEAD, MINI, write

A: dict[str, Any] = {"a": {}}

CONTENTS: dict[str, tuple[dict[Any, Any], str]] = {
    # runs
    "no runs": ({"runs": {}}, "names no runs"),
    "run name of a number": ({"runs": {3: {}}}, "the run name 3"),
    "run name null": ({"runs": {None: {}}}, "the run name None"),
    "empty run name": ({"runs": {"": {}}}, "the run name ''"),
    "run name with an escape": ({"runs": {"\x1b[31ma": {}}}, "the run name"),
    "run name with a seed": ({"runs": {"a@0": {}}}, "'a@0' must not hold @"),
    "number among keys": ({"runs": A, 3: 4}, "the key 3 must be text"),
    "number among keys of a run": (
        {"runs": {"a": {3: 4}}},
        "runs.a: the key 3 must be text",
    ),
    "numbers as overrides": (
        {"runs": {"a": {"overrides": {3: 4}}}},
        "overrides must be keys",
    ),
    "cache of a text": (
        {"runs": {"a": {"cache": {"views": "many"}}}},
        "runs.a: cache must be",
    ),
    "cache of another type": (
        {"runs": {"a": {"cache": {"dtype": "int8"}}}},
        "fp32 or fp16",
    ),
    "may_fail of a text": (
        {"runs": {"a": {"may_fail": "maybe"}}},
        "may_fail must be true",
    ),
    # seeds
    "seeds of a flag": ({"runs": {"a": {"seeds": [True]}}}, "seeds must be a list"),
    "negative seeds": ({"runs": {"a": {"seeds": [-1]}}}, "seeds must be a list"),
    "no seeds": ({"runs": {"a": {"seeds": []}}}, "seeds must be a list"),
    "seed beyond 32 bits": ({"runs": {"a": {"seeds": [2**32]}}}, "2^32 - 1"),
    "10^9 seeds": (
        {"runs": A, "seeds": 10**9},
        f"seeds must be a whole number from 1 to {MAX_SEEDS:,}",
    ),
    # needs
    "need of a seed that is text": (
        {"runs": {"a": {}, "b": {"needs": {"x": "a@y"}}}},
        "NAME@SEED",
    ),
    "need of a negative seed": (
        {"runs": {"a": {}, "b": {"needs": {"x": "a@-1"}}}},
        "NAME@SEED",
    ),
    "need of a step that is no number": (
        {"runs": {"a": {}, "b": {"needs": {"x": "a@+"}}}},
        "NAME@SEED",
    ),
    "need of no run": ({"runs": {"a": {"needs": {"x": []}}}}, "needs must be"),
    "need of a number": ({"runs": {"a": {"needs": {"x": 3}}}}, "needs must be"),
    # grids
    "empty grid": ({"runs": {"a": {"grid": {"x": []}}}}, "grid must be"),
    "grid of 10^12": (
        {"runs": {"a": {"grid": {f"x{n}": list(range(1000)) for n in range(4)}}}},
        f"the grid has 1,000,000,000,000 combinations; at most {MAX_JOBS:,}",
    ),
    # The same limit as that of `kd cache --views`.
    "10,001 views": (
        {"runs": {"a": {"cache": {"views": 10_001}}}},
        "views (1 to 10,000)",
    ),
    # tables
    "no metrics": ({"runs": A, "metrics": []}, "metrics must be a list of one or more"),
    "paper of a text": ({"runs": A, "paper": {"a": {"x": "74"}}}, "paper must be"),
    "paper of nan": ({"runs": A, "paper": {"a": {"x": float("nan")}}}, "paper must be"),
    "margin of a text": (
        {"runs": A, "alike": [{"a": "a", "b": "a", "margin": "wide"}]},
        "a margin above 0",
    ),
    "margin 0": (
        {"runs": A, "alike": [{"a": "a", "b": "a", "margin": 0}]},
        "a margin above 0",
    ),
    "alike of a list": (
        {"runs": A, "alike": [{"a": ["a"], "b": "a", "margin": 1}]},
        "alike",
    ),
    "analysis of no function": (
        {"runs": A, "analyses": {"x": {"function": "nothing"}}},
        "analyses",
    ),
    "analysis of a number": (
        {"runs": A, "analyses": {"x": {"function": 3}}},
        "analyses must be",
    ),
    "analysis of a missing file": (
        {"runs": A, "analyses": {"x": {"function": "nothing.py:f"}}},
        "there is no file",
    ),
    # texts, settings, quick
    "title of a number": ({"runs": A, "title": 3}, "title must be one line of text"),
    "title with an escape": (
        {"runs": A, "title": "\x1b[31m"},
        "title must be one line of text",
    ),
    "claim with an escape": ({"runs": A, "claim": "a\x1b"}, "claim must be a text"),
    "settings of a list": ({"runs": A, "settings": [1]}, "settings must be keys"),
    "instead of a number": (
        {"runs": A, "instead": {"x": 3}},
        "instead must be settings",
    ),
    "quick seeds of a text": (
        {"runs": A, "quick": {"seeds": "few"}},
        "quick must be seeds",
    ),
    "quick seeds below 1": ({"runs": A, "quick": {"seeds": -1}}, "quick must be seeds"),
    "quick overrides of a list": (
        {"runs": A, "quick": {"overrides": [1]}},
        "quick must be seeds",
    ),
    "unknown key of quick": (
        {"runs": A, "quick": {"epochs": 1}},
        "quick must be seeds",
    ),
}


@pytest.mark.parametrize(("content", "problem"), CONTENTS.values(), ids=CONTENTS)
def test_a_malformed_value_is_one_line(
    content: dict[Any, Any], problem: str, tmp_path: Path
) -> None:
    path = write(tmp_path, {**HEAD, **content})
    with pytest.raises(UserError) as caught:
        load(str(path))
    message = str(caught.value)
    assert problem in message
    assert "mini.yaml" in message or "nothing.py" in message
    assert len(message) < 600


TEXTS = {
    "bomb": "a: &a ["
    + "1, " * 100
    + "]\nb: &b ["
    + "*a, " * 100
    + "]\nc: ["
    + "*b, " * 100
    + "]",
    "self-reference": "runs: &a {a: {overrides: *a}}",
    "deep": "runs: " + "[" * 3000,
    "tag": "runs: !!python/object/apply:os.system [ls]",
    "duplicate": "runs: {a: {}}\nruns: {b: {}}",
    "many digits": "runs: {a: {seeds: [" + "9" * 5000 + "]}}",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_yaml_that_is_refused_is_one_line(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mini.yaml"
    path.write_text(text)
    assert main(["reproduce", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "mini.yaml" in error


def test_null_means_the_default(tmp_path: Path) -> None:
    nothing = dict.fromkeys(
        ("overrides", "configs", "needs", "grid", "seeds", "cache", "may_fail")
    )
    top = dict.fromkeys(
        ("overrides", "metrics", "paper", "quick", "analyses", "settings", "seeds")
    )
    experiment = load(str(write(tmp_path, {**HEAD, **top, "runs": {"a": nothing}})))
    assert experiment.run("a").overrides == {}
    assert experiment.metrics == ["test_errors", "test_accuracy"]
    assert experiment.seeds == 5


def test_experiments_that_replace_each_other_are_refused(tmp_path: Path) -> None:
    content = {
        **HEAD,
        "runs": A,
        "settings": {"x": 1},
        "instead": {"x": str(tmp_path / "mini.yaml")},
    }
    path = write(tmp_path, content)
    with pytest.raises(UserError, match="replace each other in a circle"):
        load(str(path), {"x": 2})


def test_the_number_of_jobs_is_checked_before_planning(tmp_path: Path) -> None:
    experiment = load(str(write(tmp_path, MINI)))
    options = RunnerOptions(tmp_path, tmp_path, seeds=10**12, overrides={})
    with pytest.raises(
        UserError, match=r"3,000,000,000,000 jobs .* at most 10,000 are planned"
    ):
        plan(experiment, options)


SET = {
    "broken": "x=[1",
    "tag": "x=!!python/object/apply:os.system [ls]",
    "self-reference": "x=&a [*a]",
    "many digits": "x=" + "9" * 5000,
    "no value": "x",
    "no name": "=3",
}


@pytest.mark.parametrize("word", SET.values(), ids=SET)
def test_a_malformed_setting_is_one_line(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "demo", "--set", word]) == 2
    error = capsys.readouterr().err
    assert error.startswith("kd: kd reproduce: ")
    assert "--set" in error
    assert error.count("\n") == 1


def test_settings_are_yaml() -> None:
    assert parse_settings(["x=[1, a]", "y=1e-3", "z="]) == {
        "x": [1, "a"],
        "y": 0.001,
        "z": None,
    }


def test_a_long_setting_cannot_name_a_folder(tmp_path: Path) -> None:
    path = write(tmp_path, {**HEAD, "runs": A, "settings": {"x": 1}})
    with pytest.raises(UserError, match="name too long"):
        load(str(path), {"x": "y" * 300})


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("hinton2015/mnst", "hinton2015/mnist"),
        ("mnist", "hinton2015/mnist"),
        ("dmo", "demo"),
        ("x" * 5000, "File name too long"),
    ],
)
def test_similar_experiments_are_suggested(name: str, similar: str) -> None:
    with pytest.raises(UserError) as caught:
        find(name)
    assert similar in str(caught.value)


def test_a_similar_setting_is_suggested(tmp_path: Path) -> None:
    path = write(tmp_path, {**HEAD, "runs": A, "settings": {"digit": 1}})
    with pytest.raises(UserError, match="did you mean --digit"):
        load(str(path), {"digt": 2})


def test_help_lists_the_settings_of_an_experiment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["reproduce", "hinton2015/mnist-unseen-digit", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--digit VALUE  default: 3" in text
    assert "--keep-finished" in text
    assert "none" in help_text("demo")


def test_markup_in_texts_is_printed_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.Runner, "run", lambda self, jobs: None)
    # The handler of SIGTERM is that of the whole process.
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    experiment = load(str(write(tmp_path, {**MINI, "title": "A [/nope] title [T=4]"})))
    options = RunnerOptions(tmp_path / "out", tmp_path / "store", seeds=1, overrides={})
    _train(experiment, [], options, Console())
    assert "A [/nope] title [T=4]" in capsys.readouterr().out

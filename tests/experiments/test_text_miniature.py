"""The experiments on sentences as they are shipped, cut down to seconds, on files in the true format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.cli import main
from kd_lightning.experiments.spec import load
from tests.sentences import save_bert, write_sst2

pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")

ARMS = ("student-alone", "distilled", "distilled, synthetic sentences")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    found = tmp_path_factory.mktemp("text")
    write_sst2(found, train=800)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")  # whatever the runs set is undone
        yield found


def reproduced(folder: Path, name: str, *more: str) -> dict[str, Any]:
    """The content of results.json of the quick form."""
    output = folder / name.replace("/", "-")
    places = [
        f"--data-root={folder}",
        f"--output={output}",
        f"--store={folder / 'store'}",
    ]
    assert main(["reproduce", name, "--quick", *places, *more]) == 0
    found: dict[str, Any] = json.loads((output / "results.json").read_text())
    return found


def rows(content: dict[str, Any]) -> dict[tuple[str, str], list[float]]:
    return {(row["run"], row["metric"]): row["values"] for row in content["rows"]}


# A minute; the next test reproduces another experiment with the same parts.
@pytest.mark.slow
def test_three_teachers_and_a_bilstm(folder: Path) -> None:
    content = reproduced(folder, "tang2019/sst2")
    found = rows(content)
    for run in ("transformer", "bilstm", "textcnn", "ensemble", *ARMS):
        [accuracy], [errors] = found[run, "test_accuracy"], found[run, "test_errors"]
        assert errors == round(20 * (1 - accuracy), 3)
        assert found[run, "sentences_per_second"][0] > 0
        assert found[run, "parameters"][0] > 0
    assert found["ensemble", "parameters"][0] == sum(
        found[m, "parameters"][0] for m in ("transformer", "bilstm", "textcnn")
    )
    sizes = {found[run, "parameters"][0] for run in ARMS}
    assert len(sizes) == 1  # one student, taught in three ways
    assert [
        row["paper"]
        for row in content["rows"]
        if row["run"] == "ensemble" and row["metric"] == "test_accuracy"
    ] == [0.949]


def test_a_pretrained_teacher_in_their_place(folder: Path) -> None:
    bert = save_bert(folder / "small-bert", folder)
    content = reproduced(folder, "tang2019/sst2", "--teacher", str(bert))
    assert content["experiment"] == "tang2019/sst2-bert-teacher-small-bert-quick"
    assert {run for run, _ in rows(content)} == {"teacher", *ARMS}


def test_half_of_a_transformer(folder: Path) -> None:
    found = rows(reproduced(folder, "sanh2019/sst2"))
    arms = (
        "student-alone",
        "student, copied layers",
        "distilled",
        "distilled, random start",
        "tinybert",
        "pkd",
    )
    assert {run for run, _ in found} == {"teacher", *arms}
    assert found["distilled", "parameters"][0] < found["teacher", "parameters"][0]


def test_settings_of_the_experiment_that_is_meant() -> None:
    assert (
        load("tang2019/sst2", {"teacher": "a/b", "vectors": "file"}).name
        == "tang2019/sst2-bert-teacher-b-vectors-file"
    )
    assert load("tang2019/sst2", {"teacher": None}).name == "tang2019/sst2"


def test_a_setting_that_there_is_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["reproduce", "sanh2019/sst2", "--teacher", "some"]) == 2
    assert (
        capsys.readouterr().err
        == "kd: sanh2019/sst2 has no setting --teacher; it has none\n"
    )
    for wrong, said in (
        (
            ["--teacher"],
            "unknown option --teacher; a setting of the experiment needs a value",
        ),
        (
            ["other", "words"],
            "unexpected argument 'other'; kd reproduce --help lists the options",
        ),
        (["--vectors", "file"], "has no setting --vectors; it has teacher"),
    ):
        assert main(["reproduce", "tang2019/sst2", *wrong]) == 2
        assert said in capsys.readouterr().err

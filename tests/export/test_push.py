"""`kd export --push` and `--experiment`: what is uploaded, and what the card shows."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kd_lightning.errors import UserError
from kd_lightning.export import push as pushing
from kd_lightning.export.spread import Spread, read_spread
from tests.runs import Kd

RESULTS = {
    "rows": [
        {
            "run": "teacher",
            "metric": "test_accuracy",
            "mean": 0.97,
            "std": 0.01,
            "n": 3,
        },
        {"run": "kd", "metric": "test_accuracy", "mean": 0.953, "std": 0.0042, "n": 5},
        {"run": "kd", "metric": "test_errors", "mean": 21.5, "std": None, "n": 1},
        {"run": "kd", "metric": "test_nll", "mean": float("nan"), "std": None, "n": 5},
    ]
}


@dataclass
class FakeHub:
    """Records what the hub is asked for.

    Attributes:
        failure: raised by every upload.
        created: repositories, and whether they are private.
        uploaded: names of the files of each upload.
    """

    failure: str = ""
    created: list[tuple[str, bool]] = field(default_factory=list)
    uploaded: list[set[str]] = field(default_factory=list)

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> object:
        assert exist_ok, "a second upload must not fail"
        self.created.append((repo_id, private))
        return None

    def upload_folder(
        self, *, repo_id: str, folder_path: Path, commit_message: str
    ) -> object:
        if self.failure:
            raise RuntimeError(self.failure)
        self.uploaded.append({path.name for path in folder_path.iterdir()})
        return None


def export(kd: Kd, run: Path, *arguments: str) -> tuple[int, str, str]:
    outcome = kd(
        *("export", str(run), "--format", "safetensors", "--output", "student"),
        *arguments,
    )
    return outcome.code, outcome.out, outcome.err


def test_an_export_is_uploaded_whole(
    run: Path, kd: Kd, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub()
    monkeypatch.setattr(pushing, "find_hub", lambda _: hub)

    code, out, err = export(kd, run, "--push", "me/digits")

    assert code == 0, err
    assert hub.created == [("me/digits", True)]
    files = {"student.safetensors", "student.json", "README.md", "example.py"}
    assert hub.uploaded == [files]
    assert "uploaded to me/digits" in out


def test_a_failed_upload_keeps_the_export(
    run: Path, kd: Kd, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = FakeHub(failure="403 Forbidden\nmore lines")
    monkeypatch.setattr(pushing, "find_hub", lambda _: hub)

    code, _, err = export(kd, run, "--push", "me/digits")

    assert code == 2
    assert "the upload failed (403 Forbidden); the export is in student" in err
    assert len(err.strip().splitlines()) == 1
    assert (Path("student") / "student.safetensors").is_file()


@pytest.mark.parametrize(
    ("repository", "message"),
    [("me/digits", "--push needs a token"), ("digits", "give OWNER/NAME")],
)
def test_without_a_token_nothing_is_written(
    repository: str,
    message: str,
    run: Path,
    kd: Kd,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "get_token", lambda: None)

    code, _, err = export(kd, run, "--push", repository)

    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not Path("student").exists()


def test_the_card_shows_the_spread_over_seeds(run: Path, kd: Kd) -> None:
    Path("results.json").write_text(json.dumps(RESULTS))

    code, _, err = export(kd, run, "--experiment", "results.json#kd")

    assert code == 0, err
    card = (Path("student") / "README.md").read_text()
    assert "| test_accuracy | 0.953 ± 0.0042 | 5 |" in card
    assert "| test_errors | 21.5 | 1 |" in card
    assert "nan" not in card
    content = json.loads((Path("student") / "student.json").read_text())
    assert content["metrics_over_seeds"][0] == {
        "metric": "test_accuracy",
        "mean": 0.953,
        "std": 0.0042,
        "seeds": 5,
    }


def test_the_only_run_needs_no_name(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"rows": RESULTS["rows"][:1]}))

    assert read_spread(str(path)) == [Spread("test_accuracy", 0.97, 0.01, 3)]


@pytest.mark.parametrize(
    ("content", "run", "message"),
    [
        (RESULTS, "#dkd", "has no run 'dkd'; give .*#RUN with one of teacher, kd"),
        (RESULTS, "", "has several runs; give .*#RUN with one of teacher, kd"),
        ({}, "", "holds no rows; give the results.json of kd reproduce"),
        ({"rows": [{"run": "kd"}]}, "", "is no results.json of kd reproduce"),
        ("{", "", "is no JSON; give a results.json"),
        (None, "", "there is no file"),
    ],
)
def test_mistakes(content: object, run: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text)

    with pytest.raises(UserError, match=message):
        read_spread(f"{path}{run}")

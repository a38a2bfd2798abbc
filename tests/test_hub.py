"""Loading from the transformers library: the order of sources, and the messages for failures."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kd_lightning import hub
from kd_lightning.errors import UserError
from tests.sentences import save_bert, write_sst2


def test_a_missing_package_is_named() -> None:
    with pytest.raises(
        UserError,
        match=r"needs the package no_such_package; pip install 'kd_lightning\[text\]'",
    ):
        hub.library("no_such_package")


def test_the_checksum_of_a_vocabulary_covers_tokens_and_ids() -> None:
    base = hub.vocabulary_sha256({"a": 0, "b": 1})
    assert hub.vocabulary_sha256({"b": 1, "a": 0}) == base
    assert (
        len(
            {
                base,
                hub.vocabulary_sha256({"a": 1, "b": 0}),
                hub.vocabulary_sha256({"a": 0, "c": 1}),
            }
        )
        == 3
    )


class FakeFactory:
    """A stand-in for an Auto class: it records its calls, and its cache is empty."""

    def __init__(self, answer: bool) -> None:
        self.answer = answer
        self.calls: list[dict[str, Any]] = []

    def from_pretrained(self, name: str, **options: Any) -> str:
        self.calls.append(options)
        if self.answer and not options.get("local_files_only"):
            return name
        raise OSError("it is not\nthere")


@pytest.mark.parametrize(
    ("reachable", "answer", "words"),
    [
        (
            False,
            True,
            "the model some/model is not in the cache of the hub and there is no network; give the path of its folder",
        ),
        (True, False, "the hub has no readable model of some/model: it is not"),
        (True, True, None),
    ],
)
def test_the_cache_first_then_the_hub(
    reachable: bool, answer: bool, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = FakeFactory(answer)
    monkeypatch.setattr(
        hub, "library", lambda name: type("Library", (), {"AutoModel": factory})
    )
    monkeypatch.setattr(hub, "reachable", lambda: reachable)
    if words is None:
        assert (
            hub.from_pretrained("AutoModel", "some/model", use_safetensors=True)
            == "some/model"
        )
    else:
        with pytest.raises(UserError) as caught:
            hub.from_pretrained("AutoModel", "some/model", use_safetensors=True)
        assert words in str(caught.value)
    given = {"use_safetensors": True, "trust_remote_code": False}
    assert factory.calls[0] == {"local_files_only": True, **given}
    assert len(factory.calls) == 1 + reachable


@pytest.mark.parametrize("name", ["/no/such/folder", "./folder", "~/no/such", "a/b/c"])
def test_the_hub_is_not_searched_for_paths(name: str) -> None:
    pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")
    with pytest.raises(
        UserError, match=r"there is no folder .* with a transformers model"
    ):
        hub.from_pretrained("AutoTokenizer", name)


def test_a_folder_without_tokenizer_or_model(tmp_path: Path) -> None:
    folder = save_bert(
        tmp_path / "bert", write_sst2(tmp_path / "data"), tokenizer=False
    )
    with pytest.raises(UserError, match="bert has no vocabulary; give a folder"):
        hub.pretrained_tokenizer(str(folder))
    (tmp_path / "empty").mkdir()
    for get, what in (
        (hub.pretrained_tokenizer, "tokenizer"),
        (partial(hub.from_pretrained, "AutoModel"), "model"),
    ):
        with pytest.raises(UserError, match=f"empty has no readable {what}"):
            get(str(tmp_path / "empty"))
    assert hub.from_pretrained("AutoModel", str(folder)).config.hidden_size == 16


def test_code_that_comes_with_a_model_is_neither_run_nor_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    config = {"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match="no readable config"):
        hub.from_pretrained("AutoConfig", str(tmp_path))
    assert not (tmp_path / "executed").exists()

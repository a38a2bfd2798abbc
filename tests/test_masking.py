"""Secrets are known by their names, and do not reach what a run stores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.masking import (
    MASK,
    is_masked,
    is_secret_name,
    masked_command,
    masked_config,
    missing_secret,
)
from kd_lightning.runs.folder import RunRecord


@pytest.mark.parametrize(
    "name",
    [
        *("api_key", "apiKey", "API_KEY", "hf-api-key", "API_KEY_2", "apikey"),
        *("password", "db_password", "PASSWORD2", "client_secret", "credentials"),
        *("token", "hf_token", "accessToken", "HF_TOKEN", "init_args.token"),
        *("private_key", "AWS_SECRET_ACCESS_KEY", "api_keys"),
    ],
)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *("key", "sort_key", "state_key", "query_key", "key_dim", "keys", "monkey"),
        *("mask_token", "eos_token", "pad_token", "unk_token", "class_token"),
        *("tokenizer", "num_tokens", "max_tokens", "token_dropout", "tokens"),
        *("password_file", "secretary", "keyboard", "", "api_key.name", "_", "3"),
    ],
)
def test_names_that_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "words",
    [
        ["--model.network.api_key=abc"],
        ["--token", "abc"],
        ["--model.network.hf-token=abc"],
        ["--model.network.dict_kwargs={a: 1, password: abc, b: 2}"],
        ['--trainer.logger={"init_args": {"api_key": "abc", "b": 2}}'],
        ["--data.root=https://me:abc@example.org/data"],
        ["--PASSWORD=abc"],
        ["--data.root=https://example.org/data?token=abc&part=2"],
        ["--data.root=https://example.org/data?X-Amz-Signature=abc"],
        ["--model.network.dict_kwargs={mask_token: m, password: my abc, b: 2}"],
    ],
)
def test_secrets_of_a_command_line_are_masked(words: list[str]) -> None:
    masked = " ".join(masked_command(words))
    assert "abc" not in masked
    assert MASK in masked
    assert ("b: 2" in masked or '"b": 2' in masked) == ("2}" in words[0])


@pytest.mark.parametrize(
    "word",
    [
        "--data.tokenizer=words",
        "--model.network.class_token=true",
        "--model.losses.kd.temperature=4",
        "--model.student.layers={stage1: body.0}",
        "--data.root=http://example.org/data",
        "--data.max_tokens=128",
        "--model.network.key=abc",
        "--data.mask_token=[MASK]",
        "{key: a, eos_token: b}",
        "--data.root=https://example.org/data?part=2&key=3",
        "--monkey=abc",
        "{keyboard: a, monkey: b}",
    ],
)
def test_other_options_are_stored_as_they_are(word: str) -> None:
    assert masked_command([word, "next"]) == [word, "next"]


def test_run_json_holds_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "sys.argv", ["kd", "fit", "--model.network.token=abc", "--run.name=x"]
    )
    RunRecord(tmp_path, {})
    written = (tmp_path / "run.json").read_text()
    assert "abc" not in written
    command = ["kd", "fit", f"--model.network.token={MASK}", "--run.name=x"]
    assert json.loads(written)["command"] == command


def test_configs_are_masked_at_any_depth() -> None:
    config: dict[str, Any] = {
        "api_keys": ["a", {"name": "b"}],
        "secrets": {"part": "c", "on": True},
        "source": "https://host/x?token=d&part=2",
        "pair": ("https://u:e@host", 1),
        # A vocabulary is no list of secrets.
        "words": {"password": 17, "token": 3},
    }
    assert masked_config(config) == {
        "api_keys": [MASK, {"name": MASK}],
        "secrets": {"part": MASK, "on": True},
        "source": f"https://host/x?token={MASK}&part=2",
        "pair": (f"https://{MASK}@host", 1),
        "words": {"password": 17, "token": 3},
    }


def test_a_missing_secret_is_named_as_its_option() -> None:
    network = {
        "class_path": "N",
        "init_args": {"layers": [{"dict_kwargs": {"k": MASK}}]},
    }
    assert missing_secret({"network": network}, "model") == "model.network.layers.k"
    assert missing_secret({"network": {"init_args": {"k": "***a"}}}) is None
    assert is_masked(f"https://host/x?token={MASK}&part=2")
    assert not is_masked(f"token={MASK}")

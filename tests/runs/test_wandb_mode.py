"""Whether a run is online: a key decides, unless the user says."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import pytest
import wandb

from kd_lightning.runs.wandb import choose_mode


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Neither a key nor a mode in the environment; returns the netrc file that is looked into."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_without_a_key_auto_is_offline() -> None:
    assert choose_mode("auto") == "offline"


def test_a_key_in_the_environment_is_online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert choose_mode("auto") == "online"


def test_a_key_of_wandb_login_is_online(
    no_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_key.write_text("machine api.wandb.ai login user password " + "0" * 40)
    no_key.chmod(0o600)
    assert choose_mode("auto") == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert choose_mode("auto") == "offline"


@pytest.mark.parametrize("url", [None, "http://localhost:8080"])
def test_a_key_is_found_where_wandb_itself_writes_it(
    url: str | None, no_key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its default server has had more than one name."""
    auth = pytest.importorskip("wandb.sdk.lib.wbauth")
    if url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
    server = url or wandb.Settings().base_url
    auth.write_netrc_auth(host=server, api_key="0" * 40)
    assert urlparse(server).netloc in no_key.read_text()
    assert choose_mode("auto") == "online"


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_what_the_user_says_counts(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert choose_mode(mode) == mode
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_mode("auto") == "disabled"
    assert choose_mode(mode) == mode

"""Secrets that are given as settings: no file of a run holds them, and the run can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_lightning.data import DigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.escaping import MASK, is_masked, masked_config
from kd_lightning.runs.settings import check_secrets
from tests.runs import TEACHER, Kd

SECRET = "hunter2"
LAST = "own/checkpoints/last.ckpt"


class LockedDigits(DigitsDataModule):
    """Digits behind a key."""

    def __init__(self, api_key: str, source: str = "", **options: Any) -> None:
        super().__init__(**options)
        assert api_key == SECRET
        assert "login" in source


OPTIONS = [
    f"--data.api_key={SECRET}",
    "--data.source=https://me:login@example.org/digits",
]
FIT = [
    *TEACHER,
    f"--data={__name__}.LockedDigits",
    *OPTIONS,
    "--model.scheduler=null",
    "--trainer.enable_progress_bar=false",
    "--trainer.limit_train_batches=3",
    "--run.dir=own",
]


def test_a_run_stores_no_secret_and_resumes_with_it(kd: Kd) -> None:
    assert kd(*FIT).code == 0
    for name in ("config.yaml", "run.json"):
        text = Path("own", name).read_text()
        assert SECRET not in text
        assert "login@" not in text
    config = yaml.safe_load(Path("own/config.yaml").read_text())
    assert config["data"]["init_args"]["api_key"] == MASK
    resume = ["fit", "--trust", "tests", f"--ckpt_path={LAST}"]
    resume.append("--trainer.max_epochs=2")
    # The secret must be given again, and the message says how.
    refused = kd(*resume)
    assert refused.code == 2
    assert "give it again with --data.api_key=VALUE" in refused.err
    assert refused.err.count("\n") == 1
    # The run's own secret is no changed setting.
    assert kd(*resume, *OPTIONS).code == 0
    assert SECRET not in Path("own/config.yaml").read_text()
    assert SECRET not in Path("own/run.json").read_text()
    assert kd("test", "--trust", "tests", f"--ckpt_path={LAST}", *OPTIONS).code == 0


def test_only_texts_that_are_secret_are_masked() -> None:
    config = {
        "api_key": "a",
        "hub_token": "b",
        "tokens": 3,
        "token": None,
        "key": "false",
        "tokenizer": "c",
        "nested": [{"password": "d"}, "ftp://u:p@host/x"],
    }
    assert masked_config(config) == {
        "api_key": MASK,
        "hub_token": MASK,
        "tokens": 3,
        "token": None,
        "key": "false",
        "tokenizer": "c",
        "nested": [{"password": MASK}, f"ftp://{MASK}@host/x"],
    }
    # The config itself, with which the run trains, still holds them.
    assert config["api_key"] == "a"


def test_a_masked_secret_is_found_wherever_it_is() -> None:
    assert not is_masked("******")
    check_secrets({"data": {"init_args": {"api_key": "a", "urls": ["x://host"]}}})
    for value in (MASK, f"x://{MASK}@host", [f"x://{MASK}@host"]):
        with pytest.raises(UserError, match=r"--data\.source is a secret"):
            check_secrets({"data": {"init_args": {"source": value}}})

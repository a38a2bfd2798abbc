"""Secrets that are given as settings: no file of a run holds them, and the run can be resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_lightning.data import DigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished
from kd_lightning.masking import MASK, is_masked, masked_config
from kd_lightning.models import MLP
from kd_lightning.runs.settings import check_secrets
from kd_lightning.training import ClassifierModule
from tests.runs import TEACHER, Kd, student

SECRET = "hunter2"
LAST = "own/checkpoints/last.ckpt"


class LockedDigits(DigitsDataModule):
    """Digits behind a key."""

    def __init__(self, api_key: str, source: str = "", **options: Any) -> None:
        super().__init__(**options)
        assert api_key == SECRET
        assert "login" in source


class LockedMLP(MLP):
    """An MLP behind a token."""

    def __init__(self, hub_token: str, **options: Any) -> None:
        super().__init__(**options)
        assert hub_token == SECRET


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
        "key": "e",
        "secret": "false",
        "tokenizer": "c",
        "nested": [{"password": "d"}, "ftp://u:p@host/x"],
    }
    assert masked_config(config) == {
        "api_key": MASK,
        "hub_token": MASK,
        "tokens": 3,
        "token": None,
        "key": "e",
        "secret": "false",
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


def test_a_checkpoint_holds_no_secret_of_its_network(kd: Kd) -> None:
    network = [
        f"--model.network={__name__}.LockedMLP",
        f"--model.network.hub_token={SECRET}",
    ]
    hidden = "--model.network.dict_kwargs={hidden: [8], input_shape: [1, 8, 8], num_classes: 10}"
    quick = ["--trainer.enable_progress_bar=false", "--trainer.limit_train_batches=3"]
    constant = "--model.scheduler=null"
    trained = kd(*TEACHER, *network, hidden, constant, *quick, "--run.dir=own")
    assert trained.code == 0, trained.err
    assert SECRET.encode() not in Path(LAST).read_bytes()
    # Whoever builds the network from the checkpoint alone learns what is missing.
    distilled = kd(*student(LAST), *quick, "--trust=tests", "--run.dir=student")
    assert distilled.code == 2
    assert "was built with the secret 'hub_token'" in distilled.err
    assert "--model.teacher.network=CLASS" in distilled.err
    assert distilled.err.count("\n") == 1
    with pytest.raises(
        UserError, match=r"secret 'network\.hub_token'.*network=NETWORK"
    ):
        ClassifierModule.load_from_checkpoint(LAST)
    options: dict[str, Any] = {"input_shape": (1, 8, 8), "num_classes": 10}
    given = LockedMLP(SECRET, hidden=[8], **options)
    loaded = ClassifierModule.load_from_checkpoint(LAST, network=given)
    assert isinstance(loaded.net, LockedMLP)
    # With the secret, the run goes on.
    resume = ["fit", "--trust=tests", f"--ckpt_path={LAST}", "--trainer.max_epochs=2"]
    assert "--model.network.hub_token=VALUE" in kd(*resume).err
    resumed = kd(*resume, network[1])
    assert resumed.code == 0, resumed.err
    assert SECRET.encode() not in Path(LAST).read_bytes()


def test_an_analysis_reports_a_missing_secret(place: Path) -> None:
    data = {"class_path": f"{__name__}.LockedDigits", "init_args": {"api_key": MASK}}
    Path(place, "config.yaml").write_text(yaml.safe_dump({"data": data}))
    with pytest.raises(UserError, match=r"'data\.api_key'.*environment variable"):
        Finished(0, place, {}).datamodule()

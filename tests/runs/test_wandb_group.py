"""`kd reproduce` and W&B: all runs of an experiment land in one group, each with its kind; read from what W&B itself wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.experiments import MINI, write
from tests.runs import finish, spawn


def records(path: Path) -> Iterator[Any]:
    """The records of a W&B log: LevelDB's format (blocks of 32 KiB, chunks with a header of 7 bytes), each a protobuf."""
    make = import_module("wandb.proto.wandb_internal_pb2").Record
    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # no room for a header: the block is filled up
            at += 2**15 - at % 2**15
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the whole of a record, or its end
            record = make()
            record.ParseFromString(whole)
            yield record
            whole = b""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What W&B wrote of the two runs of an experiment, offline, by one process."""
    place = tmp_path_factory.mktemp("group")
    names = ("teacher", "distilled")
    content = {
        **MINI,
        "seeds": 1,
        "overrides": {**MINI["overrides"], "run.wandb": "offline"},
        "runs": {name: MINI["runs"][name] for name in names},
        "paper": {},
        "compare": [],
    }
    write(place, content)
    folders = {
        f"WANDB_{name}_DIR": str(place / "wandb-own")
        for name in ("CACHE", "CONFIG", "DATA")
    }
    unset = dict.fromkeys(("WANDB_MODE", "WANDB_API_KEY", "WANDB_SERVICE"))
    outcome = finish(spawn(["reproduce", "mini.yaml"], place, **folders, **unset), 240)
    assert outcome.code == 0, outcome.err
    logs = sorted(
        (place / "runs" / "store").glob("*/wandb/offline-run-*/*.wandb"),
        key=lambda path: path.parent.name,
    )
    assert len(logs) == 2  # one a run: the first was finished before the second began
    return [
        next(
            record.run
            for record in records(log)
            if record.WhichOneof("record_type") == "run"
        )
        for log in logs
    ]


def test_all_runs_of_an_experiment_are_one_group(runs: list[Any]) -> None:
    assert {run.run_group for run in runs} == {"mini"}
    assert {run.project for run in runs} == {"kd_lightning"}
    assert {run.job_type for run in runs} == {"teacher", "distill"}
    assert len({run.run_id for run in runs}) == 2


def test_the_config_is_whole(runs: list[Any]) -> None:
    """What `kd compare --wandb` reads: data, spec and folder each under a key of its own."""
    for run in runs:
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["data"]["class_path"] == "kd_lightning.data.DigitsDataModule"
        assert config["data"]["init_args"]["batch_size"] == 64
        assert config["spec"]["samples"]["test"] == 602
        assert Path(config["folder"]).parent.name == "store"
        assert config["seed_everything"] == 0

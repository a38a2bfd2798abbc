from __future__ import annotations

from pathlib import Path

import yaml

from kd_lightning.data import MNISTDataModule
from kd_lightning.experiments.analysis import Finished


def test_data_that_moved_after_the_run_are_found(tmp_path: Path) -> None:
    data = {
        "class_path": "kd_lightning.data.MNISTDataModule",
        "init_args": {"root": "gone"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    before = Finished(0, tmp_path, {}).datamodule()
    after = Finished(0, tmp_path, {}, root="here").datamodule()
    assert isinstance(before, MNISTDataModule)
    assert isinstance(after, MNISTDataModule)
    assert (str(before.root), str(after.root)) == ("gone", "here")

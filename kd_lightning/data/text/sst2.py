"""The Stanford Sentiment Treebank, two classes."""

from __future__ import annotations

from typing import Any

from kd_lightning.data.files import data_root
from kd_lightning.data.text.datamodule import TextDataModule
from kd_lightning.data.text.files import Texts
from kd_lightning.errors import UserError


class SST2DataModule(TextDataModule):
    """SST-2 (Socher et al. 2013): 6,920 + 872 + 1,821 sentences of film reviews, negative or positive.

    Reads `SST2/{train,dev,test}.tsv` (sentence, tab, label, no heading), or GLUE's own layout, `SST-2/{train,dev}.tsv` with the
    headings sentence and label: 67,349 phrases and sentences to train on; its test set has no labels, so that dev.tsv is
    both validation and test set there.

    Args:
        root: folder that holds `SST2/` or `SST-2/`; else `KD_DATA_ROOT`, else `./data`.
        base: see TextDataModule; not its files and columns.
    """

    name = "sst2"

    def __init__(self, root: str | None = None, **base: Any) -> None:
        folder = data_root(root)
        glue = not (folder / "SST2").is_dir() and (folder / "SST-2").is_dir()
        super().__init__(
            root=str(folder),
            train_file="SST-2/train.tsv" if glue else "SST2/train.tsv",
            validation_file="SST-2/dev.tsv" if glue else "SST2/dev.tsv",
            test_file="SST-2/dev.tsv" if glue else "SST2/test.tsv",
            text="sentence" if glue else 0,
            label="label" if glue else 1,
            second=None,
            labels=["0", "1"],
            names=["negative", "positive"],
            **base,
        )

    def load(self, split: str) -> Texts:
        if split in self.files and not (self.root / str(self.files[split])).is_file():
            raise UserError(
                f"SST-2: there is no file {self.root / str(self.files[split])}; point --data.root or KD_DATA_ROOT to the "
                "folder that holds SST2/train.tsv, dev.tsv and test.tsv (or GLUE's SST-2/)"
            )
        return super().load(split)

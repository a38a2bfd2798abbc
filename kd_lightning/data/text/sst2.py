"""The Stanford Sentiment Treebank with two classes."""

from __future__ import annotations

from typing import Any

from kd_lightning.data.files import data_root
from kd_lightning.data.text.datamodule import TextDataModule
from kd_lightning.data.text.files import Column, Texts
from kd_lightning.errors import UserError


class SST2DataModule(TextDataModule):
    """SST-2 (Socher et al. 2013): 9,613 sentences of film reviews, negative or positive.

    Reads one of two layouts:

    - `SST2/{train,dev,test}.tsv` (sentence, tab, label; no heading): 6,920 + 872 + 1,821 sentences.
    - GLUE's `SST-2/{train,dev}.tsv` (with the heading sentence, label): 67,349 phrases and
      sentences for training. GLUE's test set has no labels, so dev.tsv serves as validation and as
      test set.

    Args:
        root: folder that contains `SST2/` or `SST-2/`; default: `KD_DATA_ROOT`, else `./data`.
        kwargs: see TextDataModule; all arguments except its files, columns and classes.
    """

    name = "sst2"

    def __init__(self, root: str | None = None, **kwargs: Any) -> None:
        folder = data_root(root)
        # SST2/ takes precedence, because its test set has labels.
        is_glue = not (folder / "SST2").is_dir() and (folder / "SST-2").is_dir()
        text: Column = 0
        label: Column = 1
        if is_glue:
            text = "sentence"
            label = "label"
        super().__init__(
            root=str(folder),
            train_file="SST-2/train.tsv" if is_glue else "SST2/train.tsv",
            validation_file="SST-2/dev.tsv" if is_glue else "SST2/dev.tsv",
            test_file="SST-2/dev.tsv" if is_glue else "SST2/test.tsv",
            text=text,
            label=label,
            second=None,
            labels=["0", "1"],
            names=["negative", "positive"],
            **kwargs,
        )

    def load(self, split: str) -> Texts:
        """Read all samples of a source split.

        Raises:
            UserError: if the samples cannot be read.
        """
        if split in self.files:
            path = self.root / str(self.files[split])
            if not path.is_file():
                raise UserError(
                    f"SST-2: there is no file {path}; point --data.root or KD_DATA_ROOT to the "
                    "folder that contains SST2/train.tsv, dev.tsv and test.tsv (or GLUE's SST-2/)"
                )
        return super().load(split)

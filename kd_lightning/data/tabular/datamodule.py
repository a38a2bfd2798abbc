"""Tables from CSV, TSV or Parquet files."""

from __future__ import annotations

from typing import Unpack

from kd_lightning.data.files import data_root
from kd_lightning.data.tabular.base import TableDataModule
from kd_lightning.data.tabular.files import Table, read_table
from kd_lightning.data.tabular.new_samples import RowReader
from kd_lightning.data.tabular.options import TableOptions
from kd_lightning.data.text.dialect import Dialect
from kd_lightning.errors import UserError
from kd_lightning.tasks.base import Task
from kd_lightning.tasks.classification import Classification


class TabularDataModule(TableDataModule):
    """Any table in CSV, TSV or Parquet files, by the names of its columns.

    Args:
        target: the target column, or several of them.
        task: what is predicted; default: the class in the target column.
        root: folder of the files; default: `KD_DATA_ROOT`, else `./data`.
        file: path below `root`, of a file with all samples; `test_fraction` of them is the test
            set.
        train_file, test_file: paths below `root`, instead of `file`.
        delimiter: between the fields of text files: one character, or "tab"; default: detected.
        quoted: whether quotation marks enclose fields of text files; default: detected.
        options: features, categorical, standardize, impute and others; see TableSettings.

    Raises:
        UserError: for an option out of range, or if the files are not given.
    """

    def __init__(
        self,
        target: str | list[str] = "target",
        task: Task | None = None,
        root: str | None = None,
        file: str | None = None,
        train_file: str | None = None,
        test_file: str | None = None,
        delimiter: str | None = None,
        quoted: bool | None = None,
        **options: Unpack[TableOptions],
    ) -> None:
        columns = [target] if isinstance(target, str) else target
        super().__init__("table", task or Classification(), columns, **options)
        has_both = train_file is not None and test_file is not None
        has_one = train_file is not None or test_file is not None
        if has_both == (file is not None) or (has_one and not has_both):
            raise UserError("set data.file, or else data.train_file and data.test_file")
        self.root = data_root(root)
        self.dialect = Dialect(delimiter, quoted)
        self.files = {"train": train_file or file, "test": test_file}

    def input_reader(self) -> RowReader:
        """Reads rows of files in the format of the training file."""
        return RowReader(self.encoder, self.dialect)

    @property
    def has_test_table(self) -> bool:
        """Whether a test file is named."""
        return self.files["test"] is not None

    @property
    def has_training_table(self) -> bool:
        """Whether a training file is named."""
        return (self.root / str(self.files["train"])).is_file()

    def read(self, split: str) -> Table:
        """Read the file of "train" or "test"."""
        return read_table(self.root / str(self.files[split]), self.dialect)

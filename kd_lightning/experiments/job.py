"""One job of an experiment: a run with one seed, the key that decides its result, and its folder."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd_lightning.experiments.keys import address
from kd_lightning.experiments.store import (
    alteration,
    is_finished,
    read_record,
    stored_checkpoint,
)
from kd_lightning.runs.folder import read_json
from kd_lightning.values import Values


@dataclass
class Job:
    """One run with one seed.

    Attributes:
        run: its name in the experiment.
        seed: its seed.
        key: everything that decides its result.
        folder: where it is stored. The folder's name is the address of the key, unless an earlier
            run is accepted instead.
        argv: the arguments of `kd`.
        needs: jobs that must finish first.
        may_fail: whether the job counts as finished if its training diverged.
        accepted_key: the key of the earlier run that is accepted instead, if any.
    """

    run: str
    seed: int
    key: dict[str, Any]
    folder: Path
    argv: list[str]
    needs: list[Job]
    may_fail: bool = False
    accepted_key: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The job's name in the experiment, `RUN/SEED`."""
        return f"{self.run}/{self.seed}"

    @property
    def address(self) -> str:
        """The address of the job's key in the store."""
        return address(self.key)

    @property
    def record(self) -> dict[str, Any]:
        """The content of the run's `run.json`; empty before the run starts."""
        return read_record(self.folder)

    @property
    def finished(self) -> bool:
        """Whether the run needs no more training."""
        if not is_finished(self.record, self.may_fail):
            return False
        return self.alteration is None

    @property
    def alteration(self) -> str | None:
        """Why the run in the folder is no longer this job's, if it was changed."""
        record = self.record
        altered = alteration(self.folder, record)
        if altered is not None:
            return altered
        # The teachers' weights enter the key by the address of their runs, not by their content.
        sources = record.get("teacher")
        if self.is_cache:
            manifest = read_json(self.folder / "manifest.json")
            sources = manifest.get("fingerprint", {}).get("teacher")
        for source in sources or []:
            for need in self.needs:
                if need.differs_from(source):
                    return f"it was made with other weights of {need.run}, seed {need.seed}"
        return None

    def differs_from(self, source: Values) -> bool:
        """Whether a teacher's weights came from this run, but are not those that it has now.

        Args:
            source: `path` and `sha256` of the weights.
        """
        current = stored_checkpoint(self.record)
        # The store may have moved since.
        path = Path(str(source.get("path", "")))
        is_own = path.parts[-3:] == self.checkpoint.parts[-3:]
        if not is_own or current is None:
            return False
        return source.get("sha256") != current

    @property
    def is_cache(self) -> bool:
        """Whether the job caches a teacher's outputs instead of training."""
        return self.argv[:1] == ["cache"]

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint of the run."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def product(self) -> Path:
        """The path that other runs take from this one: the folder of a cache, else a checkpoint."""
        if self.is_cache:
            return self.folder
        return self.checkpoint

    @property
    def data_root(self) -> str | None:
        """The folder of the data sets that the job's command names."""
        for word in self.argv:
            option, _, value = word.partition("=")
            if option in ("--data.root", "--data.data.root"):
                return value
        return None

    @property
    def command(self) -> str:
        """The command to type in a shell."""
        return shlex.join(["kd", *self.argv])

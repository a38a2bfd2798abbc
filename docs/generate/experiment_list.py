"""The page that lists all experiments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from docs.generate.markdown import table
from experiments.methods import Results
from kd_lightning import catalog

INTRODUCTION = """\
# Experiments

`kd reproduce NAME` trains the missing runs of an experiment, tests the differences over seeds, and
writes the table. Every number below `results/` comes from such a command; its page names the commit,
the hardware and the wall time.

An experiment is a YAML file with runs, seeds, dependencies between runs, and the paper's numbers:

| option of `kd reproduce` | |
| --- | --- |
| `--dry-run` | print each run's plain `kd fit` command |
| `--seeds N`, `--only RUN` | fewer seeds; only one run and the runs that it needs |
| `--quick` | a shortened version that takes minutes; its table is marked as such |
| `--workers N` | N parallel runs, each with its share of the threads |
| `--NAME VALUE` | a setting of the experiment, such as `--digit 7` |
| `--keep-finished` | accept finished runs whose code has changed, for example by a refactoring, and record this |
| `--wandb online` | log all runs to W&B, in one group |

If `kd reproduce` is interrupted, the same command resumes it. A finished run is reused only if
nothing that affects its result has changed: configuration, data, the version of torch, the number
of threads, and the source of every module of kd_lightning that its config reaches. Otherwise kd
trains it again and names what changed.

"""


def experiments_page(results: Sequence[Results], files: Sequence[str]) -> str:
    """The table of all shipped experiments.

    Args:
        results: all committed results.
        files: paths of the files of the site, to link what exists.
    """
    tables = {result.name: f"{result.path}/results.md" for result in results}
    rows = []
    for row in catalog.experiments():
        name = str(row["name"])
        readme = f"experiments/{Path(name).parent.as_posix()}/README.md"
        about = ""
        if readme in files:
            about = f"[README]({Path(readme).relative_to('experiments').as_posix()})"
        if name in tables:
            about += f" [results]({tables[name]})"
        rows.append(
            [f"[{name}]({name}.yaml)", str(row["claim"]), str(row["time"]), about]
        )
    lines = table(["experiment", "claim or question", "time", "more"], rows)
    return INTRODUCTION + "\n".join(lines) + "\n"

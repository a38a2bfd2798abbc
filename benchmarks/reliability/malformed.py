"""Tries hundreds of malformed inputs, and counts how each one ends.

    python benchmarks/reliability/malformed.py --output malformed.json

A malformed input must be refused: exit code 2 and one line. An input that is odd but has one clear
meaning may be accepted. A traceback, a hang, too much memory or an accepted error is a fault; each
is listed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import cases_configs
import cases_data
import cases_files
import harness
from cases import TEACHER, Case, Trained, configs, student

MEMORY_LIMIT = 2 * harness.GIB
"""What a case may take beyond what the imported modules take."""
LIMIT_S = 60.0
FAULTS = (
    "traceback",
    "hang",
    "too much memory",
    "crash",
    "accepted wrongly",
    "refused wrongly",
)


def train(folder: Path) -> Trained:
    """Train the runs and fill the cache that cases damage."""
    teacher = folder / "teacher"
    # Without a schedule, whose length would forbid to resume for more epochs.
    _succeed(harness.run([*TEACHER, "--model.scheduler=null"], teacher))
    checkpoint = teacher / "run" / "checkpoints" / "last.ckpt"
    _succeed(harness.run(student(str(checkpoint)), folder / "student"))
    names = ("trainer.yaml", "data/digits.yaml", "pairs/digits_mlp256_mlp16.yaml")
    cache = [
        "cache",
        *configs(*names, "methods/kd.yaml"),
        f"--model.teacher.checkpoint={checkpoint}",
        "--output=cache",
    ]
    _succeed(harness.run(cache, folder / "cache"))
    return Trained(
        teacher / "run", folder / "student" / "run", folder / "cache" / "cache"
    )


def _succeed(finished: harness.Finished) -> None:
    if finished.code != 0:
        raise SystemExit(f"the preparation failed: {finished.err}")


def all_cases(trained: Trained) -> Iterator[Case]:
    """The cases of all groups."""
    for module in (cases_configs, cases_files, cases_data):
        for group in module.GROUPS:
            yield from group(trained)


def verdict(case: Case, finished: harness.Finished) -> str:
    """How a case ended: "refused", "accepted", or one of FAULTS."""
    outcome = finished.outcome
    if "not enough memory" in finished.err:
        return "too much memory"
    if outcome == "accepted" and case.expected == "refused":
        return "accepted wrongly"
    if outcome == "refused" and case.expected == "accepted":
        return "refused wrongly"
    return outcome


def try_case(case: Case, folder: Path) -> harness.Finished:
    """Run a case in a folder of its own, which is removed afterwards."""
    folder.mkdir()
    try:
        case.prepare(folder)
        return harness.run(case.arguments, folder, LIMIT_S, MEMORY_LIMIT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Run the cases, print a table and the faults; returns 1 if there are faults."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--group", default="", help="only this group")
    options.add_argument(
        "--sample",
        type=int,
        default=0,
        help="only the good inputs and this many others, at random",
    )
    options.add_argument("--seed", type=int, default=0, help="of the draw")
    options.add_argument(
        "--output", type=Path, help="write the figures to this JSON file"
    )
    arguments = options.parse_args()
    harness.import_everything()
    counts: dict[str, Counter[str]] = {}
    faults = []
    with tempfile.TemporaryDirectory(prefix="kd-malformed-") as name:
        folder = Path(name)
        cases = [c for c in all_cases(train(folder)) if arguments.group in c.group]
        if arguments.sample:
            controls = [case for case in cases if case.expected == "accepted"]
            drawn = random.Random(arguments.seed).sample(cases, arguments.sample)
            cases = [*controls, *drawn]
        for number, case in enumerate(cases):
            finished = try_case(case, folder / f"case{number}")
            how = verdict(case, finished)
            counts.setdefault(case.group, Counter())[how] += 1
            if how in FAULTS:
                faults.append(
                    f"{case.group}: {case.name}: {how}: {finished.err.strip()[:250]}"
                )
                print(faults[-1], flush=True)
            print(
                f"{number + 1} of {len(cases)}", end="\r", file=sys.stderr, flush=True
            )
    columns = ("refused", "accepted", *FAULTS)
    print(f"| group | cases | {' | '.join(columns)} |")
    print(f"| --- |{' ---: |' * (len(columns) + 1)}")
    total: Counter[str] = Counter()
    for group, group_counts in counts.items():
        total.update(group_counts)
        print(_row(group, group_counts, columns))
    print(_row("all", total, columns))
    if arguments.output:
        content = {"counts": {**counts, "all": total}, "faults": faults}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")
    return int(bool(faults))


def _row(name: str, counts: Counter[str], columns: tuple[str, ...]) -> str:
    numbers = " | ".join(str(counts[column]) for column in columns)
    return f"| {name} | {counts.total()} | {numbers} |"


if __name__ == "__main__":
    sys.exit(main())

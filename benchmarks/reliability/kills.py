"""Kills commands at random moments, repeats them, and compares the results bit for bit.

    python benchmarks/reliability/kills.py --trials 120

Every scenario first runs without a kill. Then each trial runs the same command, kills its process
group with SIGKILL (or fills its disk) at a moment that the seed decides, and repeats the command as
a user would: `kd fit` resumes from `last.ckpt` if there is one and starts again if not; `kd cache`
and `kd reproduce` are called again. The result must be bit-identical, or the command must refuse in
one line. The table counts everything else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LIMIT_S = 180.0
JITTER = (
    "--data.augment=[{class_path: kd_lightning.data.Jitter, init_args: {pixels: 1}}]"
)
SPEC = """\
title: A small experiment
claim: Killed experiments finish with the same rows.
time: seconds
configs: [configs/trainer.yaml, configs/data/digits.yaml]
seeds: 2
overrides: {trainer.max_epochs: 3}
runs:
  teacher: {configs: [configs/teachers/digits_mlp.yaml]}
  student:
    configs: [configs/pairs/digits_mlp256_mlp16.yaml, configs/methods/kd.yaml]
    needs: {model.teacher.checkpoint: teacher}
"""


def config_arguments(*names: str) -> list[str]:
    """`-c` with each of these shipped configs."""
    arguments = []
    for name in names:
        arguments += ["-c", str(CONFIGS / name)]
    return arguments


TEACHER = [
    "fit",
    *config_arguments("trainer.yaml", "data/digits.yaml", "teachers/digits_mlp.yaml"),
    JITTER,
    "--run.dir=run",
]


def student(teacher: Path, method: str) -> list[str]:
    """Distillation with the losses of a method, whose adapters and banks are state too."""
    names = ("trainer.yaml", "data/digits.yaml", "pairs/digits_mlp256_mlp16.yaml")
    return [
        "fit",
        *config_arguments(*names, f"methods/{method}.yaml"),
        JITTER,
        f"--model.teacher.checkpoint={teacher}",
        "--model.teacher.layers={penultimate: body.4, stage2: body.4}",
        "--model.layers={penultimate: body.2, stage2: body.2}",
        "--run.dir=run",
        "--trainer.max_epochs=6",
    ]


@dataclass(frozen=True)
class Scenario:
    """One command that is killed.

    Attributes:
        name: for the table.
        arguments: of `kd`.
        result: a checksum of what the command made in a folder.
        resumes_from_checkpoint: whether a repetition names `last.ckpt`.
        temporary_elsewhere: whether TMPDIR is on another filesystem than the run.
        fills_disk: whether a write that is too long ends the first call in place of a kill.
    """

    name: str
    arguments: list[str]
    result: Callable[[Path], str]
    resumes_from_checkpoint: bool = True
    temporary_elsewhere: bool = False
    fills_disk: bool = False


@dataclass
class Tally:
    """How the trials of one scenario ended."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, verdict: str, example: str) -> None:
        self.counts[verdict] += 1
        if verdict not in ("identical", "refused"):
            self.examples.append(f"{verdict}: {example}")


def checksum_of_run(folder: Path) -> str:
    """A checksum of the weights, the optimizer's state and the metrics of a run."""
    import torch

    digest = hashlib.sha256((folder / "run" / "metrics.csv").read_bytes())
    for name in ("last.ckpt", "best.ckpt"):
        content = torch.load(folder / "run" / "checkpoints" / name, weights_only=True)
        for key in (
            "epoch",
            "global_step",
            "state_dict",
            "optimizer_states",
            "lr_schedulers",
        ):
            _update(digest, content[key])
    return digest.hexdigest()


def _update(digest: hashlib._Hash, value: object) -> None:
    """Add a nested value of tensors and plain values to a checksum."""
    import torch

    if isinstance(value, torch.Tensor):
        flat = value.detach().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key, item in value.items():
            digest.update(repr(key).encode())
            _update(digest, item)
    elif isinstance(value, list | tuple):
        for item in value:
            _update(digest, item)
    else:
        digest.update(repr(value).encode())


def checksum_of_cache(folder: Path) -> str:
    """A checksum of all files of a teacher cache but those of the running command."""
    digest = hashlib.sha256()
    cache = folder / "cache"
    for path in sorted(cache.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            digest.update(path.relative_to(cache).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def checksum_of_experiment(folder: Path) -> str:
    """A checksum of an experiment's rows."""
    rows = json.loads((folder / "results" / "results.json").read_text())["rows"]
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def command_of(scenario: Scenario, limit_bytes: int = 0) -> Callable[[], int]:
    """The scenario's command; a file that grows beyond `limit_bytes` cannot be written."""

    def command() -> int:
        if scenario.temporary_elsewhere:
            os.environ["TMPDIR"] = "/dev/shm"
            tempfile.tempdir = None
        if limit_bytes:
            # The write then fails with an error, as it does if the disk is full.
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        return harness.kd(scenario.arguments)()

    return command


def repeated(scenario: Scenario, folder: Path) -> harness.Finished:
    """Repeat the command as a user would."""
    arguments = scenario.arguments
    last = folder / "run" / "checkpoints" / "last.ckpt"
    if scenario.resumes_from_checkpoint:
        if last.is_file():
            arguments = ["fit", f"--ckpt_path={last.relative_to(folder)}"]
        else:
            shutil.rmtree(folder / "run", ignore_errors=True)
    return harness.run(arguments, folder, LIMIT_S)


def trial(
    scenario: Scenario, expected: str, seconds: float, seed: str, folder: Path
) -> tuple[str, str]:
    """Kill, repeat and compare once.

    Args:
        scenario: what to run.
        expected: the checksum without a kill.
        seconds: how long the command takes without a kill.
        seed: decides the moments of the kills.
        folder: of this trial; removed at the end unless something is wrong.

    Returns:
        The verdict and an example for it.
    """
    generator = random.Random(seed)
    limit = generator.randint(1, 60_000) if scenario.fills_disk else 0
    kills = 0 if scenario.fills_disk else generator.choice([1, 1, 2])
    process = harness.start(command_of(scenario, limit), folder)
    if kills:
        time.sleep(generator.uniform(0.02, seconds))
        harness.kill_group(process)
    finished = harness.finish(process, folder, LIMIT_S)
    if finished.outcome in ("hang", "traceback"):
        return finished.outcome, finished.err[:300]
    if kills == 2:
        process = harness.start(command_of(scenario), folder)
        time.sleep(generator.uniform(0.02, seconds))
        harness.kill_group(process)
        harness.finish(process, folder, LIMIT_S)
    finished = repeated(scenario, folder)
    if finished.outcome != "accepted":
        verdict = "refused" if finished.outcome == "refused" else finished.outcome
        return verdict, finished.err[:300]
    if scenario.result(folder) != expected:
        return "different", str(folder)
    leftovers = [
        path
        for path in folder.rglob(".*")
        if path.is_file() and "wandb" not in path.parts
    ]
    if leftovers:
        return "leftovers", ", ".join(path.name for path in leftovers[:3])
    shutil.rmtree(folder)
    return "identical", ""


def scenarios(folder: Path) -> Iterable[Scenario]:
    """All scenarios; a teacher for the students is trained first."""
    teacher_run = harness.run(
        [*TEACHER, "--trainer.max_epochs=3"], folder / "teacher", LIMIT_S
    )
    assert teacher_run.code == 0, teacher_run.err
    teacher = folder / "teacher" / "run" / "checkpoints" / "last.ckpt"
    fit = [*TEACHER, "--trainer.max_epochs=6"]
    wide = [*fit, "--model.network.hidden=[1200,1200]", "--trainer.max_epochs=3"]
    spec = folder / "experiment.yaml"
    spec.write_text(SPEC)
    cache = [
        "cache",
        *config_arguments(
            "trainer.yaml", "data/digits.yaml", "pairs/digits_mlp256_mlp16.yaml"
        ),
        *config_arguments("methods/kd.yaml"),
        JITTER,
        "--data.views=4",
        f"--model.teacher.checkpoint={teacher}",
        "--output=cache",
    ]
    reproduce = [
        "reproduce",
        str(spec),
        "--store=store",
        "--output=results",
        "--workers=2",
    ]
    yield Scenario("fit a teacher", fit, checksum_of_run)
    yield Scenario("distill with KD", student(teacher, "kd"), checksum_of_run)
    yield Scenario(
        "distill with FitNets (adapter)", student(teacher, "fitnets"), checksum_of_run
    )
    small_bank = [
        "--model.losses.crd.num_negatives=64",
        "--model.losses.crd.dimensions=16",
    ]
    crd = [*student(teacher, "crd"), *small_bank]
    yield Scenario("distill with CRD (adapters, memory)", crd, checksum_of_run)
    yield Scenario(
        "fill a cache", cache, checksum_of_cache, resumes_from_checkpoint=False
    )
    yield Scenario(
        "reproduce, two workers",
        reproduce,
        checksum_of_experiment,
        resumes_from_checkpoint=False,
    )
    yield Scenario(
        "large checkpoints, TMPDIR elsewhere",
        wide,
        checksum_of_run,
        temporary_elsewhere=True,
    )
    yield Scenario("full disk", fit, checksum_of_run, fills_disk=True)
    yield Scenario(
        "full disk, cache",
        cache,
        checksum_of_cache,
        resumes_from_checkpoint=False,
        fills_disk=True,
    )


def main() -> int:
    """Run all trials, print the table and return 1 if something was lost."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--trials", type=int, default=120, help="over all scenarios")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument(
        "--only", default="", help="scenarios whose name contains this text"
    )
    options.add_argument(
        "--output", type=Path, help="write the figures to this JSON file"
    )
    arguments = options.parse_args()
    harness.import_everything()
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(prefix="kd-kills-") as name:
        folder = Path(name)
        chosen = [s for s in scenarios(folder) if arguments.only in s.name]
        per_scenario = -(-arguments.trials // len(chosen))
        for scenario in chosen:
            tallies[scenario.name] = tally = Tally()
            home = folder / scenario.name.replace(" ", "-").replace(",", "")
            whole = harness.run(scenario.arguments, home / "whole", LIMIT_S)
            if whole.code != 0:
                tally.add("failed without a kill", whole.err[:300])
                print(f"{scenario.name}: failed without a kill: {whole.err[:300]}")
                continue
            expected = scenario.result(home / "whole")
            for number in range(per_scenario):
                seed = f"{arguments.seed} {scenario.name} {number}"
                tally.add(
                    *trial(scenario, expected, whole.seconds, seed, home / str(number))
                )
                print(f"{scenario.name}: {dict(tally.counts)}", end="\r", flush=True)
            print()
            for example in tally.examples[:3]:
                print(f"    {example}")
    if arguments.output:
        figures = {name: dict(tally.counts) for name, tally in tallies.items()}
        arguments.output.write_text(json.dumps(figures, indent=2) + "\n")
    return int(any(tally.examples for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())

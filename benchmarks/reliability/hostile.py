"""Tries files and arguments that want to run code, and counts those that succeed.

    python benchmarks/reliability/hostile.py --output hostile.json

Every case tries to create a file named `executed` in its folder, or to send an escape sequence to
the terminal. Nothing may succeed, and nothing may end in a traceback or a hang.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import random
import shutil
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import harness
import torch
import yaml
from cases import TEACHER, Case, Trained, student
from cases_configs import SPEC
from malformed import LIMIT_S, train

MARK = "executed"
FAULTS = (
    "executed",
    "escape sequence",
    "traceback",
    "hang",
    "crash",
    "refused wrongly",
)
ESCAPE = "\x1b"

SYSTEM = ("os.system", {"command": f"touch {MARK}"})
FUNCTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    SYSTEM,
    ("os.popen", {"cmd": f"touch {MARK}"}),
    ("os.mkdir", {"path": MARK}),
    ("subprocess.getoutput", {"cmd": f"touch {MARK}"}),
    ("subprocess.call", {"args": ["touch", MARK]}),
    ("subprocess.check_output", {"args": ["touch", MARK]}),
    ("subprocess.Popen", {"args": ["touch", MARK]}),
    ("builtins.eval", {"source": f"open({MARK!r}, 'w')"}),
    ("builtins.exec", {"source": f"open({MARK!r}, 'w')"}),
    ("builtins.open", {"file": MARK, "mode": "w"}),
    ("runpy.run_path", {"path_name": "stranger.py"}),
    ("importlib.import_module", {"name": "stranger"}),
    ("shutil.copy", {"src": "stranger.py", "dst": MARK}),
    ("torch.load", {"f": "pickle.bin", "weights_only": False}),
    ("torch.hub.load", {"repo_or_dir": ".", "model": "net", "source": "local"}),
    ("stranger.Net", {}),
    ("stranger.make", {}),
)

PLACES = {
    "model": "--model",
    "network": "--model.network",
    "optimizer": "--model.optimizer",
    "scheduler": "--model.scheduler",
    "data": "--data",
    "augmentation": "--data.augment",
    "callback": "--trainer.callbacks",
    "logger": "--trainer.logger",
    "profiler": "--trainer.profiler",
    "plugin": "--trainer.plugins",
    "strategy": "--trainer.strategy",
}
LISTS = ("augmentation", "callback", "plugin")
OWN_CODE = ("stranger.Net", "stranger.make")
"""Classes that the user may name on the command line: their import is no fault there."""

TAGS = (
    f"!!python/object/apply:os.system ['touch {MARK}']",
    f"!!python/object/new:os.system ['touch {MARK}']",
    f"!!python/object/apply:subprocess.Popen [['touch', '{MARK}']]",
    "!!python/module:stranger",
    "!!python/name:stranger.Net",
    "!!python/object:stranger.Net {}",
)


class Executed:
    """Creates the mark if it is unpickled without restrictions."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {MARK}",)


def stranger(folder: Path) -> None:
    """A module in the current folder whose import creates the mark."""
    code = f"import torch\nopen({MARK!r}, 'w')\n"
    code += (
        "class Net(torch.nn.Linear):\n    def __init__(self): super().__init__(2, 2)\n"
    )
    code += "def make() -> torch.nn.Module:\n    return Net()\n"
    (folder / "stranger.py").write_text(code)
    (folder / "hubconf.py").write_text(code + "net = make\n")
    (folder / "pickle.bin").write_bytes(pickle.dumps(Executed()))


def pickled(how: str) -> bytes:
    """A file that runs code if it is unpickled without restrictions."""
    if how == "raw":
        return pickle.dumps({"state_dict": Executed()})
    buffer = io.BytesIO()
    torch.save(
        {"state_dict": Executed()}, buffer, _use_new_zipfile_serialization=how == "zip"
    )
    return buffer.getvalue()


def write_file(name: str, content: bytes, folder: Path) -> None:
    """Write one file, and the stranger's module beside it."""
    stranger(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def pickle_cases(trained: Trained) -> Iterator[Case]:
    """Pickles in place of all files that commands read."""
    for how in ("zip", "legacy", "raw"):
        content = pickled(how)
        for suffix in (".ckpt", ".pt", ".pth", ".bin", ".th", ".pkl", ".safetensors"):
            prepare = partial(write_file, f"x{suffix}", content)
            yield Case(
                "pickles", f"{how} {suffix} teacher", student(f"x{suffix}"), prepare
            )
        prepare = partial(write_file, "x.ckpt", content)
        start = [*TEACHER, "--model.init_from=x.ckpt"]
        yield Case("pickles", f"{how} init_from", start, prepare)
        for command in ("fit", "test", "validate", "predict"):
            arguments = [command, *TEACHER[1:], "--ckpt_path=x.ckpt"]
            yield Case("pickles", f"{how} kd {command}", arguments, prepare)
        members = "--model.teacher={class_path: kd_lightning.teachers.EnsembleTeacher, init_args: "
        ensemble = [
            *student("x.ckpt")[:-1],
            members + "{teachers: [{checkpoint: x.ckpt}]}}",
        ]
        yield Case("pickles", f"{how} ensemble", ensemble, prepare)


def export_cases(trained: Trained) -> Iterator[Case]:
    """A program of torch.export that holds a pickle, in the folder of an export."""
    yield Case("exports", "kd predict", ["predict", "export", "x.npz"], write_export)


def write_export(folder: Path) -> None:
    """Write an export whose example inputs run code if torch unpickles them."""
    export = folder / "export"
    export.mkdir()
    program = torch.export.export(torch.nn.Linear(4, 2), (torch.zeros(1, 4),))
    torch.export.save(program, folder / "clean.pt2")
    with (
        zipfile.ZipFile(folder / "clean.pt2") as clean,
        zipfile.ZipFile(export / "student.pt2", "w") as hostile,
    ):
        for name in clean.namelist():
            content = clean.read(name)
            if "sample_inputs" in name:
                content = pickled("zip")
            hostile.writestr(name, content)
    described = {
        "format": "torch-export",
        "task": "classification",
        "classes": ["a", "b"],
        "inputs": [{"name": "inputs", "shape": [1, 4], "dtype": "float32"}],
        "parameters": 10,
        "flops": 10,
        "metrics": {},
    }
    (export / "student.json").write_text(json.dumps(described))
    (folder / "x.npz").write_bytes(b"")


def network_cases(trained: Trained) -> Iterator[Case]:
    """Checkpoints whose network is code."""
    for class_path, arguments in FUNCTIONS:
        network = {"class_path": class_path, "init_args": arguments}
        for place, described in {
            "network": network,
            "argument": {
                "class_path": "kd_lightning.models.MLP",
                "init_args": {"hidden": [network]},
            },
        }.items():
            prepare = partial(write_checkpoint, trained.checkpoint, described)
            name = f"{place} {class_path}"
            yield Case("checkpoints", name, student("x.ckpt"), prepare)


def write_checkpoint(source: Path, network: object, folder: Path) -> None:
    """A good checkpoint that describes another network."""
    stranger(folder)
    content = torch.load(source, weights_only=True)
    content["kd_lightning"]["network"] = network
    torch.save(content, folder / "x.ckpt")


def argument_cases(trained: Trained) -> Iterator[Case]:
    """Functions in place of classes, on the command line."""
    for place, option in PLACES.items():
        for class_path, arguments in FUNCTIONS:
            if class_path in OWN_CODE:
                continue
            value: object = {"class_path": class_path, "init_args": arguments}
            if place in LISTS:
                value = [value]
            argument = f"{option}={json.dumps(value)}"
            yield Case(
                "arguments", f"{place} {class_path}", [*TEACHER, argument], stranger
            )


def run_folder_cases(trained: Trained) -> Iterator[Case]:
    """Run folders whose config names code."""
    commands = ("fit", "test", "validate", "predict")
    for number, (class_path, arguments) in enumerate(FUNCTIONS):
        for place in ("optimizer", "scheduler", "network"):
            value = {"class_path": class_path, "init_args": arguments}
            prepare = partial(write_run, trained.teacher, place, value)
            command = [commands[number % 4], "--ckpt_path=run/checkpoints/last.ckpt"]
            yield Case("run folders", f"{place} {class_path}", command, prepare)
        prepare = partial(write_run, trained.teacher, "optimizer", class_path)
        command = [commands[number % 4], "--ckpt_path=run/checkpoints/last.ckpt"]
        yield Case("run folders", f"bare {class_path}", command, prepare)


def write_run(source: Path, place: str, value: object, folder: Path) -> None:
    """A good run folder with another entry in its config."""
    stranger(folder)
    shutil.copytree(source, folder / "run")
    path = folder / "run" / "config.yaml"
    content = yaml.safe_load(path.read_text())
    content["model"]["init_args"][place] = value
    path.write_text(yaml.safe_dump(content))


def yaml_cases(trained: Trained) -> Iterator[Case]:
    """Tags that construct Python objects, in all places that read YAML."""
    for tag in TAGS:
        config = partial(write_file, "x.yaml", f"model: {tag}\n".encode())
        yield Case("YAML", f"config {tag}", [*TEACHER, "-c", "x.yaml"], config)
        yield Case(
            "YAML", f"argument {tag}", [*TEACHER, f"--model.network={tag}"], stranger
        )
        yield Case("YAML", f"losses {tag}", [*TEACHER, f"--model={tag}"], stranger)
        spec = partial(write_file, "x.yaml", f"title: {tag}\n".encode())
        yield Case("YAML", f"spec {tag}", ["reproduce", "x.yaml", "--dry-run"], spec)
        good = partial(write_file, "x.yaml", yaml.safe_dump(SPEC).encode())
        setting = [
            "reproduce",
            "x.yaml",
            "--dry-run",
            f"--set=trainer.max_epochs={tag}",
        ]
        yield Case("YAML", f"set {tag}", setting, good)
        run = partial(write_text_config, trained.teacher, f"model: {tag}\n")
        test = ["test", "--ckpt_path=run/checkpoints/last.ckpt"]
        yield Case("YAML", f"run folder {tag}", test, run)


def write_text_config(source: Path, text: str, folder: Path) -> None:
    """A good run folder with another config."""
    stranger(folder)
    shutil.copytree(source, folder / "run")
    (folder / "run" / "config.yaml").write_text(text)


def analysis_cases(trained: Trained) -> Iterator[Case]:
    """Experiments whose analyses are no analyses."""
    for class_path, arguments in FUNCTIONS:
        if class_path in OWN_CODE:
            continue
        content = {**SPEC, "analyses": {"a": {"function": class_path, **arguments}}}
        prepare = partial(write_file, "x.yaml", yaml.safe_dump(content).encode())
        command = ["reproduce", "x.yaml", "--store=store", "--output=results"]
        yield Case("analyses", class_path, command, prepare)


def terminal_cases(trained: Trained) -> Iterator[Case]:
    """Names with escape sequences and markup."""
    evil = f"{ESCAPE}]0;owned\x07{ESCAPE}[31m"
    for name in (f"a{evil}", "a[/red]b", "a<script>b", "a|b", "a\nb"):
        safe = name.encode("unicode_escape").decode()
        yield Case("names", f"missing file {safe}", [*TEACHER, f"--ckpt_path={name}"])
        yield Case("names", f"command {safe}", [name])
        yield Case("names", f"config {safe}", [*TEACHER, "-c", name])
        yield Case("names", f"compare {safe}", ["compare", name])
        yield Case("names", f"class {safe}", [*TEACHER, f"--model.network={name}"])
        prepare = partial(copy_run, trained.teacher, name)
        arguments = ["compare", f"runs/{name}", "--metrics=val_accuracy"]
        yield Case("names", f"run folder {safe}", arguments, prepare, "either")
        content = {**SPEC, "title": name, "claim": name, "runs": {name: {}}}
        spec = partial(write_file, "x.yaml", yaml.safe_dump(content).encode())
        dry = ["reproduce", "x.yaml", "--dry-run"]
        yield Case("names", f"experiment {safe}", dry, spec, "either")


def copy_run(source: Path, name: str, folder: Path) -> None:
    """A good run folder under a hostile name."""
    shutil.copytree(source, folder / "runs" / name)


def good_cases(trained: Trained) -> Iterator[Case]:
    """Good files, which show that the others are refused for what they hold."""
    good_run = partial(copy_run, trained.teacher, "good")
    test = ["test", "--ckpt_path=runs/good/checkpoints/last.ckpt"]
    yield Case("good", "run folder", test, good_run, "accepted")
    yield Case(
        "good", "checkpoint", student(str(trained.checkpoint)), expected="accepted"
    )
    spec = partial(write_file, "x.yaml", yaml.safe_dump(SPEC).encode())
    dry = ["reproduce", "x.yaml", "--dry-run"]
    yield Case("good", "experiment", dry, spec, "accepted")


GROUPS = (
    good_cases,
    pickle_cases,
    export_cases,
    network_cases,
    argument_cases,
    run_folder_cases,
    yaml_cases,
    analysis_cases,
    terminal_cases,
)


def verdict(case: Case, finished: harness.Finished, folder: Path) -> str:
    """Whether code ran or an escape sequence got out, else how the command ended."""
    if (folder / MARK).exists():
        return "executed"
    if ESCAPE in finished.out + finished.err:
        return "escape sequence"
    if case.expected == "accepted" and finished.outcome == "refused":
        return "refused wrongly"
    return finished.outcome


def main() -> int:
    """Run the cases, print a table and the faults; returns 1 if there are faults."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--group", default="", help="only this group")
    options.add_argument(
        "--sample", type=int, default=0, help="only this many, drawn at random"
    )
    options.add_argument("--seed", type=int, default=0, help="of the draw")
    options.add_argument(
        "--output", type=Path, help="write the figures to this JSON file"
    )
    arguments = options.parse_args()
    harness.import_everything()
    counts: dict[str, Counter[str]] = {}
    faults = []
    with tempfile.TemporaryDirectory(prefix="kd-hostile-") as name:
        home = Path(name)
        trained = train(home)
        cases = [
            c for group in GROUPS for c in group(trained) if arguments.group in c.group
        ]
        if arguments.sample:
            controls = [case for case in cases if case.expected == "accepted"]
            drawn = random.Random(arguments.seed).sample(cases, arguments.sample)
            cases = [*controls, *drawn]
        for number, case in enumerate(cases):
            folder = home / f"case{number}"
            folder.mkdir()
            case.prepare(folder)
            finished = harness.run(case.arguments, folder, LIMIT_S)
            how = verdict(case, finished, folder)
            counts.setdefault(case.group, Counter())[how] += 1
            if how not in ("refused", "accepted"):
                faults.append(
                    f"{case.group}: {case.name}: {how}: {finished.err.strip()[:250]}"
                )
                print(faults[-1].replace(ESCAPE, "ESC"), flush=True)
            shutil.rmtree(folder)
            print(
                f"{number + 1} of {len(cases)}", end="\r", file=sys.stderr, flush=True
            )
    columns = ("refused", "accepted", *FAULTS)
    print(f"| group | cases | {' | '.join(columns)} |")
    print(f"| --- |{' ---: |' * (len(columns) + 1)}")
    for group, group_counts in counts.items():
        numbers = " | ".join(str(group_counts[column]) for column in columns)
        print(f"| {group} | {group_counts.total()} | {numbers} |")
    if arguments.output:
        arguments.output.write_text(
            json.dumps({"counts": counts, "faults": faults}, indent=2)
        )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())

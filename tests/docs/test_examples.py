"""The examples of the README and the pages run, compile, or are parsed."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from kd_lightning.cli import COMMANDS, RUNS
from kd_lightning.cli import main as kd
from kd_lightning.data import DigitsDataModule, TensorDataModule
from kd_lightning.experiments.spec import load
from kd_lightning.losses import KD
from kd_lightning.models import MLP
from kd_lightning.runs.parsing import parse_config
from kd_lightning.serving.predict_command import names_inputs
from kd_lightning.tasks import Classification
from kd_lightning.training import ClassifierModule, Learner
from kd_lightning.types import CLEAN
from tests.docs.blocks import COMMANDED, PAGES, README, ROOT, blocks, kd_commands, named
from tests.training.small import copied, last, same, teacher_run

TUTORIALS = ["own-data", "own-method", "own-task", "coming-from"]
"""The pages whose Python blocks are one script."""

PYTHON = [
    (path, number)
    for path in (README, *PAGES)
    for number in range(len(blocks(path, "python")))
]
YAML = [
    (path, number)
    for path in (README, *PAGES)
    for number in range(len(blocks(path, "yaml")))
]
OWN_PACKAGE = "my_package"
"""What examples call the reader's package."""


def run_script(source: str, name: str) -> dict[str, Any]:
    """Run Python source; the variables it leaves."""
    variables: dict[str, Any] = {"__name__": name}
    exec(compile(source, name, "exec"), variables)
    return variables


def accuracy(learner: Learner) -> float:
    source = DigitsDataModule().source("test")
    batch = source.batch(torch.arange(len(source)), CLEAN)
    with torch.no_grad():
        return float((learner(batch).logits.argmax(-1) == batch.target).double().mean())


# -- Python ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "number"), PYTHON, ids=[f"{named(path)}-{n}" for path, n in PYTHON]
)
def test_python_compiles(path: Path, number: int) -> None:
    compile(blocks(path, "python")[number], str(path), "exec")


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = "\n".join(blocks(ROOT / "docs" / f"{name}.md", "python"))
    assert "assert " in source
    run_script(source, name)


@pytest.fixture
def trained_teacher(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The teacher that the first command of the README trains, below the current folder."""
    checkpoint = tmp_path / "runs" / "digits-mlp" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    shutil.copy(last(teacher_run(tmp_path_factory)), checkpoint)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("trained_teacher")
def test_a_loop_of_your_own_trains_a_student() -> None:
    path = ROOT / "docs" / "first-steps.md"
    (loop,) = [block for block in blocks(path, "python") if "objective(" in block]
    lines = [line for line in loop.splitlines() if line]
    statements = [line for line in lines if not line.startswith(("import", "from"))]
    assert len(statements) <= 20
    torch.manual_seed(0)
    variables = run_script(loop, "loop")
    assert accuracy(variables["student"]) > 0.5


@pytest.mark.usefixtures("trained_teacher")
def test_the_python_of_the_readme_trains_a_student() -> None:
    (example,) = blocks(README, "python")
    torch.manual_seed(0)
    variables = run_script(example, "readme")
    learner = Learner(variables["student"].student.eval())
    assert accuracy(learner) > 0.5


@pytest.mark.usefixtures("trained_teacher")
def test_weights_are_loaded_in_plain_torch() -> None:
    (block,) = [
        block
        for block in blocks(ROOT / "docs" / "export.md", "python")
        if "load_state_dict" in block
    ]
    load_weights = run_script(block, "export")["load_weights"]
    checkpoint = "runs/digits-mlp/checkpoints/last.ckpt"
    network = ClassifierModule.load_from_checkpoint(checkpoint).net
    trained = copied(network)
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    load_weights(network, checkpoint, "network")
    assert same(copied(network), trained)


# -- YAML ------------------------------------------------------------------------------------------


def class_paths(content: object) -> list[str]:
    """All class paths below a YAML node."""
    found = []
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "class_path":
                found.append(str(value))
            found += class_paths(value)
    elif isinstance(content, list):
        for value in content:
            found += class_paths(value)
    return found


def test_class_paths_are_found_at_any_depth() -> None:
    content = yaml.safe_load(
        "a: [{class_path: x.Y, init_args: {b: {class_path: z.W}}}]"
    )
    assert class_paths(content) == ["x.Y", "z.W"]


@pytest.mark.parametrize(
    ("path", "number"), YAML, ids=[f"{named(path)}-{n}" for path, n in YAML]
)
def test_yaml_is_valid_and_names_classes_that_exist(path: Path, number: int) -> None:
    content = yaml.safe_load(blocks(path, "yaml")[number])
    paths = class_paths(content)
    assert paths
    for class_path in paths:
        module, _, name = class_path.rpartition(".")
        if module == OWN_PACKAGE:
            # A class of the reader's must be defined on the same page.
            assert f"class {name}(" in path.read_text(encoding="utf-8")
        else:
            assert hasattr(import_module(module), name), class_path


@pytest.mark.parametrize("number", range(2))
def test_the_settings_of_the_page_on_training_are_valid(
    number: int, tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(blocks(ROOT / "docs" / "training.md", "yaml")[number])
    arguments = [*shlex.split(TEACHER), "-c", str(file)]
    config = parse_config(["fit", *arguments])
    given = yaml.safe_load(file.read_text())["model"]["init_args"]
    for name, value in given.items():
        parsed = config["model"]["init_args"][name]
        assert len(parsed or []) == len(value or [])


# -- commands --------------------------------------------------------------------------------------

BASE = "-c configs/trainer.yaml -c configs/data/digits.yaml "
OTHER_DATA = {
    "--data.predict_folder": "-c configs/data/image_folder.yaml",
    "--data.predict_file": "-c configs/data/text.yaml",
}
"""The data of a run that is asked for predictions with an option of its own."""
TEACHER = BASE + "-c configs/teachers/digits_mlp.yaml"
PAIR = BASE + "-c configs/pairs/digits_mlp256_mlp16.yaml -c configs/methods/kd.yaml"

COMMANDS_OF_PAGES = sorted(
    {(command, path) for path in COMMANDED for command in kd_commands(path)}
)


@pytest.fixture
def own_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader's package, with the classes that commands name."""
    package = ModuleType(OWN_PACKAGE)
    bases = {
        "MyDataModule": DigitsDataModule,
        "MyData": DigitsDataModule,
        "Wines": TensorDataModule,
        "Progression": TensorDataModule,
        "MyNet": MLP,
        "OrderedClasses": Classification,
        "TopTwo": KD,
    }
    for name, base in bases.items():
        own = type(name, (base,), {"__module__": OWN_PACKAGE, "load": MLP.forward})
        setattr(package, name, own)
    monkeypatch.setitem(sys.modules, OWN_PACKAGE, package)
    assert issubclass(package.MyNet, nn.Module)


def completed(words: list[str]) -> list[str]:
    """The arguments of a run's command, with what it takes from elsewhere.

    `...` stands for the rest of a command, and a run that is tested or resumed has its own config.
    """
    needs_network = any(word.startswith("--model.network") for word in words)
    base = shlex.split(TEACHER if needs_network else PAIR)
    if "..." in words:
        at = words.index("...")
        return [*words[:at], *base, *words[at + 1 :]]
    for option, config in OTHER_DATA.items():
        if any(word.startswith(option) for word in words):
            base += shlex.split(config)
    if any(word.startswith("--ckpt_path") for word in words):
        return [words[0], *base, *words[1:]]
    return words


def parse_command(words: list[str]) -> None:
    """Parse the arguments of a `kd` command; a mistake raises.

    Args:
        words: the command's name and its arguments.
    """
    name = words[0]
    if name == "predict" and names_inputs(words[1:]):
        from kd_lightning.serving.predict_command import parser as predict_parser

        predict_parser().parse_args(words[1:])
    elif name in RUNS:
        if any(word.endswith(".help") for word in words):
            words = [
                *words[:-1],
                words[-1].replace("CLASS", "kd_lightning.ClassifierModule"),
            ]
        parse_config(completed(words))
    elif name == "cache":
        from kd_lightning.runs.cache_command import parser as cache_parser

        _, rest = cache_parser().parse_known_args(words[1:])
        if rest:
            parse_config(["fit", *rest])
    elif name in ("reproduce", "demo"):
        from kd_lightning.experiments.arguments import parser as reproduce_parser

        options, _ = reproduce_parser().parse_known_args(words[1:])
        if options.experiment is not None and name == "reproduce":
            load(options.experiment)
    elif name == "compare":
        from kd_lightning.compare.command import parser as compare_parser

        compare_parser().parse_args(words[1:])
    elif name == "export":
        from kd_lightning.export.command import parser as export_parser

        export_parser().parse_args(words[1:])
    elif name == "benchmark":
        from kd_lightning.export.benchmark_command import parser as benchmark_parser

        benchmark_parser().parse_args(words[1:])
    elif name == "report":
        from kd_lightning.report.command import parser as report_parser

        report_parser().parse_args(words[1:])
    elif name == "serve":
        from kd_lightning.serving.serve_command import parser as serve_parser

        serve_parser().parse_args(words[1:])
    elif name == "init":
        from kd_lightning.projects.command import parser as init_parser

        init_parser().parse_args(words[1:])
    else:
        assert name in COMMANDS, f"kd has no command {name}"
        assert kd(words) == 0


@pytest.mark.usefixtures("own_package")
@pytest.mark.parametrize(
    ("command", "path"),
    COMMANDS_OF_PAGES,
    ids=[f"{named(path)}: {command[:60]}" for command, path in COMMANDS_OF_PAGES],
)
def test_a_command_is_accepted(command: str, path: Path) -> None:
    words = shlex.split(command)[1:]
    code: object = 0
    try:
        parse_command(words)
    except SystemExit as stop:
        # A page of help ends the process.
        code = stop.code
    assert code == 0


@pytest.mark.parametrize(
    "command",
    ["fit ... --model.losses.kd.temperatur=2", "compare --nothing x", "nothing"],
)
def test_the_check_of_commands_can_fail(command: str) -> None:
    with pytest.raises((ValueError, AssertionError)):
        parse_command(shlex.split(command))


def test_the_text_command_has_an_optimizer_that_learns() -> None:
    commands = kd_commands(ROOT / "docs" / "data.md")
    (command,) = [each for each in commands if "configs/data/text.yaml" in each]
    config = parse_config(shlex.split(command)[1:])
    optimizer = config["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.AdamW"
    assert optimizer["init_args"]["lr"] == 0.001


# -- messages --------------------------------------------------------------------------------------


def literals() -> set[str]:
    """All fixed texts in the source, white space as single spaces."""
    found = set()
    for path in (ROOT / "kd_lightning").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(" ".join(node.value.split()))
    return found


def test_the_messages_of_the_troubleshooting_page_exist() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = []
    for line in text.splitlines():
        symptom = line.split("|")[1] if line.startswith("| ") else ""
        # Options and names of files are no messages.
        for code in re.findall(r"`([^`]+)`", symptom):
            if " " in code and not code.startswith("operator "):
                messages.append(code)
    assert len(messages) > 25
    known = literals()
    missing = []
    for message in messages:
        if not any(message in text for text in known):
            missing.append(message)
    assert missing == []

"""Pages of help that can be found and read."""

from __future__ import annotations

import json

import pytest

from kd_lightning.cli import COMMANDS, RUNS, main
from kd_lightning.runs.help import CLASS_HELP, MODULE, RunParser, with_module
from kd_lightning.runs.parsing import parse_config, parse_resolved, run_parser
from kd_lightning.runs.short_help import GROUPS, WIDTH, Option

MOST_LINES = 50
"""The lines of a screen."""

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def parser() -> RunParser:
    made = run_parser("fit")
    assert isinstance(made, RunParser)
    return made


def page(parser: RunParser, capsys: Capture, *arguments: str) -> str:
    """What a request for help prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        parse_resolved(parser, list(arguments))
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_the_help_of_fit_ends_with_the_pages_of_classes(parser: RunParser) -> None:
    assert parser.format_help().endswith(CLASS_HELP)


def test_every_page_that_the_help_names_is_there(
    parser: RunParser, capsys: Capture
) -> None:
    requests = [
        line.split()[2:4] for line in CLASS_HELP.splitlines() if ".help " in line
    ]
    assert len(requests) == 5
    for option, name in requests:
        text = page(parser, capsys, option, name)
        assert "Help for --" in text
        assert name.rpartition(".")[2] in text
        assert CLASS_HELP not in text


@pytest.mark.parametrize("name", [MODULE, "kd_lightning.ClassifierModule"])
def test_the_page_of_a_module_does_not_list_the_layers_of_torch(
    name: str, parser: RunParser, capsys: Capture
) -> None:
    text = page(parser, capsys, "--model.help", name)
    assert "torch.nn." not in text
    assert "in all; kd list models names the networks" in text
    # Short lists are whole.
    assert "kd_lightning.losses.KD" in text
    assert len(text.splitlines()) < 200


def test_short_lists_of_classes_are_whole(parser: RunParser) -> None:
    text = parser.format_help()
    assert "lightning.pytorch.accelerators.CPUAccelerator" in text
    assert "lightning.pytorch.callbacks.EarlyStopping" in text
    assert "in all; kd list models" not in text


def test_help_about_a_teacher_needs_no_module() -> None:
    asked = ["--model.teacher.help", "ModelTeacher"]
    assert with_module(asked) == ["--model.help", MODULE, *asked]
    assert with_module(["--trainer.max_epochs=1", *asked]) == [
        "--model.help",
        MODULE,
        *asked,
    ]
    chosen = [f"--model={MODULE}", *asked]
    assert with_module(chosen) == chosen
    other = ["--model.losses.help", "KD"]
    assert with_module(other) == other


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["methods", "KD"], "more: kd fit --model.losses.help KD"),
        (["losses", "kd"], "more: kd fit --model.losses.help KD"),
        (
            ["models", "MLP"],
            "more: kd fit --model.network.help kd_lightning.models.MLP",
        ),
        (
            ["data", "digits"],
            "more: kd fit --data.help kd_lightning.data.DigitsDataModule",
        ),
        (["experiments", "demo"], "more: kd reproduce demo --help"),
        (["configs", "configs/methods/kd.yaml"], "Soft targets"),
    ],
)
def test_list_describes_one_entry(
    words: list[str], shown: str, capsys: Capture
) -> None:
    assert main(["list", *words]) == 0
    assert shown in capsys.readouterr().out
    assert main(["list", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["metods"], "valid kinds: methods, models, data, experiments, configs"),
        (["methods", "kdd"], "there is no 'kdd'; did you mean 'KD'?"),
        (["models", "zzzzzz"], "kd list models names all"),
        (["methods", "kd", "ce"], "valid kinds"),
        ([], "usage"),
    ],
)
def test_list_hints_at_what_there_is(
    words: list[str], hint: str, capsys: Capture
) -> None:
    main(["list", *words])
    out, err = capsys.readouterr()
    assert hint in out + err


@pytest.mark.parametrize("command", ["--help", *COMMANDS])
def test_the_help_of_a_command_fits_a_screen(
    command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    words = [command] if command == "--help" else [command, "--help"]
    try:
        code: object = main(words)
    except SystemExit as stop:
        code = stop.code
    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert 2 < len(lines) <= MOST_LINES
    assert [line for line in lines if len(line) > WIDTH] == []


def described(command: str) -> list[Option]:
    """All options in the short help of a command."""
    all_options: list[Option] = []
    for options in GROUPS[command].values():
        all_options += options
    return all_options


def test_the_short_help_names_options_and_defaults_of_the_parser(
    parser: RunParser,
) -> None:
    known: dict[str, object] = {}
    for action in parser._actions:
        for name in action.option_strings:
            known[name] = action.default
    for option in described("fit"):
        # Options of classes are not the parser's own; the next test parses them.
        if option.name.startswith(("--model.", "--data.")):
            continue
        assert option.name in known, option.name
        if option.default not in ("", "auto", "32-true"):
            default = str(known[option.name])
            assert default in (option.default, option.default.capitalize())


@pytest.mark.parametrize(
    ("name", "value", "path"),
    [
        ("--model.init_from", "FILE", "model.init_args.init_from"),
        (
            "--model.teacher.checkpoint",
            "FILE",
            "model.init_args.teacher.init_args.checkpoint",
        ),
        (
            "--model.losses.kd.temperature",
            "4.0",
            "model.init_args.losses.kd.init_args.temperature",
        ),
        ("--data.batch_size", "128", "data.init_args.batch_size"),
        ("--data.validation", "0.1", "data.init_args.validation"),
        ("--data.fraction", "1.0", "data.init_args.fraction"),
        ("--data.label_fraction", "1.0", "data.init_args.label_fraction"),
        ("--data.eval_batch_size", "1000", "data.init_args.eval_batch_size"),
    ],
)
def test_the_short_help_names_options_of_classes(
    name: str, value: str, path: str, parser: RunParser
) -> None:
    pair = "-c configs/pairs/mlp1200_mlp800.yaml -c configs/methods/kd.yaml"
    argv = ["fit", *pair.split(), "--data=kd_lightning.data.MNISTDataModule"]
    content: object = parse_config([*argv, f"{name}={value}"])
    # The default is what the parser fills in if nothing is given.
    unchanged: object = parse_config(argv)
    for part in path.split("."):
        assert isinstance(content, dict)
        assert isinstance(unchanged, dict)
        content = content[part]
        unchanged = unchanged[part]
    assert str(content) == value
    names = {}
    for options in GROUPS.values():
        for group in options.values():
            names.update({option.name: option.default for option in group})
    assert name in names
    if names[name]:
        assert str(unchanged) == names[name]


@pytest.mark.parametrize("command", RUNS)
def test_help_all_is_the_whole_help(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help-all"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "--trainer.accumulate_grad_batches" in out
    assert out.endswith(CLASS_HELP)

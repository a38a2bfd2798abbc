"""Parses the arguments of a run with Lightning's argument parser into one config."""

from __future__ import annotations

from typing import Any, Literal

import lightning.pytorch as pl
from jsonargparse import (  # type: ignore[attr-defined]
    ActionConfigFile,
    Namespace,
    set_loader,
)
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from yaml import YAMLError

from kd_lightning.errors import UserError
from kd_lightning.runs.config_errors import config_errors
from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.help import CLASS_HELP, RunParser, with_module
from kd_lightning.runs.joined_lists import JOINED_LISTS
from kd_lightning.runs.options import RunOptions
from kd_lightning.runs.quiet import quiet
from kd_lightning.runs.ranges import check_config
from kd_lightning.runs.settings import flat, option_of
from kd_lightning.runs.suggestions import with_suggestion
from kd_lightning.training.module import TrainingModule
from kd_lightning.weights import plain
from kd_lightning.yaml_files import parse_yaml

TRAINER_DEFAULTS = {
    "trainer.enable_model_summary": False,
    # The datamodule's loaders divide the samples among processes themselves.
    "trainer.use_distributed_sampler": False,
    "trainer.num_sanity_val_steps": 0,
}

PARSER_MODE = "kd_yaml"
"""The name under which jsonargparse knows our YAML reader."""


def read_argument(text: str) -> Any:
    """The value of a config or of an option's text, read as YAML.

    Raises:
        yaml.YAMLError: if the text is not valid; the parser then takes it as plain text.
    """
    value = parse_yaml(text)
    if isinstance(value, dict) and all(item is None for item in value.values()):
        # `name:` and `{name}` are text to a user, but mappings to null in YAML.
        inner = text.strip().strip("{}").replace(" ", "")
        words = inner.removesuffix(":").split(",")
        if words == list(map(str, value)):
            return text
    return value


set_loader(PARSER_MODE, read_argument, (YAMLError,))


def run_parser(command: str) -> LightningArgumentParser:
    """The parser of `kd fit`, `validate`, `test` or `predict`.

    It has the options of LightningCLI. LightningCLI itself would build everything in its
    constructor, but our model depends on the data, and a run's key needs the config alone.

    Args:
        command: a method of the Trainer.
    """
    parser = RunParser(
        prog=f"kd {command}",
        description=f"kd {command} on PyTorch Lightning",
        exit_on_error=False,
        parser_mode=PARSER_MODE,
        # An abbreviation that works today would become ambiguous with the next option.
        allow_abbrev=False,
    )
    parser.ending = CLASS_HELP
    parser.add_argument(
        "-c",
        "--config",
        action=ActionConfigFile,
        help="a config file in YAML; may be repeated. Later files take precedence, losses are "
        f"merged by name, and the lists {JOINED_LISTS} are joined in the order of the files",
    )
    parser.add_argument(
        "--seed_everything",
        type=bool | int,
        default=0,
        help="the seed of all random numbers; true draws one",
    )
    parser.add_lightning_class_args(pl.Trainer, "trainer")
    parser.set_defaults(TRAINER_DEFAULTS)
    parser.add_lightning_class_args(TrainingModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(pl.LightningDataModule, "data", subclass_mode=True)
    parser.add_class_arguments(RunOptions, "run")
    parser.add_argument(
        "--matmul_precision",
        type=Literal["highest", "high", "medium"],
        default="highest",
        help="precision of float32 matrix products: medium computes them in bfloat16, two to "
        "three times as fast if the processor has units for it (AMX, tensor cores); weights and "
        "sums stay float32",
    )
    # Options of the Trainer's method, such as --ckpt_path, without the objects that we pass.
    objects: set[str | int] = set(LightningCLI.subcommands()[command])
    parser.add_method_arguments(pl.Trainer, command, skip=objects)
    return parser


NULLS = ("null", "Null", "NULL", "~")
"""How YAML writes nothing."""


def parse_resolved(parser: LightningArgumentParser, arguments: list[str]) -> Namespace:
    """Parse arguments that `resolve_configs` returned, without the command's name.

    Raises:
        UserError: if the parser does not accept them, or if a number is out of range.
    """
    try:
        with config_errors():
            config = parser.parse_args(with_module(arguments))
    except UserError as error:
        options: list[str] = []
        for action in parser._actions:
            options += action.option_strings
        message = _with_way_in(with_suggestion(str(error), options))
        raise UserError(message) from error
    _restore_nulls(config, arguments)
    check_config(plain_config(config))
    return config


def _with_way_in(message: str) -> str:
    """The parser's message; for a command without data or model, how to give them."""
    _, marker, missing = message.partition("the following arguments are required: ")
    names = missing.split(", ")
    if not marker or not {"data", "model"}.issuperset(names):
        return message
    options = " and ".join(f"--{name}" for name in names)
    verb = "are" if len(names) > 1 else "is"
    return (
        f"{options} {verb} missing; give configs, such as -c configs/data/digits.yaml, or the "
        "checkpoint of a run, --ckpt_path=RUN/checkpoints/last.ckpt"
    )


def _restore_nulls(config: Namespace, arguments: list[str]) -> None:
    """Set the settings to `None` that an option sets to null.

    The parser makes the text "None" of it if the option belongs to a class within another class,
    such as a tokenizer of the data.

    Args:
        config: changed in place.
        arguments: that it was parsed from.
    """
    nulls = set()
    # The last argument has no next one.
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, separator, value = argument.partition("=")
        if (value if separator else following) in NULLS:
            nulls.add(option)
    if not nulls:
        return
    for name, value in flat(plain_config(config)):
        if value == "None" and option_of(name) in nulls:
            config[name] = None


def plain_config(config: Namespace) -> dict[str, Any]:
    """A parsed config in builtins, without the paths of its files."""
    content = config.clone(with_meta=False).as_dict()
    content.pop("config", None)
    return dict(plain(content))


def parse_config(argv: list[str]) -> dict[str, Any]:
    """The config of `kd` arguments in builtins; nothing is built.

    Raises:
        UserError: for a user's mistake.
    """
    quiet()
    arguments = resolve_configs(argv)
    return plain_config(parse_resolved(run_parser(argv[0]), arguments[1:]))

"""Configs of several files, and everything in a config that is refused before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kd_lightning.errors import UserError
from kd_lightning.runs.cache_command import main as cache
from kd_lightning.runs.configs import resolve_configs, with_own_config
from kd_lightning.runs.parsing import parse_config
from kd_lightning.runs.ranges import OPTIONS, Range, check_config, check_limits
from kd_lightning.runs.suggestions import argument_names
from tests.runs import TEACHER, Kd, student

STUDENT = student("teacher.ckpt")


def files(folder: Path, *contents: dict[str, Any] | str) -> list[str]:
    """`-c` arguments of one file per content."""
    arguments = []
    for number, content in enumerate(contents):
        path = folder / f"{number}.yaml"
        text = (
            content
            if isinstance(content, str)
            else yaml.safe_dump(content, sort_keys=False)
        )
        path.write_text(text)
        arguments += ["-c", str(path)]
    return arguments


def callback(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": arguments}


STOP = callback("EarlyStopping", monitor="val_nll")
RATES = callback("LearningRateMonitor")
TIMER = callback("Timer", duration="00:12:00:00")
JITTER = {"class_path": "kd_lightning.data.Jitter", "init_args": {"pixels": 1}}
FLIP = {"class_path": "kd_lightning.data.Flip", "init_args": {"probability": 0.5}}


def callbacks(*entries: Any) -> dict[str, Any]:
    return {"trainer": {"callbacks": list(entries)}}


def augment(*entries: Any, **data: Any) -> dict[str, Any]:
    return {"data": {**data, "init_args": {"augment": list(entries)}}}


def class_paths(entries: Any) -> list[str]:
    return [entry["class_path"].rpartition(".")[2] for entry in entries]


JOINED: dict[str, tuple[list[Any], list[str]]] = {
    "in order": (
        [callbacks(STOP), callbacks(RATES), callbacks(TIMER)],
        ["E", "L", "T"],
    ),
    "with files between": (
        [callbacks(STOP), {"run": {"name": "x"}}, callbacks(RATES)],
        ["E", "L"],
    ),
    "equal entries once": (
        [callbacks(STOP, RATES), callbacks(RATES, TIMER)],
        ["E", "L", "T"],
    ),
    "null replaces": (
        [callbacks(STOP), {"trainer": {"callbacks": None}}, callbacks(RATES)],
        ["L"],
    ),
    "appended before": (
        [{"trainer": {"callbacks+": [STOP]}}, callbacks(RATES)],
        ["E", "L"],
    ),
    "appended after": (
        [callbacks(STOP), {"trainer": {"callbacks+": [RATES]}}],
        ["E", "L"],
    ),
}


@pytest.mark.parametrize(("contents", "initials"), JOINED.values(), ids=JOINED)
def test_callbacks_are_joined(
    contents: list[Any], initials: list[str], tmp_path: Path
) -> None:
    config = parse_config([*TEACHER, *files(tmp_path, *contents)])
    names = class_paths(config["trainer"]["callbacks"])
    assert [name[0] for name in names] == initials


def test_loggers_and_augmentations_are_joined(tmp_path: Path) -> None:
    loggers = [
        {
            "class_path": "lightning.pytorch.loggers.CSVLogger",
            "init_args": {"save_dir": name},
        }
        for name in ("a", "b")
    ]
    contents = [
        augment(JITTER),
        augment(FLIP),
        *({"trainer": {"logger": [x]}} for x in loggers),
    ]
    config = parse_config([*TEACHER, *files(tmp_path, *contents)])
    # The teacher's own config has an augmentation, too.
    names = class_paths(config["data"]["init_args"]["augment"])
    assert names[-2:] == ["Jitter", "Flip"]
    assert [each["init_args"]["save_dir"] for each in config["trainer"]["logger"]][
        -2:
    ] == [
        "a",
        "b",
    ]


def test_other_lists_are_replaced_and_the_command_line_takes_precedence(
    tmp_path: Path,
) -> None:
    networks = [
        {"model": {"init_args": {"network": {"init_args": {"hidden": [n]}}}}}
        for n in (8, 9)
    ]
    given = files(tmp_path, *networks, callbacks(STOP))
    config = parse_config([*TEACHER, *given, f"--trainer.callbacks=[{RATES}]"])
    assert config["model"]["init_args"]["network"]["init_args"]["hidden"] == [9]
    assert class_paths(config["trainer"]["callbacks"]) == ["LearningRateMonitor"]
    config = parse_config([*TEACHER, *given, f"--trainer.callbacks+={RATES}"])
    assert class_paths(config["trainer"]["callbacks"]) == [
        "EarlyStopping",
        "LearningRateMonitor",
    ]


def test_augmentations_of_other_data_are_not_joined(tmp_path: Path) -> None:
    digits = "kd_lightning.data.DigitsDataModule"
    other = "kd_lightning.data.MNISTDataModule"
    given = files(
        tmp_path, augment(JITTER, class_path=digits), augment(FLIP, class_path=other)
    )
    last = resolve_configs(["fit", *given])[-1]
    assert yaml.safe_load(Path(last).read_text())["data"]["init_args"]["augment"] == [
        FLIP
    ]


FILES = {
    "trainer is a number": ("trainer: 3", "trainer must hold keys with values, got 3"),
    "trainer is a list": (
        "trainer: [1]",
        "trainer must hold keys with values, got [1]",
    ),
    "trainer is empty": ("trainer:", "trainer is empty"),
    "model is null": ("model: null", "model is empty"),
    "data is a number": ("data: 3", "data must hold keys"),
    "run is a text": ("run: x", "run must hold keys"),
    "empty init_args": ("model:\n  init_args:", "model.init_args is empty"),
    "init_args of a list": (
        "trainer: {callbacks: [{class_path: x, init_args: [1]}]}",
        "trainer.callbacks[0].init_args must hold keys",
    ),
    "number as a key": ("3: 4", "the key 3 must be text"),
    "duplicate": (
        "model: {}\nmodel: {}",
        "line 2: the key 'model' stands in line 1 already",
    ),
    "tag": ("run: {name: !!python/name:os.system }", "line 1: the tag"),
    "bomb": ("run: &a {tags: *a}", "refers to itself"),
    "base 60": ("trainer: {max_epochs: 1:30}", "trainer.max_epochs cannot be 1:30"),
    "long base 60": (
        "trainer: {max_time: 1" + ":30" * 5000 + "}",
        "trainer.max_time cannot be",
    ),
    "many digits": ("trainer: {max_epochs: " + "9" * 5000 + "}", "out of range"),
}


@pytest.mark.parametrize(("text", "problem"), FILES.values(), ids=FILES)
def test_a_malformed_file_is_one_line(text: str, problem: str, tmp_path: Path) -> None:
    given = files(tmp_path, text)
    with pytest.raises(UserError) as caught:
        parse_config([*TEACHER, *given])
    message = str(caught.value)
    assert problem in message
    assert "0.yaml" in message
    assert len(message) < 400


ARGUMENTS = {
    # what is misspelt
    "--model.network.hiden=[3]": "did you mean hidden?",
    "--model.losses.kd.temperatur=2": "did you mean temperature?",
    "--model.scheduler.max_rl=1": (
        "model.scheduler.max_rl: torch.optim.lr_scheduler.OneCycleLR: Option 'max_rl' is not "
        "accepted; did you mean max_lr?"
    ),
    "--trainer.max_epoch=3": "did you mean --trainer.max_epochs?",
    "--run.tset=best": "did you mean --run.test?",
    "--data.agument=3": "did you mean augment?",
    "--nothing.like=it": "unrecognized arguments: --nothing.like=it",
    # numbers
    "--model.optimizer.lr=nan": "model.optimizer.lr: torch.optim.SGD: expected float, got 'nan'",
    "--model.optimizer.lr=.nan": "model.optimizer.lr (SGD) must be a finite number, got nan",
    "--model.optimizer.lr=.inf": "must be a finite number, got inf",
    "--model.optimizer.lr=-0.1": "the learning rate must be at least 0, got -0.1",
    "--model.losses.kd.weight=.inf": "model.losses.kd.weight (KD) must be a finite number",
    "--model.losses.kd.temperature=1e308": "(KD) must be above 0 and at most 1e+06, got 1e+308",
    "--data.validation=.nan": "data.validation (DigitsDataModule) must be a finite number",
    "--data.batch_size=1000000000000": "at most 1e+09",
    "--data.augment=[{class_path: kd_lightning.data.Jitter, init_args: {pixels: 1000000000000}}]": (
        "data.augment.pixels (Jitter) must be at least 1 and at most 10000"
    ),
    "--trainer.max_epochs=" + "9" * 5000: "--trainer.max_epochs: the number 999",
    "--trainer.max_epochs=99999999999999999999": "must be a finite number",
    "--trainer.max_epochs=-2": "trainer.max_epochs must be at least 0, or -1, got -2",
    "--trainer.gradient_clip_val=-1": "trainer.gradient_clip_val must be at least 0",
    "--trainer.log_every_n_steps=0": "trainer.log_every_n_steps must be at least 1",
    "--trainer.val_check_interval=0": "trainer.val_check_interval must be above 0",
    "--trainer.check_val_every_n_epoch=0": "trainer.check_val_every_n_epoch must be at least 1",
    "--trainer.limit_train_batches=0": "trainer.limit_train_batches must be above 0",
    "--trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches must be at least 1",
    "--seed_everything=-1": "seed_everything must be at least 0",
    # sections and names
    "--trainer=3": "trainer",
    "--run=null": "run",
    "--run.name=../x": "--run.name must be the name of a folder below --run.root",
    "--run.name=a/../../x": "--run.name must be the name",
    "--run.name=/tmp/x": "--run.name must be the name",
    "--run.name=": "--run.name",
    "--run.name=\x1b[31mred": "--run.name must be the name",
    "--run.name=" + "x" * 300: "--run.name has 300 bytes",
    # YAML in arguments
    "--run.tags=!!python/object/apply:os.system [ls]": "run.tags",
    "--run.tags=&a [*a]": "run.tags",
    "--model.network.hidden=" + "[" * 5000: "hidden",
    "--trainer.max_epochs=1" + ":30" * 5000: "--trainer.max_epochs cannot be 1:30",
}


@pytest.mark.parametrize(
    ("argument", "problem"), ARGUMENTS.items(), ids=[a[:50] for a in ARGUMENTS]
)
def test_a_malformed_argument_is_one_line(argument: str, problem: str) -> None:
    base = STUDENT if "losses" in argument else TEACHER
    with pytest.raises(UserError) as caught:
        parse_config([*base, argument])
    message = str(caught.value)
    assert problem in message
    assert len(message) < 700


VALID = [
    "--trainer.max_time=00:12:00:00",
    "--trainer.max_epochs=-1",
    "--trainer.limit_val_batches=0",
    "--trainer.val_check_interval=0.5",
    "--model.optimizer.lr=0",
    "--model.optimizer.lr=1e-3",
    "--run.name=my run",
    "--run.name=12:30",
    "--run.name=group/run",
    "--run.name={a}",
    "--run.tags=[a, b]",
]


@pytest.mark.parametrize("argument", VALID)
def test_valid_arguments_stay_valid(argument: str) -> None:
    parse_config([*TEACHER, argument])


def test_every_option_with_a_range_exists() -> None:
    trainer = parse_config(TEACHER)["trainer"]
    for option in OPTIONS:
        section, _, name = option.partition(".")
        assert section == "seed_everything" or name in trainer


def test_ranges_in_words() -> None:
    assert str(Range(low=0, high=1, without_high=True)) == "at least 0 and below 1"
    assert not Range(low=0).accepts(float("nan"))
    check_config({"model": {"init_args": {"teacher": {"init_args": {"flag": True}}}}})


def test_arguments_of_base_classes_are_known() -> None:
    names = argument_names("kd_lightning.losses.KD")
    assert "temperature" in names
    assert "weight" in names
    assert argument_names("kd_lightning.losses.Nothing") == []


@pytest.mark.parametrize(
    "words", [["--ckpt_path", "nothing.ckpt"], ["--ckpt_path=nothing.ckpt"]]
)
@pytest.mark.parametrize("command", ["fit", "test", "validate", "predict"])
def test_a_missing_checkpoint_without_a_config_is_named(
    command: str, words: list[str]
) -> None:
    with pytest.raises(UserError, match=r"--ckpt_path: there is no file nothing\.ckpt"):
        with_own_config([command, *words])


def test_a_name_that_no_file_can_have_is_one_line() -> None:
    with pytest.raises(UserError, match="there is no config file"):
        resolve_configs(["fit", "-c", "x" * 5000])
    with pytest.raises(UserError, match="there is no file"):
        with_own_config(["test", "--ckpt_path", "x" * 5000])


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"limit_train_batches": 1e-9},
            "limit_train_batches=1e-09 selects none of the 20 batches",
        ),
        (
            {"limit_val_batches": 0.4},
            "limit_val_batches=0.4 selects none of the 2 batches",
        ),
        (
            {"val_check_interval": 21, "check_val_every_n_epoch": 1},
            "the 20 batches of an epoch",
        ),
    ],
)
def test_limits_that_select_nothing_are_refused(
    settings: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        check_limits(settings, {"train": 20, "val": 2})


@pytest.mark.parametrize(
    "settings",
    [
        {"limit_train_batches": 0.05, "limit_val_batches": 0.0},
        {"limit_train_batches": 1, "limit_val_batches": 0},
        {"limit_test_batches": 1e-9},
        {"val_check_interval": 21, "check_val_every_n_epoch": None},
        {"val_check_interval": 1e-9, "check_val_every_n_epoch": 1},
    ],
)
def test_other_limits_are_left_to_the_trainer(settings: dict[str, Any]) -> None:
    check_limits(settings, {"train": 20, "val": 2})


def test_the_limits_of_a_run_are_checked(kd: Kd) -> None:
    outcome = kd(*TEACHER, "--trainer.limit_train_batches=1e-9")
    assert outcome.code == 2
    assert "selects none of the" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["--views=1000000000"], ["--views=0"], ["--top-k=0"]]
)
def test_the_sizes_of_a_cache_are_checked_first(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"--(views|top-k) must be"):
        cache(["--output=x", *words])


def test_a_config_is_printed_with_numbers_and_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse_config(
            [
                *TEACHER,
                "--model.optimizer.lr=1e-5",
                "--run.name=12:30",
                "--print_config",
            ]
        )
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["run"]["name"] == "12:30"
    assert printed["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-5


@pytest.mark.parametrize("form", [["=null"], ["=~"], ["", "null"]])
def test_null_is_nothing_in_a_class_within_a_class(form: list[str]) -> None:
    """The parser alone would make the text "None" of it."""
    first, *second = form
    argv = [
        *("fit", "-c", "configs/trainer.yaml", "-c", "configs/data/sst2.yaml"),
        *("-c", "configs/teachers/sst2_transformer.yaml"),
        *("--data.tokenizer.checkpoint=a.ckpt", "--data.root=null"),
        *(f"--data.tokenizer.checkpoint{first}", *second),
        "--run.name=None",
    ]
    config = parse_config(argv)
    data = config["data"]["init_args"]
    assert data["tokenizer"]["init_args"]["checkpoint"] is None
    assert data["root"] is None
    # A text that happens to be "None" stays one.
    assert config["run"]["name"] == "None"


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["test"], "--data and --model are missing"),
        (["fit", "-c", "configs/data/digits.yaml"], "--model is missing"),
    ],
)
def test_a_command_without_data_or_model_names_the_ways_in(
    arguments: list[str], missing: str, kd: Kd
) -> None:
    outcome = kd(*arguments)
    assert outcome.code == 2
    error = outcome.err
    assert error.startswith(f"kd: {missing}; give configs")
    assert "--ckpt_path=RUN/checkpoints/last.ckpt" in error
    assert error.count("\n") == 1

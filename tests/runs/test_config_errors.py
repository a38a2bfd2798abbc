"""jsonargparse's errors, as it really words them, in one line."""

from __future__ import annotations

import pytest
from jsonargparse import ArgumentError

from kd_lightning.errors import UserError
from kd_lightning.runs.config_errors import config_errors, one_line
from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.parsing import run_parser
from tests.runs import PAIR, student

STUDENT = student("teacher.ckpt")


def message(argv: list[str]) -> str:
    """What jsonargparse says of the arguments."""
    with pytest.raises(ArgumentError) as caught:
        run_parser(argv[0]).parse_args(resolve_configs(argv)[1:])
    return str(caught.value)


NESTED = {
    "--model.losses.kd.temprature=2": "model.losses.kd.temprature: kd_lightning.losses.KD: Option 'temprature' is not accepted",
    "--model.student=nowhere.Net": "model.student: nowhere.Net: No module named 'nowhere'",
    "--model.student.hidden=wide": "model.student.hidden: kd_lightning.models.MLP: expected list, got wide",
    "--model.losses.kd.temperature=abc": "model.losses.kd.temperature: kd_lightning.losses.KD: expected float, got abc",
    "--trainer.max_epochs=two": "trainer.max_epochs: expected int, got 'two'",
    "--seed_everything=abc": "seed_everything: expected bool or int, got 'abc'",
    "--model.losses.ce=torch.nn.CrossEntropyLoss": (
        "model.losses.ce: kd_lightning.DistillationModule: Import path "
        "torch.nn.CrossEntropyLoss does not correspond to a subclass of DistillLoss"
    ),
    "--data.augment=[{class_path: kd_lightning.data.Jitter, init_args: {pixel: 2}}]": (
        "data.augment: kd_lightning.data.Jitter: Option 'pixel' is not accepted"
    ),
}


@pytest.mark.parametrize("argument", NESTED)
def test_a_nested_message_becomes_its_innermost_line(argument: str) -> None:
    said = message([*STUDENT, argument])
    assert "\n" in said  # jsonargparse still nests: else this test shows nothing
    assert one_line(said) == NESTED[argument]


@pytest.mark.parametrize("argument", ["--trainer.max_epoks=2", "stray"])
def test_a_message_of_one_line_stays(argument: str) -> None:
    assert (
        one_line(message([*STUDENT, argument])) == f"unrecognized arguments: {argument}"
    )


def test_a_missing_part_is_named() -> None:
    without_losses = [*PAIR[:-2], "--model.teacher.checkpoint=teacher.ckpt"]
    said = "model: kd_lightning.DistillationModule: the following arguments are required: losses"
    assert one_line(message(without_losses)) == said


def test_plain_errors_stay_and_lines_are_joined() -> None:
    assert one_line("Invalid learning rate: -1.0") == "Invalid learning rate: -1.0"
    assert one_line("  first\n\n  second\n") == "first second"
    assert one_line("") == "unknown error"


def test_the_reason_beside_a_key_is_kept() -> None:
    with pytest.raises(ArgumentError) as caught:
        run_parser("fit").parse_args(["-c", "nowhere.yaml"])
    said = one_line(str(caught.value))
    assert said.startswith("config: ")
    assert "nowhere.yaml" in said


def test_choices_are_listed_with_the_value() -> None:
    said = one_line(message([*STUDENT, "--run.test=never"]))
    assert said.startswith("run.test: expected one of 'no', 'last', 'best'")
    assert said.endswith("never")
    several = one_line(message([*STUDENT, "--trainer.precision=7"]))
    assert several.startswith("trainer.precision: expected one of 64, 32, 16, ")
    assert "'bf16-mixed'" in several
    assert several.endswith("'7'")


def test_a_setting_may_need_a_package() -> None:
    def needs(problem: ModuleNotFoundError) -> None:
        with config_errors():
            raise problem

    # What Lightning raises for --trainer.precision=transformer-engine and for bitsandbytes.
    refusal = ModuleNotFoundError("Requirement 'a>=0.11' not met.\nHINT: pip install a")
    with pytest.raises(UserError, match=r"not installed: Requirement 'a>=0.11' not"):
        needs(refusal)
    # A module that cannot be imported is a defect, whose traceback is kept.
    with pytest.raises(ModuleNotFoundError):
        needs(ModuleNotFoundError("No module named 'a'", name="a"))

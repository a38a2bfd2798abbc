"""jsonargparse's errors, as it really words them, in one line."""

from __future__ import annotations

import pytest
from jsonargparse import ArgumentError

from kd_lightning.runs.command import resolve_configs
from kd_lightning.runs.launch import Launcher
from kd_lightning.runs.messages import one_line
from tests.runs import PAIR, student

STUDENT = student("teacher.ckpt")


def message(argv: list[str]) -> str:
    """What jsonargparse says of the arguments."""
    with pytest.raises(ArgumentError) as caught:
        Launcher(resolve_configs(argv))
    return str(caught.value)


NESTED = {
    "--model.losses.kd.temprature=2": "model.losses: kd_lightning.losses.KD: Option 'temprature' is not accepted",
    "--model.student=nowhere.Net": "model.student: nowhere.Net: No module named 'nowhere'",
    "--model.student.hidden=wide": "model.student.hidden: kd_lightning.models.MLP: expected list, got wide",
    "--trainer.max_epochs=two": "trainer.max_epochs: expected int, got 'two'",
    "--seed_everything=abc": "seed_everything: expected bool or int, got 'abc'",
    "--data.augment=[{class_path: kd_lightning.data.Jitter, init_args: {pixel: 2}}]": (
        "data.augment: kd_lightning.data.Jitter: Option 'pixel' is not accepted"
    ),
    "--run.test=never": "run.test: Expected a typing.Literal['no', 'last', 'best'], got never",
}


@pytest.mark.parametrize("argument", NESTED)
def test_a_nested_message_becomes_its_innermost_line(argument: str) -> None:
    said = message([*STUDENT, argument])
    assert "\n" in said  # jsonargparse still nests: else this test shows nothing
    assert one_line(said) == NESTED[argument]


@pytest.mark.parametrize("argument", ["--trainer.max_epoks=2", "stray"])
def test_a_message_of_one_line_stays(argument: str) -> None:
    assert one_line(message([*STUDENT, argument])) == f"unrecognized arguments: {argument}"


def test_a_missing_part_is_named() -> None:
    without_losses = [*PAIR[:-2], "--model.teacher.checkpoint=teacher.ckpt"]
    said = "model: kd_lightning.DistillationModule: the following arguments are required: losses"
    assert one_line(message(without_losses)) == said


def test_plain_errors_stay_and_lines_are_joined() -> None:
    assert one_line("Invalid learning rate: -1.0") == "Invalid learning rate: -1.0"
    assert one_line("  first\n\n  second\n") == "first second"
    assert one_line("") == "unknown error"


@pytest.mark.xfail(strict=True, reason="what follows the key on its own line is dropped: 'config: unknown error'")
def test_the_reason_beside_a_key_is_kept() -> None:
    with pytest.raises(ArgumentError) as caught:
        Launcher(["fit", "-c", "nowhere.yaml"])
    assert "nowhere.yaml" in one_line(str(caught.value))


@pytest.mark.xfail(strict=True, reason="of several lists of choices the first alone is told, without the value")
def test_choices_in_several_lists_name_the_value() -> None:
    said = one_line(message([*STUDENT, "--trainer.precision=7"]))
    assert "'bf16-mixed'" in said
    assert "7" in said


@pytest.mark.xfail(strict=True, reason="jsonargparse keeps the name of the loss in the given value alone, where it is dropped")
def test_the_name_of_a_loss_is_in_its_key() -> None:
    assert "losses.kd.temperature" in one_line(message([*STUDENT, "--model.losses.kd.temperature=abc"]))

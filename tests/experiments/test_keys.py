"""What decides a run's result: its key changes with that and with nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import kd_lightning.losses.kd
from kd_lightning.data import DigitsDataModule, Images
from kd_lightning.experiments.keys import address, code_version, difference, flat, run_key
from kd_lightning.runs.configs import resolve_configs
from tests.runs import student


class OtherDigits(DigitsDataModule):
    """The digits, but for one pixel."""

    def load(self, split: str) -> Images:
        data = super().load(split)
        images = data.images.clone()
        images[0, 0, 0, 0] += 1
        return Images(images, data.target)


def key(*more: str) -> dict[str, Any]:
    return run_key(resolve_configs([*student("teacher.ckpt"), *more]))


@pytest.fixture(scope="module")
def base() -> dict[str, Any]:
    return key()


def test_where_a_run_is_kept_and_shown_does_not_matter(base: dict[str, Any]) -> None:
    other = key(
        *(
            "--run.name=other",
            "--run.root=/elsewhere",
            "--run.dir=/elsewhere/run",
            "--run.wandb=offline",
            "--run.tags=[a]",
        ),
        *(
            "--trainer.logger=false",
            "--trainer.enable_progress_bar=false",
            "--trainer.default_root_dir=/elsewhere",
        ),
        *(
            "--data.resident=false",
            "--seed_everything=7",
            "--trainer.max_epochs=1",
        ),  # the last is as it was
    )
    assert difference(base, other) == ""
    assert address(other) == address(base)


@pytest.mark.parametrize(
    ("argument", "changed"),
    [
        ("--model.losses.kd.temperature=2", "temperature (4.0 -> 2.0)"),
        ("--model.losses.kd.weight=0.5", "weight (0.9 -> 0.5)"),
        ("--model.student.hidden=[8]", "hidden ([16] -> [8])"),
        ("--model.optimizer.lr=0.01", "lr (0.05 -> 0.01)"),
        ("--trainer.max_epochs=2", "trainer.max_epochs (1 -> 2)"),
        ("--trainer.precision=bf16-mixed", "trainer.precision (unset -> bf16-mixed)"),
        ("--data.batch_size=32", "batch_size (64 -> 32)"),
        ("--data.labels=0.5", "labels (1.0 -> 0.5)"),
        ("--data.split_seed=1", "split_seed (0 -> 1)"),
    ],
)
def test_what_is_trained_on_and_how_matters(
    argument: str, changed: str, base: dict[str, Any]
) -> None:
    other = key(argument)
    assert difference(base, other).endswith(changed)
    assert address(other) != address(base)


def test_files_count_by_content_not_by_path(base: dict[str, Any], tmp_path: Path) -> None:
    first, second, folder = tmp_path / "first.ckpt", tmp_path / "second.ckpt", tmp_path / "bert"
    first.write_bytes(b"weights")
    second.write_bytes(b"weights")
    one, other = (key(f"--model.init_from={path}") for path in (first, second))
    assert address(one) == address(other) != address(base)
    second.write_bytes(b"other weights")
    assert difference(one, key(f"--model.init_from={second}")).startswith(
        "model.init_args.init_from (sha256:"
    )
    folder.mkdir()
    before = key(f"--model.teacher.checkpoint={folder}")
    (folder / "config.json").write_text("{}")
    assert key(f"--model.teacher.checkpoint={folder}") != before


def test_threads_matter(base: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    assert difference(base, key()) == f"threads ({threads} -> {threads + 1})"


def test_the_samples_matter(base: dict[str, Any]) -> None:
    other = key("--data=tests.experiments.test_keys.OtherDigits")
    assert other["data checksum"] != base["data checksum"]
    assert key("--data=DigitsDataModule")["data checksum"] == base["data checksum"]


def test_the_source_of_losses_and_data_is_in_the_key(base: dict[str, Any]) -> None:
    source = {name.removeprefix("code.") for name in base if name.startswith("code.")}
    assert {
        "losses/kd.py",
        "losses/ce.py",
        "losses/base.py",
        "data/digits.py",
        "data/base.py",
        "randomness.py",
    } <= source
    assert "losses/logitmse.py" not in source


def version(folder: Path, name: str, *changes: tuple[str, str]) -> str:
    """The version of kd.py with these words changed."""
    text = Path(str(kd_lightning.losses.kd.__file__)).read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / f"{name}.py"  # versions are remembered by path
    path.write_text(text)
    return code_version(path)


def test_comments_docstrings_and_layout_do_not_change_the_code(tmp_path: Path) -> None:
    same = version(tmp_path, "same")
    line = "        self.temperature = positive("
    assert version(tmp_path, "comment", (line, f"        # a comment\n\n{line}")) == same
    assert (
        version(tmp_path, "module", ('"""Soft targets: Hinton', '"""Other words: Hinton')) == same
    )
    assert version(tmp_path, "class", ("Soft targets at a temperature", "Other words")) == same
    assert (
        version(tmp_path, "function", ("A scalar; zero where both agree.", "Other words.")) == same
    )


@pytest.mark.parametrize(
    "change",
    [
        ("* temperature**2", "* temperature**3"),
        ("temperature**2", "temperature*2"),
        ('"batchmean"', '"mean"'),
        ("4.0", "5.0"),
    ],
)
def test_another_operator_or_number_changes_the_code(
    change: tuple[str, str], tmp_path: Path
) -> None:
    assert version(tmp_path, "other", change) != version(tmp_path, "same")


def test_the_docstring_of_an_attribute_does_not_change_the_code(tmp_path: Path) -> None:
    line = '    family: ClassVar[str] = "response"\n'
    assert version(tmp_path, "with", (line, f'{line}    """Where it belongs."""\n')) == version(
        tmp_path, "same"
    )


def test_flat_names_every_leaf() -> None:
    nested = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 3}, {"e": 4}], "f": {}, "g": None}
    assert dict(flat(nested)) == {
        "a.b": 1,
        "a.c": [1, 2],
        "d.0.e": 3,
        "d.1.e": 4,
        "f": {},
        "g": None,
    }


def test_a_difference_names_three_keys_and_counts_the_others() -> None:
    assert difference({"a": 1}, {"a": 1}) == ""
    assert difference({"a": 1}, {"b": 2}) == "a (1 -> unset), b (unset -> 2)"
    assert difference(dict.fromkeys("abcde", 1), dict.fromkeys("abcde", 2)).endswith(
        "c (1 -> 2) and 2 more"
    )


def test_an_address_is_16_hex_digits_whatever_the_order() -> None:
    assert address({"a": 1, "b": 2}) == address({"b": 2, "a": 1}) != address({"a": 1, "b": 3})
    assert len(address({})) == 16
    assert int(address({}), 16) >= 0


def test_private_helpers_of_a_loss_count_too() -> None:
    method = ["-c", "configs/methods/sp.yaml", "-c", "configs/pairs/digits_mlp256_mlp16.yaml"]
    key = run_key(["fit", "-c", "configs/trainer.yaml", "-c", "configs/data/digits.yaml", *method])
    assert {"code.losses/sp.py", "code.losses/_gather.py", "code.losses/base.py"} <= set(key)

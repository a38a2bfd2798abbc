"""What sets rows apart, and which run a path in a config belongs to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from kd_lightning.compare.differences import differing_settings
from kd_lightning.compare.labels import make_labels
from kd_lightning.compare.settings import deciding_settings, short_names
from tests.compare.comparing import compare, config_of, make_run, seeds, table

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def groups(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    return [deciding_settings(config_of(0, change)) for change in changes]


def test_settings_are_what_decides_a_result() -> None:
    found = deciding_settings(
        config_of(
            3, {"run.name": "x", "data.root": "/elsewhere", "ckpt_path": "a.ckpt"}
        )
    )
    assert found == deciding_settings(config_of(0, {}))
    assert found["model.losses.kd.temperature"] == 4
    assert found["model.losses.kd.class"] == "kd_lightning.losses.KD"
    assert found["run.test"] == "last"
    assert not [
        name
        for name in found
        if "spec" in name or "num_classes" in name or "root" in name
    ]
    assert deciding_settings(config_of(0, {"run.test": "best"})) != found
    inner = {
        "class_path": "kd_lightning.data.DigitsDataModule",
        "init_args": {"root": "/data", "fraction": 0.5},
    }
    within = deciding_settings(config_of(0, {"data.data": inner}))
    assert (within["data.data.fraction"], "data.data.root" in within) == (0.5, False)


def test_a_class_stands_for_its_arguments() -> None:
    adam = {
        "class_path": "torch.optim.Adam",
        "init_args": {"lr": 0.001, "betas": [0.9, 0.999]},
    }
    assert differing_settings(groups({}, {"model.optimizer": adam})) == {
        "model.optimizer.class": ["SGD", "Adam"]
    }
    found = differing_settings(
        groups({}, {"model.optimizer": adam}, {"model.optimizer.lr": 0.1})
    )
    assert found == {
        "model.optimizer.class": ["SGD", "Adam", "SGD"],
        "model.optimizer.lr": ["0.05", "0.001", "0.1"],
    }


def test_losses_and_lists_of_classes_are_named_together() -> None:
    jitter = {"class_path": "kd_lightning.data.Jitter", "init_args": {"pixels": 1}}
    found = differing_settings(
        groups(
            {"data.augment": [jitter]}, {"model.losses.kd": None, "data.augment": []}
        )
    )
    assert found == {
        "data.augment": ["Jitter", "none"],
        "model.losses": ["ce+kd", "ce"],
    }


def test_what_a_group_cannot_have_is_not_in_its_label() -> None:
    two, alone = {"model.losses.kd.temperature": 2.5}, {"model.losses.kd": None}
    made, note = make_labels(groups({}, two, alone), [["x"], ["x"], ["x"]])
    assert made == [
        "losses=ce+kd, temperature=4",
        "losses=ce+kd, temperature=2.5",
        "losses=ce",
    ]
    assert note == ""


@pytest.mark.parametrize(
    ("names", "label"),
    [
        (["digits-mlp", "digits-mlp-2"], "digits-mlp"),
        (["kd-seed0", "kd-seed1"], "kd"),
        (["mlp1200"], "mlp1200"),
        (["mlp-16", "mlp-16-2"], "mlp-16"),
        (["b", "a"], "b"),
    ],
)
def test_one_row_has_its_runs_name(names: list[str], label: str) -> None:
    assert make_labels(groups({}), [names]) == ([label], "")


def test_labels_are_never_equal() -> None:
    same = [{"a": "x.KD", "a.class": "one.KD"}, {"a": "x.KD", "a.class": "two.KD"}]
    assert make_labels(same, [["n"], ["n"]])[0] == ["a=KD", "a=KD #2"]


def test_names_are_as_short_as_they_are_clear() -> None:
    names = [
        "model.optimizer.lr",
        "model.losses.ce.weight",
        "model.losses.kd.weight",
        "model.class",
    ]
    assert list(short_names(names, names).values()) == [
        "lr",
        "ce.weight",
        "kd.weight",
        "model",
    ]


# -- teachers ---------------------------------------------------------------------------------------------------------

CHECKPOINT = "model.teacher.checkpoint"


def teachers(folder: Path, name: str, lr: float) -> list[Path]:
    """Two seeds of a teacher, and the paths of their checkpoints."""
    made = seeds(
        folder, name, [5, 6], {"model.optimizer.lr": lr, "model.losses.kd": None}
    )
    paths = [Path(run) / "checkpoints" / "last.ckpt" for run in made]
    for path in paths:
        path.parent.mkdir()
        path.write_bytes(path.as_posix().encode())
    return paths


def students(
    folder: Path,
    name: str,
    checkpoints: list[Path],
    cache: bool = False,
    **changes: Any,
) -> list[str]:
    made = []
    for seed, path in enumerate(checkpoints):
        source = {
            "path": str(path.resolve()),
            "sha256": hashlib.sha256(str(path).encode()).hexdigest(),
            "network": "MLP",
        }
        setting = {CHECKPOINT: str(path), **changes}
        if cache:
            source["cache"] = str(folder / f"cache-{name}-{seed}")
            setting = {"model.teacher.path": source["cache"], **changes}
            Path(source["cache"]).mkdir()
            manifest = {
                "settings": {"top_k": None},
                "fingerprint": {"teacher": [source]},
            }
            (Path(source["cache"]) / "manifest.json").write_text(json.dumps(manifest))
        made.append(
            make_run(
                folder / f"{name}-{seed}", seed, 10 + seed, setting, teacher=[source]
            )
        )
    return made


def test_students_of_one_teachers_seeds_are_one_row(
    place: Path, capsys: Capture
) -> None:
    runs = students(place, "a", teachers(place, "small", 0.1)) + students(
        place, "b", teachers(place, "large", 0.2)
    )
    content = compare(capsys, *runs)
    assert table(content) == {
        "checkpoint=small-0": [10, 11],
        "checkpoint=large-0": [10, 11],
    }
    assert content["notes"] == []


def test_relative_paths_are_looked_for_where_the_run_is(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    teachers(place / "runs", "t", 0.1)
    runs = students(
        place / "runs",
        "s",
        [Path("runs") / f"t-{seed}" / "checkpoints" / "last.ckpt" for seed in (0, 1)],
    )
    (place / "below").mkdir()
    place.rename(
        moved := place.with_name("moved")
    )  # the paths that were recorded lead nowhere
    monkeypatch.chdir(moved / "below")
    content = compare(capsys, *(run.replace(str(place), str(moved)) for run in runs))
    assert list(table(content).values()) == [[10, 11]]
    assert content["notes"] == []


def test_a_cache_is_known_by_its_teacher(place: Path, capsys: Capture) -> None:
    runs = students(place, "s", teachers(place, "t", 0.1), cache=True)
    content = compare(capsys, *runs)
    assert table(content) == {"s": [10, 11]}


@pytest.mark.parametrize(
    "fingerprint", [None, [], {"teacher": None}, {"teacher": ["x", {}]}]
)
def test_a_cache_with_a_damaged_manifest_has_no_teacher(
    place: Path, capsys: Capture, fingerprint: object
) -> None:
    runs = students(place, "s", teachers(place, "t", 0.1), cache=True)
    for path in place.glob("cache-*/manifest.json"):
        path.write_text(json.dumps({"settings": {}, "fingerprint": fingerprint}))
    assert table(compare(capsys, *runs))


def test_an_ensemble_is_its_members(place: Path, capsys: Capture) -> None:
    members = teachers(place, "t", 0.1)
    both = [
        {"model.teacher.checkpoints": [str(path) for path in order]}
        for order in (members, members[::-1])
    ]
    runs = [
        make_run(place / f"e-{seed}", seed, 10, setting)
        for seed, setting in enumerate(both)
    ]
    assert table(compare(capsys, *runs)) == {"e": [10, 10]}


def test_a_teacher_that_is_lost_counts_by_its_checksum(
    place: Path, capsys: Capture
) -> None:
    runs = students(place, "s", [place / "gone" / "a.pt", place / "gone" / "b.pt"])
    content = compare(capsys, *runs)
    assert list(table(content).values()) == [[10], [11]]
    assert [note for note in content["notes"] if "belongs to no readable run" in note]


def test_a_seed_with_two_teachers_counts_twice_and_is_told(
    place: Path, capsys: Capture
) -> None:
    first, second = teachers(place, "t", 0.1)
    runs = students(place, "s", [first]) + students(place, "r", [second])
    content = compare(capsys, *runs)
    assert list(table(content).values()) == [[10, 10]]
    assert (
        "has several runs of one seed, with different teachers" in content["notes"][0]
    )

"""The experiment on specialists in miniature: the same YAML on 8x8 digits, through the real runner."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from kd_lightning.cli import main
from kd_lightning.experiments.keys import run_key
from kd_lightning.experiments.planning import Job, RunnerOptions, by_run, plan
from kd_lightning.experiments.spec import load
from kd_lightning.paths import shipped_root
from kd_lightning.weights import sha256_of
from tests.experiments import resolve_analyses

SPECIALISTS = 2


def miniature() -> dict[str, Any]:
    """The experiment's YAML on digits: two specialists of four classes, an epoch, one seed."""
    text = (
        shipped_root() / "experiments" / "hinton2015" / "specialists.yaml"
    ).read_text()
    text = text.replace(
        "configs/data/omniglot.yaml", "configs/data/digits.yaml"
    ).replace("OmniglotData", "DigitsData")
    text = text.replace("specialists: 12,", f"specialists: {SPECIALISTS},").replace(
        "classes_each: 40", "classes_each: 4"
    )
    text = (
        text.replace("pixels: 2", "pixels: 1")
        .replace("views: 10", "views: 1")
        .replace("hidden: [256]", "hidden: [16]")
    )
    content: dict[str, Any] = yaml.safe_load(text)
    resolve_analyses(content, shipped_root() / "experiments" / "hinton2015")
    for run in content["runs"].values():
        for key, names in run.get("needs", {}).items():
            if isinstance(names, list):
                run["needs"][key] = [
                    name for name in names if int(name.rpartition("=")[2]) < SPECIALISTS
                ]
        if "grid" in run:
            run["grid"] = {
                key: values[:SPECIALISTS] for key, values in run["grid"].items()
            }
    content["seeds"], content["quick"] = (
        1,
        {"seeds": 1, "overrides": {"trainer.max_epochs": 1}},
    )
    (
        content["runs"]["generalist, other seeds"]["seeds"],
        content["settings"]["ensemble"],
    ) = [100], 2
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mini")
    (folder / "mini.yaml").write_text(yaml.safe_dump(miniature(), sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        arguments = [
            str(folder / "mini.yaml"),
            f"--output={folder}/out",
            f"--store={folder}/store",
            "--quick",
        ]
        assert main(["reproduce", *arguments]) == 0
    return folder


@functools.cache  # configs are parsed once for all tests
def planned(folder: Path) -> dict[str, list[Job]]:
    """The jobs of two seeds, by run; the first seed's are finished."""
    settings = RunnerOptions(
        folder / "out", folder / "store", 2, {"trainer.max_epochs": 1}
    )
    return by_run(plan(load(str(folder / "mini.yaml")), settings))


# The other tests cover its parts in a tenth of the time.
@pytest.mark.slow
def test_the_tables(folder: Path) -> None:
    content, text = (
        json.loads((folder / "out" / "results.json").read_text()),
        (folder / "out" / "specialists.md").read_text(),
    )
    found = {(row["run"], row["metric"]): row["mean"] for row in content["rows"]}
    for label in (
        "generalist + specialists",
        "ensemble of 2 generalists",
        "generalist, longer",
    ):
        assert f"| {label} |" in text
        assert 0 < found[label, "test_accuracy"] <= 1
        assert 0 < found[label, "conditional_accuracy"] <= 1
    assert ("distilled from generalist + specialists", "test_errors") in found
    told = json.loads((folder / "out" / "specialists.json").read_text())
    [coverage] = told["coverage"]
    samples, before, after = (
        sum(part) for part in zip(*coverage.values(), strict=True)
    )
    assert samples == 602
    assert before / samples == pytest.approx(found["generalist", "test_accuracy"])
    assert after / samples == pytest.approx(
        found["generalist + specialists", "test_accuracy"]
    )
    assert [len(names) for names in told["clusters"]["0"]] == [4] * SPECIALISTS


def test_a_specialist_is_what_its_checkpoint_says(folder: Path) -> None:
    jobs = planned(folder)
    generalist = sha256_of(jobs["generalist"][0].checkpoint)
    for name in ("specialist", "specialist with soft targets"):
        for number in range(SPECIALISTS):
            about = jobs[f"{name} specialist={number}"][0].record["data"]["specialist"]
            assert (about["generalist"], about["number"], len(about["class_ids"])) == (
                generalist,
                number,
                4,
            )
    soft = jobs["specialist with soft targets specialist=0"][0].record
    assert [source["sha256"] for source in soft["teacher"]] == [generalist]


def test_every_seed_has_a_generalist_of_its_own(folder: Path) -> None:
    jobs = planned(folder)
    folders = [job.folder for job in jobs["generalist"]]
    assert folders[0] != folders[1]
    for name, group in jobs.items():
        if "specialist" in name and not name.startswith("distilled"):
            for seed in (0, 1):
                assert jobs["generalist"][seed] in group[seed].needs
                assert jobs["generalist"][1 - seed] not in group[seed].needs
                assert str(folders[seed]) in group[seed].command
    team = jobs["cache of generalist + specialists"][1]
    assert [job.run for job in team.needs] == [
        "generalist",
        *(f"specialist specialist={k}" for k in range(SPECIALISTS)),
    ]
    assert {job.seed for job in team.needs} == {1}


def test_the_place_of_the_inner_data_does_not_matter() -> None:
    """Data within data is the same wherever it lies, and its samples count."""

    arguments = [
        w
        for name in ("trainer", "data/digits", "teachers/digits_mlp")
        for w in ("-c", f"configs/{name}.yaml")
    ]

    def key(**inner: Any) -> dict[str, Any]:
        share = {
            "class_path": "kd_lightning.specialists.SpecialistDataModule",
            "init_args": {"generalist": "x", "data": inner},
        }
        return run_key(["fit", *arguments, f"--data={share}"])

    digits = {"class_path": "kd_lightning.data.DigitsDataModule"}
    assert key(**digits, init_args={"resident": True}) == key(
        **digits, init_args={"resident": False}
    )
    assert key(**digits, init_args={"fraction": 0.5}) != key(**digits)
    whole = run_key(["fit", *arguments])
    assert key(**digits)["data checksum"] == whole["data checksum"]


def test_the_one_on_natural_images_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of run is parsed, on files in the true format."""
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "tiny-imagenet-100-32.zip", "w") as file:
        for split, shade in (("train", 90), ("test", 120)):
            for folder in ("n01", "n02", "n03"):
                picture = io.BytesIO()
                Image.new("RGB", (32, 32), (shade, 2 * shade, shade)).save(
                    picture, "JPEG"
                )
                file.writestr(
                    f"tiny-imagenet-100-32/{split}/{folder}/{folder}_0.JPEG",
                    picture.getvalue(),
                )
    experiment = load("hinton2015/specialists-tiny-imagenet")
    each = [
        run.name
        for run in experiment.runs
        if "specialist=" not in run.name or run.name.endswith("=9")
    ]
    kinds = [
        name for name in each if name != "distilled from generalist + specialists"
    ]  # which needs all ten
    settings = RunnerOptions(
        tmp_path / "out",
        tmp_path / "store",
        1,
        {"data.root": str(tmp_path)},
        only=kinds,
    )
    jobs = by_run(plan(experiment, settings))
    assert f"--data.root={tmp_path}" in jobs["generalist"][0].argv
    [specialist] = jobs["specialist specialist=9"]
    assert f"--data.data.root={tmp_path}" in specialist.argv
    assert (
        specialist.key["data.init_args.batch_size"]
        == jobs["generalist"][0].key["data.init_args.batch_size"]
        == 128
    )
    assert (
        specialist.key["data.init_args.augment.0.class_path"]
        == "kd_lightning.data.PadCrop"
    )
    assert specialist.key["data checksum"] == jobs["generalist"][0].key["data checksum"]
    assert [
        run.name for run in experiment.runs if run.name.startswith("specialist s")
    ] == [f"specialist specialist={number}" for number in range(10)]

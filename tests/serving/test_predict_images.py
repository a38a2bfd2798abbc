"""`kd predict RUN|EXPORT INPUT...` on images and arrays."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from kd_lightning.serving.inputs import predict_samples, samples_of
from kd_lightning.serving.network import load_network
from kd_lightning.serving.predict_command import names_inputs
from kd_lightning.serving.results import result_of
from tests.data.images.camvid import CLASSES, VOID, write_camvid
from tests.data.images.folders import picture, write_folder
from tests.runs import Kd

LAST = Path("checkpoints") / "last.ckpt"


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_run_predicts_what_kd_predict_stores(
    run: Path, digits: Path, kd: Kd, tmp_path: Path
) -> None:
    stored_in = tmp_path / "stored"
    by_checkpoint = kd("predict", f"--ckpt_path={run / LAST}", f"--run.dir={stored_in}")
    assert by_checkpoint.code == 0, by_checkpoint.err
    stored = load_file(stored_in / "predictions.safetensors")["logits"][:10]
    expected = stored.softmax(-1)

    outcome = kd("predict", str(run), str(digits / "images"), "--top", "9")

    assert outcome.code == 0
    assert outcome.err == ""
    rows = rows_of(outcome.out)
    assert [Path(row["input"]).name for row in rows] == [f"{n}.png" for n in range(10)]
    for row, probabilities in zip(rows, expected, strict=True):
        assert int(row["class"]) == int(probabilities.argmax())
        assert float(row["probability"]) == pytest.approx(
            float(probabilities.max()), abs=1e-6
        )
        # Nine alternatives and the class itself are all ten digits.
        named = {row["class"]}
        for number in range(1, 10):
            alternative = int(row[f"alternative_{number}"])
            named.add(row[f"alternative_{number}"])
            assert float(row[f"probability_{number}"]) == pytest.approx(
                float(probabilities[alternative]), abs=1e-6
            )
        assert len(named) == 10


@pytest.mark.parametrize("name", ["onnx", "safetensors", "torch-export"])
def test_an_export_predicts_what_its_run_predicts(
    name: str, run: Path, digits: Path, kd: Kd, tmp_path: Path
) -> None:
    if name == "onnx":
        pytest.importorskip("onnxruntime")
    folder = tmp_path / name
    exported = kd("export", str(run), "--format", name, "--output", str(folder))
    assert exported.code == 0, exported.err
    # An export needs nothing of its run, so it may be moved.
    moved = tmp_path / "moved"
    shutil.move(folder, moved)

    inputs = [str(digits / "images"), str(digits / "digits.npz")]
    by_run = kd("predict", str(run), *inputs, "--format", "jsonl")
    by_export = kd("predict", str(moved), *inputs, "--format", "jsonl")

    assert by_export.code == 0, by_export.err
    pairs = list(zip(by_run.out.splitlines(), by_export.out.splitlines(), strict=True))
    assert len(pairs) == 20
    for one, other in pairs:
        expected = json.loads(one)
        predicted = json.loads(other)
        assert predicted["input"] == expected["input"]
        assert predicted["class"] == expected["class"]
        assert predicted["probability"] == pytest.approx(
            expected["probability"], abs=1e-5
        )


def test_images_are_resized_like_the_training_images(
    kd: Kd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KD_CACHE", str(tmp_path / "cache"))
    folder = write_folder(tmp_path / "set", {"train": 4, "test": 2})
    new = tmp_path / "new"
    new.mkdir()
    picture(70, width=20, height=11).save(new / "wide.png")
    picture(71, width=7, height=13).save(new / "tall.bmp")
    trained = kd(
        *("fit", "-c", "configs/trainer.yaml", "-c", "configs/data/image_folder.yaml"),
        *(f"--data.path={folder}", "--data.size=5", "--data.grey=true"),
        *("--model=kd_lightning.ClassifierModule", "--trainer.max_epochs=1"),
        *("--model.network=kd_lightning.models.MLP", "--model.network.hidden=[4]"),
        "--run.dir=run",
    )
    assert trained.code == 0, trained.err
    by_checkpoint = kd(
        *("predict", f"--ckpt_path={Path('run') / LAST}", "--run.dir=stored"),
        f"--data.predict_folder={new}",
    )
    assert by_checkpoint.code == 0, by_checkpoint.err
    logits = load_file(Path("stored") / "predictions.safetensors")["logits"]

    outcome = kd("predict", "run", str(new), "--top", "1")

    assert outcome.code == 0, outcome.err
    rows = rows_of(outcome.out)
    assert [Path(row["input"]).name for row in rows] == ["tall.bmp", "wide.png"]
    for row, probabilities in zip(rows, logits.softmax(-1), strict=True):
        assert row["class"] == ("ant", "bee")[int(probabilities.argmax())]
        assert float(row["probability"]) == pytest.approx(
            float(probabilities.max()), abs=1e-6
        )


def test_masks_are_the_classes_that_kd_predict_stores(kd: Kd, tmp_path: Path) -> None:
    data = write_camvid(tmp_path / "small")
    trained = kd(
        "fit",
        *("-c", "configs/trainer.yaml", "-c", "configs/data/camvid.yaml"),
        *("-c", "configs/teachers/camvid_unet.yaml"),
        *("--trainer.max_epochs=1", f"--data.path={data}", "--data.masks=labels"),
        *(f"--data.classes={json.dumps(CLASSES)}", f"--data.void=[{VOID}]"),
        *("--data.batch_size=4", "--data.augment=null", "--run.dir=unet"),
    )
    assert trained.code == 0, trained.err
    kd("predict", f"--ckpt_path={Path('unet') / LAST}", "--run.dir=stored")
    stored = load_file(Path("stored") / "predictions.safetensors")
    (maps,) = [tensor for tensor in stored.values() if tensor.ndim == 3]
    images = data / "test" / "images"

    refused = kd("predict", "unet", str(images))
    outcome = kd("predict", "unet", str(images), "--masks", "masks")

    assert refused.code == 2
    assert "give --masks DIR" in refused.err
    assert outcome.code == 0, outcome.err
    rows = rows_of(outcome.out)
    assert len(rows) == len(maps) == 4
    for row, expected in zip(rows, maps, strict=True):
        mask = np.asarray(Image.open(row["mask"]))
        # Void pixels have no position, so the stored maps hold no class there.
        positions = expected.numpy() >= 0
        assert positions.mean() > 0.8
        assert (mask == expected.numpy())[positions].all()
        assert Path(row["mask"]).stem == Path(row["input"]).stem


def test_a_bad_input_stops_or_is_skipped(
    run: Path, digits: Path, kd: Kd, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(digits / "images", folder)
    (folder / "5.png").write_bytes(b"no image")
    Image.new("L", (9, 8)).save(folder / "6.png")

    stopped = kd("predict", str(run), str(folder), "--output", "out.csv")
    skipped = kd("predict", str(run), str(folder), "--on-error", "skip")
    none = kd("predict", str(run), str(folder / "5.png"), "--on-error", "skip")

    assert stopped.code == 2
    assert stopped.err.strip().endswith(
        "5.png: the file cannot be read as an image; is the copy complete?"
    )
    assert len(stopped.err.strip().splitlines()) == 1
    assert not Path("out.csv").exists(), "a partial file would look whole"
    assert skipped.code == 0
    assert len(rows_of(skipped.out)) == 8
    assert "6.png: the image is 9x8, the network reads 8x8; resize it" in skipped.err
    assert "skipped 2 of 10 inputs" in skipped.err
    assert none.code == 2
    assert "none of the 1 inputs can be predicted" in none.err


def test_the_other_samples_of_a_bad_ones_batch_stay_the_same(
    run: Path, digits: Path, kd: Kd, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    files = [str(digits / "images" / f"{number}.png") for number in range(3)]
    alone = kd("predict", str(run), *files, "--format", "jsonl")

    mixed = kd(
        *("predict", str(run), files[0], str(tmp_path / "bad.png"), *files[1:]),
        *("--format", "jsonl", "--on-error", "skip", "--output", "mixed.jsonl"),
    )

    assert mixed.code == 0
    assert Path("mixed.jsonl").read_text() == alone.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "nowhere.png"], "there is no file or folder nowhere.png"),
        (["{run}", "-"], "- is standard input, for texts; this network reads images"),
        (["nowhere", "x.png"], "there is no run or checkpoint nowhere"),
        (["{run}", "x.png", "--format", "xml"], "--format must be csv or jsonl"),
        (["{run}", "x.png", "--top", "-1"], "--top must be at least 0"),
        (["{run}", "x.png", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["{run}", "x.png", "--on-error", "ask"], "--on-error must be stop or skip"),
        (["{run}", "x.png", "--masks", "m"], "--masks is for segmentation"),
        (["{run}", "empty"], "empty holds no images (npz, png"),
        (
            ["{run}", "wide.npz"],
            "the network reads N samples of inputs: uint8 (1, 8, 8)",
        ),
        (["{run}", "float.npz"], "has an array of float64; the network reads inputs"),
        (["{run}", "objects.npz"], "cannot be read as an NPZ file of arrays"),
        (["{run}", "text.npz"], "cannot be read as an NPZ file of arrays"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, run: Path, kd: Kd
) -> None:
    Path("empty").mkdir()
    Image.new("L", (8, 8)).save("x.png")
    np.savez("wide.npz", np.zeros((2, 1, 8, 9), dtype=np.uint8))
    np.savez("float.npz", np.zeros((2, 1, 8, 8)))
    # An array of objects is a pickle, which could run code.
    np.savez("objects.npz", np.array([{}], dtype=object))
    Path("text.npz").write_text("no archive")

    outcome = kd("predict", *(argument.format(run=run) for argument in arguments))

    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_samples_are_read_one_batch_at_a_time(run: Path, digits: Path) -> None:
    network = load_network(run, [])
    read = []

    def counted() -> object:
        for sample in samples_of(network, [str(digits / "images")] * 100):
            read.append(sample.name)
            yield sample

    predictions = predict_samples(network, counted(), batch_size=4)  # type: ignore[arg-type]
    for _ in range(5):
        next(predictions)

    assert len(read) == 8


def test_names_cannot_rewrite_a_terminal(
    run: Path, digits: Path, kd: Kd, tmp_path: Path
) -> None:
    name = "a\x1b[2J.png"
    shutil.copy(digits / "images" / "0.png", tmp_path / name)

    outcome = kd("predict", str(run), str(tmp_path / name))

    assert "\x1b" not in outcome.out
    assert "a\\x1b[2J.png" in outcome.out


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("multi-label classification", {"probabilities": {"a": 0.25, "b": 0.5}}),
        ("regression", {"values": {"a": 0.25, "b": 0.5}}),
        ("classification", {"class": "b", "probability": 0.5}),
    ],
)
def test_every_task_has_its_form(
    task: str, expected: dict[str, object], torch_export: Path
) -> None:
    network = load_network(torch_export, [])
    other = network.__class__(**{**vars(network), "task": task, "classes": ("a", "b")})

    assert result_of(other, torch.tensor([0.25, 0.5]), top=0) == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run", "x.png"], True),
        (["--top", "3", "run", "x.png"], True),
        (["--ckpt_path", "last.ckpt"], False),
        (["--ckpt_path=last.ckpt", "--data.root=x"], False),
        (["-c", "configs/trainer.yaml"], False),
        (["--help"], False),
        ([], False),
    ],
)
def test_which_form_of_the_command_is_meant(
    arguments: list[str], expected: bool
) -> None:
    assert names_inputs(arguments) == expected

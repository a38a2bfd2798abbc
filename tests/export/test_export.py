"""`kd export`: what is written, that it predicts what the checkpoint predicts, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from kd_lightning.data.images.normalization import PixelNormalization, normalize_pixels
from kd_lightning.export.check import compare
from kd_lightning.export.formats import Predictor
from kd_lightning.export.student import load_student
from kd_lightning.export.torch_export import TorchExport
from kd_lightning.runs import build
from kd_lightning.types import CLEAN
from tests.data.images.camvid import CLASSES, VOID, write_camvid
from tests.losses import features
from tests.runs import COMMON, PAIR, Kd, environment
from tests.sentences import write_sst2

onnxruntime = pytest.importorskip(
    "onnxruntime", reason="pip install 'kd_lightning[export]'"
)

LAST = Path("checkpoints") / "last.ckpt"


def described(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "student.json").read_text())
    return content


def run_example(folder: Path) -> str:
    """Run the example as a stranger would: isolated, so that the current folder is no package."""
    completed = subprocess.run(
        [sys.executable, "-I", str(folder / "example.py")],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=None),
        timeout=120,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


@pytest.mark.parametrize("name", ["onnx", "safetensors", "torch-export"])
def test_every_format_writes_a_whole_folder(
    name: str, run: Path, kd: Kd, tmp_path: Path
) -> None:
    folder = tmp_path / "student"

    outcome = kd("export", str(run), "--format", name, "--output", str(folder))

    assert outcome.code == 0, outcome.err
    content = described(folder)
    assert content["classes"] == [str(digit) for digit in range(10)]
    assert content["format"] == name
    check = content["check"]
    assert isinstance(check, dict)
    assert check["samples"] == 512
    assert check["largest_difference"] <= 1e-5
    assert "kd_lightning" not in (folder / "example.py").read_text() or (
        name == "safetensors"
    )
    card = (folder / "README.md").read_text()
    assert "uint8 (batch, 1, 8, 8)" in card
    assert "| test_" not in card, "the run was not tested"
    # A half-written folder would remain beside the finished one.
    assert [path.name for path in tmp_path.iterdir()] == ["student"]


@pytest.mark.parametrize("name", ["onnx", "torch-export"])
def test_the_example_runs_without_the_framework(
    name: str, run: Path, kd: Kd, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    kd("export", str(run), "--format", name, "--output", str(folder))

    assert "(1, 10)" in run_example(folder).replace("[", "(").replace("]", ")")


def test_onnx_predicts_from_pixels_what_kd_test_stores(
    run: Path, kd: Kd, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    kd("export", str(run), "--output", str(folder))
    tested = kd(
        "test", "--ckpt_path", str(run / LAST), f"--run.dir={tmp_path / 'test'}"
    )
    assert tested.code == 0, tested.err
    stored = load_file(tmp_path / "test" / "predictions-test.safetensors")
    session = onnxruntime.InferenceSession(folder / "student.onnx")

    # The pixels come from scikit-learn, and not through any code of ours.
    digits = load_digits()
    pixels = {
        image.tobytes(): label for image, label in zip(*_pixels(digits), strict=True)
    }
    student = load_student(str(run), [])
    (raw,) = student.raw_inputs("test", torch.arange(100))
    (probabilities,) = session.run(None, {"inputs": raw.numpy()})

    expected = stored["logits"][:100].softmax(-1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    labels = [pixels[image.numpy().tobytes()] for image in raw]
    assert labels == stored["target"][:100].tolist()
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["mean"]) == list(student.spec.mean or ())


def _pixels(digits: object) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits as the bytes that the datamodule serves."""
    images = digits.images  # type: ignore[attr-defined]
    scaled = np.round(images * 255 / 16).astype(np.uint8)
    return scaled, digits.target  # type: ignore[attr-defined]


def test_an_export_that_differs_is_not_written(
    run: Path, kd: Kd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = TorchExport.read

    def wrong(self: TorchExport, folder: Path) -> Predictor:
        predict = read(self, folder)
        return lambda raw: predict(raw).flip(-1)

    monkeypatch.setattr(TorchExport, "read", wrong)
    folder = tmp_path / "student"

    outcome = kd(
        "export", str(run), "--format", "torch-export", "--output", str(folder)
    )

    assert outcome.code == 2
    assert "differs from the checkpoint" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_graph_for_one_batch_size_is_refused(run: Path) -> None:
    student = load_student(str(run), [])
    deployed = student.deployed()

    def only_two(raw: tuple[torch.Tensor, ...]) -> torch.Tensor:
        assert len(raw[0]) == 2, "traced for two samples"
        result: torch.Tensor = deployed(*raw)
        return result

    with pytest.raises(Exception, match="fails on a batch of 1"):
        compare(student, only_two, 1e-5)


def test_exported_weights_teach_and_start_a_student(
    run: Path, kd: Kd, tmp_path: Path
) -> None:
    folder = tmp_path / "student"
    kd("export", str(run), "--format", "safetensors", "--output", str(folder))

    taught = kd(*PAIR, f"--model.teacher.checkpoint={folder}", "--run.dir=taught")
    assert taught.code == 0, taught.err
    by_checkpoint = kd(
        *PAIR, f"--model.teacher.checkpoint={run / LAST}", "--run.dir=direct"
    )
    assert by_checkpoint.code == 0, by_checkpoint.err
    own = torch.load(Path("taught") / LAST, weights_only=True)["state_dict"]
    expected = torch.load(Path("direct") / LAST, weights_only=True)["state_dict"]
    for name, tensor in expected.items():
        assert torch.equal(own[name], tensor), name

    started = kd(
        *("fit", *COMMON, "-c", "configs/teachers/digits_mlp.yaml"),
        *(f"--model.init_from={folder}", "--run.dir=started"),
        "--model.optimizer.lr=0",
    )
    assert started.code == 0, started.err


def test_a_graph_is_no_teacher(run: Path, kd: Kd, tmp_path: Path) -> None:
    folder = tmp_path / "student"
    kd("export", str(run), "--format", "torch-export", "--output", str(folder))

    outcome = kd(*PAIR, f"--model.teacher.checkpoint={folder}")

    assert outcome.code == 2
    assert "kd export --format safetensors" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_a_student_that_predicts_through_an_adapter(
    kd: Kd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The teacher of this small run has random weights.
    monkeypatch.setattr(build, "check_teachers_are_trained", lambda _: None)
    trained = features.run_method("simkd", tmp_path / "simkd").folder

    outcome = kd("export", str(trained), "--format", "torch-export")
    refused = kd("export", str(trained), "--format", "safetensors")

    assert outcome.code == 0, outcome.err
    predicted_by_kd = kd("predict", "--ckpt_path", str(trained / LAST))
    assert predicted_by_kd.code == 0, predicted_by_kd.err
    student = load_student(str(trained), [])
    rows = torch.arange(5)
    predict = TorchExport().read(trained / "export-torch-export")
    predicted = predict(student.raw_inputs("test", rows))
    # The student's own head was never trained and predicts something else.
    own = student.module(student.datamodule.source("test").batch(rows, CLEAN).inputs)
    assert not torch.allclose(predicted, own.softmax(-1), atol=1e-3)
    assert refused.code == 2
    assert "adapter of its loss" in refused.err


def test_one_class_per_pixel(kd: Kd, tmp_path: Path) -> None:
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

    outcome = kd("export", "unet", "--format", "torch-export")

    assert outcome.code == 0, outcome.err
    content = described(Path("unet") / "export-torch-export")
    assert content["task"] == "segmentation"
    predict = TorchExport().read(Path("unet") / "export-torch-export")
    student = load_student("unet", [])
    probabilities = predict(student.raw_inputs("test", torch.arange(3)))
    assert probabilities.shape == (3, len(CLASSES), 12, 16)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(3, 12, 16))


@pytest.mark.parametrize("name", ["bilstm", "textcnn"])
def test_sentences_are_read_at_one_length(name: str, kd: Kd, tmp_path: Path) -> None:
    root = write_sst2(tmp_path / "data")
    trained = kd(
        "fit",
        *("-c", "configs/trainer.yaml", "-c", "configs/data/sst2.yaml"),
        *("-c", f"configs/teachers/sst2_{name}.yaml", f"--data.root={root}"),
        *("--trainer.max_epochs=1", "--model.network.embedding=8"),
        *("--data.tokenizer.size=300", "--data.tokenizer.max_length=24"),
        "--run.dir=text",
    )
    assert trained.code == 0, trained.err

    outcome = kd("export", "text", "--format", "torch-export")

    assert outcome.code == 0, outcome.err
    inputs = described(Path("text") / "export-torch-export")["inputs"]
    assert isinstance(inputs, list)
    assert [entry["shape"] for entry in inputs] == [["batch", 24]] * len(inputs)


def test_real_values_stay_as_they_are(kd: Kd) -> None:
    trained = kd(
        "fit",
        *("-c", "configs/trainer.yaml", "-c", "configs/data/diabetes.yaml"),
        *("-c", "configs/teachers/diabetes_mlp.yaml"),
        *("--trainer.max_epochs=1", "--run.dir=values"),
    )
    assert trained.code == 0, trained.err

    outcome = kd("export", "values")

    assert outcome.code == 0, outcome.err
    assert described(Path("values") / "export-onnx")["output"] == "values"


def test_int8_is_smaller_and_its_cost_is_measured(
    run: Path, kd: Kd, tmp_path: Path
) -> None:
    folder = tmp_path / "student"

    outcome = kd("export", str(run), "--int8", "--output", str(folder))

    assert outcome.code == 0, outcome.err
    cost = described(folder)["int8"]
    assert isinstance(cost, dict)
    assert cost["bytes_int8"] < 0.5 * cost["bytes_float32"]
    assert cost["agreement"] > 0.7, "of a network after one epoch"
    assert cost["bytes_int8"] == (folder / "student.onnx").stat().st_size
    assert "int8: test accuracy" in outcome.out
    assert "| test accuracy |" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing"], "there is no run or checkpoint missing"),
        (["{run}", "--format", "pickle"], "valid formats: safetensors, torch-export"),
        (["{run}", "--format", "safetensors", "--int8"], "--int8 needs --format onnx"),
        (["{run}", "--output", "{run}"], "exists already; choose a new folder"),
        (["empty"], "empty has no config.yaml"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, run: Path, kd: Kd
) -> None:
    Path("empty").mkdir()

    outcome = kd("export", *(argument.format(run=run) for argument in arguments))

    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


@pytest.mark.parametrize("channels", [1, 3])
def test_normalization_is_the_textbook_formula(channels: int) -> None:
    pixels = torch.randint(256, (4, 1, 5, 6), dtype=torch.uint8)
    mean = [0.4] * channels
    std = [0.2] * channels

    inputs = PixelNormalization(mean, std, channels)(pixels)

    expected = (pixels.double() / 255 - 0.4) / 0.2
    torch.testing.assert_close(
        inputs.double(), expected.expand(-1, channels, -1, -1), atol=1e-5, rtol=1e-5
    )
    same = normalize_pixels(pixels, torch.tensor(mean), torch.tensor(std), channels)
    assert torch.equal(inputs, same)

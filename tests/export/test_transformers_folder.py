"""`kd export --format transformers`: plain transformers predicts what the checkpoint predicts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.errors import UserError
from kd_lightning.export import transformers_folder
from kd_lightning.models import TransformerClassifier
from tests.runs import Kd, environment
from tests.sentences import write_sst2

transformers = pytest.importorskip(
    "transformers", reason="pip install 'kd_lightning[text]'"
)

SMALL: dict[str, Any] = {
    "model_type": "distilbert",
    "vocab_size": 300,
    "dim": 16,
    "n_layers": 1,
    "n_heads": 2,
    "hidden_dim": 32,
    "max_position_embeddings": 32,
}


@pytest.mark.parametrize(("head", "classes"), [(None, 8), (None, 2), (16, 9), (5, 3)])
def test_every_head_that_fits_is_exact(head: int | None, classes: int) -> None:
    network = TransformerClassifier(
        architecture=SMALL, head=head, num_classes=classes
    ).eval()
    ids = torch.randint(5, 300, (4, 7))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0

    model: Any = transformers_folder._on_distilbert(network, "")

    with torch.no_grad():
        expected = network(ids, mask)
        logits = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "head", "classes", "message"),
    [
        ({}, None, 9, "the head needs 18 units"),
        ({}, 17, 2, "the head needs 17 units"),
        (
            {"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2},
            None,
            2,
            "classifier on bert has layers between its encoder and its classes",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    changes: dict[str, Any], head: int | None, classes: int, message: str
) -> None:
    architecture = {**SMALL, **changes}
    network = TransformerClassifier(
        architecture=architecture, head=head, num_classes=classes
    )

    with pytest.raises(UserError, match=message):
        transformers_folder._on_distilbert(network, "use --format onnx")


def test_images_are_refused(run: Path, kd: Kd) -> None:
    outcome = kd("export", str(run), "--format", "transformers")

    assert outcome.code == 2
    assert (
        "is for classifiers of text, and this MLP is for classification" in outcome.err
    )
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (run / "export-transformers").exists()


def test_a_folder_for_transformers_alone(kd: Kd, tmp_path: Path) -> None:
    root = write_sst2(tmp_path / "data")
    architecture = {key: value for key, value in SMALL.items() if key != "vocab_size"}
    trained = kd(
        "fit",
        *("-c", "configs/trainer.yaml", "-c", "configs/data/sst2.yaml"),
        *("-c", "configs/teachers/sst2_transformer.yaml", f"--data.root={root}"),
        *("--trainer.max_epochs=1", "--data.tokenizer.size=300"),
        "--data.tokenizer.max_length=32",
        f"--model.network.architecture={json.dumps(architecture)}",
        "--run.dir=text",
    )
    assert trained.code == 0, trained.err

    outcome = kd("export", "text", "--format", "transformers", "--output", "folder")

    assert outcome.code == 0, outcome.err
    content = json.loads((Path("folder") / "student.json").read_text())
    assert content["check"]["largest_difference"] <= 1e-5
    assert "library_name: transformers" in (Path("folder") / "README.md").read_text()

    # Texts in, through nothing of ours.
    sentence = "a warm and funny film"
    tokenizer = transformers.AutoTokenizer.from_pretrained("folder")
    model = transformers.AutoModelForSequenceClassification.from_pretrained("folder")
    with torch.no_grad():
        logits = model(**tokenizer(sentence, return_tensors="pt")).logits
    probability, best = logits.softmax(-1)[0].max(0)
    (tmp_path / "new.txt").write_text(sentence)
    by_run = kd("predict", "text", "new.txt", "--format", "jsonl")
    assert by_run.code == 0, by_run.err
    expected = json.loads(by_run.out)
    assert model.config.id2label[int(best)] == expected["class"]
    assert float(probability) == pytest.approx(expected["probability"], abs=1e-5)

    completed = subprocess.run(
        [sys.executable, "-I", str(Path("folder") / "example.py")],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=None),
        timeout=300,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert "torch.Size([1, 2]) {0: 'negative', 1: 'positive'}" in completed.stdout

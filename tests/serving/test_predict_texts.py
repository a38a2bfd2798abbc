"""`kd predict RUN|EXPORT INPUT...` on texts and recordings."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file

from kd_lightning.data.speech.new_samples import RecordingReader
from kd_lightning.errors import UserError
from kd_lightning.serving.network import load_network
from kd_lightning.serving.server import Limits, create_app
from tests.data.speech.spoken import RATE, record
from tests.runs import Kd
from tests.sentences import write_sst2

LAST = Path("checkpoints") / "last.ckpt"

SENTENCES = ("a warm and funny film", "dull", "the plot is n't awful but clumsy")


def test_texts_are_tokenized_like_the_training_sentences(
    kd: Kd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_sst2(tmp_path / "data")
    trained = kd(
        "fit",
        *("-c", "configs/trainer.yaml", "-c", "configs/data/sst2.yaml"),
        *("-c", "configs/teachers/sst2_textcnn.yaml", f"--data.root={root}"),
        *("--trainer.max_epochs=1", "--model.network.embedding=8"),
        *("--data.tokenizer.size=300", "--data.tokenizer.max_length=24"),
        "--run.dir=text",
    )
    assert trained.code == 0, trained.err
    file = tmp_path / "new.txt"
    # A blank line is no sentence.
    file.write_text("\n".join([SENTENCES[0], "", *SENTENCES[1:]]) + "\n")
    by_checkpoint = kd(
        *("predict", f"--ckpt_path={Path('text') / LAST}", "--run.dir=stored"),
        f"--data.predict_file={file}",
    )
    assert by_checkpoint.code == 0, by_checkpoint.err
    logits = load_file(Path("stored") / "predictions.safetensors")["logits"]
    expected = logits.softmax(-1)
    exported = kd("export", "text", "--format", "torch-export", "--output", "export")
    assert exported.code == 0, exported.err

    # The training files are gone: the checkpoint holds the vocabulary.
    shutil.rmtree(root)
    outcome = kd("predict", "text", str(file), "--format", "jsonl")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(SENTENCES)))
    piped = kd("predict", "text", "-", "--format", "jsonl", "--batch-size", "1")
    by_export = kd("predict", "export", str(file), "--format", "jsonl")
    missing = kd("predict", "text", "a warm film")

    assert outcome.code == 0, outcome.err
    results = [json.loads(line) for line in outcome.out.splitlines()]
    assert [result["input"] for result in results] == [f"{file}:{n}" for n in (1, 3, 4)]
    for result, probabilities in zip(results, expected, strict=True):
        assert result["class"] == ("negative", "positive")[int(probabilities.argmax())]
        assert result["probability"] == pytest.approx(
            float(probabilities.max()), abs=1e-5
        )
    assert piped.code == 0, piped.err
    for line, result in zip(piped.out.splitlines(), results, strict=True):
        assert json.loads(line)["class"] == result["class"]
    assert by_export.code == 0, by_export.err
    for line, result in zip(by_export.out.splitlines(), results, strict=True):
        predicted = json.loads(line)
        assert predicted["class"] == result["class"]
        assert predicted["probability"] == pytest.approx(
            result["probability"], abs=1e-5
        )
    assert "or give - for standard input" in missing.err

    # The service reads texts, too.
    with TestClient(create_app(load_network(Path("export"), []), Limits())) as client:
        plain = {"content-type": "text/plain"}
        answers = [
            client.post("/predict", content=SENTENCES[0], headers=plain),
            client.post("/predict", json={"text": SENTENCES[0]}),
        ]
        pair = client.post("/predict", json={"text": ["one", "two"]})
    assert [answer.json()["class"] for answer in answers] == [results[0]["class"]] * 2
    assert pair.status_code == 422
    assert "this network reads one text" in pair.json()["detail"]

    # An export that describes no reader takes arrays alone, and says so in one line.
    path = Path("export") / "student.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "reader": None}))
    refused = kd("predict", "export", str(file))
    assert refused.code == 2
    assert "arrays (input_ids: int64 (24)" in refused.err
    assert "or use the run instead of its export" in refused.err
    assert len(refused.err.strip().splitlines()) == 1

    # Token ids in the export's own length are read.
    network = load_network(Path("text"), [])
    raw = network.encode([(sentence,) for sentence in SENTENCES])
    arrays = {}
    for described, tensor in zip(network.inputs, raw, strict=True):
        padded = torch.zeros(3, 24, dtype=torch.int64)
        padded[:, : tensor.shape[1]] = tensor
        arrays[described.name] = padded.numpy()
    np.savez("ids.npz", **arrays)  # type: ignore[arg-type]
    by_arrays = kd("predict", "export", "ids.npz", "--format", "jsonl")
    assert by_arrays.code == 0, by_arrays.err
    for line, result in zip(by_arrays.out.splitlines(), results, strict=True):
        assert json.loads(line)["class"] == result["class"]


def test_recordings_are_cut_into_normalized_frames(tmp_path: Path) -> None:
    pytest.importorskip("librosa")
    seconds = 0.5
    # Noise has energy in all bands; a constant band would keep a deviation of 0.
    noise = np.random.default_rng(0).normal(0, 3000, int(seconds * RATE))
    record(tmp_path / "noise.wav", noise)
    reader = RecordingReader()

    samples = list(reader.samples(tmp_path / "noise.wav"))
    windows = reader.encode([sample.content for sample in samples if sample.content])

    # A frame of 32 ms every 10 ms that fits into 500 ms.
    assert len(samples) == 1 + (4000 - 256) // 80
    assert samples[3].name.endswith("noise.wav@0.03s")
    assert windows.shape == (47, 1, 26, 40)
    # Position 20 of each window is the frame itself.
    own = windows[:, 0, 20]
    torch.testing.assert_close(own.mean(0), torch.zeros(40), atol=1e-4, rtol=0)
    torch.testing.assert_close(own.std(0), torch.ones(40), atol=1e-3, rtol=0)


def test_recordings_in_another_format_are_refused(tmp_path: Path) -> None:
    record(tmp_path / "fast.wav", np.zeros(4000), rate=16000)

    with pytest.raises(UserError, match="convert it to 1 channel, 8000 Hz"):
        list(RecordingReader().samples(tmp_path / "fast.wav"))
    with pytest.raises(UserError, match="give a WAV file"):
        RecordingReader().encode([("text",)])

"""A classifier of transformers as a teacher, with the head that it was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kd_lightning.data import DigitsDataModule, PretrainedTokenizer, SST2DataModule
from kd_lightning.models import HubClassifier
from kd_lightning.runs.random_teacher import check_teachers_are_trained
from kd_lightning.teachers import ModelTeacher
from tests.sentences import save_bert, write_sst2
from tests.training.small import complaint, copied, same, samples

transformers = pytest.importorskip(
    "transformers", reason="pip install 'kd_lightning[text]'"
)

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sst2(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def encoder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("encoder"), root)


@pytest.fixture
def sentences(root: Path, encoder: Path) -> SST2DataModule:
    return SST2DataModule(str(root), tokenizer=PretrainedTokenizer(str(encoder)))


def save_classifier(encoder: Path, folder: Path, **changes: Any) -> Any:
    """A fine-tuned classifier with its tokenizer, as `save_pretrained` writes it."""
    model = transformers.BertForSequenceClassification.from_pretrained(
        encoder, num_labels=2, **changes
    )
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    return model.eval()


def test_keeps_its_head(
    encoder: Path, sentences: SST2DataModule, tmp_path: Path
) -> None:
    model = save_classifier(encoder, tmp_path)
    teacher = ModelTeacher(checkpoint=str(tmp_path))
    teacher.prepare(sentences)
    batch = samples(sentences, "test", 4)  # type: ignore[arg-type,unused-ignore]
    assert isinstance(batch.inputs, dict)
    with torch.no_grad():
        expected = model(**batch.inputs).logits
    torch.testing.assert_close(teacher(batch).logits, expected)
    (source,) = teacher.sources()
    assert source["path"] == str(tmp_path.resolve())
    again = ModelTeacher(checkpoint=str(tmp_path), sha256=str(source["sha256"]))
    again.prepare(sentences)
    changed = ModelTeacher(checkpoint=str(tmp_path), sha256="0")
    assert "the file is another one" in complaint(lambda: changed.prepare(sentences))


def test_its_classes_are_compared(
    encoder: Path, sentences: SST2DataModule, tmp_path: Path
) -> None:
    names = sentences.spec.classes
    for known, fits in (
        ([name.upper() for name in names], True),
        (["LABEL_0", "LABEL_1"], True),
        (list(names[::-1]), False),
        (["spam", "ham"], False),
    ):
        folder = tmp_path / known[0]
        save_classifier(encoder, folder, id2label=dict(enumerate(known)))
        teacher = ModelTeacher(checkpoint=str(folder))
        if fits:
            teacher.prepare(sentences)
        else:
            message = complaint(lambda teacher=teacher: teacher.prepare(sentences))  # type: ignore[misc]
            assert f"calls class 0 {known[0]!r}" in message
    model = transformers.BertForSequenceClassification.from_pretrained(
        encoder, num_labels=3
    )
    model.save_pretrained(tmp_path / "three")
    three = ModelTeacher(checkpoint=str(tmp_path / "three"))
    assert "knows 3 classes" in complaint(lambda: three.prepare(sentences))


def test_a_bare_encoder_is_refused(encoder: Path, sentences: SST2DataModule) -> None:
    message = complaint(
        lambda: ModelTeacher(checkpoint=str(encoder)).prepare(sentences)
    )
    assert (
        "holds BertModel, not a classifier, so its head would have random weights"
        in message
    )
    arguments = {"pretrained": str(encoder), "num_classes": 2}
    network: dict[str, Any] = {
        "class_path": "kd_lightning.models.TransformerClassifier",
        "init_args": arguments,
    }
    teacher: dict[str, Any] = {
        "class_path": "kd_lightning.teachers.ModelTeacher",
        "init_args": {"network": network},
    }
    message = complaint(lambda: check_teachers_are_trained({"teacher": teacher}))
    assert "random weights ('head.1.weight' is drawn" in message


def test_a_lost_head_is_refused(
    encoder: Path, sentences: SST2DataModule, tmp_path: Path
) -> None:
    save_classifier(encoder, tmp_path)
    bare = transformers.BertModel.from_pretrained(encoder)
    bare.save_pretrained(tmp_path / "bare")
    # The configuration still promises a classifier.
    (tmp_path / "bare" / "config.json").write_text(
        (tmp_path / "config.json").read_text()
    )
    teacher = ModelTeacher(checkpoint=str(tmp_path / "bare"))
    assert "has no 'classifier." in complaint(lambda: teacher.prepare(sentences))


def test_another_network_names_the_way(
    encoder: Path, sentences: SST2DataModule, tmp_path: Path
) -> None:
    save_classifier(encoder, tmp_path)
    network = torch.nn.Linear(2, 2)
    teacher = ModelTeacher(
        checkpoint=str(tmp_path / "model.safetensors"), network=network
    )
    message = complaint(lambda: teacher.prepare(sentences))
    assert f"give --model.teacher.checkpoint={tmp_path} and no network" in message


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_images(name: str, tmp_path: Path, data: DigitsDataModule) -> None:
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, num_channels=1, num_labels=10, **SMALL
    )
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    batch = samples(data, "test", 4)
    assert isinstance(batch.inputs, torch.Tensor)
    with torch.no_grad():
        expected = model(batch.inputs).logits
    teachers = [
        ModelTeacher(
            str(tmp_path / name), transformers.ViTForImageClassification(config)
        )
    ]
    if not name:
        teachers.append(ModelTeacher(str(tmp_path)))
    for teacher in teachers:
        teacher.prepare(data)
        torch.testing.assert_close(teacher(batch).logits, expected)
    network = teachers[-1].network
    if isinstance(network, HubClassifier):
        network = network.model
    assert network is not None
    assert same(copied(network), copied(model))

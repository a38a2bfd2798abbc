"""Masked language models: padding and documents that do not count, layers of a teacher, and misfits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.hub import library
from kd_lightning.models import MaskedLanguageModel
from kd_lightning.spec import InputSpec, Spec, Vocabulary
from kd_lightning.weights import plain

pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")

BERT: dict[str, Any] = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
ROBERTA: dict[str, Any] = {**BERT, "model_type": "roberta", "pad_token_id": 1}
DISTILBERT: dict[str, Any] = {
    "model_type": "distilbert",
    "dim": 16,
    "n_layers": 3,
    "n_heads": 2,
    "hidden_dim": 32,
    "max_position_embeddings": 16,
}
MODERNBERT: dict[str, Any] = {**BERT, "model_type": "modernbert"}
V = 20


def network(seed: int = 0, **arguments: Any) -> MaskedLanguageModel:
    torch.manual_seed(seed)
    return MaskedLanguageModel(**{"architecture": BERT, "num_classes": V, **arguments})


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(2, V, shape, generator=torch.Generator().manual_seed(seed))


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.int64)


def save(folder: Path, seed: int = 0, **arguments: Any) -> Path:
    network(seed, **arguments).model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def spec_of(
    size: int = V, length: int = 8, names: tuple[str, ...] = ()
) -> dict[str, Any]:
    vocabulary = Vocabulary(size=size, pad=0, max_length=length, sha256="x")
    inputs = {}
    for name in ("input_ids", "attention_mask", *names):
        inputs[name] = InputSpec((length,), 0)
    return Spec(num_classes=size, vocabulary=vocabulary, inputs=inputs).to_dict()


PACKED = ("documents", "position_ids")


@pytest.mark.parametrize("architecture", [BERT, ROBERTA, DISTILBERT])
def test_documents_of_a_block_do_not_see_each_other(
    architecture: dict[str, Any],
) -> None:
    """A packed block gives the logits of each document alone."""
    model = network(architecture=architecture, spec=spec_of(names=PACKED)).eval()
    block = ids(1, 10)
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2, -1]])
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 0]])
    mask = (documents >= 0).long()
    packed = model(block, mask, documents, places)
    for start, stop in ((0, 4), (4, 7), (7, 9)):
        alone = model(block[:, start:stop], ones(1, stop - start))
        torch.testing.assert_close(packed[:, start:stop], alone)
    assert bool(packed.isfinite().all())


@pytest.mark.parametrize("architecture", [BERT, ROBERTA, DISTILBERT, MODERNBERT])
def test_padding_is_not_seen(architecture: dict[str, Any]) -> None:
    model = network(architecture=architecture).eval()
    block = ids(2, 8)
    mask = ones(2, 8)
    mask[1, 5:] = 0
    padded = model(block, mask)
    torch.testing.assert_close(padded[1:, :5], model(block[1:, :5], ones(1, 5)))
    garbage = torch.where(mask.bool(), block, 3)
    other = model(garbage, mask)
    torch.testing.assert_close(other[1:, :5], padded[1:, :5])


def test_every_token_sees_those_before_and_after_it() -> None:
    model = network().eval()
    block = ids(1, 6)
    expected = model(block, ones(1, 6))
    for place in (0, 5):
        changed = block.clone()
        changed[0, place] = (changed[0, place] + 1) % V
        assert not torch.allclose(model(changed, ones(1, 6))[:, 3], expected[:, 3])


def test_the_positions_of_roberta_follow_its_padding_token() -> None:
    """As if transformers had counted them, for tokens that are no padding."""
    model = network(architecture=ROBERTA).eval()
    expected = model.model(input_ids=ids(1, 6)).logits
    torch.testing.assert_close(model(ids(1, 6), ones(1, 6)), expected)


def test_a_padded_vocabulary_is_cut(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", num_classes=V + 4)
    model = network(
        architecture=None, pretrained=str(folder), spec=spec_of(names=PACKED)
    ).eval()
    logits = model(ids(2, 5), ones(2, 5))
    assert logits.shape == (2, 5, V)
    whole = model.model(input_ids=ids(2, 5)).logits
    torch.testing.assert_close(logits, whole[..., :V])


def test_a_student_starts_from_layers_of_its_teacher(tmp_path: Path) -> None:
    folder = str(save(tmp_path / "model"))
    teacher = MaskedLanguageModel(folder, num_classes=V)
    student = MaskedLanguageModel(folder, layers=[0, 2], num_classes=V)
    own = student.model.state_dict()
    other = teacher.model.state_dict()
    assert len(own) < len(other)
    name = "bert.encoder.layer.{}.output.dense.weight"
    assert torch.equal(own[name.format(1)], other[name.format(2)])
    head = "cls.predictions.transform.dense.weight"
    assert torch.equal(own[head], other[head])
    # All layers in their order are the teacher itself.
    same = MaskedLanguageModel(folder, layers=[0, 1, 2], num_classes=V).eval()
    expected = teacher.eval()(ids(1, 4), ones(1, 4))
    torch.testing.assert_close(same(ids(1, 4), ones(1, 4)), expected)


def test_a_checkpoint_rebuilds_the_network_without_files(tmp_path: Path) -> None:
    folder = str(save(tmp_path / "model"))
    model = MaskedLanguageModel(folder, layers=[1], num_classes=V).eval()
    arguments = plain(model.without_files())
    assert isinstance(arguments, dict)
    rebuilt = MaskedLanguageModel(**arguments, num_classes=V).eval()
    rebuilt.load_state_dict(model.state_dict())
    expected = model(ids(2, 5), ones(2, 5))
    assert torch.equal(rebuilt(ids(2, 5), ones(2, 5)), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": None}, "MaskedLanguageModel: give either pretrained"),
        ({"layers": [0]}, "MaskedLanguageModel: give either pretrained"),
        ({"num_classes": None}, "architecture needs vocab_size"),
        ({"architecture": {"hidden_size": 8}}, "needs a model_type, such as bert"),
        ({"architecture": {**BERT, "model_type": "llama"}}, "architecture: "),
        ({"spec": spec_of(size=V + 1)}, "has 21 tokens, but the language model of the"),
        ({"spec": spec_of(length=17)}, "at most 16 tokens, but data.length is 17"),
        # The first two positions of RoBERTa are no token's.
        (
            {"architecture": ROBERTA, "spec": spec_of(length=15)},
            "at most 14 tokens, but data.length is 15",
        ),
        (
            {"architecture": MODERNBERT, "spec": spec_of(names=PACKED)},
            "has layers of local attention, .* set data.packed=false",
        ),
    ],
)
def test_misfits_are_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        network(**arguments)
    assert "\n" not in str(caught.value)


def test_a_model_that_ignores_documents_is_refused() -> None:
    """DeBERTa reads the mask in another way."""
    architecture = {**BERT, "model_type": "deberta", "pos_att_type": "c2p|p2c"}
    network(architecture=architecture, spec=spec_of())
    with pytest.raises(UserError, match="does not keep the documents of a block apart"):
        network(architecture=architecture, spec=spec_of(names=PACKED))


def test_an_encoder_is_no_masked_language_model(tmp_path: Path) -> None:
    transformers = library("transformers")
    config = transformers.AutoConfig.for_model(**BERT, vocab_size=V)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "body")
    with pytest.raises(UserError, match=r"has no 'cls.predictions.*with the head that"):
        MaskedLanguageModel(pretrained=str(tmp_path / "body"), num_classes=V)

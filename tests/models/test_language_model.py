"""Causal language models: documents that do not see each other, layers of a teacher, and misfits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.hub import library
from kd_lightning.models import CausalLanguageModel
from kd_lightning.spec import Spec, Vocabulary
from kd_lightning.weights import plain

pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 2,
    "n_positions": 16,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
V = 20


def network(seed: int = 0, **arguments: Any) -> CausalLanguageModel:
    torch.manual_seed(seed)
    return CausalLanguageModel(**{"architecture": LLAMA, "num_classes": V, **arguments})


def ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def save(folder: Path, seed: int = 0, vocabulary: int = V) -> Path:
    network(seed, num_classes=vocabulary).model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def spec_of(size: int = V, length: int = 8) -> dict[str, Any]:
    vocabulary = Vocabulary(size=size, pad=0, max_length=length, sha256="x")
    return Spec(num_classes=size, vocabulary=vocabulary).to_dict()


@pytest.mark.parametrize("architecture", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_documents_of_a_block_do_not_see_each_other(
    architecture: dict[str, Any],
) -> None:
    """A packed block gives the logits of each document alone."""
    model = network(architecture=architecture).eval()
    block = ids(1, 10)
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2, -1]])
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 1, 0]])
    packed = model(block, documents, places)
    for start, stop in ((0, 4), (4, 7), (7, 9)):
        alone = model(block[:, start:stop])
        torch.testing.assert_close(packed[:, start:stop], alone)


@pytest.mark.parametrize("architecture", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_the_token_between_documents_is_trained(architecture: dict[str, Any]) -> None:
    model = network(architecture=architecture, spec=spec_of())
    end = spec_of()["vocabulary"]["pad"]
    model(torch.tensor([[1, end, 2]])).square().mean().backward()
    gradient = model.model.get_input_embeddings().weight.grad  # type: ignore[operator]
    assert gradient[end].abs().sum() > 0


def test_no_token_sees_a_later_one() -> None:
    model = network().eval()
    block = ids(1, 6)
    changed = block.clone()
    changed[0, 4:] = (changed[0, 4:] + 1) % V
    torch.testing.assert_close(model(block)[:, :4], model(changed)[:, :4])
    # Padding at the end is a special case of it.
    torch.testing.assert_close(model(block[:, :4]), model(block)[:, :4])


def test_a_padded_vocabulary_is_cut(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", vocabulary=V + 4)
    model = CausalLanguageModel(
        pretrained=str(folder), num_classes=V, spec=spec_of()
    ).eval()
    logits = model(ids(2, 5))
    assert logits.shape == (2, 5, V)
    whole = model.model(input_ids=ids(2, 5)).logits
    torch.testing.assert_close(logits, whole[..., :V])


@pytest.mark.parametrize("architecture", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_states_and_head_give_the_logits(architecture: dict[str, Any]) -> None:
    # A padded vocabulary, which the head cuts as well.
    padded = {**architecture, "vocab_size": V + 4}
    model = network(architecture=padded).eval()
    model.check_head()
    documents = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, -1]])
    places = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 0]])
    states = model(ids(2, 5), documents, places, states_only=True)
    assert states.shape == (2, 5, 16)
    logits = model.head(states)
    assert torch.equal(logits, model(ids(2, 5), documents, places))
    torch.testing.assert_close(model.head(states[0, 2:3]), logits[0, 2:3])


def test_a_model_that_changes_its_logits_has_no_head() -> None:
    capped = {
        **LLAMA,
        "model_type": "gemma2",
        "head_dim": 8,
        "num_key_value_heads": 1,
        # Small enough to show: the logits of random weights are small.
        "final_logit_softcapping": 0.01,
    }
    model = network(architecture=capped)
    with pytest.raises(UserError, match="Gemma2ForCausalLM changes its logits after"):
        model.check_head()


def test_a_student_starts_from_layers_of_its_teacher(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    teacher = CausalLanguageModel(pretrained=str(folder), num_classes=V)
    student = CausalLanguageModel(pretrained=str(folder), layers=[0, 2], num_classes=V)
    own = student.model.state_dict()
    other = teacher.model.state_dict()
    assert len(own) < len(other)
    name = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(own[name.format(0)], other[name.format(0)])
    assert torch.equal(own[name.format(1)], other[name.format(2)])
    assert torch.equal(own["lm_head.weight"], other["lm_head.weight"])
    # All layers in their order are the teacher itself.
    same = CausalLanguageModel(pretrained=str(folder), layers=[0, 1, 2], num_classes=V)
    torch.testing.assert_close(same.eval()(ids(1, 4)), teacher.eval()(ids(1, 4)))


def test_a_checkpoint_rebuilds_the_network_without_files(tmp_path: Path) -> None:
    model = CausalLanguageModel(
        pretrained=str(save(tmp_path / "model")), layers=[1], num_classes=V
    ).eval()
    arguments = plain(model.without_files())
    assert isinstance(arguments, dict)
    rebuilt = CausalLanguageModel(**arguments, num_classes=V).eval()
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(ids(2, 5)), model(ids(2, 5)))


def test_pretrained_weights_do_not_depend_on_the_seed(tmp_path: Path) -> None:
    folder = str(save(tmp_path / "model"))
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = CausalLanguageModel(pretrained=folder, layers=[1], num_classes=V)
        expected = network(0).model.state_dict()["model.norm.weight"]
        assert torch.equal(model.model.state_dict()["model.norm.weight"], expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": None}, "give either pretrained"),
        ({"pretrained": "x"}, "give either pretrained"),
        ({"layers": [0]}, "give either pretrained"),
        ({"num_classes": None}, "architecture needs vocab_size"),
        ({"architecture": {"hidden_size": 8}}, "needs a model_type, such as llama"),
        ({"architecture": {**LLAMA, "model_type": "none"}}, "architecture: "),
        ({"architecture": {"model_type": "vit"}}, "architecture: "),
        ({"spec": spec_of(size=V + 1)}, "has 21 tokens, but the language model of the"),
        ({"spec": spec_of(length=17)}, "at most 16 tokens, but data.length is 17"),
    ],
)
def test_misfits_are_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        network(**arguments)
    assert "\n" not in str(caught.value)


def test_layers_that_do_not_exist(tmp_path: Path) -> None:
    folder = str(save(tmp_path / "model"))
    for layers in ([3], [-1], []):
        with pytest.raises(UserError, match="layers must be numbers from 0 to 2"):
            CausalLanguageModel(pretrained=folder, layers=layers, num_classes=V)


def test_an_encoder_is_no_language_model(tmp_path: Path) -> None:
    transformers = library("transformers")
    config = transformers.AutoConfig.for_model(**LLAMA, vocab_size=V)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "body")
    with pytest.raises(UserError, match=r"has no 'lm_head.weight', so that part"):
        CausalLanguageModel(pretrained=str(tmp_path / "body"), num_classes=V)

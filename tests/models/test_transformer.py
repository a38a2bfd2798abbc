"""Encoders of the transformers library as classifiers: taps, freezing, copying, and misfits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.data import PretrainedTokenizer, SST2DataModule, WordTokenizer
from kd_lightning.errors import UserError
from kd_lightning.features import Taps, run_network
from kd_lightning.models import TransformerClassifier
from kd_lightning.weights import plain
from tests.sentences import save_bert, write_sst2

transformers = pytest.importorskip(
    "transformers", reason="pip install 'kd_lightning[text]'"
)

BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
GPT2: dict[str, Any] = {
    "vocab_size": 30,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5: dict[str, Any] = {
    "vocab_size": 30,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 2,
    "num_heads": 2,
}
ROLES = {
    "states0": "states.0",
    "states4": "states.4",
    "scores1": "scores.1",
    "scores3": "scores.3",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sst2(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"), root)


def network(seed: int = 0, **arguments: Any) -> TransformerClassifier:
    torch.manual_seed(seed)
    return TransformerClassifier(
        **{"architecture": BERT, "num_classes": 2, **arguments}
    )


def inputs() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 30, (3, 6), generator=rng)
    mask = torch.arange(6) < torch.tensor([[6], [2], [4]])
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
def test_states_and_scores_equal_those_of_the_library(kind: str) -> None:
    named = (
        {"dim": 16, "n_layers": 4, "n_heads": 2, "hidden_dim": 32}
        if kind == "distilbert"
        else BERT
    )
    net = network(architecture={**named, "model_type": kind, "vocab_size": 30}).eval()
    plain = run_network(net, inputs()).logits
    taps = Taps(net, ROLES, set(ROLES))
    with torch.no_grad():
        found = run_network(net, inputs(), taps)
        net.encoder.set_attn_implementation("eager")
        expected = net.encoder(
            **inputs(), output_hidden_states=True, output_attentions=True
        )
    torch.testing.assert_close(found.logits, plain, rtol=0, atol=1e-6)
    for role, at in (("states0", 0), ("states4", 4)):
        torch.testing.assert_close(
            found.features[role], expected.hidden_states[at], rtol=0, atol=1e-5
        )
    mask = inputs()["attention_mask"].bool()
    for role, at in (("scores1", 0), ("scores3", 2)):
        assert found.features[role].shape == (3, 2, 6, 6)
        probabilities = (
            found.features[role]
            .masked_fill(~mask[:, None, None], float("-inf"))
            .softmax(-1)
        )
        shown = mask[:, None, :, None].expand_as(probabilities)
        torch.testing.assert_close(
            probabilities[shown], expected.attentions[at][shown], rtol=0, atol=1e-5
        )


def test_copies_have_their_own_taps() -> None:
    first = network()
    second = copy.deepcopy(first)
    taps = Taps(second, ROLES, {"scores1"})
    run_network(first.eval(), inputs())
    assert taps.take() == {}
    assert set(run_network(second.eval(), inputs(), taps).features) == {"scores1"}


def test_every_parameter_has_a_gradient() -> None:
    net = network(head=8)
    net(**inputs()).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []
    layers = [layer for layer in net.head if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in layers] == [
        (16, 8),
        (8, 2),
    ]
    plain = [layer for layer in network().head if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in plain] == [(16, 2)]


@pytest.mark.parametrize("count", [0, 1, 3, 4])
def test_only_the_last_layers_are_trained(count: int) -> None:
    net = network(trainable_layers=count)
    trained = {
        name.partition(".attention")[0].partition(".output")[0]
        for name, p in net.named_parameters()
        if p.requires_grad
    }
    numbers = {
        int(name.split(".")[3])
        for name in trained
        if name.startswith("encoder.encoder.layer")
    }
    assert numbers == set(range(4 - count, 4))
    assert any(name.startswith("head") for name in trained)
    assert not any("embeddings" in name for name in trained)
    assert all(p.requires_grad for p in network().parameters())


def checkpoint(net: nn.Module, path: Path) -> str:
    torch.save(net.state_dict(), path)
    return str(path)


def test_every_second_layer_is_copied(tmp_path: Path) -> None:
    teacher = network(seed=1)
    path = checkpoint(teacher, tmp_path / "teacher.ckpt")
    student = network(architecture={**BERT, "num_hidden_layers": 2}, copy_from=path)
    source_state = teacher.encoder.state_dict()
    state = student.encoder.state_dict()
    assert torch.equal(
        state["embeddings.word_embeddings.weight"],
        source_state["embeddings.word_embeddings.weight"],
    )
    for at, source in ((0, 1), (1, 3)):
        names = [name for name in state if name.startswith(f"encoder.layer.{at}.")]
        assert len(names) == 16
        assert all(
            torch.equal(
                state[n], source_state[n.replace(f"layer.{at}.", f"layer.{source}.", 1)]
            )
            for n in names
        )
    chosen = network(
        architecture={**BERT, "num_hidden_layers": 1}, copy_from=path, copy_layers=[2]
    )
    three = network(
        architecture={**BERT, "num_hidden_layers": 3}, copy_from=path
    ).encoder.state_dict()
    key = "attention.self.query.weight"
    for at, source in enumerate((0, 2, 3)):  # evenly spaced, including the last one
        assert torch.equal(
            three[f"encoder.layer.{at}.{key}"],
            source_state[f"encoder.layer.{source}.{key}"],
        )
    assert torch.equal(
        chosen.encoder.state_dict()[f"encoder.layer.0.{key}"],
        source_state[f"encoder.layer.2.{key}"],
    )


def test_a_network_is_rebuilt_without_its_files(folder: Path) -> None:
    trained = TransformerClassifier(str(folder), num_classes=2, head=8)
    again = TransformerClassifier(
        **plain(trained.without_files()), num_classes=2, head=8
    )
    again.load_state_dict(trained.state_dict())
    ids = inputs()
    assert torch.equal(again.eval()(**ids), trained.eval()(**ids))


def test_half_precision_weights_are_trained_in_single_precision(
    tmp_path: Path, root: Path
) -> None:
    folder = save_bert(tmp_path / "bert", root, tokenizer=False)
    transformers.BertModel.from_pretrained(folder).half().save_pretrained(folder)
    net = TransformerClassifier(str(folder), num_classes=2)
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_an_encoder_that_repeats_one_layer(folder: Path) -> None:
    albert = {**BERT, "model_type": "albert", "embedding_size": 8}
    assert network(architecture=albert)(**inputs()).shape == (3, 2)
    with pytest.raises(
        UserError,
        match="AlbertModel has no list of its layers; remove trainable_layers",
    ):
        network(architecture=albert, trainable_layers=1)


def test_positions_of_roberta_follow_its_padding_id() -> None:
    roberta = {
        **BERT,
        "model_type": "roberta",
        "pad_token_id": 1,
        "max_position_embeddings": 34,
    }
    spec: dict[str, Any] = {
        "vocabulary": {"size": 30, "pad": 1, "max_length": 32, "sha256": "0"}
    }
    network(architecture=roberta, spec=spec)
    spec["vocabulary"]["max_length"] = 33
    with pytest.raises(
        UserError,
        match="the encoder reads at most 32 tokens, but the tokenizer returns up to 33",
    ):
        network(architecture=roberta, spec=spec)


def test_the_weights_of_a_folder_are_loaded(folder: Path) -> None:
    torch.manual_seed(5)
    net = TransformerClassifier(str(folder), num_classes=2).eval()
    saved = transformers.BertModel.from_pretrained(folder).eval()
    ids = {
        "input_ids": inputs()["input_ids"],
        "attention_mask": inputs()["attention_mask"],
    }
    with torch.no_grad():
        expected = saved(**ids).last_hidden_state
        taps = Taps(net, {"last": "states.2"}, {"last"})
        torch.testing.assert_close(
            run_network(net, ids, taps).features["last"], expected, rtol=0, atol=1e-5
        )


def test_only_the_tokenizer_of_the_folder_fits(folder: Path, root: Path) -> None:
    own: dict[str, Any] = SST2DataModule(
        str(root), tokenizer=PretrainedTokenizer(str(folder))
    ).spec.to_dict()
    assert TransformerClassifier(str(folder), num_classes=2, spec=own).typed
    both = {
        "tokenizer": WordTokenizer(max_length=32),
        "teacher_tokenizer": PretrainedTokenizer(str(folder)),
    }
    as_teacher = SST2DataModule(str(root), **both).spec
    TransformerClassifier(
        str(folder), num_classes=2, spec=as_teacher.for_teacher().to_dict()
    )
    with pytest.raises(
        UserError, match="another vocabulary"
    ):  # the student's vocabulary is not the encoder's
        TransformerClassifier(str(folder), num_classes=2, spec=as_teacher.to_dict())
    words: dict[str, Any] = SST2DataModule(
        str(root), tokenizer=WordTokenizer(max_length=32)
    ).spec.to_dict()
    with pytest.raises(
        UserError,
        match=r"the tokenizer has another vocabulary than the model .*PretrainedTokenizer",
    ):
        TransformerClassifier(str(folder), num_classes=2, spec=words)
    larger = {**words, "vocabulary": {**words["vocabulary"], "size": 5000}}
    with pytest.raises(
        UserError,
        match=r"has 5,000 tokens, but the encoder .* has \d+; use the encoder",
    ):
        TransformerClassifier(str(folder), num_classes=2, spec=larger)
    longer = {"vocabulary": {**own["vocabulary"], "max_length": 65}}
    with pytest.raises(
        UserError,
        match=r"reads at most 64 tokens, but the tokenizer returns up to 65; set its max_length",
    ):
        TransformerClassifier(str(folder), num_classes=2, spec=longer)


def test_pickled_weights_are_never_read(tmp_path: Path, root: Path) -> None:
    folder = save_bert(tmp_path / "bert", root, tokenizer=False)
    weights = transformers.BertModel.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"has no readable model"):
        TransformerClassifier(str(folder), num_classes=2)


def test_a_folder_with_missing_weights(tmp_path: Path, root: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_bert(tmp_path / "bert", root, tokenizer=False)
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        UserError,
        match=r"has no 'encoder\.layer\.1\.output\.dense\.weight' for BertModel",
    ):
        TransformerClassifier(str(folder), num_classes=2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: TransformerClassifier(num_classes=2),
            "give either pretrained or architecture",
        ),
        (
            lambda: TransformerClassifier("a", BERT, num_classes=2),
            "give either pretrained or architecture",
        ),
        (
            lambda: TransformerClassifier("/no/such", num_classes=2),
            "there is no folder /no/such",
        ),
        (
            lambda: network(num_classes=None),
            "TransformerClassifier: num_classes is missing",
        ),
        (lambda: network(trainable_layers=5), "trainable_layers must be 0 to 4, got 5"),
        (
            lambda: network(architecture={"vocab_size": 9}),
            "architecture needs a model_type",
        ),
        (
            lambda: network(architecture={"model_type": "bert"}),
            "architecture needs vocab_size",
        ),
        (
            lambda: network(architecture={**BERT, "num_attention_heads": 3}),
            "hidden size .16. is not a multiple",
        ),
        (
            lambda: network(architecture={**BERT, "model_type": "brt"}),
            "architecture: .*brt",
        ),
        (
            lambda: network(architecture={**BERT, "model_type": "fnet"}),
            "FNetModel does not ignore padding",
        ),
        (
            lambda: network(architecture={"model_type": "gpt2", **GPT2}),
            "GPT2Model does not ignore padding",
        ),
        (
            lambda: network(architecture={**T5, "model_type": "t5"}),
            "T5Model cannot read a sentence; use an encoder",
        ),
        (
            lambda: network(architecture={**BERT, "model_type": "funnel"}),
            "architecture: This model does not support",
        ),
    ],
)
def test_bad_arguments(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_copying_misfits(tmp_path: Path) -> None:
    path = checkpoint(network(), tmp_path / "teacher.ckpt")
    with pytest.raises(
        UserError, match=r"copy_from: .* has 4 layers; choose 2 of them, not \[0, 7\]"
    ):
        network(
            architecture={**BERT, "num_hidden_layers": 2},
            copy_from=path,
            copy_layers=[0, 7],
        )
    with pytest.raises(
        UserError, match=r"copy_from: .*; give a checkpoint of the same width"
    ):
        network(
            architecture={**BERT, "num_hidden_layers": 2, "hidden_size": 32},
            copy_from=path,
        )

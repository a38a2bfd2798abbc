"""Sentence classifiers: independence of padding, pooling, word vectors and bad arguments."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kd_lightning.errors import UserError
from kd_lightning.models import BiLSTMClassifier, TextCNN, TransformerClassifier
from kd_lightning.models.embedding import WordEmbedding

WORDS = 40
BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
MAKERS: dict[str, Callable[[], nn.Module]] = {
    "max": lambda: BiLSTMClassifier(12, 8, 6, vocabulary=WORDS, num_classes=3),
    "last": lambda: BiLSTMClassifier(12, 8, 6, "last", vocabulary=WORDS, num_classes=3),
    "textcnn": lambda: TextCNN(12, [1, 3, 5], 7, vocabulary=WORDS, num_classes=3),
    "bert": lambda: TransformerClassifier(
        architecture={**BERT, "vocab_size": WORDS}, num_classes=3
    ),
    "distilbert": lambda: TransformerClassifier(
        architecture={
            "model_type": "distilbert",
            "dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "vocab_size": WORDS,
        },
        head=5,
        num_classes=3,
    ),
}


def network(name: str) -> nn.Module:
    if "bert" in name:
        pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")
    torch.manual_seed(0)
    return MAKERS[name]().eval()


def sentences(lengths: list[int], width: int, filler: int = 0) -> tuple[Tensor, Tensor]:
    """Random sentences of these lengths, padded to a width."""
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(3, WORDS, (len(lengths), max(lengths)), generator=rng)
    ids = torch.nn.functional.pad(ids, (0, width - max(lengths)), value=filler)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    return torch.where(mask, ids, filler), mask.long()


@pytest.mark.parametrize("name", MAKERS)
def test_a_sentence_has_the_same_logits_in_any_batch(name: str) -> None:
    net, lengths = network(name), [7, 1, 4, 2]
    with torch.no_grad():
        whole = net(*sentences(lengths, 7))
        assert whole.shape == (4, 3)
        wider = net(*sentences(lengths, 15))
        torch.testing.assert_close(wider, whole, rtol=0, atol=1e-6)
        for row, length in enumerate(lengths):
            ids, mask = sentences(lengths, 7)
            alone = net(ids[row : row + 1, :length], mask[row : row + 1, :length])
            torch.testing.assert_close(alone, whole[row : row + 1], rtol=0, atol=1e-6)
        # Token ids in the padding have no effect.
        torch.testing.assert_close(
            net(*sentences(lengths, 15, filler=5)), whole, rtol=0, atol=1e-6
        )
    assert (whole[0] - whole[1:]).abs().max() > 1e-3


@pytest.mark.parametrize("name", MAKERS)
def test_gradients_do_not_depend_on_padding(name: str) -> None:
    found = []
    for width in (6, 11):
        net = network(name)
        net(*sentences([6, 2], width)).square().sum().backward()
        found.append(
            [p.grad for p in net.parameters() if p.grad is not None and p.grad.any()]
        )
    assert len(found[0]) > 3
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pooling", ["max", "last"])
def test_bilstm_equals_torch_with_packed_sentences(pooling: Any) -> None:
    torch.manual_seed(0)
    net = BiLSTMClassifier(12, 8, 6, pooling, vocabulary=WORDS, num_classes=3).eval()
    both = nn.LSTM(12, 8, batch_first=True, bidirectional=True)
    onward, backward = net.onward.state_dict(), net.backward_.state_dict()
    both.load_state_dict(
        {**onward, **{f"{name}_reverse": tensor for name, tensor in backward.items()}}
    )
    lengths = [5, 1, 3]
    ids, mask = sentences(lengths, 5)
    packed = nn.utils.rnn.pack_padded_sequence(
        net.embedding(ids), torch.tensor(lengths), True, enforce_sorted=False
    )
    states, (last, _) = both(packed)
    padded, _ = nn.utils.rnn.pad_packed_sequence(
        states, batch_first=True, padding_value=-math.inf
    )
    pooled = padded.amax(1) if pooling == "max" else torch.cat([last[0], last[1]], 1)
    torch.testing.assert_close(
        net(ids, mask), net.head(net.hidden(pooled)), rtol=0, atol=1e-6
    )


def test_textcnn_equals_a_manual_calculation() -> None:
    net = TextCNN(1, [2], 1, vocabulary=4, num_classes=2)
    (convolution,) = net.filters
    with torch.no_grad():
        net.embedding.weight.copy_(torch.tensor([[0.0], [1.0], [2.0], [-3.0]]))
        convolution.weight.copy_(torch.tensor([[[1.0, 10.0]]]))  # type: ignore[operator]
        convolution.bias.fill_(0.5)  # type: ignore[operator]
        net.head.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net.head.bias.zero_()
    # Vectors 2, 1: the filter reads (0, 2), (2, 1), (1, 0) and returns 20.5, 12.5, 1.5.
    # Vector -3: it returns -29.5 and -2.5, which the ReLU sets to zero.
    logits = net.eval()(torch.tensor([[2, 1], [3, 0]]), torch.tensor([[1, 1], [1, 0]]))
    assert logits.tolist() == [[20.5, -20.5], [0.0, 0.0]]


def test_embeddings_start_near_zero_and_padding_stays_there() -> None:
    embedding = WordEmbedding(500, 6)
    weight = embedding.weight.detach()
    assert float(weight[1:].abs().max()) <= 0.25
    assert float(weight[1:].std()) == pytest.approx(0.25 / math.sqrt(3), rel=0.05)
    assert not weight[0].any()
    embedding(torch.tensor([[0, 1]])).sum().backward()
    assert embedding.weight.grad is not None
    assert not embedding.weight.grad[0].any()


@pytest.mark.parametrize("heading", ["", "3 2\n"])
def test_vectors_from_a_file(
    heading: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text(
        f"{heading}film 1 2\nunknown 5 6\n. . 3 -4\nfilm 7 8\n"
    )  # ". ." is a word with a space; GloVe has a few
    embedding = WordEmbedding(5, 2, vectors=str(path))
    start = embedding.weight.detach().clone()
    embedding.use_words({"[PAD]": 0, "[UNK]": 1, "film": 3, ". .": 4, "story": 2})
    weight = embedding.weight.detach()
    assert weight[3:].tolist() == [[1, 2], [3, -4]]
    assert torch.equal(weight[:3], start[:3])
    assert "vectors: 2 of 5 words" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"film 1 2 3\n",
            r"has none of the 1 words of the vocabulary; .* 2 numbers per word",
        ),
        (b"film 1 2\nfilm 1\n", r"line 2: 1 numbers instead of 2"),
        (b"film 1 x\n", r"line 1: the last 2 fields are not numbers"),
        (b"a 1 2\nf\xe9 1 2\n", r"line 2: the word is not UTF-8"),
        (None, r"there is no file .*vectors\.txt with word vectors"),
    ],
)
def test_bad_vectors(content: bytes | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        WordEmbedding(2, 2, vectors=str(path)).use_words({"film": 1})


def test_sizes_come_from_the_data() -> None:
    spec = {"vocabulary": {"size": 33, "pad": 2, "max_length": 9, "sha256": "0" * 64}}
    for net in (
        BiLSTMClassifier(num_classes=2, spec=spec),
        TextCNN(num_classes=2, spec=spec),
    ):
        assert (net.embedding.num_embeddings, net.embedding.padding_idx) == (33, 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: BiLSTMClassifier(vocabulary=5),
            "BiLSTMClassifier: num_classes is missing",
        ),
        (
            lambda: BiLSTMClassifier(num_classes=2),
            "BiLSTMClassifier reads tokens: set vocabulary",
        ),
        (
            lambda: BiLSTMClassifier(num_classes=2, spec={"input_shape": [1, 8, 8]}),
            "or train it under kd on text data",
        ),
        (
            lambda: BiLSTMClassifier(pooling="mean", vocabulary=5, num_classes=2),  # type: ignore[arg-type]
            "pooling must be 'max' or 'last'",
        ),
        (
            lambda: BiLSTMClassifier(hidden=0, vocabulary=5, num_classes=2),
            "hidden must be at least 1, got 0",
        ),
        (
            lambda: BiLSTMClassifier(dropout=1.0, vocabulary=5, num_classes=2),
            r"dropout must be in \[0, 1\), got 1",
        ),
        (lambda: TextCNN(vocabulary=5), "TextCNN: num_classes is missing"),
        (
            lambda: TextCNN(widths=[], vocabulary=5, num_classes=2),
            "widths must be one or more numbers",
        ),
    ],
)
def test_bad_arguments(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()

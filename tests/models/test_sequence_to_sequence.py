"""Sequence-to-sequence models: a padded batch is a loop over single pairs, and a student learns from a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.data import PromptCompletionDataModule
from kd_lightning.errors import UserError
from kd_lightning.losses import KD, CrossEntropy
from kd_lightning.models import SequenceToSequenceModel
from kd_lightning.spec import Spec, Vocabulary
from kd_lightning.training import Objective
from kd_lightning.types import CLEAN, Batch, Output
from kd_lightning.weights import plain
from tests.data.corpus.test_pairs import PAIRS, pairs

pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")

T5: dict[str, Any] = {
    "model_type": "t5",
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 2,
    "dropout_rate": 0.0,
}
BART: dict[str, Any] = {
    "model_type": "bart",
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 32,
}
V = 257


def network(seed: int = 0, **arguments: Any) -> SequenceToSequenceModel:
    torch.manual_seed(seed)
    return SequenceToSequenceModel(
        **{"architecture": T5, "num_classes": V, **arguments}
    )


@pytest.fixture
def data(tmp_path: Path) -> PromptCompletionDataModule:
    return pairs(tmp_path)


def all_pairs(data: PromptCompletionDataModule) -> Batch:
    return data.source("train").batch(torch.arange(len(PAIRS)), CLEAN)


def rows(
    model: SequenceToSequenceModel, data: PromptCompletionDataModule, batch: Batch
) -> Output:
    assert isinstance(batch.inputs, Mapping)
    return Output(data.task.rows(model(**batch.inputs), batch))


def alone(
    model: SequenceToSequenceModel, data: PromptCompletionDataModule, number: int
) -> tuple[Tensor, list[int]]:
    """By hand, with the model of transformers: the logits `(n, V)` of one pair, and the ids."""
    prompt, completion = data.tokenizer.encode(list(PAIRS[number]))
    end = data.tokenizer.end
    target = [*completion, end]
    start = int(model.model.config.decoder_start_token_id)  # type: ignore[attr-defined]
    output = model.model(
        input_ids=torch.tensor([[*prompt, end]]),
        decoder_input_ids=torch.tensor([[start, *completion]]),
    )
    return output.logits[0], target


@pytest.mark.parametrize("architecture", [T5, BART], ids=["t5", "bart"])
def test_loss_and_gradient_are_those_of_a_loop_over_unpadded_pairs(
    architecture: dict[str, Any], data: PromptCompletionDataModule
) -> None:
    """Also for a start token that the data does not know."""
    given = {**architecture, "decoder_start_token_id": 7}
    student = network(0, architecture=given).double().eval()
    teacher = network(1, architecture=given).double().eval()
    batch = all_pairs(data)
    total = torch.zeros((), dtype=torch.float64)
    tokens = 0
    for number in range(len(PAIRS)):
        own, target = alone(student, data, number)
        other = alone(teacher, data, number)[0].detach()
        for place, token in enumerate(target):
            log_q = (own[place] / 2).log_softmax(-1)
            log_p = (other[place] / 2).log_softmax(-1)
            total = total + 4 * (log_p.exp() * (log_p - log_q)).sum()
            total = total - own[place].log_softmax(-1)[token]
            tokens += 1
    assert tokens == batch.num_rows
    output = rows(student, data, batch)
    soft = KD(temperature=2.0)(output, rows(teacher, data, batch), batch)
    value = soft + CrossEntropy()(output, None, batch)
    torch.testing.assert_close(value, total / tokens)
    parameters = list(student.parameters())
    wanted = torch.autograd.grad(total / tokens, parameters)
    actual = torch.autograd.grad(value, parameters)
    for own_gradient, gradient in zip(actual, wanted, strict=True):
        torch.testing.assert_close(own_gradient, gradient)


def test_garbage_in_the_padding_changes_nothing(
    data: PromptCompletionDataModule,
) -> None:
    student = network().eval()
    batch = all_pairs(data)
    expected = rows(student, data, batch).logits
    assert isinstance(batch.inputs, dict)
    prompts = batch.inputs["input_ids"]
    garbage = torch.randint(1, V, prompts.shape)
    exists = batch.inputs["attention_mask"].bool()
    batch.inputs["input_ids"] = torch.where(exists, prompts, garbage)
    counts = torch.zeros(batch.target.numel(), dtype=torch.bool)
    assert batch.positions is not None
    counts[batch.positions] = True
    # A decoder reads a place if its target counts.
    counts = counts.view(batch.target.shape)
    decoder = batch.inputs["decoder_input_ids"]
    noise = torch.randint(1, V, decoder.shape)
    batch.inputs["decoder_input_ids"] = torch.where(counts, decoder, noise)
    torch.testing.assert_close(rows(student, data, batch).logits, expected)


def test_a_smaller_student_learns_from_a_teacher(
    data: PromptCompletionDataModule,
) -> None:
    teacher = network(1, architecture={**T5, "num_layers": 2}).eval()
    student = network(0)
    batch = all_pairs(data)
    target = rows(teacher, data, batch).detached()
    objective = Objective({"kd": KD(temperature=2.0)})
    objective.begin_epoch(0)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.01)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        value = objective(rows(student, data, batch), target, batch).total
        value.backward()
        optimizer.step()
        losses.append(value.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_pretrained_model_and_its_checkpoint(tmp_path: Path) -> None:
    saved = network(2, num_classes=V + 3)
    saved.model.save_pretrained(tmp_path / "model")  # type: ignore[operator]
    model = SequenceToSequenceModel(str(tmp_path / "model"), num_classes=V).eval()
    ids = torch.arange(6).view(2, 3)
    ones = torch.ones(2, 3)
    logits = model(ids, ones, ids)
    # The tokens that only fill up the vocabulary are cut.
    torch.testing.assert_close(logits, saved.eval()(ids, ones, ids)[..., :V])
    arguments = plain(model.without_files())
    assert isinstance(arguments, dict)
    rebuilt = SequenceToSequenceModel(**arguments, num_classes=V).eval()
    rebuilt.load_state_dict(model.state_dict())
    assert torch.equal(rebuilt(ids, ones, ids), logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"architecture": None}, "SequenceToSequenceModel: give either pretrained"),
        ({"architecture": {"d_model": 8}}, "needs a model_type, such as t5 or bart"),
        ({"architecture": {**T5, "model_type": "bert"}}, "architecture: "),
        (
            {"architecture": {**T5, "decoder_start_token_id": None}},
            "has no decoder_start_token_id",
        ),
    ],
)
def test_misfits_are_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        network(**arguments)
    assert "\n" not in str(caught.value)


def test_texts_longer_than_the_positions_are_one_line() -> None:
    vocabulary = Vocabulary(size=V, pad=0, max_length=33, sha256="x")
    spec = Spec(num_classes=V, vocabulary=vocabulary).to_dict()
    with pytest.raises(
        UserError, match=r"at most 32 tokens, but the larger of data.prompt_length and"
    ):
        network(architecture=BART, spec=spec)
    # T5 has no limit.
    network(spec=spec)

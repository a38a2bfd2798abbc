"""Distillation on the student's own texts: tokens, gradients, resume, and refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.data import (
    BytePairTokenizer,
    DigitsDataModule,
    TextCorpusDataModule,
)
from kd_lightning.data.corpus.completions import prompts_of
from kd_lightning.data.datamodule import DataModule
from kd_lightning.losses import GJSD, KD, CrossEntropy, FeatureCosine
from kd_lightning.models import CausalLanguageModel
from kd_lightning.models.generation import Sampling, generate
from kd_lightning.teachers import CachedTeacher, ModelTeacher
from kd_lightning.training import DistillationModule, OnPolicyModule
from kd_lightning.types import Batch
from tests.training.resuming import resumed_equals_whole
from tests.training.small import complaint, copied, mlp, same, trainer

pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")

LENGTH = 20
TEXTS = [
    ("Question: one?", " Yes."),
    ("Q", " A longer answer."),
    ("", "No prompt."),
    ("Say a:", "aaa"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts and completions of unequal lengths."""
    folder = tmp_path_factory.mktemp("prompts")
    lines = []
    for number in range(3):
        for prompt, completion in TEXTS:
            text = {"prompt": f"{number}{prompt}", "completion": completion}
            lines.append(json.dumps(text))
    (folder / "all.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def data(root: Path) -> Callable[..., TextCorpusDataModule]:
    """Three batches of four texts, one per block."""

    def make(**options: Any) -> TextCorpusDataModule:
        settings: dict[str, Any] = {
            "root": str(root),
            "train": "all.jsonl",
            "validation": 0.0,
            "test": "all.jsonl",
            "tokenizer": BytePairTokenizer(260),
            "length": LENGTH,
            "packed": False,
            "batch_size": 4,
            "cache": str(root / "cache"),
        }
        return TextCorpusDataModule(**{**settings, **options})

    return make


def network(seed: int, **options: Any) -> CausalLanguageModel:
    architecture: dict[str, Any] = {
        "model_type": "llama",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": LENGTH,
        **options,
    }
    torch.manual_seed(seed)
    return CausalLanguageModel(architecture=architecture, num_classes=260)


def on_policy(**options: Any) -> OnPolicyModule:
    settings: dict[str, Any] = {
        # With dropout, whose draws the sampling must not change.
        "student": network(0, attention_dropout=0.5),
        "teacher": ModelTeacher(network=network(1)),
        **options,
    }
    return OnPolicyModule(**settings)


# -- steps -----------------------------------------------------------------------------


def test_without_a_share_it_is_distillation_to_the_bit(
    data: Callable[..., TextCorpusDataModule],
) -> None:
    module = on_policy(share=0.0)
    plain = DistillationModule(
        network(0, attention_dropout=0.5),
        ModelTeacher(network=network(1)),
        {"gjsd": GJSD(temperature=1.0)},
    )
    initial = copied(module.net)
    for each in (module, plain):
        trainer(max_epochs=2).fit(each, datamodule=data())
    assert same(copied(module.net), copied(plain.net))
    assert not same(copied(module.net), initial)


def mean_divergence(
    student: CausalLanguageModel,
    teacher: CausalLanguageModel,
    prompts: list[Tensor],
    completions: list[Tensor],
) -> Tensor:
    """By hand: the Jensen-Shannon divergence, times 4, over each text alone."""
    total = torch.zeros(())
    tokens = 0
    for prompt, completion in zip(prompts, completions, strict=True):
        # The last token of a text is never read.
        ids = torch.cat([prompt, completion])[None, :-1]
        first = len(prompt) - 1
        p = teacher(ids)[0, first:].detach().softmax(-1)
        q = student(ids)[0, first:].softmax(-1)
        mixture = (p + q) / 2
        to_mixture = p * (p / mixture).log() + q * (q / mixture).log()
        total = total + 4 * to_mixture.sum() / 2
        tokens += len(completion)
    return total / tokens


def step_by_hand(data: TextCorpusDataModule, steps: int) -> tuple[Batch, Any]:
    """The first batch, and the gradients of a step on the student's own texts."""
    student = network(0)
    batch = next(iter(data.train_dataloader()))
    prompts = prompts_of(batch)
    completions = generate(
        student,
        prompts,
        data.tokenizer.end,
        Sampling(),
        seed=("on policy", 0, "step", 0, 0, 0),
        longest=LENGTH + 1,
    )
    value = mean_divergence(student, network(1), prompts, completions)
    parameters = dict(student.named_parameters())
    gradients = torch.autograd.grad(value, list(parameters.values()))
    return batch, dict(zip(parameters, gradients, strict=True))


def test_a_step_equals_a_plain_loop_over_the_students_texts(
    data: Callable[..., TextCorpusDataModule],
) -> None:
    """No gradient flows through the sampling, and nothing else counts."""
    start = copied(network(0))
    _, gradients = step_by_hand(data(), 1)
    changes = {}
    for share in (0.0, 1.0):
        module = on_policy(
            student=network(0),
            share=share,
            optimizer=partial(torch.optim.SGD, lr=1.0),
        )
        trainer(max_steps=1).fit(module, datamodule=data())
        state = copied(module.net)
        changes[share] = {name: start[name] - state[name] for name in gradients}
    for name, gradient in gradients.items():
        torch.testing.assert_close(changes[1.0][name], gradient, atol=2e-6, rtol=1e-3)
    # The data's completions give other gradients.
    head = "model.lm_head.weight"
    difference = (changes[0.0][head] - gradients[head]).norm()
    assert difference > 0.1 * gradients[head].norm()


def test_the_batch_of_a_step_holds_the_students_tokens(
    data: Callable[..., TextCorpusDataModule],
) -> None:
    module = on_policy(share=1.0, max_new_tokens=3, prompt_tokens=4)
    seen: list[Batch] = []
    original = module.completed

    def completed(batch: Batch, batch_idx: int) -> Batch:
        seen.append(batch)
        seen.append(original(batch, batch_idx))
        return seen[-1]

    module.completed = completed  # type: ignore[method-assign]
    trainer(max_steps=1).fit(module, datamodule=data())
    batch, changed = seen
    assert isinstance(batch.inputs, dict)
    assert isinstance(changed.inputs, dict)
    assert changed.positions is not None
    prompts = prompts_of(batch, 4)
    rows = changed.positions // LENGTH
    for row, prompt in enumerate(prompts):
        ids = changed.inputs["input_ids"][row]
        assert torch.equal(ids[: len(prompt)], prompt)
        positions = changed.positions[rows == row] - row * LENGTH
        first = len(prompt) - 1
        assert 1 <= len(positions) <= 3
        assert positions.tolist() == list(range(first, first + len(positions)))
    assert not torch.equal(changed.inputs["input_ids"], batch.inputs["input_ids"])


def test_hard_losses_ignore_the_students_texts(
    data: Callable[..., TextCorpusDataModule],
) -> None:
    losses = {"ce": CrossEntropy(), "kd": KD(temperature=1.0)}
    run = trainer()
    run.fit(on_policy(share=1.0, losses=losses), datamodule=data())
    assert run.callback_metrics["train_loss_ce"].item() == 0
    assert run.callback_metrics["train_loss_kd"].item() > 0


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_the_share_of_steps_is_a_function_of_the_seed(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = on_policy(share=share)
    chosen = []
    for seed in ("0", "1"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        chosen.append([module.is_on_policy(number) for number in range(2000)])
    first, second = chosen
    # Four standard errors.
    assert sum(first) / 2000 == pytest.approx(share, abs=0.045)
    assert first != second
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    assert [module.is_on_policy(number) for number in range(50)] == first[:50]
    always = on_policy(share=1.0)
    assert all(always.is_on_policy(number) for number in range(50))


def test_a_resumed_run_equals_an_uninterrupted_one(
    data: Callable[..., TextCorpusDataModule], tmp_path: Path
) -> None:
    make = partial(on_policy, share=0.5)
    kinds = {make().is_on_policy(number) for number in range(3)}
    assert kinds == {False, True}
    assert resumed_equals_whole(make, data, tmp_path, steps=4, epochs=3)


def test_all_weights_learn_in_mixed_precision(
    data: Callable[..., TextCorpusDataModule],
) -> None:
    """Autocast caches weights; those that the sampling casts must not stay in use."""
    module = on_policy(share=1.0, student=network(0))
    start = copied(module.net)
    trainer(max_steps=1, precision="bf16-mixed").fit(module, datamodule=data())
    for name, tensor in copied(module.net).items():
        assert not torch.equal(tensor, start[name]), name


# -- refusals --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.5}, "model.share must be a number in [0, 1], got 1.5"),
        ({"prompt_tokens": 0}, "model.prompt_tokens must be at least 1, got 0"),
        ({"temperature": 0.0}, "the temperature of sampling must be a number"),
        ({"top_p": 0.0}, "top_p must be a number in (0, 1], got 0.0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    assert message in complaint(lambda: on_policy(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"teacher": CachedTeacher("nowhere")},
            "which CachedTeacher has no outputs for; use ModelTeacher",
        ),
        ({"losses": {"ce": CrossEntropy()}}, "needs a loss that compares student and"),
        (
            {"losses": {"kd": KD(), "cosine": FeatureCosine()}},
            "the loss 'cosine' compares more than logits",
        ),
        ({"student": mlp()}, "CausalLanguageModel, not MLP"),
    ],
)
def test_parts_that_do_not_fit(
    options: dict[str, Any],
    message: str,
    data: Callable[..., TextCorpusDataModule],
) -> None:
    module = on_policy(**options)
    assert message in complaint(lambda: module.attach(data()))


def test_data_that_does_not_fit(data: Callable[..., TextCorpusDataModule]) -> None:
    def attach(datamodule: DataModule) -> str:
        return complaint(lambda: on_policy().attach(datamodule))

    assert "set --data.packed=false" in attach(data(packed=True))
    assert "TextCorpusDataModule, not DigitsDataModule" in attach(DigitsDataModule())


def test_gradients_cannot_accumulate(
    data: Callable[..., TextCorpusDataModule],
) -> None:
    run = trainer(accumulate_grad_batches=2)
    message = complaint(lambda: run.fit(on_policy(), datamodule=data()))
    assert "set --trainer.accumulate_grad_batches=1" in message

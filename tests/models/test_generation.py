"""Completions of prompts: against a plain loop, in batches, and their distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kd_lightning.errors import UserError
from kd_lightning.models import CausalLanguageModel
from kd_lightning.models.generation import Sampling, generate
from kd_lightning.randomness import uniform

pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")

END = 0
LONGEST = 24

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": LONGEST,
}
# Unlike Llama, it has an embedding for each absolute position.
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": LONGEST,
}


def network(
    architecture: dict[str, Any] = LLAMA, num_classes: int = 30, **more: Any
) -> CausalLanguageModel:
    torch.manual_seed(3)
    model = CausalLanguageModel(
        architecture={**architecture, **more}, num_classes=num_classes
    )
    # Far from uniform, so that mistakes change the tokens.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(12)
    return model.double().eval()


def prompts() -> list[Tensor]:
    return [torch.tensor([5, 6, 7, 8, 9]), torch.tensor([4]), torch.tensor([2, 3])]


def next_logits(model: CausalLanguageModel, tokens: list[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([tokens]))[0, -1]
    return logits


def by_hand(
    model: CausalLanguageModel, prompt: Tensor, row: int, sampling: Sampling, new: int
) -> list[int]:
    """One token after another, each with a forward pass over all tokens before it."""
    tokens = prompt.tolist()
    for position in range(new):
        logits = next_logits(model, tokens).float() / sampling.temperature
        probabilities = logits.double().softmax(-1)
        if sampling.greedy:
            chosen = int(probabilities.argmax())
        else:
            draw = float(
                uniform(torch.tensor([row]), "next token", 7, "x", position)[0]
            )
            chosen = 0
            total = float(probabilities[0])
            while total <= draw:
                chosen += 1
                total += float(probabilities[chosen])
        tokens.append(chosen)
        if chosen == END:
            break
    return list(tokens[len(prompt) :])


@pytest.mark.parametrize("architecture", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize(
    "sampling",
    [Sampling(greedy=True, max_new_tokens=12), Sampling(0.7, max_new_tokens=12)],
    ids=["greedy", "sampled"],
)
def test_completions_are_those_of_a_plain_loop(
    architecture: dict[str, Any], sampling: Sampling
) -> None:
    model = network(architecture)
    completions = generate(model, prompts(), END, sampling, seed=(7, "x"))
    for row, (prompt, completion) in enumerate(
        zip(prompts(), completions, strict=True)
    ):
        assert completion.tolist() == by_hand(model, prompt, row, sampling, 12)


def test_a_batch_gives_what_each_prompt_gives_alone() -> None:
    model = network(GPT2)
    sampling = Sampling(max_new_tokens=12)
    together = generate(model, prompts(), END, sampling, seed=(1,))
    for row, prompt in enumerate(prompts()):
        alone = generate(
            model, [prompt], END, sampling, seed=(1,), rows=torch.tensor([row])
        )
        assert torch.equal(alone[0], together[row])


def test_the_first_token_has_the_distribution_of_the_network() -> None:
    model = network()
    count = 4000
    prompt = prompts()[0]
    sampling = Sampling(temperature=2.0, max_new_tokens=1)
    drawn = torch.cat(generate(model, [prompt] * count, END, sampling))
    expected = (next_logits(model, prompt.tolist()) / 2).softmax(-1)
    observed = drawn.bincount(minlength=30) / count
    # Four standard errors of a share.
    allowed = 4 * (expected * (1 - expected) / count).sqrt() + 1e-3
    assert bool(((observed - expected).abs() < allowed).all())
    assert int((observed > 0).sum()) > 5


def test_top_p_draws_among_the_likeliest_tokens() -> None:
    model = network()
    prompt = prompts()[0]
    probabilities, order = (
        next_logits(model, prompt.tolist()).softmax(-1).sort(descending=True)
    )
    # The tokens before which less than the share is reached.
    before = probabilities.cumsum(-1) - probabilities
    allowed = set(order[before < 0.6].tolist())
    sampling = Sampling(top_p=0.6, max_new_tokens=1)
    drawn = torch.cat(generate(model, [prompt] * 500, END, sampling)).tolist()
    assert 1 < len(allowed) < 29
    assert set(drawn) == allowed


def test_a_completion_stops_after_the_end_of_the_text() -> None:
    model = network(num_classes=4)
    sampling = Sampling(temperature=5.0)
    count = 40
    completions = generate(model, [torch.tensor([1])] * count, END, sampling)
    lengths = [len(completion) for completion in completions]
    assert min(lengths) < 4 < max(lengths)
    for completion in completions:
        ends = (completion == END).nonzero().flatten().tolist()
        if len(completion) < LONGEST:
            assert ends == [len(completion) - 1]


def test_each_prompt_may_fill_what_the_network_reads() -> None:
    model = network()
    # A token that is never generated.
    unused = 29
    with torch.no_grad():
        head = model.model.get_submodule("lm_head")
        weight = head.get_parameter("weight")
        weight[unused] = 0
    completions = generate(model, prompts(), unused, Sampling(greedy=True))
    for prompt, completion in zip(prompts(), completions, strict=True):
        # The last token is predicted, but not read.
        assert len(prompt) + len(completion) == LONGEST + 1
    shorter = generate(model, prompts(), unused, Sampling(greedy=True), longest=5)
    assert [len(completion) for completion in shorter] == [0, 4, 3]
    for whole, start in zip(completions, shorter, strict=True):
        assert torch.equal(whole[: len(start)], start)


def test_tokens_that_only_pad_the_vocabulary_are_never_drawn() -> None:
    model = network(num_classes=5, vocab_size=30)
    for sampling in (Sampling(greedy=True), Sampling(temperature=20.0)):
        tokens = torch.cat(generate(model, prompts() * 20, END, sampling))
        assert int(tokens.max()) < 5


def test_generation_leaves_no_trace() -> None:
    model = network(attention_dropout=0.5).train()
    settings: Any = model.model.generation_config
    # As a pretrained model may have it.
    settings.repetition_penalty = 9.0
    settings.do_sample = True
    state = torch.get_rng_state()
    first = generate(model, prompts(), END, Sampling())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(module.training for module in model.modules())
    assert model.model.generation_config is settings
    settings.repetition_penalty = 1.0  # type: ignore[union-attr]
    second = generate(model.eval(), prompts(), END, Sampling())
    assert all(map(torch.equal, first, second))
    other = generate(model, prompts(), END, Sampling(), seed=(1,))
    assert not all(map(torch.equal, first, other))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Sampling(temperature=0.0), "temperature of sampling must be a number"),
        (lambda: Sampling(top_p=1.5), "top_p must be a number in (0, 1], got 1.5"),
        (lambda: Sampling(max_new_tokens=0), "max_new_tokens must be at least 1"),
        (
            lambda: generate(network(), [torch.ones(25).long()], END, Sampling()),
            "prompt 0 has 25 tokens, but the language model reads at most 24",
        ),
        (
            lambda: generate(network(), [torch.ones(0).long()], END, Sampling()),
            "prompt 0 has no token to continue from",
        ),
    ],
)
def test_mistakes(call: Any, message: str) -> None:
    with pytest.raises(UserError) as raised:
        call()
    assert message in str(raised.value)

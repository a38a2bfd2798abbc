"""A language model with its tokenizer: from texts to texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kd_lightning.data.corpus.prompts import PromptReader
from kd_lightning.data.corpus.tokenizers import PretrainedLanguageTokenizer
from kd_lightning.data.new_samples import InputReader, NewSample
from kd_lightning.errors import UserError, printable
from kd_lightning.models import CausalLanguageModel
from kd_lightning.models.generation import Sampling, generate
from kd_lightning.values import Value


@dataclass(frozen=True)
class Prompt:
    """A text to continue.

    Attributes:
        name: identifies it to a person, such as its file and line.
        text: as it was read.
        token_ids: of the text, int64 `(n,)`.
    """

    name: str
    text: str
    token_ids: torch.Tensor


@dataclass(frozen=True)
class Completer:
    """Completes prompts.

    Attributes:
        network: predicts the next token.
        reader: reads and tokenizes prompts.
    """

    network: CausalLanguageModel
    reader: PromptReader

    def prompt_of(self, sample: NewSample) -> Prompt:
        """The tokens of a prompt.

        Raises:
            UserError: with its name, if the prompt cannot be read or completed.
        """
        if sample.content is None:
            problem = printable(str(sample.problem))
            if problem.startswith(sample.name):
                raise UserError(problem)
            raise UserError(f"{sample.name}: {problem}")
        text = sample.content[0] if isinstance(sample.content, tuple) else None
        if not isinstance(text, str):
            raise UserError(f"{sample.name}: prompts are texts, not arrays")
        ids = self.reader.token_ids(text)
        longest = self.network.longest_input
        if longest is not None and len(ids) > longest:
            raise UserError(
                f"{sample.name}: the prompt has {len(ids):,} tokens, but the language "
                f"model reads at most {longest:,}"
            )
        if len(ids) == 0:
            raise UserError(f"{sample.name}: the prompt has no token")
        return Prompt(sample.name, text, ids)

    def complete(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        seed: int,
        batch_size: int,
    ) -> Iterator[dict[str, Value]]:
        """Complete prompts in their order.

        A completion is a function of the seed and the position of its prompt.

        Args:
            prompts: of any number.
            sampling: how each token is chosen.
            seed: of the draws.
            batch_size: prompts that are completed together.

        Yields:
            For each prompt its text as `prompt`, the new text as `completion`, and as
            `ended` whether the network ended the text.
        """
        end = self.reader.tokenizer.end
        device = next(self.network.parameters()).device
        for first in range(0, len(prompts), batch_size):
            batch = prompts[first : first + batch_size]
            completions = generate(
                self.network,
                [prompt.token_ids.to(device) for prompt in batch],
                end,
                sampling,
                seed=("predict", seed),
                rows=torch.arange(first, first + len(batch)),
            )
            for prompt, completion in zip(batch, completions, strict=True):
                ids = completion.tolist()
                before = prompt.token_ids.tolist()
                text = self.reader.tokenizer.decode_after(before, ids)
                ended = bool(ids) and ids[-1] == end
                yield {"prompt": prompt.text, "completion": text, "ended": ended}


def completer_of(network: nn.Module, reader: InputReader | None) -> Completer | None:
    """The completer of a network; `None` if it is no causal language model.

    Args:
        network: of a run or an export.
        reader: that reads the files of its user.
    """
    if not isinstance(network, CausalLanguageModel):
        return None
    if not isinstance(reader, PromptReader):
        return None
    return Completer(network.eval(), reader)


def pretrained_completer(folder: Path) -> Completer:
    """The completer of a folder that `save_pretrained` of transformers wrote.

    Args:
        folder: with the weights and the tokenizer.

    Raises:
        UserError: if it holds no causal language model with a tokenizer.
    """
    tokenizer = PretrainedLanguageTokenizer(str(folder))
    # It is pretrained, and needs no text.
    tokenizer.learn([])
    network = CausalLanguageModel(pretrained=str(folder), num_classes=tokenizer.size)
    return Completer(network.eval(), PromptReader(tokenizer))

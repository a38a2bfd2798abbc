"""Prompts and completions as samples for sequence-to-sequence models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd_lightning.data.corpus.datamodule import Patterns, TextCorpusDataModule
from kd_lightning.data.corpus.token_file import TokenFile
from kd_lightning.data.corpus.tokenizers import LanguageTokenizer
from kd_lightning.data.source import Source
from kd_lightning.errors import UserError
from kd_lightning.spec import InputSpec, Spec
from kd_lightning.tasks.language import SequenceToSequence
from kd_lightning.types import Batch


class PairSource(Source):
    """Some pairs of a source split.

    The inputs are `input_ids` and `attention_mask` int64 `(B, P)` of the prompts, and
    `decoder_input_ids` int64 `(B, L)`: the completion, one place later. A network puts
    its own start token at the first place. The targets are the completions and the
    token that ends them.

    Args:
        tokens: of the whole source split.
        rows: int64 `(n,)`, the documents of this source.
        split: name of the source split.
        prompt_length: P; the end of a longer prompt is cut.
        length: L; the end of a longer completion is cut.
        end: the id of the token that ends a text, and fills up a short one.
    """

    def __init__(
        self,
        tokens: TokenFile,
        rows: Tensor,
        split: str,
        prompt_length: int,
        length: int,
        end: int,
    ) -> None:
        self.tokens = tokens
        self.rows = rows
        self.split = split
        self.prompt_length = prompt_length
        self.length = length
        self.end = end

    @property
    def target(self) -> Tensor:  # type: ignore[override]
        """The completions of the source split, int64 `(N, L)`."""
        targets, _ = self._completions(torch.arange(len(self.tokens.starts)))
        return targets

    def batch(self, rows: Tensor, view: int) -> Batch:
        """Pairs at some positions of this source; all views are the same.

        Args:
            rows: int64 `(B,)`, positions in this source.
            view: ignored.
        """
        index = self.rows[rows]
        prompts, attention_mask = self._prompts(index)
        targets, counts = self._completions(index)
        # The only shift: the decoder reads what precedes each target.
        starts = torch.full((len(index), 1), self.end)
        decoder_inputs = torch.cat([starts, targets[:, :-1]], dim=1)
        return Batch(
            inputs={
                "input_ids": prompts,
                "attention_mask": attention_mask.long(),
                "decoder_input_ids": decoder_inputs,
            },
            target=targets,
            index=index,
            view=view,
            split=self.split,
            positions=counts.flatten().nonzero().flatten(),
        )

    def _prompts(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts with the token that ends them, and where they are, `(B, P)` each."""
        starts = self.tokens.starts[index.numpy()]
        sizes = self.tokens.prompts[index.numpy()]
        # The end of a text always fits, as in the tokenizers of such models.
        sizes = np.minimum(sizes, self.prompt_length - 1)
        ids, exists = self._read(starts, sizes, self.prompt_length)
        # What fills up the prompt is the token that ends it.
        has_token = torch.cat([torch.ones(len(ids), 1).bool(), exists[:, :-1]], dim=1)
        return ids, has_token

    def _completions(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Completions with the token that ends them, and where they are."""
        starts = self.tokens.starts + self.tokens.prompts
        sizes = self.tokens.stops - starts
        rows = index.numpy()
        return self._read(starts[rows], sizes[rows], self.length)

    def _read(
        self, starts: NDArray[np.int64], sizes: NDArray[np.int64], length: int
    ) -> tuple[Tensor, Tensor]:
        """Tokens from some places on, filled up to a length; which of them exist."""
        offsets = np.arange(length)
        exists = offsets < sizes[:, None]
        # A place beyond the end reads any token, and is overwritten.
        places = np.minimum(starts[:, None] + offsets, len(self.tokens.ids) - 1)
        ids = np.where(exists, self.tokens.ids[places], self.end).astype(np.int64)
        return torch.from_numpy(ids), torch.from_numpy(exists)


class PromptCompletionDataModule(TextCorpusDataModule):
    """Prompts and completions for sequence-to-sequence models, such as T5.

    Files that end in `.jsonl` hold one pair per line, as
    `{"prompt": ..., "completion": ...}`. The encoder reads the prompt, and the decoder
    predicts the completion. All files are tokenized once, into a cache that all runs
    share. Only tokens of completions are positions: no loss or metric counts padding.

    Args:
        root: folder of the files; default: `KD_DATA_ROOT`, else `./data`.
        train: files, folders or patterns below `root`.
        validation: the same, or the fraction of the training pairs to hold out.
        test: the same as `train`.
        tokenizer: of the teacher and the student.
        prompt_length: tokens of a prompt, with the token that ends it; longer prompts
            are cut.
        length: tokens of a completion, with the token that ends it; longer completions
            are cut.
        batch_size: pairs per training batch, on each device.
        eval_batch_size: pairs per batch in validation and test.
        fraction: fraction of the training pairs to use.
        split_seed: of the held-out pairs and the fraction; the same for all seeds of a
            run.
        cache: folder of the tokens; default: `KD_CACHE`, else `~/.cache/kd_lightning`.
        prefetch: batches to make ahead of time, in a thread.

    Raises:
        UserError: for an option out of range, files that cannot be read, or a text
            without a prompt.
    """

    name = "prompts"

    def __init__(
        self,
        root: str | None = None,
        train: Patterns = "train",
        validation: Patterns | float = "validation",
        test: Patterns = "test",
        tokenizer: LanguageTokenizer | None = None,
        prompt_length: int = 128,
        length: int = 128,
        batch_size: int = 16,
        eval_batch_size: int = 16,
        fraction: float = 1.0,
        split_seed: int = 0,
        cache: str | None = None,
        prefetch: int = 0,
    ) -> None:
        super().__init__(
            root=root,
            train=train,
            validation=validation,
            test=test,
            tokenizer=tokenizer,
            length=length,
            packed=False,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            fraction=fraction,
            split_seed=split_seed,
            cache=cache,
            prefetch=prefetch,
        )
        if prompt_length < 2:
            raise UserError(
                f"data.prompt_length must be at least 2 tokens, got {prompt_length}"
            )
        self.prompt_length = prompt_length
        self.task = SequenceToSequence(self.tokenizer.token_bytes)

    def count(self, split: str) -> int:
        """The number of pairs of a source split.

        Raises:
            UserError: if a text has no prompt.
        """
        prompts = self.tokens(split).prompts
        without = np.flatnonzero(prompts == 0)
        if len(without) > 0:
            raise UserError(
                f"data.{split}: text {without[0] + 1} has no prompt; a "
                "sequence-to-sequence model needs lines with the fields prompt and "
                "completion"
            )
        return len(prompts)

    def _source(self, split: str, rows: Tensor) -> PairSource:
        return PairSource(
            self.tokens(split),
            rows,
            split,
            self.prompt_length,
            self.length,
            self.tokenizer.end,
        )

    @property
    def spec(self) -> Spec:
        """The shapes of pairs, the vocabulary, and the sizes of the splits."""
        spec = super().spec
        if self._restored_spec is not None:
            return spec
        assert spec.vocabulary is not None
        end = self.tokenizer.end
        prompt_shape = (self.prompt_length,)
        longest = max(self.prompt_length, self.length)
        return replace(
            spec,
            input_shape=prompt_shape,
            inputs={
                "input_ids": InputSpec(prompt_shape, end),
                "attention_mask": InputSpec(prompt_shape, 1),
                "decoder_input_ids": InputSpec((self.length,), end),
            },
            vocabulary=replace(spec.vocabulary, max_length=longest),
        )

    def fingerprint(self) -> dict[str, object]:
        """What decides a teacher's inputs: texts, tokenizer, and where they are cut."""
        return {**super().fingerprint(), "prompt_length": self.prompt_length}

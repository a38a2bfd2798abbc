"""`kd predict` for language models: prompts in, JSON lines with completions out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence

from kd_lightning.data.new_samples import NewSample
from kd_lightning.errors import UserError
from kd_lightning.models.generation import Sampling
from kd_lightning.serving.completer import Completer, Prompt
from kd_lightning.serving.completion_options import MAX_NEW_TOKENS
from kd_lightning.serving.inputs import check_inputs, samples_of
from kd_lightning.serving.network import LoadedNetwork
from kd_lightning.serving.progress import Skipped, with_progress
from kd_lightning.serving.writers import JsonLines, opened


def complete(
    network: LoadedNetwork, options: argparse.Namespace, skipped: Skipped
) -> int:
    """Complete all prompts of a command, and write the results one after the other.

    All prompts are read and checked before the first one is completed.

    Args:
        network: a language model.
        options: of the command.
        skipped: counts the prompts that cannot be completed.

    Returns:
        How many prompts were completed.

    Raises:
        UserError: if an option does not fit, or a prompt cannot be completed.
    """
    completer = _completer(network)
    sampling = _sampling(options)
    check_inputs(network, options.inputs)
    prompts = _prompts(completer, samples_of(network, options.inputs), skipped)
    completions = completer.complete(
        prompts, sampling, options.seed or 0, options.batch_size
    )
    dropped = 0
    with opened(options.output) as stream:
        writer = JsonLines(stream)
        for number, completion in enumerate(with_progress(completions), 1):
            if options.drop_unfinished and not completion["ended"]:
                dropped += 1
            else:
                writer.write(completion)
            # Whoever reads our output gets each batch as soon as it is there.
            if number % options.batch_size == 0:
                stream.flush()
    if dropped > 0:
        line = f"kd: dropped {dropped:,} of {len(prompts):,} completions without an end"
        print(line, file=sys.stderr)
    return len(prompts)


def _completer(network: LoadedNetwork) -> Completer:
    """The part of a network that completes prompts.

    Raises:
        UserError: if it has none.
    """
    if network.completer is None:
        raise UserError(
            f"{network.name} cannot complete prompts; give the run of a causal "
            "language model, or its export with --format safetensors"
        )
    return network.completer


def _sampling(options: argparse.Namespace) -> Sampling:
    """How each token is chosen.

    Raises:
        UserError: for an option that is out of range, or that has no effect.
    """
    if options.format == "csv":
        raise UserError("completions are written as JSON lines; leave out --format")
    if options.top > 0 or options.masks is not None:
        raise UserError("--top and --masks have no meaning for a language model")
    draws = (options.temperature, options.top_p, options.seed)
    if options.greedy and any(option is not None for option in draws):
        raise UserError(
            "--greedy draws nothing; leave out --temperature, --top-p and --seed"
        )
    max_new_tokens = options.max_new_tokens
    if max_new_tokens is None:
        max_new_tokens = MAX_NEW_TOKENS
    return Sampling(
        temperature=1.0 if options.temperature is None else options.temperature,
        top_p=1.0 if options.top_p is None else options.top_p,
        greedy=bool(options.greedy),
        max_new_tokens=max_new_tokens,
    )


def _prompts(
    completer: Completer, samples: Iterator[NewSample], skipped: Skipped
) -> Sequence[Prompt]:
    """All prompts that can be completed.

    Raises:
        UserError: if there is none, or for one that cannot be completed, unless it may
            be skipped.
    """
    prompts = []
    for sample in samples:
        try:
            prompts.append(completer.prompt_of(sample))
        except UserError as error:
            skipped.add(str(error))
    if not prompts:
        raise UserError(skipped.nothing_left)
    return prompts

"""`kd predict RUN|EXPORT|FOLDER INPUT...` on prompts, with tiny language models."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from kd_lightning.errors import UserError
from kd_lightning.hub import library
from kd_lightning.models.generation import Sampling, generate
from kd_lightning.runs.configs import resolve_configs
from kd_lightning.runs.launch import launch
from kd_lightning.serving.completion_options import refuse_completion_options
from kd_lightning.serving.network import load_network
from kd_lightning.serving.predict_command import parser
from tests.data.corpus.texts import write_corpus
from tests.runs import Kd

pytest.importorskip("transformers", reason="pip install 'kd_lightning[text]'")

LONGEST = 48
PROMPTS = ["The cat sat", " Rain", "She sells sea shells"]


@pytest.fixture(scope="module")
def language_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a tiny language model, whose training texts are gone."""
    root = write_corpus(tmp_path_factory.mktemp("corpus"))
    config = {
        "data": {
            "class_path": "kd_lightning.data.TextCorpusDataModule",
            "init_args": {
                "root": str(root),
                "cache": str(root / "cache"),
                "length": 16,
                "batch_size": 4,
                "tokenizer": {
                    "class_path": "kd_lightning.data.BytePairTokenizer",
                    "init_args": {"size": 300},
                },
            },
        }
    }
    path = root / "corpus.yaml"
    path.write_text(yaml.safe_dump(config))
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": LONGEST,
    }
    argv = ["fit", "-c", "configs/trainer.yaml", "-c", str(path)]
    argv += ["-c", "configs/teachers/books_llama.yaml"]
    argv += ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--run.test=no"]
    argv += [f"--model.network.architecture.{key}={sizes[key]}" for key in sizes]
    argv += [f"--run.root={tmp_path_factory.mktemp('runs')}", "--run.name=lm"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        return launch(resolve_configs(argv)).folder


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The same prompts as lines of text and of JSON."""
    text = tmp_path / "prompts.txt"
    text.write_text("\n".join([PROMPTS[0], "", *PROMPTS[1:]]) + "\n")
    lines = tmp_path / "prompts.jsonl"
    objects = []
    for prompt in PROMPTS:
        objects.append(json.dumps({"prompt": prompt, "completion": "ignored"}))
    lines.write_text("\n".join(objects) + "\n")
    return {"text": str(text), "json": str(lines)}


def results(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_prompts_are_completed_in_every_form(
    language_run: Path, files: dict[str, str], kd: Kd, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = ("--max-new-tokens", "8")
    outcome = kd("predict", str(language_run), files["text"], *short)
    assert (outcome.code, outcome.err) == (0, "")
    expected = results(outcome.out)
    assert [result["prompt"] for result in expected] == PROMPTS
    completions = [result["completion"] for result in expected]
    assert len(set(completions)) == len(PROMPTS)
    # The same function of the seed, whatever the file and the batches.
    for argv in (
        [files["json"]],
        [files["text"], "--seed=0", "--batch-size=1"],
        ["-"],
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(PROMPTS) + "\n"))
        again = kd("predict", str(language_run), *argv, *short)
        assert (again.code, results(again.out)) == (0, expected), again.err
    other = kd("predict", str(language_run), files["text"], *short, "--seed=1")
    assert results(other.out) != expected


def test_completions_are_those_of_the_network(
    language_run: Path, files: dict[str, str], kd: Kd
) -> None:
    options = ("--greedy", "--max-new-tokens=5")
    outcome = kd("predict", str(language_run), files["text"], *options)
    completer = load_network(language_run, []).completer
    assert completer is not None
    tokenizer = completer.reader.tokenizer
    for prompt, result in zip(PROMPTS, results(outcome.out), strict=True):
        (ids,) = tokenizer.encode([prompt])
        (new,) = generate(
            completer.network,
            [torch.tensor(ids)],
            tokenizer.end,
            Sampling(greedy=True, max_new_tokens=5),
        )
        whole = tokenizer.backend.decode([*ids, *new.tolist()])
        assert whole == prompt + result["completion"]
        assert result["ended"] == (new[-1].item() == tokenizer.end)


def test_an_export_and_a_folder_of_transformers(
    language_run: Path, files: dict[str, str], kd: Kd, tmp_path: Path
) -> None:
    exported = kd(
        *("export", str(language_run), "--format", "safetensors"), "--output=export"
    )
    assert exported.code == 0, exported.err
    expected = kd("predict", str(language_run), files["text"])
    outcome = kd("predict", "export", files["text"])
    assert (outcome.code, outcome.out) == (0, expected.out), outcome.err

    completer = load_network(language_run, []).completer
    assert completer is not None
    folder = tmp_path / "hub"
    completer.network.model.save_pretrained(folder)  # type: ignore[operator]
    fast = library("transformers").PreTrainedTokenizerFast(
        tokenizer_object=completer.reader.tokenizer.backend,
        eos_token="<|endoftext|>",
    )
    fast.save_pretrained(folder)
    outcome = kd("predict", str(folder), files["text"])
    assert (outcome.code, outcome.out) == (0, expected.out), outcome.err


def test_completions_without_an_end_can_be_left_out(
    language_run: Path, files: dict[str, str], kd: Kd, tmp_path: Path
) -> None:
    many = tmp_path / "many.txt"
    many.write_text("\n".join(PROMPTS * 20) + "\n")
    options = ("--temperature=3", "--top-p=0.9999", "--max-new-tokens=40")
    whole = kd("predict", str(language_run), str(many), *options)
    ended = [result for result in results(whole.out) if result["ended"]]
    assert 0 < len(ended) < 60
    outcome = kd(
        *("predict", str(language_run), str(many), *options),
        *("--drop-unfinished", "--output=completions.jsonl"),
    )
    assert outcome.code == 0
    dropped = 60 - len(ended)
    assert outcome.err == f"kd: dropped {dropped} of 60 completions without an end\n"
    assert results(Path("completions.jsonl").read_text()) == ended


def test_a_student_learns_the_texts_that_its_teacher_generated(
    language_run: Path, files: dict[str, str], kd: Kd, tmp_path: Path
) -> None:
    """Sequence-level distillation, with another tokenizer than the teacher's."""
    generated = tmp_path / "generated.jsonl"
    argv = (str(language_run), files["json"], "--greedy", "--max-new-tokens=6")
    outcome = kd("predict", *argv, f"--output={generated}")
    assert outcome.code == 0, outcome.err
    expected = results(generated.read_text())
    # Enough steps to learn them by heart.
    (tmp_path / "train.jsonl").write_text(generated.read_text() * 60)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    }
    trained = kd(
        *("fit", "-c", "configs/trainer.yaml", "-c", "configs/data/books.yaml"),
        *("-c", "configs/teachers/books_llama.yaml", f"--data.root={tmp_path}"),
        *("--data.train=train.jsonl", "--data.validation=generated.jsonl"),
        *("--data.test=generated.jsonl", f"--data.cache={tmp_path / 'cache'}"),
        *("--data.packed=false", "--data.length=64", "--data.tokenizer.size=280"),
        *(f"--model.network.architecture.{key}={sizes[key]}" for key in sizes),
        *("--model.optimizer.lr=0.01", "--trainer.max_epochs=6"),
        *("--trainer.accelerator=cpu", "--run.test=no", "--run.dir=student"),
    )
    assert trained.code == 0, trained.err

    outcome = kd("predict", "student", files["text"], "--greedy")
    assert outcome.code == 0, outcome.err
    for result, text in zip(results(outcome.out), expected, strict=True):
        assert text["completion"]
        assert result == {**text, "ended": True}


def test_a_prompt_that_is_too_long_is_named(
    language_run: Path, kd: Kd, tmp_path: Path
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("Rain\n" + "z" * 49 + "\nThe cat\n")
    output = tmp_path / "completions.jsonl"
    outcome = kd("predict", str(language_run), str(path), f"--output={output}")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        f"kd: {path}:2: the prompt has 49 tokens, but the language model reads at most "
        "48\n"
    )
    assert not output.exists()
    skipping = kd("predict", str(language_run), str(path), "--on-error=skip")
    assert skipping.code == 0
    assert [result["prompt"] for result in results(skipping.out)] == ["Rain", "The cat"]
    assert skipping.err.endswith("kd: skipped 1 of 3 inputs\n")


@pytest.mark.parametrize(
    ("line", "options", "message"),
    [
        ('{"text": "x"}', (), "1: needs JSON with the field prompt, as a string"),
        ('{"prompt": ""}', (), "1: needs JSON with the field prompt, as a string"),
        ("not JSON", (), "1: needs JSON with the field prompt, as a string"),
        ("\n", (), "the inputs hold no samples"),
        ('{"prompt": "x"}', ("--format=csv",), "written as JSON lines"),
        ('{"prompt": "x"}', ("--top=2",), "have no meaning for a language model"),
        ('{"prompt": "x"}', ("--greedy", "--seed=1"), "--greedy draws nothing"),
        ('{"prompt": "x"}', ("--temperature=0",), "a number greater than 0, got 0.0"),
        ('{"prompt": "x"}', ("--top-p=2",), "top_p must be a number in (0, 1]"),
        ('{"prompt": "x"}', ("--max-new-tokens=0",), "must be at least 1, got 0"),
    ],
)
def test_mistakes(
    line: str,
    options: tuple[str, ...],
    message: str,
    language_run: Path,
    kd: Kd,
    tmp_path: Path,
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(line)
    outcome = kd("predict", str(language_run), str(path), *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err


def test_arrays_are_no_prompts(language_run: Path, kd: Kd, tmp_path: Path) -> None:
    path = tmp_path / "ids.npz"
    np.savez(path, np.zeros((2, 5), dtype=np.int64))
    outcome = kd("predict", str(language_run), str(path))
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert str(path) in outcome.err


def test_other_networks_refuse_options_of_completions() -> None:
    options = parser().parse_args(["run", "scan.png"])
    refuse_completion_options(options, "classification")
    for argv in (["--temperature=1"], ["--greedy"], ["--seed=0"]):
        options = parser().parse_args(["run", "scan.png", *argv])
        with pytest.raises(UserError) as raised:
            refuse_completion_options(options, "classification")
        name = argv[0].partition("=")[0]
        assert str(raised.value) == (
            f"{name} is for language models; this network is for classification"
        )


def test_bytes_that_are_no_text(language_run: Path, kd: Kd, tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(b"caf\xe9\n")
    outcome = kd("predict", str(language_run), str(path))
    assert outcome.code == 2
    assert outcome.err.startswith(f"kd: {path} is not UTF-8 (at byte 3)")

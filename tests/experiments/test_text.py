"""The experiments on sentences plan what they say, and what a network of sentences costs is measured on sentences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kd_lightning.errors import UserError
from kd_lightning.experiments.cost import measure
from kd_lightning.experiments.planning import RunnerOptions, plan
from kd_lightning.experiments.spec import load
from kd_lightning.models import BiLSTMClassifier
from kd_lightning.paths import shipped_root
from kd_lightning.spec import InputSpec, Spec, Vocabulary, check_spec
from tests.sentences import write_sst2

STUDENTS = ("student-alone", "distilled", "distilled, synthetic sentences")


@pytest.mark.parametrize(
    ("name", "runs", "chosen"),
    [
        ("tang2019/sst2", ["transformer", "bilstm", "textcnn", *STUDENTS], {}),
        (
            "tang2019/sst2-selection",
            ["cache", "distilled max_lr=0.002 dropout=0.5"],
            {},
        ),
        ("tang2019/sst2-bert", ["teacher", *STUDENTS], {"teacher": "some-model"}),
        (
            "sanh2019/sst2",
            ["teacher", "student-alone", "distilled", "tinybert", "pkd"],
            {},
        ),
    ],
)
def test_experiments_plan_their_runs(
    name: str, runs: list[str], chosen: dict[str, Any], tmp_path: Path
) -> None:
    root = write_sst2(tmp_path / "data")
    experiment = load(name, chosen)
    jobs = plan(
        experiment,
        RunnerOptions(tmp_path, tmp_path / "store", 2, {"data.root": str(root)}),
    )
    assert set(runs) <= {job.run for job in jobs}
    assert len({job.folder for job in jobs}) == len(jobs)
    assert all(
        {
            f"code.data/text/{name}.py"
            for name in ("datamodule", "sentences", "tokenizers")
        }
        <= set(job.key)
        for job in jobs
    )
    students = [job for job in jobs if job.run in STUDENTS]
    steps = {
        tuple(
            job.key[key] for key in ("trainer.max_epochs", "data.init_args.batch_size")
        )
        for job in students
    }
    assert len(steps) <= 1
    if (
        steps and name.startswith("tang2019")
    ):  # twenty-one epochs show each synthetic sentence, and the real one, as often as another
        assert steps.pop()[0] % 21 == 0
    text = "".join(job.command for job in jobs)
    assert all(value in text for value in chosen.values())


def test_costs_of_a_network_of_sentences() -> None:
    inputs = {name: InputSpec((32,), 1) for name in ("input_ids", "attention_mask")}
    network = BiLSTMClassifier(8, 8, 8, vocabulary=50, num_classes=2)
    costs = measure(network, Spec(inputs=inputs), batches=(1, 4), seconds=0.01)
    assert costs["parameters"] == sum(p.numel() for p in network.parameters())
    assert costs["latency_ms_batch_4"] > 0
    # Each direction multiplies 32 words with 4 gates of 8 units by 8 inputs and 8 states; then 16 to 8 to 2.
    assert costs["flops"] == 2 * (2 * 32 * 4 * 8 * (8 + 8) + 16 * 8 + 8 * 2)
    plain = measure(
        torch.nn.Linear(32, 2), Spec(input_shape=(32,)), batches=(1,), seconds=0.01
    )
    assert plain["flops"] == 2 * 32 * 2


def test_a_teacher_is_told_from_its_tokens() -> None:
    own = Vocabulary(size=10, pad=0, max_length=9, sha256="a" * 64)
    other = replace(own, sha256="b" * 64)
    data = Spec(data="sst2", num_classes=2, vocabulary=own)
    check_spec("the teacher", Spec(vocabulary=own), data)
    check_spec(
        "the teacher", Spec(vocabulary=other), replace(data, teacher_vocabulary=other)
    )
    check_spec("the teacher", Spec(), data)
    for tokens, given in (
        (other, data),
        (own, replace(data, teacher_vocabulary=other)),
        (own, Spec(data="mnist", num_classes=2)),
    ):
        with pytest.raises(
            UserError,
            match=r"the teacher reads 10 tokens, vocabulary .* Set data\.teacher_tokenizer",
        ):
            check_spec("the teacher", Spec(vocabulary=tokens), given)


def test_synthetic_sentences_are_drawn_as_the_paper_draws_them() -> None:
    """Tang et al. 2019, section 3.2; twenty for each real one."""
    content = yaml.safe_load(
        (shipped_root() / "configs/text/synthetic.yaml").read_text()
    )
    drawn = content["data"]["init_args"]["augment"]["init_args"]
    assert drawn == {
        "mask": 0.1,
        "replace": 0.1,
        "ngram": 0.25,
        "longest": 5,
        "copies": 20,
    }

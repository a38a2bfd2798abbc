"""The speech experiments as they are shipped, cut down to seconds, on recordings made in the true format."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from experiments.hinton2015.analysis.bootstrap import Bootstrap, interval, rates
from experiments.hinton2015.analysis.speech import gain_share, recognition
from experiments.hinton2015.analysis.strings import TestStrings
from kd_lightning.cli import main
from kd_lightning.data.speech.spoken_digits import SpokenDigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.experiments.analysis import Finished
from kd_lightning.experiments.planning import RunnerOptions, plan
from kd_lightning.experiments.spec import load
from kd_lightning.paths import shipped_root
from tests.data.speech.spoken import spoken_digits
from tests.experiments import resolve_analyses, write

SMALL: dict[str, Any] = {
    "trainer.max_epochs": 3,
    "trainer.accelerator": "cpu",
    "data.batch_size": 64,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Recordings, and a store that the experiments share."""
    found = tmp_path_factory.mktemp("speech")
    spoken_digits(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(found / "cache"))
        patch.setenv("PL_GLOBAL_SEED", "0")  # whatever the runs set is undone
        yield found


def small(name: str) -> dict[str, Any]:
    """A shipped experiment with one seed, two members, a grid of one point, small networks and little training."""
    content: dict[str, Any] = yaml.safe_load(
        (shipped_root() / f"experiments/hinton2015/{name}.yaml").read_text()
    )
    resolve_analyses(content, shipped_root() / "experiments" / "hinton2015")
    content["seeds"] = 1
    content["overrides"] |= SMALL
    for run in content["runs"].values():
        distilled = "methods" in " ".join(run["configs"])
        own = run.setdefault("overrides", {})
        own |= {
            "model.student.hidden" if distilled else "model.network.hidden": [32],
            **SMALL,
        }
        own |= {"data.fraction": 0.5} if "data.fraction" in own else {}
        run["seeds"] = run["seeds"][:2] if run.get("seeds") else None
        run["grid"] = {key: tried[:1] for key, tried in run.get("grid", {}).items()}
    return content


def reproduced(folder: Path, name: str, content: dict[str, Any]) -> dict[str, Any]:
    """The content of results.json."""
    output = folder / name
    places = [
        f"--data-root={folder}",
        f"--output={output}",
        f"--store={folder / 'store'}",
    ]
    assert (
        main(["reproduce", str(write(folder, content, f"{name}.yaml")), *places]) == 0
    )
    found: dict[str, Any] = json.loads((output / "results.json").read_text())
    return found


def values(content: dict[str, Any], run: str, metric: str) -> list[float]:
    [found] = [
        row["values"]
        for row in content["rows"]
        if (row["run"], row["metric"]) == (run, metric)
    ]
    return list(found)


@pytest.fixture(scope="module")
def speech(folder: Path) -> dict[str, Any]:
    content = small("speech")
    content["paper"]["ensemble of 2"] = content["paper"].pop("ensemble of 10")
    return reproduced(folder, "speech", content)


def test_the_table_is_the_papers(speech: dict[str, Any], folder: Path) -> None:
    for run, count in (
        ("baseline", 1),
        ("ensemble member", 2),
        ("ensemble of 2", 1),
        ("distilled", 1),
    ):
        for metric in (
            "test_accuracy",
            "test_accuracy_without_silence",
            "test_wer",
            "test_wer_priors_not_divided",
        ):
            found = values(speech, run, metric)
            assert len(found) == count
            assert all(np.isfinite(found))
    assert (
        min(values(speech, "baseline", "test_accuracy")) > 0.5
    )  # of 51 states: tones are learned in seconds
    assert max(values(speech, "distilled", "test_wer")) < 0.5
    assert {
        row["paper"] for row in speech["rows"] if row["metric"] == "test_accuracy"
    } == {
        0.589,
        None,
        0.611,
        0.608,
    }
    [share] = values(speech, "distilled", "gain_share")
    b, e, d = (
        np.mean(values(speech, r, "test_accuracy"))
        for r in ("baseline", "ensemble of 2", "distilled")
    )
    assert share == pytest.approx(
        (d - b) / (e - b), abs=1e-3
    )  # torchmetrics counts in single precision
    table = (folder / "speech" / "recognition.md").read_text()
    assert "| ensemble of 2 | 1 |" in table
    assert "Share of the ensemble's gain" in table


def test_the_ensemble_is_the_mean_of_its_members_distributions(
    speech: dict[str, Any], folder: Path
) -> None:
    state = json.loads((folder / "speech" / "jobs.json").read_text())
    probs = []
    for seed in (100, 101):
        said = Finished(
            seed, folder / "store" / state[f"ensemble member/{seed}"]["address"], {}
        ).predictions("test")
        probs.append(said["logits"].double().softmax(1))
    right = (torch.stack(probs).mean(0).argmax(1) == said["target"]).double().mean()
    assert values(speech, "ensemble of 2", "test_accuracy") == pytest.approx(
        [float(right)]
    )


def test_the_regularizers_table(speech: dict[str, Any], folder: Path) -> None:
    content = reproduced(folder, "regularizer", small("speech-regularizer"))
    jobs = json.loads((folder / "regularizer" / "jobs.json").read_text())
    assert "hard, 100%/0" not in jobs  # trained already, as the baseline
    for run in ("hard, 100%", "hard, 3%", "soft, 3%"):
        for metric in ("train_accuracy", "test_accuracy"):
            early = values(content, f"{run}, early stopping", metric)
            assert all(
                0 < value <= 1 for value in [*values(content, run, metric), *early]
            )
        assert all(
            1 <= n <= 3
            for n in values(content, f"{run}, early stopping", "stopped_after_epochs")
        )
    assert values(content, "hard, 100%", "test_accuracy") == values(
        speech, "baseline", "test_accuracy"
    )
    assert len(values(content, "soft, 100%", "train_accuracy")) == 1


@pytest.mark.parametrize("name", ["speech-selection", "speech-speakers"])
def test_the_other_experiments_can_be_planned(
    name: str, speech: dict[str, Any], folder: Path
) -> None:
    content = small(name)
    if name == "speech-speakers":
        assert content["overrides"]["data.held_out"] == ["theo", "yweweler"]
        content["overrides"]["data.held_out"] = ["bob"]
    experiment = load(str(write(folder, content, f"{name}.yaml")))
    jobs = plan(
        experiment,
        RunnerOptions(folder / name, folder / "store", 1, {"data.root": str(folder)}),
    )
    members = [job for job in jobs if job.run == "ensemble member"]
    assert [job.seed for job in members] == [100, 101]
    # The members of the selection are those of the experiment, which are there.
    assert [job.finished for job in members] == [name == "speech-selection"] * 2
    [cache] = [job for job in jobs if job.is_cache]
    assert cache.needs == members
    assert all(cache in job.needs for job in jobs if job.run.startswith("distilled"))


def test_strings_are_scored_word_by_word(folder: Path) -> None:
    test = TestStrings(SpokenDigitsDataModule(root=str(folder), download=False))
    speech = test.speech
    sure = torch.full((len(speech.target), 51), -20.0).scatter(
        1, speech.target[:, None], 0.0
    )
    score = test.score([sure])
    assert rates(score.right, test.frames) == [1.0]
    assert rates(score.spoken, test.spoken_frames) == [1.0]
    assert rates(score.errors, test.words) == [0.0]
    wrong = sure.clone()
    of_first = speech.string == 0
    wrong[of_first] = torch.full((51,), -20.0).scatter(
        0, torch.tensor(50), 0.0
    )  # the first string is heard as silence
    assert test.score([wrong]).errors[0].tolist() == [
        len(speech.transcripts[0]),
        *[0.0] * (len(test.words) - 1),
    ]


def test_posteriors_are_divided_by_the_priors(folder: Path) -> None:
    """Likelihoods multiplied by priors, which are far from equal, are decoded as the likelihoods themselves."""
    test = TestStrings(SpokenDigitsDataModule(root=str(folder), download=False))
    assert float(test.loop.prior.max() - test.loop.prior.min()) > 1
    likelihood = (
        torch.randn(
            len(test.speech.target), 51, generator=torch.Generator().manual_seed(0)
        )
        * 2
    )
    score = test.score([likelihood + test.loop.prior])
    assert score.errors[0].tolist() == test.word_errors(likelihood).tolist()
    assert score.errors[0].tolist() != score.undivided[0].tolist()


def test_the_share_of_a_gain_and_its_interval() -> None:
    draw, totals = np.random.default_rng(0), np.full(200, 50.0)
    b, e, d = (
        draw.binomial(50, p, size=(n, 200)).astype(float)
        for p, n in ((0.6, 5), (0.7, 1), (0.69, 5))
    )
    share, (low, high) = gain_share(Bootstrap(200), totals, b, e, d)
    assert share == pytest.approx(0.9, abs=0.15)
    assert low < share < high
    assert high - low < 0.5
    low, high = interval(Bootstrap(200).means(e, totals))
    assert high - low == pytest.approx(
        2 * 1.96 * float(np.std(e[0] / 50)) / np.sqrt(200), rel=0.1
    )


def test_a_run_that_is_missing_or_of_other_data_is_one_line(tmp_path: Path) -> None:
    from kd_lightning.data import DigitsDataModule

    with pytest.raises(UserError, match="needs the run 'baseline'; there are other"):
        recognition({"other": []}, tmp_path)
    with pytest.raises(UserError, match="the data DigitsDataModule has none"):
        TestStrings(DigitsDataModule())

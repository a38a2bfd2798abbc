"""Initial weights of a specialist from those of a generalist."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kd_lightning.data import DigitsDataModule
from kd_lightning.specialists import SpecialistDataModule
from kd_lightning.specialists.weights import specialist_weights
from kd_lightning.training import ClassifierModule
from tests.specialists import small as files
from tests.training.small import complaint, copied, mlp, same, samples, trainer

IDS = [2, 5, 7]
SPEC = DigitsDataModule().spec
SHARE = files.specialist_spec(SPEC, IDS)


def test_the_body_is_copied_and_the_head_is_cut_by_class() -> None:
    generalist, specialist = mlp(classes=10), mlp(classes=4)
    weights = specialist_weights(
        specialist, generalist.state_dict(), SPEC, SHARE, "here"
    )
    specialist.load_state_dict(weights)
    assert torch.equal(
        weights["body.1.weight"], generalist.state_dict()["body.1.weight"]
    )
    x = torch.randn(20, 1, 8, 8)
    logits, all_logits = specialist(x), generalist(x)
    assert torch.allclose(logits[:, :3], all_logits[:, IDS], atol=1e-6)
    others = all_logits[:, [at for at in range(10) if at not in IDS]]
    # Equal to the logsumexp of the others if those are equal, and never larger.
    assert torch.allclose(
        logits[:, 3], others.mean(1) + torch.tensor(7.0).log(), atol=1e-5
    )
    assert bool((logits[:, 3] <= others.logsumexp(1) + 1e-5).all())


def test_weights_with_the_right_classes_are_unchanged() -> None:
    four, ten = mlp(classes=4), mlp(classes=10)
    assert same(
        specialist_weights(four, four.state_dict(), SHARE, SHARE, "here"), copied(four)
    )
    assert same(
        specialist_weights(ten, ten.state_dict(), SPEC, SPEC, "here"), copied(ten)
    )


def test_other_classes_are_an_error() -> None:
    reversed_spec = replace(SPEC, classes=SPEC.classes[::-1])
    message = complaint(
        lambda: specialist_weights(
            mlp(classes=4), mlp(classes=10).state_dict(), reversed_spec, SHARE, "here"
        )
    )
    assert message == (
        "here: the weights call class 2 '7', the data '2'; use weights trained on the same classes"
    )


@pytest.fixture
def share(tmp_path: Path) -> SpecialistDataModule:
    return SpecialistDataModule(
        DigitsDataModule(batch_size=64),
        files.generalist(tmp_path),
        specialists=3,
        classes_each=4,
    )


def test_init_from_starts_a_specialist(share: SpecialistDataModule) -> None:
    """Before training, a specialist ranks its classes as the generalist does."""
    module = ClassifierModule(mlp(12, classes=5), init_from=str(share.generalist))
    module.attach(share)
    whole = mlp(12)
    content = torch.load(share.generalist, weights_only=True)
    whole.load_state_dict(
        {k.removeprefix("network."): v for k, v in content["state_dict"].items()}
    )
    assert isinstance(share.data, DigitsDataModule)
    batch = samples(share.data, "test", 50)
    with torch.no_grad():
        assert torch.allclose(
            module.net(batch.inputs)[:, :-1],
            whole(batch.inputs)[:, share.class_ids],
            atol=1e-5,
        )
    trainer(limit_train_batches=2).fit(module, datamodule=share)


def test_another_network_is_an_error(share: SpecialistDataModule) -> None:
    message = complaint(
        lambda: ClassifierModule(
            mlp(13, classes=5), init_from=str(share.generalist)
        ).attach(share)
    )
    assert "'body.1.weight' is (12, 64) in the weights and (13, 64) in MLP" in message

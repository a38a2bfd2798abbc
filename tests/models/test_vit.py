"""The vision transformer: shapes, tokens, heads, and DeiT's training of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from kd_lightning.data import DigitsDataModule
from kd_lightning.errors import UserError
from kd_lightning.features import Taps, run_network
from kd_lightning.losses import CrossEntropy, HardDistillation
from kd_lightning.models import ViT
from kd_lightning.models.vit import Heads
from kd_lightning.runs.launch import launch
from kd_lightning.training import ClassifierModule, DistillationModule
from tests.training.small import CONFIGS, complaint, copied, distillation, trainer


def small(token: bool = True, **arguments: Any) -> ViT:
    torch.manual_seed(0)
    options = {"patch_size": 2, "width": 8, "depth": 2, "heads": 2, **arguments}
    shape = [1, 8, 8]
    return ViT(**options, distillation_token=token, input_shape=shape, num_classes=10)


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("token", [False, True])
def test_the_number_of_parameters(token: bool) -> None:
    network = ViT(4, 64, 3, 4, 2, 0.0, token, input_shape=[3, 32, 16], num_classes=7)
    tokens = 2 if token else 1
    patches = 3 * 4 * 4 * 64 + 64
    embedding = 64 * (tokens + tokens + 8 * 4)
    attention = 64 * 192 + 192 + 64 * 64 + 64
    mlp = 64 * 128 + 128 + 128 * 64 + 64
    blocks = 3 * (attention + mlp + 4 * 64)
    heads = tokens * (64 * 7 + 7)
    expected = patches + embedding + blocks + 2 * 64 + heads
    assert sum(p.numel() for p in network.parameters()) == expected


def test_a_block_is_pre_norm_attention_and_mlp() -> None:
    """Against torch's own encoder layer with the same weights."""
    block: Any = small().blocks[0]
    layer = torch.nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": block.attention.qkv.weight,
            "self_attn.in_proj_bias": block.attention.qkv.bias,
            "self_attn.out_proj.weight": block.attention.out.weight,
            "self_attn.out_proj.bias": block.attention.out.bias,
            "linear1.weight": block.mlp[0].weight,
            "linear1.bias": block.mlp[0].bias,
            "linear2.weight": block.mlp[2].weight,
            "linear2.bias": block.mlp[2].bias,
            "norm1.weight": block.norm1.weight,
            "norm1.bias": block.norm1.bias,
            "norm2.weight": block.norm2.weight,
            "norm2.bias": block.norm2.bias,
        }
    )
    x = torch.randn(3, 5, 8)
    assert_close(block(x), layer(x))


def test_patches_are_tokens_in_the_order_of_rows() -> None:
    network = small(token=False)
    x = images()
    weight = network.patches.weight.flatten(1)
    embedded = network.patches(x).flatten(2).transpose(1, 2)
    # The fifth of 4 x 4 patches is the first of the second row.
    patch = x[:, :, 2:4, 0:2].flatten(1)
    assert network.patches.bias is not None
    assert_close(embedded[:, 4], patch @ weight.T + network.patches.bias)


def test_every_patch_and_position_counts() -> None:
    network = small().eval()
    x = images(1).requires_grad_()
    network(x)[0, 0].backward()
    assert x.grad is not None
    patches = x.grad.unfold(2, 2, 2).unfold(3, 2, 2).abs().sum((0, 1, 4, 5))
    assert bool((patches > 0).all())
    assert network.positions.grad is not None
    assert bool(network.positions.grad.abs().sum(2).gt(0).all())


def test_both_heads_in_training_and_their_mean_in_evaluation() -> None:
    network = small()
    with torch.no_grad():
        heads = network.train()(images())
        mean = network.eval()(images())
    assert isinstance(heads, Heads)
    assert heads.logits.shape == heads.distillation.shape == (3, 10)
    expected = (heads.logits.softmax(-1) + heads.distillation.softmax(-1)) / 2
    assert_close(mean.exp(), expected)
    roles = {"distillation": "distillation_head", "tokens": "norm"}
    output = run_network(network, images(), Taps(network, roles, set(roles)))
    assert_close(output.logits, mean)
    assert torch.equal(output.features["distillation"], heads.distillation)
    assert output.features["tokens"].shape == (3, 2 + 16, 8)


def test_extreme_logits_average_to_finite_ones() -> None:
    network = small().eval()
    assert network.distillation_head is not None
    with torch.no_grad():
        network.head.bias[0] = 1e4
        network.distillation_head.bias[1] = 1e4
        probs = network(images()).softmax(-1)
    assert_close(probs[:, :2], torch.full((3, 2), 0.5))


def test_without_the_token_there_is_one_head() -> None:
    network = small(token=False)
    names = {name for name, _ in network.named_parameters()}
    assert not any("distillation" in name for name in names)
    assert_close(network.train()(images()), network.eval()(images()))


def test_each_head_learns_from_its_own_loss() -> None:
    """The class token's head follows the labels alone, the other one the teacher alone."""
    layers = {"distillation": "distillation_head"}
    data = DigitsDataModule(fraction=0.1)
    for weights in ((1.0, 0.0), (0.0, 1.0)):
        losses = {
            "ce": CrossEntropy(weight=weights[0]),
            "hard": HardDistillation("distillation", weight=weights[1]),
        }
        module = distillation(losses, student=small(), layers=layers)
        before = copied(module.student)
        trainer().fit(module, datamodule=data)
        after = copied(module.student)
        for name, weight in (("head", weights[0]), ("distillation_head", weights[1])):
            same = torch.equal(before[f"{name}.weight"], after[f"{name}.weight"])
            assert same == (weight == 0)


def test_a_loss_must_train_the_second_head() -> None:
    module = ClassifierModule(small())
    message = complaint(lambda: module.attach(DigitsDataModule()))
    assert "predicts in evaluation with a head that no loss trains" in message
    assert "distillation" in message
    ClassifierModule(small(token=False)).attach(DigitsDataModule())


def test_the_shipped_pair_and_method(tmp_path: Path) -> None:
    """The pair trains with its method; the role names the second head."""
    shown = ["-c", str(CONFIGS / "data" / "digits.yaml"), "--data.fraction=0.1"]
    common = [
        *("fit", "-c", str(CONFIGS / "trainer.yaml"), *shown),
        *("-c", str(CONFIGS / "loggers" / "csv.yaml"), "--trainer.max_epochs=1"),
        *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"),
    ]
    teacher = [
        *("-c", str(CONFIGS / "teachers" / "cifar_resnet20.yaml")),
        *("--model.network.depth=8", f"--run.dir={tmp_path}/teacher"),
    ]
    launch([*common, *teacher])
    student = [
        *("-c", str(CONFIGS / "pairs" / "resnet20_deit4.yaml")),
        *("-c", str(CONFIGS / "methods" / "harddistillation_token.yaml")),
        f"--model.teacher.checkpoint={tmp_path}/teacher/checkpoints/last.ckpt",
        f"--run.dir={tmp_path}/student",
    ]
    run = launch([*common, *student])
    assert run.metrics["train_loss"] == pytest.approx(
        run.metrics["train_loss_ce"] / 2
        + run.metrics["train_loss_harddistillation"] / 2,
        rel=1e-5,
    )
    # The checkpoint rebuilds the network, which predicts with the mean of both heads.
    loaded = DistillationModule.load_from_checkpoint(
        tmp_path / "student" / "checkpoints" / "last.ckpt"
    )
    assert isinstance(loaded.student, ViT)
    with torch.no_grad():
        assert_close(loaded.student.eval()(images()).exp().sum(1), torch.ones(3))


def test_another_image_size_is_refused() -> None:
    message = complaint(lambda: small()(torch.zeros(1, 1, 8, 16)))
    assert "ViT was built for images of [8, 8] pixels" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"patch_size": 3}, "patch_size must divide the height and width"),
        ({"patch_size": 0}, "patch_size must be at least 1, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"heads": 3}, "heads must divide width, got 3 heads and width 8"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"ViT: {words}"):
        small(**arguments)


def test_needs_images() -> None:
    with pytest.raises(UserError, match="ViT: input_shape or num_classes is missing"):
        ViT()
    with pytest.raises(UserError, match="ViT needs images"):
        ViT(input_shape=[64], num_classes=2)

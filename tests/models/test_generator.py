"""The convolutional generator."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from kd_lightning.models import ConvGenerator
from tests.training.small import complaint


@pytest.mark.parametrize("shape", [[1, 8, 8], [3, 32, 32], [1, 28, 28], [2, 7, 5]])
def test_makes_normalized_images(shape: list[int]) -> None:
    torch.manual_seed(0)
    images = ConvGenerator(16, 8, input_shape=shape)(torch.randn(64, 16))
    assert list(images.shape) == [64, *shape]
    assert images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (images.std((0, 2, 3)) - 1).abs().max() < 1e-2


def test_images_without_norm_do_not_depend_on_each_other() -> None:
    noise = torch.randn(4, 16)
    for norm in (False, True):
        generator = ConvGenerator(16, 8, norm=norm, input_shape=[1, 8, 8])
        alone = generator(noise[:2])
        assert torch.allclose(generator(noise)[:2], alone, atol=1e-6) is not norm


def test_mistakes() -> None:
    assert "input_shape" in complaint(partial(ConvGenerator, 16, 8))
    assert "latent" in complaint(partial(ConvGenerator, 0, 8, input_shape=[1, 8, 8]))

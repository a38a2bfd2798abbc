"""What a user's own `load` returns is checked, and what is wrong with it is one line."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from kd_lightning.data import ImageDataModule, Images
from kd_lightning.errors import UserError
from kd_lightning.tasks import MultilabelClassification, Regression
from kd_lightning.types import UNLABELLED

CLASSES = ("sky", "tree", "water")


def good_images(channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        0, 256, (12, channels, 6, 5), dtype=torch.uint8, generator=generator
    )


def good_target() -> Tensor:
    return torch.arange(12) % 3


class Own(ImageDataModule):
    """Serves any images and targets."""

    name = "own"
    classes = CLASSES
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)

    def __init__(
        self, images: object = None, target: object = None, **base: object
    ) -> None:
        super().__init__(**base)  # type: ignore[arg-type]
        self.images = good_images() if images is None else images
        self.target = good_target() if target is None else target

    def load(self, split: str) -> Images:
        return Images(self.images, self.target)  # type: ignore[arg-type]


class Grey(Own):
    mean = (0.5,)
    std = (0.25,)


class Tags(Own):
    """Several labels per image."""

    task = MultilabelClassification()


def complaint(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_samples_are_served_unchanged() -> None:
    data = Own()
    assert data.raw("train").images is data.images
    assert torch.equal(data.raw("train").target, good_target())


@pytest.mark.parametrize(
    ("images", "parts"),
    [
        (
            good_images().float() / 255,
            ["float32", "(255 * images).round().to(torch.uint8)"],
        ),
        (good_images().double(), ["float64"]),
        (good_images().long(), ["int64", "images.to(torch.uint8)"]),
        (
            good_images().permute(0, 2, 3, 1),
            ["[12, 6, 5, 3]", "NHWC", "permute(0, 3, 1, 2)"],
        ),
        (good_images(1).permute(0, 2, 3, 1), ["[12, 6, 5, 1]", "NHWC"]),
        (good_images(1), ["C = 3", "[12, 1, 6, 5]", "mean and std per channel"]),
        (good_images().flatten(1), ["[12, 90]", "images.view(N, C, H, W)"]),
        (good_images()[0], ["[3, 6, 5]"]),
        (
            good_images().numpy(),
            ["images must be a torch tensor, got ndarray", "from_numpy"],
        ),
        (good_images()[:11], ["11 images, but 12 targets"]),
    ],
)
def test_images_of_another_form(images: object, parts: list[str]) -> None:
    message = complaint(lambda: Own(images).raw("train"))
    assert message.startswith("load('train')")
    for part in parts:
        assert part in message


def test_gray_images_without_a_channel() -> None:
    message = complaint(lambda: Grey(good_images(1)[:, 0]).spec)
    assert "images[:, None] adds the channel" in message
    assert Grey(good_images(1)).spec.input_shape == (1, 6, 5)


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (
            good_target() + 1,
            ["labels must be 0 to 2, got 1 to 3", "they start at 1; subtract 1"],
        ),
        (good_target() * 2, ["got 0 to 4", "name all classes"]),
        (good_target() - 1, ["got -1 to 1", "-100 marks a missing label"]),
        (good_target() + 0.5, ["whole numbers (int64)", "such as 0.5"]),
        (torch.full((12,), torch.nan), ["whole numbers (int64)", "such as nan"]),
        (good_target()[:, None], ["shape (N), got [12, 1]", "target[:, 0]"]),
        (
            torch.ones(12, 3),
            [
                "got [12, 3]",
                "kd_lightning.tasks.MultilabelClassification()",
                "argmax(1)",
            ],
        ),
        (good_target().numpy(), ["target must be a torch tensor, got ndarray"]),
    ],
)
def test_targets_of_another_form(target: object, parts: list[str]) -> None:
    message = complaint(lambda: Own(None, target).source("train"))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    "dtype", [torch.int32, torch.int16, torch.uint8, torch.float32, torch.float64]
)
def test_labels_of_other_types_are_converted(dtype: torch.dtype) -> None:
    batch = (
        Own(None, good_target().to(dtype)).source("test").batch(torch.arange(12), -1)
    )
    assert batch.target.dtype == torch.int64
    assert torch.equal(batch.target, good_target())


def test_missing_labels_are_allowed() -> None:
    target = good_target()
    target[::2] = UNLABELLED
    for labels in (target, torch.full((12,), UNLABELLED)):
        data = Own(None, labels, fraction=0.5, validation=0.25)
        assert len(data.source("validation")) >= 2
        assert set(data.source("train").target.tolist()) <= {UNLABELLED, 0, 1, 2}


def test_an_empty_split() -> None:
    empty = Own(good_images()[:0], good_target()[:0])
    assert "returned no samples; the split test" in complaint(
        lambda: empty.source("test")
    )


def test_something_else_than_images() -> None:
    class Pairs(Own):
        def load(self, split: str) -> Images:
            return good_images(), good_target()  # type: ignore[return-value]

    assert "must return kd_lightning.data.Images" in complaint(lambda: Pairs().spec)


def test_a_missing_attribute() -> None:
    class Nameless(ImageDataModule):
        classes = CLASSES
        mean = (0.5,)
        std = (0.5, 0.5)

    assert "Nameless must set the class attribute `name`" in complaint(Nameless)

    class Uneven(Nameless):
        name = "uneven"

    assert "one value per channel, got 1 and 2" in complaint(Uneven)


# -- several labels per image -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bool])
def test_several_labels_per_image(dtype: torch.dtype) -> None:
    tags = (torch.arange(36).view(12, 3) % 4 == 0).to(dtype)
    data = Tags(None, tags, validation=0.25, label_fraction=0.5)
    batch = data.source("validation").batch(torch.arange(3), -1)
    assert batch.target.dtype == torch.int64
    assert torch.equal(batch.target, tags.long()[batch.index])
    train = data.source("train").batch(torch.arange(9), -1).target
    withheld = (train == UNLABELLED).all(1)
    assert 4 <= int(withheld.sum()) <= 5


def test_mistakes_with_several_labels_per_image() -> None:
    counts = torch.full((12, 3), 2)
    assert "labels must be 0 to 1, got 2 to 2" in complaint(
        lambda: Tags(None, counts).spec
    )
    assert "shape (N, 3), got [12]" in complaint(lambda: Tags().spec)
    assert "one label per image" in complaint(lambda: Tags(keep_classes=[1]))


def test_real_valued_targets_stay_as_they_are() -> None:
    class Values(Own):
        task = Regression()

    values = torch.linspace(-1, 1, 36).view(12, 3)
    assert torch.equal(Values(None, values).raw("train").target, values)


# -- normalization ------------------------------------------------------------------------------


def test_mean_and_std_can_be_set() -> None:
    data = Own(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    assert data.spec.mean == (0.485, 0.456, 0.406)
    assert data.spec.std == (0.229, 0.224, 0.225)
    inputs = data.source("test").batch(torch.arange(12), -1).inputs
    assert isinstance(inputs, Tensor)
    pixels = good_images().double().numpy() / 255
    mean = np.array(data.mean)[:, None, None]
    std = np.array(data.std)[:, None, None]
    np.testing.assert_allclose(inputs.numpy(), (pixels - mean) / std, atol=1e-5)
    assert data.fingerprint() != Own().fingerprint()
    assert Own.mean == (0.5, 0.5, 0.5)


def test_gray_images_get_the_normalization_of_a_color_network() -> None:
    data = Grey(good_images(1), channels=3, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7])
    inputs = data.source("test").batch(torch.arange(12), -1).inputs
    assert isinstance(inputs, Tensor)
    for channel, (mean, std) in enumerate(zip(data.mean, data.std, strict=True)):
        expected = (good_images(1)[:, 0].double() / 255 - mean) / std
        torch.testing.assert_close(
            inputs[:, channel].double(), expected, rtol=0, atol=1e-5
        )
    assert data.spec.input_shape == (3, 6, 5)
    # One value may be replaced, while the other is still that of the gray images.
    mixed = Grey(good_images(1), channels=3, mean=[0.1, 0.2, 0.3])
    inputs = mixed.source("test").batch(torch.arange(2), -1).inputs
    assert isinstance(inputs, Tensor)
    assert inputs.shape == (2, 3, 6, 5)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"mean": [0.5]}, ["data.mean must have one value per channel, 3, got 1"]),
        ({"std": [0.5] * 4}, ["data.std must have one value per channel, 3, got 4"]),
        (
            {"mean": [123.7, 116.3, 103.5]},
            ["data.mean must be in [0, 1]", "divide", "by 255"],
        ),
        ({"mean": [-0.1, 0.5, 0.5]}, ["got -0.1"]),
        ({"mean": [float("nan"), 0.5, 0.5]}, ["got nan"]),
        ({"std": [0.0, 0.5, 0.5]}, ["data.std must be in (0, 1]", "got 0"]),
        ({"std": [float("inf"), 0.5, 0.5]}, ["got inf"]),
    ],
)
def test_normalization_out_of_range(
    options: dict[str, object], parts: list[str]
) -> None:
    message = complaint(lambda: Own(**options))
    for part in parts:
        assert part in message

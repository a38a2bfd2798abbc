"""The parts of a report by hand: calibration, agreement, samples and figures."""

from __future__ import annotations

import base64
import io

import pytest
import torch
from matplotlib.figure import Figure as Drawing
from PIL import Image

from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.source import Source
from kd_lightning.report import display
from kd_lightning.report.agreement import by_class, predicted_classes
from kd_lightning.report.curves import line_over_seeds
from kd_lightning.report.figures import ID_PREFIX, draw
from kd_lightning.report.predictions import reliability
from kd_lightning.report.soft_targets import spread_by_entropy, top_shares
from kd_lightning.spec import Spec
from kd_lightning.types import Batch


def test_reliability_by_hand() -> None:
    # Two classes with confidences 0.75, 0.75 and 0.95: one of the first two is wrong.
    probs = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.05, 0.95]])
    target = torch.tensor([0, 1, 1])
    measured = reliability(probs.log(), target)

    assert measured.confidence == pytest.approx([0.75, 0.95])
    assert measured.accuracy == pytest.approx([0.5, 1.0])
    assert measured.counts == [2, 1]
    # Two thirds of the samples are off by 0.25, one third by 0.05.
    assert measured.error == pytest.approx(2 / 3 * 0.25 + 1 / 3 * 0.05)


def test_agreement_by_class() -> None:
    teacher = torch.tensor([0, 0, 0, 2, -100])
    student = torch.tensor([0, 0, 1, 1, -100])
    first, second = by_class(student, teacher, ["a", "b", "c"])

    assert (first.name, first.predictions) == ("a", 3)
    assert first.share == pytest.approx(2 / 3)
    # The teacher never predicts b, and the void position counts nowhere.
    assert (second.name, second.predictions, second.share) == ("c", 1, 0.0)


def test_predicted_classes_of_tasks() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 1.0]])
    labels = {"logits": logits, "target": torch.tensor([1, 0])}
    several = {"logits": logits, "target": torch.zeros(2, 2)}
    pixels = {"classes": torch.ones(2, 3, 3, dtype=torch.int16)}

    found = predicted_classes(labels)
    assert found is not None
    assert found.tolist() == [1, 0]
    assert predicted_classes(several) is None
    of_pixels = predicted_classes(pixels)
    assert of_pixels is not None
    assert of_pixels.shape == (2, 3, 3)


def test_samples_are_spread_over_the_entropy() -> None:
    entropy = torch.tensor([0.4, 0.0, 0.3, 0.1, 0.2])
    assert spread_by_entropy(entropy, 3) == [1, 4, 0]
    assert spread_by_entropy(entropy, 9) == [1, 3, 4, 2, 0]


def test_the_largest_shares_come_first() -> None:
    shares = top_shares(torch.tensor([0.1, 0.6, 0.3]), ["a", "b", "c"])
    assert [share.name for share in shares] == ["b", "c", "a"]
    assert shares[0].share == pytest.approx(0.6)


def test_a_line_over_seeds() -> None:
    line = line_over_seeds("x", [{0: 1.0, 1: 3.0, 2: 9.0}, {0: 3.0, 1: 3.0}])
    assert line is not None
    # The second seed has no third epoch.
    assert list(line.epochs) == [0, 1]
    assert list(line.means) == [2.0, 3.0]
    assert list(line.deviations) == pytest.approx([2**0.5, 0.0])
    assert line_over_seeds("x", [{0: 1.0, 1: float("nan")}]) is None


class Rows(Source):
    """The labels of test images."""

    def __init__(self, target: torch.Tensor) -> None:
        self.target = target
        self.rows = torch.arange(len(target))
        self.split = "test"

    def batch(self, rows: torch.Tensor, view: int) -> Batch:
        raise NotImplementedError


class Pixels(DataModule):
    """Test images without anything else."""

    def __init__(
        self, images: torch.Tensor, target: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        self.images = images
        self.target = torch.zeros(len(images)) if target is None else target

    def images_for_display(self, index: torch.Tensor) -> torch.Tensor:
        return self.images[index]

    def source(self, stage: str) -> Source:
        return Rows(self.target)

    @property
    def spec(self) -> Spec:
        return Spec(data="pixels")

    def fingerprint(self) -> dict[str, object]:
        return {}


def decoded(uri: str) -> Image.Image:
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_pictures_keep_pixels_and_stretch_spectrograms() -> None:
    colors = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    index = torch.tensor([1])
    [shown] = display.show(Pixels(colors), index, {"index": index})
    image = decoded(shown.pictures[0].uri)
    assert image.size == (5, 4)
    assert image.getpixel((2, 3)) == tuple(colors[1, :, 3, 2].tolist())

    spectrogram = torch.tensor([[[[-2.0, 0.0], [2.0, -2.0]]]])
    index = torch.tensor([0])
    [shown] = display.show(Pixels(spectrogram), index, {"index": index})
    image = decoded(shown.pictures[0].uri)
    assert image.mode == "L"
    assert [image.getpixel(at) for at in ((0, 0), (1, 0), (0, 1))] == [0, 128, 255]


def test_classes_of_pixels_lie_over_the_image() -> None:
    images = torch.full((3, 1, 1, 2), 100, dtype=torch.uint8)
    labels = torch.tensor([[[0, 0]], [[0, 0]], [[0, 1]]])
    # Stored in another order than that of the test split; the right pixel is void.
    stored = {
        "index": torch.tensor([2, 0]),
        "classes": torch.tensor([[[1, -100]], [[0, 0]]], dtype=torch.int16),
    }
    [shown] = display.show(Pixels(images, labels), torch.tensor([2]), stored)
    alone, predicted, right = [decoded(each.uri) for each in shown.pictures]

    first, second = [
        tuple(
            round(0.45 * 100 + 0.55 * int(color[at : at + 2], 16)) for at in (1, 3, 5)
        )
        for color in display.CLASS_COLORS[:2]
    ]
    assert [alone.getpixel((x, 0)) for x in (0, 1)] == [100, 100]
    assert [predicted.getpixel((x, 0)) for x in (0, 1)] == [second, (100, 100, 100)]
    assert [right.getpixel((x, 0)) for x in (0, 1)] == [first, second]
    assert display.legend(["a", "b"]).entries[1] == (display.CLASS_COLORS[1], "b")


def test_a_figure_takes_the_color_of_the_page() -> None:
    def plot(drawing: Drawing) -> None:
        axes = drawing.subplots()
        axes.set_title("<b>$x_1$</b>")

    first = draw(1.0, "one & <two>", plot)
    second = draw(1.0, "another", plot)

    assert first.svg.startswith("<svg ")
    assert "currentColor" in first.svg
    assert "#000000" not in first.svg.split("<defs>")[0]
    assert "one &amp; &lt;two&gt;</title>" in first.svg
    assert "&lt;b&gt;$x_1$&lt;/b&gt;" in first.svg
    # The page gives each of them ids of its own.
    for part in first.svg.split(' id="')[1:]:
        assert part.startswith(ID_PREFIX)
    assert draw(1.0, "another", plot).svg == second.svg

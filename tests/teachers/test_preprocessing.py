"""Teachers that were trained on images of another kind: what is adapted, what is refused, what is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import functional

from kd_lightning.data import DigitsDataModule
from kd_lightning.spec import Spec, check_spec
from kd_lightning.tasks import Classification, Segmentation
from kd_lightning.teachers import EnsembleTeacher, ModelTeacher, preprocessing
from kd_lightning.teachers.cache.fill import cache_teacher
from kd_lightning.teachers.cache.manifest import Manifest
from kd_lightning.teachers.input_adapter import InputAdapter, adapter_between
from kd_lightning.teachers.preprocessing import Preprocessing
from kd_lightning.types import Batch
from tests.training.small import complaint, samples

PIXELS = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class OtherScaling(DigitsDataModule):
    mean = (0.5,)
    std = (0.25,)


class Seeing(nn.Module):
    """Returns ten logits and remembers the images that it was shown."""

    seen: Tensor

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        self.seen = images
        return (
            images.mean((1, 2, 3))[:, None]
            * self.scale
            * torch.arange(self.num_classes)
        )


def data_of(channels: int = 3, size: int = 16, **changes: Any) -> Any:
    """A stand-in for a datamodule: all that a teacher reads is what the data is."""
    spec = Spec(
        data="pictures",
        num_classes=10,
        input_shape=(channels, size, size),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
    )
    return SimpleNamespace(task=Classification(), spec=replace(spec, **changes))


def batch_of(pixels: Tensor) -> Batch:
    """Pixels in [0, 1], normalized as `data_of` says."""
    inputs = (pixels - 0.5) / 0.25
    return Batch(
        inputs, torch.zeros(len(inputs), dtype=torch.int64), torch.arange(len(inputs))
    )


def seen_by(teacher: ModelTeacher, data: Any, batch: Batch) -> Tensor:
    """The images that reach the teacher's network."""
    teacher.prepare(data)
    teacher(batch)
    assert isinstance(teacher.network, Seeing)
    return teacher.network.seen


# -- adaptation -------------------------------------------------------------------------------------------------------


def test_images_that_fit_are_passed_on_untouched() -> None:
    batch = batch_of(PIXELS)
    teacher = ModelTeacher(
        network=Seeing(), mean=[0.5] * 3, std=[0.25] * 3, input_size=[16, 16]
    )
    assert seen_by(teacher, data_of(), batch) is batch.inputs
    assert teacher.adapter is None
    assert teacher.notes == []
    assert "adapted_inputs" not in teacher.sources()[0]


def test_images_are_normalized_as_the_teacher_expects() -> None:
    mean, std = IMAGENET
    teacher = ModelTeacher(network=Seeing(), mean=list(mean), std=list(std))
    seen = seen_by(teacher, data_of(), batch_of(PIXELS))
    torch.testing.assert_close(
        seen, functional.normalize(PIXELS, list(mean), list(std))
    )
    assert teacher.notes == [
        "the teacher's inputs are adapted: normalized by mean [0.485, 0.456, 0.406] and std "
        "[0.229, 0.224, 0.225] instead of [0.5, 0.5, 0.5] and [0.25, 0.25, 0.25]"
    ]


def test_images_are_resized() -> None:
    teacher = ModelTeacher(network=Seeing(), input_size=[8, 24])
    batch = batch_of(PIXELS)
    seen = seen_by(teacher, data_of(), batch)
    assert isinstance(batch.inputs, Tensor)
    torch.testing.assert_close(
        seen, functional.resize(batch.inputs, [8, 24], antialias=True)
    )
    assert teacher.notes == [
        "the teacher's inputs are adapted: resized from 16 x 16 to 8 x 24"
    ]


def test_gray_images_become_color() -> None:
    mean, std = IMAGENET
    network = Preprocessing(mean, std, channels=3)
    adapter = adapter_between(data_of(1).spec, network)
    assert adapter is not None
    gray = PIXELS[:, :1]
    seen = adapter.adapt(batch_of(gray)).teacher_inputs
    color = gray.expand(-1, 3, -1, -1)
    torch.testing.assert_close(seen, functional.normalize(color, list(mean), list(std)))
    assert adapter.note.startswith("repeated from gray to color, normalized by")


def test_the_student_reads_its_own_images() -> None:
    batch = batch_of(PIXELS)
    adapter = InputAdapter(
        Preprocessing.of_spec(data_of().spec), Preprocessing(size=(8, 8))
    )
    adapted = adapter.adapt(batch)
    assert adapted.inputs is batch.inputs
    assert batch.teacher_inputs is None


def test_half_precision() -> None:
    teacher = ModelTeacher(
        network=Seeing(), mean=[0.1] * 3, std=[0.2] * 3, input_size=[8, 8]
    )
    batch = batch_of(PIXELS)
    exact = seen_by(teacher, data_of(), batch)
    batch.inputs = batch_of(PIXELS).inputs.bfloat16()  # type: ignore[union-attr]
    seen = seen_by(teacher.to(torch.bfloat16), data_of(), batch)
    assert seen.dtype == torch.bfloat16
    torch.testing.assert_close(seen.float(), exact, rtol=0.02, atol=0.02)


def test_gradients_reach_the_images_of_a_generator() -> None:
    teacher = ModelTeacher(
        network=Seeing(), mean=[0.1] * 3, std=[0.2] * 3, input_size=[8, 8]
    )
    teacher.prepare(data_of())
    batch = batch_of(PIXELS)
    batch.inputs = batch_of(PIXELS).inputs.requires_grad_()  # type: ignore[union-attr]
    teacher(batch).logits.sum().backward()
    assert isinstance(batch.inputs, Tensor)
    assert batch.inputs.grad is not None


# -- where it is known from -------------------------------------------------------------------------------------------


def test_a_kd_checkpoint_knows_its_images(
    checkpoint: Path, data: DigitsDataModule
) -> None:
    """A teacher gives the same outputs whatever the student's normalization."""
    expected = ModelTeacher(str(checkpoint))
    expected.prepare(data)
    other = OtherScaling()
    teacher = ModelTeacher(str(checkpoint))
    teacher.prepare(other)
    torch.testing.assert_close(
        teacher(samples(other, "test")).logits,
        expected(samples(data, "test")).logits,
        rtol=1e-4,
        atol=1e-4,
    )
    assert "instead of [0.5] and [0.25]" in teacher.notes[0]
    teacher.prepare(data)  # the data it was trained on
    assert teacher.adapter is None


def test_arguments_win(checkpoint: Path) -> None:
    teacher = ModelTeacher(str(checkpoint), mean=[0.5], std=[0.25])
    teacher.prepare(OtherScaling())
    assert teacher.adapter is None


def test_torchvision_knows_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    state = models.shufflenet_v2_x0_5().state_dict()
    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", lambda *_, **__: state)
    teacher = ModelTeacher(weights=str(weights))
    teacher.prepare(data_of(num_classes=1000))
    assert teacher.adapter is not None
    assert teacher.adapter.size == (224, 224)
    assert "normalized by mean [0.485, 0.456, 0.406]" in teacher.notes[0]
    fitting = data_of(num_classes=1000, size=224, mean=IMAGENET[0], std=IMAGENET[1])
    teacher.prepare(fitting)
    assert teacher.adapter is None


def test_timm_knows_its_images() -> None:
    network = Seeing()
    config = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "input_size": (3, 8, 8)}
    network.pretrained_cfg = {**config, "num_classes": 10}  # type: ignore[assignment]
    expected = Preprocessing((0.1, 0.2, 0.3), (1.0, 1.0, 1.0), (8, 8), 3)
    assert preprocessing.of_network(network) == expected
    assert preprocessing.of_file(Path("none.pt"), network) == expected
    network.num_classes = 7  # a file for another head was trained on other data
    assert preprocessing.of_file(Path("none.pt"), network) == Preprocessing()
    assert preprocessing.of_network(network) == Preprocessing()


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": {"height": 8, "width": 12}}, (8, 12)),
        ({"size": {"shortest_edge": 9}}, (9, 9)),
        ({"size": 10}, (10, 10)),
        (
            {"size": {"shortest_edge": 9}, "do_center_crop": True, "crop_size": 7},
            (7, 7),
        ),
        ({"size": {"shortest_edge": 9}, "do_resize": False}, None),
    ],
)
def test_a_processor_beside_the_weights(
    settings: dict[str, Any], size: tuple[int, int] | None, tmp_path: Path
) -> None:
    content = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.2, 0.2, 0.2], **settings}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    expected = Preprocessing((0.5,) * 3, (0.2,) * 3, size, 3)
    assert (
        preprocessing.of_file(tmp_path / "model.safetensors", nn.Linear(1, 1))
        == expected
    )
    network = nn.Linear(1, 1)
    network.config = SimpleNamespace(name_or_path=str(tmp_path))  # type: ignore[assignment]
    assert preprocessing.of_network(network) == expected


@pytest.mark.parametrize("content", ["{", "[]", '{"size": {}, "image_mean": "x"}'])
def test_a_processor_that_says_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(content)
    assert preprocessing.of_file(tmp_path / "w.pt", nn.Linear(1, 1)) == Preprocessing()


# -- what is refused --------------------------------------------------------------------------------------------------


def test_color_for_a_gray_teacher_is_refused(checkpoint: Path) -> None:
    teacher = ModelTeacher(str(checkpoint))
    message = complaint(lambda: teacher.prepare(DigitsDataModule(channels=3)))
    assert "inputs of shape [1, 8, 8], the data digits gives [3, 8, 8]" in message


def test_another_size_per_pixel_is_refused() -> None:
    teacher = ModelTeacher(network=Seeing(), input_size=[8, 8])
    data = data_of(target_shape=(16, 16), task="segmentation")
    data.task = Segmentation()
    message = complaint(lambda: teacher.prepare(data))
    assert "inputs of shape [3, 8, 8], the data pictures gives [3, 16, 16]" in message


def test_data_without_a_normalization_is_refused() -> None:
    teacher = ModelTeacher(network=Seeing(), mean=[0.5] * 3, std=[0.25] * 3)
    message = complaint(lambda: teacher.prepare(data_of(mean=None, std=None)))
    assert "the data pictures gives None" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"input_size": [8]}, "height and width"), ({"std": [0.0]}, "greater than 0")],
)
def test_arguments_that_are_wrong(arguments: dict[str, Any], words: str) -> None:
    assert words in complaint(lambda: ModelTeacher(network=Seeing(), **arguments))


# -- classes of ImageNet ----------------------------------------------------------------------------------------------

NAMES = tuple(models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.meta["categories"])
SYNSETS = tuple(f"n{number:08d}" for number in range(1440764, 1441764))


def test_imagenet_is_compared_in_the_order_of_its_synsets() -> None:
    teacher = Spec(num_classes=1000, classes=NAMES)
    check_spec("the teacher", teacher, Spec(num_classes=1000, classes=SYNSETS))


@pytest.mark.parametrize(
    ("known", "given"),
    [
        (NAMES, SYNSETS[::-1]),
        (NAMES[::-1], SYNSETS),
        (NAMES, tuple(f"class {number}" for number in range(1000))),
        (SYNSETS, tuple(f"n{number:08d}" for number in range(2440764, 2441764))),
    ],
)
def test_other_orders_are_refused(
    known: tuple[str, ...], given: tuple[str, ...]
) -> None:
    teacher = Spec(num_classes=1000, classes=known)
    data = Spec(num_classes=1000, classes=given)
    assert "the classes or their order differ" in complaint(
        lambda: check_spec("the teacher", teacher, data)
    )


# -- caches and ensembles ---------------------------------------------------------------------------------------------


def test_a_cache_depends_on_the_adaptation(checkpoint: Path, tmp_path: Path) -> None:
    data = OtherScaling()
    cache_teacher(ModelTeacher(str(checkpoint)), data, tmp_path / "cache")
    Manifest.read(tmp_path / "cache")
    content = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    source = content["fingerprint"]["teacher"][0]
    assert source["adapted_inputs"]["shift"] != [0.0]
    unadapted = ModelTeacher(str(checkpoint), mean=[0.5], std=[0.25])
    assert "teacher" in complaint(
        lambda: cache_teacher(unadapted, data, tmp_path / "cache")
    )


def test_an_ensemble_passes_the_notes_on(checkpoint: Path) -> None:
    teacher = EnsembleTeacher(checkpoints=[str(checkpoint), str(checkpoint)])
    teacher.prepare(OtherScaling())
    assert len(teacher.notes) == 1


def test_interpolation_commutes_with_the_normalization() -> None:
    resized = F.interpolate(PIXELS, (8, 8), mode="bilinear", antialias=True)
    mean, std = IMAGENET
    adapter = InputAdapter(
        Preprocessing.of_spec(data_of().spec), Preprocessing(mean, std, size=(8, 8))
    )
    seen = adapter.adapt(batch_of(PIXELS)).teacher_inputs
    torch.testing.assert_close(
        seen, functional.normalize(resized, list(mean), list(std))
    )

"""Images with one label per pixel: masks move with their images, and void pixels are no positions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from kd_lightning.data import (
    Augmentation,
    ColorJitter,
    Cutout,
    Flip,
    Jitter,
    Mixup,
    PadCrop,
    RandomResizedCrop,
    Rotations,
    SegmentationDataModule,
)
from kd_lightning.data.source import batch_of_views
from kd_lightning.errors import UserError
from kd_lightning.types import CLEAN, UNLABELLED, Batch
from tests.data.images.camvid import (
    CLASSES,
    HEIGHT,
    VOID,
    WIDTH,
    draw,
    write_camvid,
    write_pair,
)

GEOMETRIC: list[Augmentation] = [Flip(), PadCrop(3), Jitter(2)]
PIXELWISE: list[Augmentation] = [ColorJitter(0.3, 0.3, 0.3, 0.1), Cutout(4)]
RED = torch.tensor([1, 41, 81])
"""The red of each class's pixels in the small images."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_camvid(tmp_path_factory.mktemp("data") / "small")


def read(path: Path, **options: object) -> SegmentationDataModule:
    arguments: dict[str, object] = {
        "classes": CLASSES,
        "void": [VOID],
        "masks": "labels",
        "validation": "val",
        **options,
    }
    return SegmentationDataModule(str(path), **arguments)  # type: ignore[arg-type]


def complaint(path: Path, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def whole(
    data: SegmentationDataModule, stage: str = "train", view: int = CLEAN
) -> Batch:
    source = data.source(stage)
    return source.batch(torch.arange(len(source)), view)


def inputs(batch: Batch) -> Tensor:
    assert isinstance(batch.inputs, Tensor)
    return batch.inputs


def pixels(data: SegmentationDataModule, batch: Batch) -> Tensor:
    """The inputs as they were before normalization, `(B, 3, H, W)`."""
    mean = torch.tensor(data.mean)[:, None, None]
    std = torch.tensor(data.std)[:, None, None]
    return (inputs(batch) * 255 * std + 255 * mean).round().long()


def exists(batch: Batch) -> Tensor:
    """Which pixels are positions, bool `(B, H, W)`."""
    flat = torch.zeros(batch.target.numel(), dtype=torch.bool)
    if batch.positions is None:
        return torch.ones_like(batch.target, dtype=torch.bool)
    flat[batch.positions] = True
    return flat.view(batch.target.shape)


def test_images_and_masks_are_read_in_the_order_of_their_names(folder: Path) -> None:
    data = read(folder)
    batch = whole(data)
    seen = pixels(data, batch)
    assert batch.target.dtype == torch.int64
    for number in range(8):
        image, mask = draw(number)
        assert torch.equal(
            seen[number], torch.from_numpy(np.array(image)).long().permute(2, 0, 1)
        )
        labels = torch.from_numpy(np.array(mask)).long()
        assert torch.equal(
            batch.target[number], labels.masked_fill(labels == VOID, UNLABELLED)
        )
        assert torch.equal(exists(batch)[number], labels != VOID)
    validation = whole(data, "validation")
    assert torch.equal(
        data.source("train").target, torch.cat([batch.target, validation.target])
    )


def test_the_spec_names_classes_and_shapes(folder: Path) -> None:
    spec = read(folder).spec
    assert (spec.data, spec.task, spec.classes) == (
        "small",
        "segmentation",
        ("sky", "road", "car"),
    )
    assert (spec.input_shape, spec.target_shape) == (
        (3, HEIGHT, WIDTH),
        (HEIGHT, WIDTH),
    )
    assert spec.samples == {"train": 8, "validation": 4, "test": 4}
    assert spec.source_samples == 12


def test_images_are_normalized_by_the_training_folder(folder: Path) -> None:
    data = read(folder)
    images = [torch.from_numpy(np.array(draw(number)[0])) for number in range(8)]
    values = torch.stack(images).double().flatten(0, 2) / 255
    torch.testing.assert_close(
        torch.tensor(data.mean).double(), values.mean(0), rtol=0, atol=6e-5
    )
    std = values.std(0, correction=0)
    torch.testing.assert_close(torch.tensor(data.std).double(), std, rtol=0, atol=6e-5)


def test_a_zip_is_read_like_its_folder(folder: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "small"), "zip", folder)
    from_zip = whole(read(Path(archive)))
    assert torch.equal(from_zip.target, whole(read(folder)).target)


# -- augmentation -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "augment", GEOMETRIC, ids=lambda augment: type(augment).__name__
)
def test_a_mask_moves_with_its_image(augment: Augmentation, folder: Path) -> None:
    data = read(folder, augment=[augment])
    clean = whole(data)
    for view in range(4):
        batch = whole(data, view=view)
        red = pixels(data, batch)[:, 0]
        assert torch.equal(red[exists(batch)], RED[batch.labels])
        # All other pixels were void before, or came in from outside, which is black.
        assert set(red[~exists(batch)].tolist()) <= {201, 0}
        assert bool((red == 0).any()) == (not isinstance(augment, Flip))
        assert not torch.equal(batch.target, clean.target)


@pytest.mark.parametrize(
    "augment", PIXELWISE, ids=lambda augment: type(augment).__name__
)
def test_other_augmentations_leave_the_mask_alone(
    augment: Augmentation, folder: Path
) -> None:
    data = read(folder, augment=[augment])
    clean = whole(data)
    batch = whole(data, view=0)
    assert not torch.equal(inputs(batch), inputs(clean))
    assert torch.equal(batch.target, clean.target)
    assert torch.equal(exists(batch), exists(clean))


def test_every_geometric_augmentation_is_tested() -> None:
    # Rotations needs square images; tests/data/images/test_augment_rotations.py turns masks.
    own = {Rotations, *(type(augment) for augment in GEOMETRIC)}
    assert {each for each in Augmentation.__subclasses__() if each.geometric} == own


def test_a_view_does_not_depend_on_the_batch_or_on_what_was_drawn_before(
    folder: Path,
) -> None:
    augment = [Flip(), PadCrop(3), ColorJitter(0.2)]
    together = whole(read(folder, augment=augment), view=3)
    again = read(folder, augment=augment).source("train")
    torch.manual_seed(99)
    order = torch.tensor([5, 0, 7, 2])
    again.batch(order, 1)
    part = again.batch(order, 3)
    assert torch.equal(inputs(part), inputs(together)[order])
    assert torch.equal(part.target, together.target[order])
    assert torch.equal(exists(part), exists(together)[order])
    other = again.batch(order, 4)
    assert not torch.equal(other.target, part.target)


def test_the_seed_of_the_augmentation_changes_masks_and_images(folder: Path) -> None:
    one = whole(read(folder, augment=[PadCrop(3)], augmentation_seed=1), view=0)
    two = whole(read(folder, augment=[PadCrop(3)], augmentation_seed=2), view=0)
    assert not torch.equal(one.target, two.target)
    assert not torch.equal(inputs(one), inputs(two))


def test_several_views_of_an_image_are_rows_of_their_own(folder: Path) -> None:
    source = read(folder, augment=[PadCrop(3)]).source("train")
    rows = torch.tensor([1, 4])
    batch = batch_of_views(source, rows, (0, 1))
    singles = [source.batch(rows, view) for view in (0, 1)]
    assert torch.equal(batch.labels, torch.cat([single.labels for single in singles]))
    assert batch.num_rows == sum(single.num_rows for single in singles)


# -- positions ----------------------------------------------------------------------------------


def test_void_pixels_are_no_positions(folder: Path) -> None:
    batch = whole(read(folder))
    assert batch.positions is not None
    assert batch.positions.dtype == torch.int64
    assert bool((batch.positions.diff() > 0).all())
    # Each small image has one void column.
    assert batch.num_rows == 8 * HEIGHT * (WIDTH - 1)
    assert int(batch.labels.min()) == 0


def test_a_batch_without_void_pixels_has_no_positions(folder: Path) -> None:
    data = read(folder, classes={**CLASSES, "other": VOID}, void=[])
    batch = whole(data)
    assert batch.positions is None
    assert batch.num_rows == batch.target.numel()
    assert int(batch.target.max()) == 3


def test_the_loader_serves_what_the_source_does(folder: Path) -> None:
    data = read(folder, augment=[PadCrop(3)], batch_size=3)
    loader = data.train_dataloader()
    loader.set_epoch(2)
    source = data.source("train")
    batches = list(loader)
    assert [len(batch) for batch in batches] == [3, 3, 2]
    for batch in batches:
        direct = source.batch(batch.index, 2)
        assert torch.equal(inputs(batch), inputs(direct))
        assert torch.equal(batch.labels, direct.labels)


# -- subsets ------------------------------------------------------------------------------------


def test_a_fraction_of_the_images_keeps_its_labels(folder: Path) -> None:
    data = read(folder, label_fraction=0.5, augment=[PadCrop(3)])
    batch = whole(data)
    labelled = (batch.target != UNLABELLED).flatten(1).any(1)
    assert int(labelled.sum()) == 4
    # The void pixels of a withheld mask are unknown, too.
    assert bool(exists(batch)[~labelled].all())
    unchanged = whole(read(folder))
    assert torch.equal(batch.target[labelled], unchanged.target[labelled])
    moved = whole(data, view=0)
    assert bool((moved.target[~labelled] == UNLABELLED).all())
    assert not bool(exists(moved)[~labelled].all())
    held_out = whole(data, "validation")
    assert bool((held_out.labels != UNLABELLED).all())


def test_the_labelled_images_are_those_of_the_smaller_fraction(folder: Path) -> None:
    batch = whole(read(folder, label_fraction=0.5))
    labelled = (batch.target != UNLABELLED).flatten(1).any(1)
    half = read(folder, fraction=0.5).source("train")
    assert torch.equal(half.rows, batch.index[labelled])


def test_no_label_at_all(folder: Path) -> None:
    batch = whole(read(folder, label_fraction=0.0))
    assert bool((batch.labels == UNLABELLED).all())


def test_a_validation_folder_is_used_unless_validation_is_off(folder: Path) -> None:
    data = read(folder, validation=0.25)
    assert data.source("train").rows.tolist() == list(range(8))
    assert data.source("validation").rows.tolist() == list(range(8, 12))
    unused = read(folder, validation=0)
    assert unused.spec.samples == {"train": 8, "validation": 0, "test": 4}


def test_a_fraction_is_held_out_for_validation(tmp_path: Path) -> None:
    folder = write_camvid(tmp_path / "small", val=0)
    data = read(folder, validation=0.25)
    train = data.source("train").rows
    held_out = data.source("validation").rows
    assert (len(train), len(held_out)) == (6, 2)
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(8))
    assert len(read(folder, validation=0).source("validation")) == 0


# -- coding and sizes ---------------------------------------------------------------------------


def test_colors_mark_classes(tmp_path: Path) -> None:
    image, mask = draw(0)
    colors = {"sky": [0, 0, 255], "road": [128, 64, 128], "car": [255, 0, 0]}
    palette = np.zeros((256, 3), dtype=np.uint8)
    for name, value in CLASSES.items():
        palette[value] = colors[name]
    colored = Image.fromarray(palette[np.array(mask)])
    for split in ("train", "test"):
        write_pair(tmp_path / "colors", split, "a", image, colored)
        write_pair(tmp_path / "values", split, "a", image, mask)
    options: dict[str, object] = {"validation": 0.0}
    by_color = whole(
        read(tmp_path / "colors", classes=colors, void=[[0, 0, 0]], **options)
    )
    by_value = whole(read(tmp_path / "values", **options))
    assert torch.equal(by_color.target, by_value.target)


def test_values_of_a_palette_and_of_16_bits(tmp_path: Path) -> None:
    image, mask = draw(0)
    values = np.array(mask).astype(np.uint16) * 1000
    with_palette = Image.fromarray(np.array(mask), mode="P")
    with_palette.putpalette([200, 100, 50] * 256)
    for split in ("train", "test"):
        write_pair(tmp_path / "palette", split, "a", image, with_palette)
        write_pair(tmp_path / "values", split, "a", image, mask)
        write_pair(tmp_path / "wide", split, "a", image, Image.fromarray(values))
    wide_classes = {name: 1000 * value for name, value in CLASSES.items()}
    wide = read(
        tmp_path / "wide", classes=wide_classes, void=[1000 * VOID], validation=0.0
    )
    expected = whole(read(tmp_path / "values", validation=0.0)).target
    assert torch.equal(
        whole(read(tmp_path / "palette", validation=0.0)).target, expected
    )
    assert torch.equal(whole(wide).target, expected)


def test_classes_keep_their_order_not_that_of_their_values(folder: Path) -> None:
    reordered = {"car": 2, "sky": 0, "road": 1}
    target = whole(read(folder, classes=reordered)).target
    plain = whole(read(folder)).target
    new_class = torch.tensor([1, 2, 0])
    assert torch.equal(target[plain >= 0], new_class[plain[plain >= 0]])


def test_images_and_masks_are_resized(folder: Path) -> None:
    data = read(folder, size=[6, 8])
    assert data.spec.input_shape == (3, 6, 8)
    mask = draw(0)[1].resize((8, 6), Image.Resampling.NEAREST)
    labels = torch.from_numpy(np.array(mask)).long()
    expected = labels.masked_fill(labels == VOID, UNLABELLED)
    assert torch.equal(whole(data).target[0], expected)


# -- what caches compare ------------------------------------------------------------------------


def test_the_fingerprint_names_samples_and_augmentation(folder: Path) -> None:
    plain = read(folder).fingerprint()
    assert plain == read(folder, batch_size=2, label_fraction=0.5).fingerprint()
    changes: list[dict[str, object]] = [
        {"size": [6, 8]},
        {"augment": [Flip()]},
        {"void": [], "classes": {**CLASSES, "x": VOID}},
    ]
    for options in changes:
        assert read(folder, **options).fingerprint() != plain


# -- bad input ----------------------------------------------------------------------------------


def remove_images(root: Path) -> None:
    shutil.rmtree(root / "train" / "images")


def remove_test(root: Path) -> None:
    shutil.rmtree(root / "test")


def remove_mask(root: Path) -> None:
    (root / "train" / "labels" / "03.png").unlink()


def shrink_mask(root: Path) -> None:
    write_pair(root, "train", "03", draw(3)[0], draw(3, HEIGHT, WIDTH - 1)[1])


def enlarge_pair(root: Path) -> None:
    write_pair(root, "test", "03", *draw(3, HEIGHT + 1, WIDTH))


def color_mask(root: Path) -> None:
    write_pair(root, "train", "03", draw(3)[0], draw(3)[0])


def unknown_value(root: Path) -> None:
    write_pair(root, "train", "03", draw(3)[0], Image.new("L", (WIDTH, HEIGHT), 7))


def damage_image(root: Path) -> None:
    (root / "train" / "images" / "03.png").write_bytes(b"no image")


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (remove_images, ["no images in train/images", "SPLIT/labels"]),
        (remove_test, ["no images in test/images"]),
        (
            remove_mask,
            ["train/images/03.png has no mask train/labels/03.png", "data.masks"],
        ),
        (
            shrink_mask,
            ["mask train/labels/03.png is 15x12", "train/images/03.png is 16x12"],
        ),
        (
            enlarge_pair,
            ["different sizes", "16x12", "test/images/03.png is 16x13", "--data.size"],
        ),
        (color_mask, ["train/labels/03.png has colors", "[red, green, blue]"]),
        (
            unknown_value,
            ["train/labels/03.png holds the pixel 7", "data.classes or data.void"],
        ),
        (damage_image, ["train/images/03.png cannot be read"]),
    ],
)
def test_bad_files(
    edit: Callable[[Path], None], parts: list[str], folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "copy"
    shutil.copytree(folder, root)
    edit(root)
    message = complaint(root)
    for part in parts:
        assert part in message


def test_an_unknown_color_is_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_pair(
            tmp_path,
            split,
            "a",
            draw(0)[0],
            Image.new("RGB", (WIDTH, HEIGHT), (1, 2, 3)),
        )
    message = complaint(tmp_path, classes={"sky": [0, 0, 0]}, void=[], validation=0.0)
    assert "train/labels/a.png holds the pixel [1, 2, 3]" in message


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"classes": {}}, "data.classes must name 1 to 254 classes"),
        ({"classes": {"a": 0, "b": [1, 2, 3]}}, "use one kind"),
        ({"classes": {"a": [1, 2]}}, "must be [red, green, blue]"),
        ({"classes": {"a": -1}}, "at least 0"),
        (
            {"classes": {"a": 0, "b": 0}},
            "data.classes: b: the pixel 0 has another meaning",
        ),
        ({"void": [1]}, "data.void: the pixel 1 has another meaning"),
        ({"validation": 1.0}, "data.validation must be a fraction in [0, 1)"),
        ({"validation": "nowhere"}, "no images in nowhere/images"),
        ({"masks": "masks"}, "has no mask train/masks/00.png"),
        ({"size": [4]}, "data.size must be [height, width]"),
        ({"size": [0, 4]}, "data.size must be [height, width]"),
        ({"batch_size": 0}, "data.batch_size"),
        ({"copies": 0}, "data.copies"),
        ({"views": 0}, "data.views"),
        ({"fraction": 0.0}, "data.fraction"),
        ({"label_fraction": 1.5}, "data.label_fraction"),
        ({"augment": [Mixup()]}, "data.augment: Mixup"),
        (
            {"augment": [RandomResizedCrop()]},
            "data.augment: RandomResizedCrop interpolates",
        ),
    ],
)
def test_bad_options(options: dict[str, object], part: str, folder: Path) -> None:
    assert part in complaint(folder, **options)


def test_a_missing_folder(tmp_path: Path) -> None:
    assert "there is no folder or zip" in complaint(tmp_path / "nowhere")
    assert "KD_DATA_ROOT" in complaint(tmp_path / "nowhere")


def test_the_real_data(data_root: Path) -> None:
    if not (data_root / "camvid-240x180").is_dir():
        pytest.skip("no camvid-240x180 in the data root")
    classes = {}
    for line in (
        (data_root / "camvid-240x180" / "classes.txt").read_text().splitlines()[1:]
    ):
        number, name = line.split()[:2]
        classes[name] = int(number)
    void = classes.pop("void")
    data = read(
        Path("camvid-240x180"), root=str(data_root), classes=classes, void=[void]
    )
    assert data.spec.samples == {"train": 367, "validation": 101, "test": 233}
    masks = data.source("train").target[:367]
    shares = (masks[masks >= 0].bincount() / masks.numel()).tolist()
    assert shares[classes["road"]] == pytest.approx(0.318, abs=5e-4)
    assert float((masks == UNLABELLED).float().mean()) == pytest.approx(0.040, abs=5e-4)

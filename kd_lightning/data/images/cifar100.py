"""CIFAR-100 in the authors' file layout, which torchvision also uses."""

from __future__ import annotations

from typing import ClassVar

from kd_lightning.data.images.cifar10 import CIFAR10DataModule

_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
    crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
    keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse
    mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy
    porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper
    snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television
    tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100 (Krizhevsky 2009): 50,000 + 10,000 photographs in 100 classes, 32x32, fine labels.

    Args:
        root: folder that holds `cifar-100-python/` (torchvision's layout); by default
            `KD_DATA_ROOT`, else `./data`.
        download: whether to download missing files.
        base: see ImageDataModule.
    """

    name = "cifar100"
    classes = tuple(_NAMES.split())
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)

    title: ClassVar[str] = "CIFAR-100"
    folder: ClassVar[str] = "cifar-100-python"
    files: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train",),
        "test": ("test",),
    }
    labels_key: ClassVar[str] = "fine_labels"

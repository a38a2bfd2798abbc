"""Datamodules. Each serves Batch by whole batches, in an order and with an augmentation that are functions of seeds."""

from kd_lightning.data.augment import Augmentation, Jitter
from kd_lightning.data.base import ImageDataModule, Images, ImageSource
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.data.loader import BatchLoader, Source
from kd_lightning.data.mnist import MNISTDataModule
from kd_lightning.data.omniglot import OmniglotDataModule

__all__ = [
    "Augmentation",
    "BatchLoader",
    "DigitsDataModule",
    "ImageDataModule",
    "ImageSource",
    "Images",
    "Jitter",
    "MNISTDataModule",
    "OmniglotDataModule",
    "Source",
]

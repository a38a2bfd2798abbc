"""Datamodules. Each serves Batch by whole batches, in an order and with an augmentation that are functions of seeds."""

from kd_lightning.data.augment import Augmentation, Jitter, Mixing
from kd_lightning.data.base import ImageDataModule, Images, ImageSource
from kd_lightning.data.cifar10 import CIFAR10DataModule
from kd_lightning.data.cifar100 import CIFAR100DataModule
from kd_lightning.data.colour import ColorJitter
from kd_lightning.data.crop import Cutout, Flip, PadCrop
from kd_lightning.data.digits import DigitsDataModule
from kd_lightning.data.image_folder import ImageFolderDataModule
from kd_lightning.data.loader import BatchLoader, Source
from kd_lightning.data.mix import Mixup
from kd_lightning.data.mnist import MNISTDataModule
from kd_lightning.data.omniglot import OmniglotDataModule
from kd_lightning.data.sentences import BucketLoader
from kd_lightning.data.specialist import SpecialistDataModule, SpecialistSource
from kd_lightning.data.spoken_digits import SpokenDigitsDataModule
from kd_lightning.data.sst2 import SST2DataModule
from kd_lightning.data.subwords import PretrainedTokenizer, SubwordTokenizer
from kd_lightning.data.text import TextDataModule
from kd_lightning.data.text_augment import SyntheticSentences
from kd_lightning.data.tokenizers import Tokenizer, WordTokenizer

__all__ = [
    "Augmentation",
    "BatchLoader",
    "BucketLoader",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "ColorJitter",
    "Cutout",
    "DigitsDataModule",
    "Flip",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageSource",
    "Images",
    "Jitter",
    "MNISTDataModule",
    "Mixing",
    "Mixup",
    "OmniglotDataModule",
    "PadCrop",
    "PretrainedTokenizer",
    "SST2DataModule",
    "Source",
    "SpecialistDataModule",
    "SpecialistSource",
    "SpokenDigitsDataModule",
    "SubwordTokenizer",
    "SyntheticSentences",
    "TextDataModule",
    "Tokenizer",
    "WordTokenizer",
]

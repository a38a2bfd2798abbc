"""Datamodules and augmentations. Batches are functions of seeds, rows and views."""

from kd_lightning.data.corpus.datamodule import TextCorpusDataModule
from kd_lightning.data.corpus.pairs import PromptCompletionDataModule
from kd_lightning.data.corpus.prediction import (
    MaskedTokens,
    NextToken,
    TokenPrediction,
)
from kd_lightning.data.corpus.tokenizers import (
    BytePairTokenizer,
    LanguageTokenizer,
    PretrainedLanguageTokenizer,
)
from kd_lightning.data.datamodule import DataModule
from kd_lightning.data.images.augment import Augmentation, Jitter, Mixing
from kd_lightning.data.images.boxes import CutMix, RandomErasing, RandomResizedCrop
from kd_lightning.data.images.cifar10 import CIFAR10DataModule
from kd_lightning.data.images.cifar100 import CIFAR100DataModule
from kd_lightning.data.images.color import ColorJitter
from kd_lightning.data.images.datamodule import ImageDataModule
from kd_lightning.data.images.digits import DigitsDataModule
from kd_lightning.data.images.geometry import Cutout, Flip, PadCrop
from kd_lightning.data.images.image_folder import ImageFolderDataModule
from kd_lightning.data.images.mixup import Mixup
from kd_lightning.data.images.mnist import MNISTDataModule
from kd_lightning.data.images.noise import NoiseDataModule
from kd_lightning.data.images.omniglot import OmniglotDataModule
from kd_lightning.data.images.rotations import Rotations
from kd_lightning.data.images.segmentation import SegmentationDataModule
from kd_lightning.data.images.segmentation_source import SegmentationSource
from kd_lightning.data.images.source import Images, ImageSource
from kd_lightning.data.loader import BatchLoader, BucketLoader
from kd_lightning.data.source import Source
from kd_lightning.data.speech.spoken_digits import SpokenDigitsDataModule
from kd_lightning.data.tabular.base import TableDataModule
from kd_lightning.data.tabular.datamodule import TabularDataModule
from kd_lightning.data.tabular.sklearn_tables import SklearnTableDataModule
from kd_lightning.data.tensors import TensorDataModule
from kd_lightning.data.text.datamodule import TextDataModule
from kd_lightning.data.text.sst2 import SST2DataModule
from kd_lightning.data.text.subwords import PretrainedTokenizer, SubwordTokenizer
from kd_lightning.data.text.synthetic import SyntheticSentences
from kd_lightning.data.text.tokenizers import Tokenizer, WordTokenizer

__all__ = [
    "Augmentation",
    "BatchLoader",
    "BucketLoader",
    "BytePairTokenizer",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "ColorJitter",
    "CutMix",
    "Cutout",
    "DataModule",
    "DigitsDataModule",
    "Flip",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageSource",
    "Images",
    "Jitter",
    "LanguageTokenizer",
    "MNISTDataModule",
    "MaskedTokens",
    "Mixing",
    "Mixup",
    "NextToken",
    "NoiseDataModule",
    "OmniglotDataModule",
    "PadCrop",
    "PretrainedLanguageTokenizer",
    "PretrainedTokenizer",
    "PromptCompletionDataModule",
    "RandomErasing",
    "RandomResizedCrop",
    "Rotations",
    "SST2DataModule",
    "SegmentationDataModule",
    "SegmentationSource",
    "SklearnTableDataModule",
    "Source",
    "SpokenDigitsDataModule",
    "SubwordTokenizer",
    "SyntheticSentences",
    "TableDataModule",
    "TabularDataModule",
    "TensorDataModule",
    "TextCorpusDataModule",
    "TextDataModule",
    "TokenPrediction",
    "Tokenizer",
    "WordTokenizer",
]

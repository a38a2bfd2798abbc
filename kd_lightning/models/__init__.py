"""The networks of this package. Any other `nn.Module` can be used by its class path."""

from kd_lightning.models.bilstm import BiLSTMClassifier
from kd_lightning.models.cifar_resnet import CIFARResNet
from kd_lightning.models.cifar_resnet50 import CIFARResNet50
from kd_lightning.models.generator import ConvGenerator
from kd_lightning.models.hub_classifier import HubClassifier
from kd_lightning.models.language_model import CausalLanguageModel
from kd_lightning.models.masked_language_model import MaskedLanguageModel
from kd_lightning.models.mlp import MLP
from kd_lightning.models.mobilenet_v2 import CIFARMobileNetV2
from kd_lightning.models.sequence_to_sequence import SequenceToSequenceModel
from kd_lightning.models.shufflenet_v1 import CIFARShuffleNetV1
from kd_lightning.models.shufflenet_v2 import CIFARShuffleNetV2
from kd_lightning.models.textcnn import TextCNN
from kd_lightning.models.transformer import TransformerClassifier
from kd_lightning.models.unet import UNet
from kd_lightning.models.vgg import CIFARVGG
from kd_lightning.models.vit import ViT
from kd_lightning.models.wide_resnet import WideResNet

__all__ = [
    "CIFARVGG",
    "MLP",
    "BiLSTMClassifier",
    "CIFARMobileNetV2",
    "CIFARResNet",
    "CIFARResNet50",
    "CIFARShuffleNetV1",
    "CIFARShuffleNetV2",
    "CausalLanguageModel",
    "ConvGenerator",
    "HubClassifier",
    "MaskedLanguageModel",
    "SequenceToSequenceModel",
    "TextCNN",
    "TransformerClassifier",
    "UNet",
    "ViT",
    "WideResNet",
]

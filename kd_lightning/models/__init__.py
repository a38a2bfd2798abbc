"""Networks of our own. Any other nn.Module works as well, by its class path."""

from kd_lightning.models.cifar_resnet import CIFARResNet
from kd_lightning.models.mlp import MLP

__all__ = ["MLP", "CIFARResNet"]

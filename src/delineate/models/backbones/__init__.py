"""Encoders: networks that turn a picture into maps of ever smaller size."""

from delineate.models.backbones.plain import PlainEncoder
from delineate.models.backbones.resnest import resnest
from delineate.models.backbones.resnet import ResNet, resnet
from delineate.models.backbones.timm import TimmEncoder

__all__ = ["PlainEncoder", "ResNet", "TimmEncoder", "resnest", "resnet"]

"""Encoders: networks that turn a picture into maps of ever smaller size."""

from delineate.models.backbones.plain import PlainEncoder
from delineate.models.backbones.timm import TimmEncoder

__all__ = ["PlainEncoder", "TimmEncoder"]

"""The zoo's networks on HRNet."""

from __future__ import annotations

from torch import nn

from delineate.models.backbones.hrnet import HRNet, hrnet
from delineate.models.backbones.timm import load_timm_weights
from delineate.models.blocks import initialize
from delineate.models.hrnet import ConcatenatingHead, HRNetSemantic
from delineate.models.norms import NORMS, Norm
from delineate.models.ocr import OCR, OCRHead
from delineate.models.options import choose


def hrnet_semantic(
    num_classes: int,
    *,
    in_channels: int = 3,
    width: int = 48,
    small: bool = False,
    norm: str = "batch",
    upsample: str = "bilinear",
    align_corners: bool = False,
    pretrained: bool = False,
) -> HRNetSemantic:
    """HRNetV2 (Wang et al. 2020) with the head on the concatenation of all branches, for pictures of any size.

    Args:
        num_classes: output channels.
        in_channels: 1 for grey pictures, 3 for RGB.
        width: channels of the finest branch; 18, 32 and 48 were published.
        small: the authors' "small v2", with half the blocks and modules 1, 3, 2 in place of 1, 4, 3.
        norm: "batch", "instance" or "group".
        upsample: how the branches are enlarged before they are added: "bilinear", or "nearest" as in timm.
        align_corners: of every bilinear enlargement; belongs to the weights.
        pretrained: start the backbone from timm's ImageNet weights.
    """
    make_norm = choose(NORMS, norm, "norm")
    backbone = _backbone(width, in_channels, small, make_norm, upsample, align_corners, pretrained)
    head = ConcatenatingHead(sum(backbone.channels), num_classes, norm=make_norm)
    _initialize_head(head, head[-1])
    return HRNetSemantic(backbone, head, align_corners=align_corners)


def hrnet_ocr(
    num_classes: int,
    *,
    in_channels: int = 3,
    width: int = 48,
    small: bool = False,
    channels: int = 512,
    keys: int = 256,
    dropout: float = 0.05,
    auxiliary_weight: float = 0.4,
    norm: str = "batch",
    upsample: str = "bilinear",
    align_corners: bool = False,
    pretrained: bool = False,
) -> OCR:
    """HRNet with object-contextual representations (Yuan, Chen and Wang 2020).

    Args:
        num_classes: output channels.
        in_channels: 1 for grey pictures, 3 for RGB.
        width: channels of the finest branch; 18, 32 and 48 were published.
        small: the authors' "small v2" of the backbone.
        channels: of the pixels' features.
        keys: of the space in which pixels and classes are compared.
        dropout: probability that a channel of the last features is dropped in training.
        auxiliary_weight: of the loss of the soft regions that the context comes from.
        norm: "batch", "instance" or "group".
        upsample: how the branches are enlarged before they are added: "bilinear", or "nearest" as in timm.
        align_corners: of every bilinear enlargement; belongs to the weights.
        pretrained: start the backbone from timm's ImageNet weights.
    """
    make_norm = choose(NORMS, norm, "norm")
    backbone = _backbone(width, in_channels, small, make_norm, upsample, align_corners, pretrained)
    head = OCRHead(sum(backbone.channels), num_classes, channels=channels, keys=keys, dropout=dropout, norm=make_norm)
    classifier = nn.Conv2d(channels, num_classes, 1)
    _initialize_head(head, head.regions[-1], classifier)
    return OCR(backbone, head, classifier, align_corners=align_corners, auxiliary_weight=auxiliary_weight)


def _backbone(
    width: int, in_channels: int, small: bool, norm: Norm, upsample: str, align_corners: bool, pretrained: bool
) -> HRNet:
    backbone = hrnet(width, in_channels, norm=norm, small=small, upsample=upsample, align_corners=align_corners)
    if pretrained:
        load_timm_weights(backbone, f"hrnet_w{width}{'_small_v2' if small else ''}", in_channels)
    return backbone


def _initialize_head(head: nn.Module, *classifiers: nn.Module) -> None:
    initialize(head, 0.0)
    for classifier in classifiers:
        initialize(classifier, 1.0)  # nothing follows that would halve the variance

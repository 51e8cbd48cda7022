"""The zoo's networks of classes on dilated or pyramidal encoders: FCN, DeepLabV3, DeepLabV3+ and semantic FPN."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import nn

from delineate.errors import ConfigError
from delineate.models.backbones.named import named_encoder
from delineate.models.backbones.timm import TimmEncoder
from delineate.models.blocks import initialize
from delineate.models.deeplab import ASPP, PlusDecoder, convolution
from delineate.models.encoder_decoder import EncoderDecoder, LastMapDecoder, fcn_layers
from delineate.models.fpn import FPN
from delineate.models.norms import NORMS, Norm, group_norm
from delineate.models.options import choose
from delineate.models.semantic import Encoder
from delineate.models.semantic_fpn import SemanticBranch

DILATE = {8: (True, True), 16: (False, True), 32: (False, False)}  # the third and fourth stage, for an output stride
RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}  # the same distances in pixels of the picture
PLUS_VARIANTS = {"paper": (0, 2), "smp": (1, 1)}  # 3x3 convolutions before and after the concatenation
SMOOTH_VARIANTS = {"paper": True, "smp": False}  # whether each map of a pyramid has a 3x3 convolution of its own


def fcn(
    num_classes: int,
    *,
    in_channels: int = 3,
    encoder: str = "resnet50",
    output_stride: int = 8,
    norm: str = "batch",
    auxiliary_weight: float = 0.4,
    align_corners: bool = False,
    dilation: str = "published",
    pretrained: bool = False,
) -> EncoderDecoder:
    """Fully convolutional network on a dilated encoder, as torchvision's `fcn_resnet50`.

    Args:
        num_classes: output channels.
        in_channels: 1 for grey pictures, 3 for RGB.
        encoder: one of ours or of timm; see `deeplabv3`.
        output_stride: of the encoder's last map: 8, 16 or 32.
        norm: "batch", "frozen", "instance" or "group".
        auxiliary_weight: of the loss of the branch on the last map but one; 0: there is no branch.
        align_corners: of the enlargement of logits; belongs to the weights.
        dilation: see `deeplabv3`.
        pretrained: start the encoder from timm's ImageNet weights.
    """
    make_norm = choose(NORMS, norm, "norm")
    body = _dilated_encoder(encoder, in_channels, output_stride, make_norm, dilation, pretrained)
    decoder = LastMapDecoder(*fcn_layers(body.channels[-1], norm=make_norm, dropout=0.1))
    return _assemble(body, decoder, body.channels[-1] // 4, num_classes, make_norm, auxiliary_weight, align_corners)


def deeplabv3(
    num_classes: int,
    *,
    in_channels: int = 3,
    encoder: str = "resnet50",
    output_stride: int = 8,
    rates: Sequence[int] | None = None,
    channels: int = 256,
    norm: str = "batch",
    context_dropout: float = 0.5,
    dropout: float = 0.0,
    auxiliary_weight: float = 0.4,
    align_corners: bool = False,
    dilation: str = "published",
    pretrained: bool = False,
) -> EncoderDecoder:
    """DeepLabV3 (Chen et al. 2017) for pictures of any size; by default torchvision's `deeplabv3_resnet50`.

    Args:
        num_classes: output channels.
        in_channels: 1 for grey pictures, 3 for RGB.
        encoder: "resnet18" to "resnet152", "resnest14" to "resnest269", "resnext50_32x4d" ... or any network of timm that can
            keep its last maps large.
        output_stride: of the encoder's last map: 8, 16 or 32.
        rates: dilations of the pyramid's convolutions; None: 12, 24, 36 at stride 8, half at 16, a quarter at 32.
        channels: of each branch of the pyramid, and of the features.
        norm: "batch", "frozen", "instance" or "group".
        context_dropout: probability that a value is dropped after the pyramid, in training.
        dropout: the same before the classifier.
        auxiliary_weight: of the loss of the branch on the last map but one; 0: there is no branch.
        align_corners: of the enlargement of logits; belongs to the weights.
        dilation: "published": ResNet as in torchvision, ResNeSt as its authors dilate it; "timm" (ResNeSt) and "smp" (ResNet)
            for weights that come from there. See `resnest` and `resnet`.
        pretrained: start the encoder from timm's ImageNet weights.
    """
    make_norm = choose(NORMS, norm, "norm")
    body = _dilated_encoder(encoder, in_channels, output_stride, make_norm, dilation, pretrained)
    spread = rates or RATES[output_stride]
    decoder = LastMapDecoder(
        ASPP(body.channels[-1], channels, spread, norm=make_norm, dropout=context_dropout),
        convolution(channels, channels, 3, norm=make_norm),
        nn.Dropout(dropout),
    )
    return _assemble(body, decoder, channels, num_classes, make_norm, auxiliary_weight, align_corners)


def deeplabv3plus(
    num_classes: int,
    *,
    in_channels: int = 3,
    encoder: str = "resnet50",
    output_stride: int = 16,
    rates: Sequence[int] | None = None,
    channels: int = 256,
    fine_channels: int = 48,
    variant: str = "paper",
    separable: bool = True,
    norm: str = "batch",
    context_dropout: float = 0.5,
    auxiliary_weight: float = 0.0,
    align_corners: bool = False,
    dilation: str = "published",
    pretrained: bool = False,
) -> EncoderDecoder:
    """DeepLabV3+ (Chen et al. 2018) for pictures of any size: V3 whose context meets the map of quarter size.

    Args:
        num_classes: output channels.
        in_channels: 1 for grey pictures, 3 for RGB.
        encoder: one of ours or of timm; see `deeplabv3`.
        output_stride: of the encoder's last map: 8, 16 or 32.
        rates: dilations of the pyramid's convolutions; None: 6, 12, 18 at stride 16, twice that at 8, half at 32.
        channels: of each branch of the pyramid, and of the features.
        fine_channels: that are kept of the map of quarter size.
        variant: "paper": two 3x3 convolutions after the concatenation; "smp": one before and one after it, as in
            segmentation_models_pytorch.
        separable: 3x3 convolutions of pyramid and decoder are depthwise separable; those of smp's decoder are in any case.
        norm: "batch", "frozen", "instance" or "group".
        context_dropout: probability that a value is dropped after the pyramid, in training.
        auxiliary_weight: of the loss of the branch on the last map but one; 0: there is no branch.
        align_corners: of the enlargement of context and logits; belongs to the weights.
        dilation: see `deeplabv3`.
        pretrained: start the encoder from timm's ImageNet weights.
    """
    make_norm = choose(NORMS, norm, "norm")
    before, after = choose(PLUS_VARIANTS, variant, "variant")
    body = _dilated_encoder(encoder, in_channels, output_stride, make_norm, dilation, pretrained)
    level = _level_of_stride_4(body, encoder)
    make_convolution = partial(convolution, size=3, norm=make_norm, separable=separable or variant == "smp")
    context = ASPP(
        body.channels[-1],
        channels,
        rates or RATES[output_stride],
        norm=make_norm,
        dropout=context_dropout,
        separable=separable,
    )
    merged = [channels + fine_channels, *[channels] * after]
    decoder = PlusDecoder(
        nn.Sequential(context, *[make_convolution(channels, channels) for _ in range(before)]),
        nn.Sequential(*[make_convolution(merged[i], channels) for i in range(after)]),
        level=level,
        in_channels=body.channels[level],
        channels=fine_channels,
        norm=make_norm,
        align_corners=align_corners,
    )
    return _assemble(body, decoder, channels, num_classes, make_norm, auxiliary_weight, align_corners)


def semantic_fpn(
    num_classes: int,
    *,
    in_channels: int = 3,
    encoder: str = "resnet50",
    norm: str = "batch",
    pyramid_channels: int = 256,
    channels: int = 128,
    variant: str = "paper",
    dropout: float = 0.0,
    align_corners: bool = False,
    pretrained: bool = False,
) -> EncoderDecoder:
    """Semantic feature pyramid network (Kirillov et al. 2019) for pictures of any size.

    Args:
        num_classes: output channels.
        in_channels: 1 for grey pictures, 3 for RGB.
        encoder: one of ours, or of timm with maps at 4, 8, 16 and 32.
        norm: of the encoder, "batch", "frozen", "instance" or "group"; the branch has group normalisation with 32 groups.
        pyramid_channels: of the pyramid's maps.
        channels: of the branch and the features.
        variant: "paper": a 3x3 convolution of each of the pyramid's maps; "smp": none, as in segmentation_models_pytorch.
        dropout: probability that a channel of the features is dropped in training.
        align_corners: of every bilinear enlargement; belongs to the weights.
        pretrained: start the encoder from timm's ImageNet weights.
    """
    body = named_encoder(encoder, in_channels, norm=choose(NORMS, norm, "norm"), pretrained=pretrained)
    reductions = tuple(body.reductions[-4:])
    if reductions != (4, 8, 16, 32):
        raise ConfigError(f"encoder '{encoder}' has maps at {list(body.reductions)}, the pyramid needs 4, 8, 16 and 32")
    pyramid = FPN(body.channels[-4:], reductions, pyramid_channels, smooth=choose(SMOOTH_VARIANTS, variant, "variant"))
    branch = SemanticBranch(
        pyramid_channels, reductions, channels, norm=partial(group_norm, groups=32), align_corners=align_corners
    )
    initialize(branch, 0.0)
    classifier = nn.Conv2d(channels, num_classes, 1)
    initialize(classifier, 1.0)
    decoder = nn.Sequential(pyramid, branch, nn.Dropout2d(dropout))
    return EncoderDecoder(body, decoder, classifier, align_corners=align_corners, multiple=32)


deeplabv3_resnest = partial(deeplabv3, align_corners=True, dropout=0.1, auxiliary_weight=0.2)
"""DeepLabV3 as the authors of ResNeSt trained it (zhanghang1989/PyTorch-Encoding)."""


def _dilated_encoder(name: str, in_channels: int, output_stride: int, norm: Norm, dilation: str, pretrained: bool) -> Encoder:
    if output_stride not in DILATE:
        raise ConfigError(f"output_stride is {output_stride}, expected 8, 16 or 32")
    options = {} if dilation == "published" else {"dilation": dilation}
    return named_encoder(name, in_channels, norm=norm, dilate=DILATE[output_stride], pretrained=pretrained, **options)


def _level_of_stride_4(body: Encoder, name: str) -> int:
    if 4 not in body.reductions:
        raise ConfigError(f"encoder '{name}' has maps at {list(body.reductions)}, DeepLabV3+ needs one at 4")
    return len(body.reductions) - 1 - body.reductions[::-1].index(4)


def _assemble(
    body: Encoder,
    decoder: nn.Module,
    channels: int,
    num_classes: int,
    norm: Norm,
    auxiliary_weight: float,
    align_corners: bool,
) -> EncoderDecoder:
    """The network with a classifier of `channels` features, and a branch on the last map but one if that has a weight."""
    classifier = nn.Conv2d(channels, num_classes, 1)
    branch = None
    if auxiliary_weight:
        width = body.channels[-2]
        branch = nn.Sequential(*fcn_layers(width, norm=norm, dropout=0.1), nn.Conv2d(width // 4, num_classes, 1))
        initialize(branch, 0.0)
        initialize(branch[-1], 1.0)
    initialize(decoder, 0.0)
    initialize(classifier, 1.0)
    return EncoderDecoder(
        body,
        decoder,
        classifier,
        branch,
        auxiliary_weight=auxiliary_weight,
        align_corners=align_corners,
        multiple=body.reductions[-1] if isinstance(body, TimmEncoder) else 1,  # some of timm's cut off what is left over
    )

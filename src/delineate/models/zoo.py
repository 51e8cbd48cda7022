"""The zoo: every network by its name, each a plain function whose body shows every number."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from delineate.errors import ConfigError, suggest
from delineate.models.backbones.named import named_encoder
from delineate.models.backbones.plain import PlainEncoder
from delineate.models.backbones.resnet import ResNet
from delineate.models.blocks import NearestConv, bilinear_conv, initialize, transpose_conv
from delineate.models.instance import InstanceModel
from delineate.models.multiscale_attention import HierarchicalMultiScaleAttention
from delineate.models.norms import NORMS
from delineate.models.options import check_options, choose
from delineate.models.semantic import SemanticModel
from delineate.models.unet import UNet, UNetDecoder
from delineate.models.unet_original import UNetOriginal
from delineate.models.zoo_hrnet import hrnet_ocr, hrnet_semantic
from delineate.models.zoo_instances import mask_rcnn_c4, mask_rcnn_fpn
from delineate.models.zoo_semantic import deeplabv3, deeplabv3_resnest, deeplabv3plus, fcn, semantic_fpn

SLOPES = {"relu": 0.0, "leaky_relu": 0.01}  # slope below zero
UPSAMPLINGS = {"nearest": NearestConv, "bilinear": bilinear_conv, "transpose": transpose_conv}


def unet(
    num_classes: int,
    *,
    in_channels: int = 3,
    encoder: str = "plain",
    encoder_depth: int = 5,
    width: int = 32,
    depth: int = 5,
    max_width: int = 512,
    decoder_channels: Sequence[int] | None = None,
    norm: str = "batch",
    activation: str = "relu",
    upsample: str = "nearest",
    dropout: float = 0.0,
    deep_supervision: bool = False,
    pretrained: bool = False,
) -> UNet:
    """Padded U-Net for pictures of any size.

    With encoder="resnet34" it is the network of `segmentation_models_pytorch.Unet("resnet34")`.

    Args:
        num_classes: output channels.
        in_channels: 1 for grey pictures, 3 for RGB.
        encoder: "plain", two convolutions a level, "resnet34", "resnest50" and the like of ours, or any network of timm that
            returns feature maps.
        encoder_depth: how often a ResNet or ResNeSt of ours halves the picture: with 4 it lacks its last stage.
        width: channels of the plain encoder's first level; each level has twice those of the one before.
        depth: levels of the plain encoder.
        max_width: most channels of a level of the plain encoder.
        decoder_channels: of each step up, coarsest first; None: those of the plain encoder, or 256, 128, 64, 32, 16.
        norm: "batch", "instance" or "group"; encoders other than the plain one have batch normalisation in any case.
        activation: "relu" or "leaky_relu".
        upsample: "nearest", "bilinear" or "transpose".
        dropout: probability that a channel of the coarsest map is dropped in training.
        deep_supervision: in training return logits of the full, half, quarter ... size.
        pretrained: start the encoder from timm's ImageNet weights.
    """
    make_norm = choose(NORMS, norm, "norm")
    slope = choose(SLOPES, activation, "activation")
    make_up = choose(UPSAMPLINGS, upsample, "upsample")

    def make_activation() -> nn.Module:
        return nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True)

    if encoder == "plain":
        levels = _plain_levels(width, depth, max_width, pretrained)
        body = PlainEncoder(in_channels, levels, norm=make_norm, activation=make_activation)
        _shorten(body, encoder, encoder_depth)
        initialize(body, slope)
        widths, head_size = decoder_channels or levels[-2::-1], 1
    else:
        body = named_encoder(encoder, in_channels, pretrained=pretrained)
        _shorten(body, encoder, encoder_depth)
        steps = body.reductions[-1].bit_length() - 1
        widths, head_size = decoder_channels or (256, 128, 64, 32, 16)[-steps:], 3
    if len(widths) != (steps := body.reductions[-1].bit_length() - 1):
        raise ConfigError(f"decoder_channels has {len(widths)} numbers ({list(widths)}), encoder '{encoder}' needs {steps}")
    decoder = UNetDecoder(
        body.channels, body.reductions, widths, upsample=make_up, norm=make_norm, activation=make_activation, dropout=dropout
    )
    head = nn.Conv2d(widths[-1], num_classes, head_size, padding=head_size // 2)
    auxiliary_widths = widths[-2:0:-1] if deep_supervision else []  # the coarsest map carries too little detail
    auxiliary_heads = [nn.Conv2d(w, num_classes, 1) for w in auxiliary_widths]
    initialize(decoder, slope)
    for module in (head, *auxiliary_heads):
        initialize(module, 1.0)  # nothing follows that would halve the variance
    return UNet(body, decoder, head, auxiliary_heads)


def _shorten(body: nn.Module, name: str, depth: int) -> None:
    """Leave out the last stages of an encoder, so that it halves the picture `depth` times; 5 leaves it as it is."""
    if depth == 5:
        return
    if not isinstance(body, ResNet) or not 2 <= depth < 5:
        raise ConfigError(
            f"encoder_depth is {depth}, which encoder '{name}' cannot have; a ResNet of ours has 2 to 5, the plain one 'depth'"
        )
    for _ in range(5 - depth):
        body.take_last()


def _plain_levels(width: int, depth: int, max_width: int, pretrained: bool) -> list[int]:
    """Channels of each level of the plain encoder."""
    if pretrained:
        raise ConfigError("pretrained=true needs a timm encoder, there are no weights for encoder 'plain'; try 'resnet34'")
    if depth < 2:
        raise ConfigError(f"option 'depth' is {depth}, a U-Net has at least 2 levels")
    return [min(width * 2**level, max_width) for level in range(depth)]


def unet_original(num_classes: int, *, in_channels: int = 1, variant: str = "paper") -> UNetOriginal:
    """U-Net with valid convolutions: `variant` "paper" as the paper describes it, "release" as the authors published it."""
    numbers = {
        "paper": {"up_relu": False, "last_up_channels": 64, "dropout": 0.0, "skip_first": True},
        "release": {"up_relu": True, "last_up_channels": 128, "dropout": 0.5, "skip_first": False},
    }
    return UNetOriginal(in_channels, num_classes, **choose(numbers, variant, "variant"))


def hmsa(
    num_classes: int,
    *,
    in_channels: int = 3,
    model: str = "unet",
    options: Mapping[str, Any] | None = None,
    fusion: str = "attention",
    scales: Sequence[float] = (0.5, 1.0),
    training_scales: Sequence[float] = (0.5, 1.0),
    channels: int = 256,
    norm: str = "batch",
    scale_weight: float = 0.05,
) -> HierarchicalMultiScaleAttention:
    """Any network of classes run at several scales that an attention fuses (Tao, Sapra and Catanzaro 2020), or a baseline.

    Args:
        num_classes: output channels.
        in_channels: 1 for grey pictures, 3 for RGB.
        model: name of the network inside.
        options: its options.
        fusion: "attention", "explicit" (a head on the concatenated features of all scales), "average" or "maximum".
        scales: of the picture in evaluation, 1 among them.
        training_scales: in training; with "explicit", those are `scales`.
        channels: of the head that computes the attention.
        norm: of that head: "batch", "instance" or "group".
        scale_weight: of the loss of each scale's own logits.
    """
    inner = create_model(model, num_classes, in_channels=in_channels, **(options or {}))
    if not isinstance(inner, SemanticModel):
        raise ConfigError(f"option 'model' is '{model}', which finds objects; hmsa takes a network of classes, such as 'unet'")
    return HierarchicalMultiScaleAttention(
        inner,
        fusion=fusion,
        scales=scales,
        training_scales=training_scales,
        channels=channels,
        norm=norm,
        scale_weight=scale_weight,
    )


MODELS: dict[str, Callable[..., SemanticModel | InstanceModel]] = {
    "deeplabv3_resnest50": partial(deeplabv3_resnest, encoder="resnest50"),
    "deeplabv3_resnest101": partial(deeplabv3_resnest, encoder="resnest101"),
    "deeplabv3_resnest200": partial(deeplabv3_resnest, encoder="resnest200"),
    "deeplabv3_resnest269": partial(deeplabv3_resnest, encoder="resnest269"),
    "deeplabv3_resnet50": deeplabv3,
    "deeplabv3_resnet101": partial(deeplabv3, encoder="resnet101"),
    "deeplabv3plus_resnest50": partial(deeplabv3plus, encoder="resnest50"),
    "deeplabv3plus_resnest101": partial(deeplabv3plus, encoder="resnest101"),
    "deeplabv3plus_resnest200": partial(deeplabv3plus, encoder="resnest200"),
    "deeplabv3plus_resnest269": partial(deeplabv3plus, encoder="resnest269"),
    "deeplabv3plus_resnet50": deeplabv3plus,
    "deeplabv3plus_resnet101": partial(deeplabv3plus, encoder="resnet101"),
    "fcn_resnet50": fcn,
    "fcn_resnet101": partial(fcn, encoder="resnet101"),
    "hmsa": hmsa,
    "hmsa_hrnet_w48_ocr": partial(hmsa, model="hrnet_w48_ocr"),
    "hrnet_w18": partial(hrnet_semantic, width=18),
    "hrnet_w18_ocr": partial(hrnet_ocr, width=18),
    "hrnet_w18_small": partial(hrnet_semantic, width=18, small=True),
    "hrnet_w32": partial(hrnet_semantic, width=32),
    "hrnet_w48": hrnet_semantic,
    "hrnet_w48_ocr": hrnet_ocr,
    "keypoint_rcnn_resnet50_fpn": partial(mask_rcnn_fpn, masks=False, num_keypoints=17),
    "mask_keypoint_rcnn_resnet50_fpn": partial(mask_rcnn_fpn, num_keypoints=17),
    "mask_rcnn_hrnet_w32": partial(mask_rcnn_fpn, encoder="hrnet_w32", pyramid="hrfpn"),
    "mask_rcnn_resnest50_fpn": partial(mask_rcnn_fpn, encoder="resnest50"),
    "mask_rcnn_resnet101_fpn": partial(mask_rcnn_fpn, encoder="resnet101"),
    "mask_rcnn_resnet50_c4": mask_rcnn_c4,
    "mask_rcnn_resnet50_fpn": mask_rcnn_fpn,
    "mask_rcnn_resnet50_fpn_v2": partial(mask_rcnn_fpn, head_norm="batch", rpn_convs=2, box_convs=4, box_fcs=1),
    "panoptic_fpn_resnet50": partial(mask_rcnn_fpn, num_stuff=53),
    "semantic_fpn_resnest50": partial(semantic_fpn, encoder="resnest50"),
    "semantic_fpn_resnet50": semantic_fpn,
    "semantic_fpn_resnet101": partial(semantic_fpn, encoder="resnet101"),
    "unet": unet,
    "unet_original": unet_original,
}


def list_models() -> list[str]:
    """Return the names that `create_model` takes.

    >>> "mask_rcnn_resnet50_fpn" in list_models()
    True
    """
    return sorted(MODELS)


def create_model(name: str, num_classes: int, **options: Any) -> SemanticModel | InstanceModel:
    """Build the network `name` with `num_classes` output channels; `options` are the keyword arguments of its function here.

    Its `.architecture` holds all that is needed to build an equal network. Its weights lie channels-last in memory. Raises
    `ConfigError` for an unknown name or option, and for a value that cannot be.
    """
    build = choose(MODELS, name, "model")
    known = [parameter for parameter in inspect.signature(build).parameters if parameter != "num_classes"]
    for option in options:
        if option not in known:
            hint = suggest(option, known) or f"; known are {', '.join(known)}"
            raise ConfigError(f"model '{name}' has no option '{option}'{hint}")
    check_options(build, num_classes, options)
    arguments = inspect.signature(build).bind(num_classes, **options)
    arguments.apply_defaults()
    model = build(*arguments.args, **arguments.kwargs)
    model.to(memory_format=torch.channels_last)
    # `pretrained` says where the weights came from, not what the network is; all else is kept, so that defaults may change.
    kept = {option: value for option, value in arguments.kwargs.items() if option != "pretrained"}
    if isinstance(model, HierarchicalMultiScaleAttention):
        kept = model.architecture["options"]  # with those of the network inside
    model.architecture = {"name": name, "num_classes": num_classes, "options": kept}
    return model

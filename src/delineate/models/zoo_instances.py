"""The detectors of the zoo, as plain functions whose bodies show every number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from delineate.errors import ConfigError
from delineate.models.backbones.hrnet import HRNet
from delineate.models.backbones.named import HRNETS, named_encoder
from delineate.models.backbones.resnet import ResNet
from delineate.models.backbones.timm import TimmEncoder
from delineate.models.box_head import BoxHead, BoxLayers, MeanLayers
from delineate.models.detector_conventions import DETECTOR_CONVENTIONS, DetectorConventions
from delineate.models.fpn import FPN, HRFPN, LastMap
from delineate.models.keypoint_head import KeypointHead
from delineate.models.mask_head import Activation, FCNMasks, MaskHead, MLPMasks
from delineate.models.mask_rcnn import MaskRCNN
from delineate.models.norms import NORMS
from delineate.models.options import choose
from delineate.models.panoptic_fpn import SemanticHead
from delineate.models.regions import Pooler, RegionFeatures
from delineate.models.rpn import RPN, RPNHead, Selection
from delineate.ops.roi_reference import Mode

POOLERS: dict[str, Pooler] = {"roi_align": "roi_align", "roi_warp": "roi_warp", "roi_pool": "roi_pool"}
MODES: dict[str, Mode | None] = {"auto": None, "mean": "mean", "max": "max"}
NECKS: dict[str, type[FPN] | type[HRFPN]] = {"fpn": FPN, "hrfpn": HRFPN}
ACTIVATIONS: dict[str, Activation] = {"sigmoid": "sigmoid", "softmax": "softmax"}


def mask_rcnn_fpn(
    num_classes: int,
    *,
    in_channels: int = 3,
    encoder: str = "resnet50",
    norm: str = "batch",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = False,
    upsample: str = "nearest",
    frozen_stages: int = 0,
    pretrained: bool = False,
    pyramid: str = "fpn",
    width: int = 256,
    head_norm: str = "none",
    rpn_convs: int = 1,
    box_convs: int = 0,
    box_fcs: int = 2,
    box_width: int = 1024,
    masks: bool = True,
    mask_head: str = "fcn",
    mask_convs: int = 4,
    mask_activation: str = "sigmoid",
    class_agnostic_masks: bool = False,
    num_keypoints: int = 0,
    keypoint_convs: int = 8,
    keypoint_width: int = 512,
    num_stuff: int = 0,
    stuff_width: int = 128,
    min_stuff_area: int = 4096,
    pooler: str = "roi_align",
    mode: str = "auto",
    anchors: Sequence[int] = (32, 64, 128, 256, 512),
    samples: int = 512,
    convention: str = "detectron2",
) -> MaskRCNN:
    """Mask R-CNN with a feature pyramid: boxes, and masks, keypoints and the classes of pixels where wanted.

    Args:
        num_classes: classes of objects; there is none for the background.
        in_channels: 1 for grey pictures, 3 for RGB.
        encoder: "resnet50", "resnext101_32x8d", "resnest50", "hrnet_w32" ..., or timm's with maps at 4, 8, 16 and 32.
        norm: of the encoder, "batch", "frozen", "group" or "instance"; published weights are fine-tuned with "frozen".
        norm_eps: what batch normalisation adds to the variance; 0 for torchvision's first weights.
        stride_in_1x1: where a bottleneck has its stride, as in the networks that Microsoft published.
        upsample: how HRNet enlarges its branches before they are added: "nearest", as in detectors and classifiers, or
            "bilinear", as in networks of classes.
        frozen_stages: never train the first of stem, layer1, layer2 ...
        pretrained: start the encoder from timm's ImageNet weights.
        pyramid: "fpn", or "hrfpn", which HRNet was published with.
        width: channels of the pyramid and of the convolutions of the box and mask heads.
        head_norm: of pyramid, box and mask heads: "none", "batch" or "group".
        rpn_convs: 3x3 convolutions of the region-proposal network.
        box_convs: 3x3 convolutions of the box head.
        box_fcs: fully connected layers of the box head after these.
        box_width: their length.
        masks: find masks.
        mask_head: "fcn", convolutions, or "mlp", fully connected layers.
        mask_convs: 3x3 convolutions of the mask head.
        mask_activation: "sigmoid", or "softmax" for classes that compete.
        class_agnostic_masks: one mask for all classes.
        num_keypoints: of an object; 0: none are sought.
        keypoint_convs: 3x3 convolutions of the keypoint head.
        keypoint_width: their channels.
        num_stuff: classes of what is no object, for panoptic networks; 0: none are sought.
        stuff_width: channels of their head.
        min_stuff_area: pixels of a picture that a kind of stuff must have to become a segment; fewer for small pictures.
        pooler: "roi_align", "roi_warp" or "roi_pool".
        mode: "mean" or "max" of a bin's points; "auto": as published, "max" for "roi_pool".
        anchors: sizes of the first guesses in pixels, of the finest map first; smaller for small objects or pictures.
        samples: regions of a picture from which the heads learn in a step.
        convention: "detectron2", "torchvision" or "mmdetection", whose way of doing things is followed.
    """
    chosen = choose(DETECTOR_CONVENTIONS, convention, "convention")
    if num_keypoints and convention == "detectron2":
        chosen = replace(chosen, proposals_in_training=1500, box_beta=0.5)  # of its keypoint networks
    make_norm = None if head_norm == "none" else choose(NORMS, head_norm, "head_norm")
    body = _encoder(encoder, in_channels, norm, norm_eps, stride_in_1x1, frozen_stages, pretrained, upsample)
    if tuple(body.reductions[-4:]) != (4, 8, 16, 32):
        raise ConfigError(f"encoder '{encoder}' has maps at {list(body.reductions)}, the pyramid needs 4, 8, 16 and 32")
    if len(anchors) != 5:
        raise ConfigError(f"'anchors' is {list(anchors)}, expected five sizes in pixels, one for each map of the pyramid")
    neck = choose(NECKS, pyramid, "pyramid")(body.channels[-4:], body.reductions[-4:], width, norm=make_norm)
    rpn = RPN(
        RPNHead(width, anchors=3, convs=rpn_convs),
        neck.reductions,
        chosen,
        anchor_sizes=[[size] for size in anchors],
        training=Selection(before=2000, after=chosen.proposals_in_training),
        inference=Selection(before=1000, after=1000),
    )
    read = partial(_regions, reductions=neck.reductions[:-1], conventions=chosen, pooler=pooler, mode=mode)
    box_layers = BoxLayers(width, 7, convs=box_convs, conv_width=width, fcs=box_fcs, fc_width=box_width, norm=make_norm)
    makers = {
        "fcn": partial(FCNMasks, width, convs=mask_convs, width=width, norm=make_norm),
        "mlp": partial(MLPMasks, width, 14),
    }
    mask = None
    if masks:
        mask = _mask_head(num_classes, choose(makers, mask_head, "mask_head"), mask_activation, class_agnostic_masks)
    keypoints = KeypointHead(width, num_keypoints, convs=keypoint_convs, width=keypoint_width) if num_keypoints else None
    model = MaskRCNN(
        body,
        neck,
        rpn,
        read(7),
        BoxHead(box_layers, num_classes),
        mask_regions=read(14) if masks else None,
        mask_head=mask,
        keypoint_regions=read(14) if num_keypoints else None,
        keypoint_head=keypoints,
        semantic_head=SemanticHead(width, neck.reductions[:-1], num_stuff, width=stuff_width) if num_stuff else None,
        samples=samples,
        conventions=chosen,
    )
    model.min_stuff_area = min_stuff_area
    return model


def mask_rcnn_c4(
    num_classes: int,
    *,
    in_channels: int = 3,
    encoder: str = "resnet50",
    norm: str = "batch",
    norm_eps: float = 1e-5,
    stride_in_1x1: bool = False,
    frozen_stages: int = 0,
    pretrained: bool = False,
    masks: bool = True,
    mask_head: str = "fcn",
    mask_width: int = 256,
    mask_activation: str = "sigmoid",
    class_agnostic_masks: bool = False,
    pooler: str = "roi_align",
    mode: str = "auto",
    samples: int = 512,
    convention: str = "detectron2",
) -> MaskRCNN:
    """Mask R-CNN without a pyramid: everything is read from the encoder's map at 16, and its last stage is the heads' body.

    The options are those of `mask_rcnn_fpn`; `mask_width` are the channels of the mask head's up-convolution.
    """
    chosen = choose(DETECTOR_CONVENTIONS, convention, "convention")
    body = _encoder(encoder, in_channels, norm, norm_eps, stride_in_1x1, frozen_stages, pretrained)
    if not isinstance(body, ResNet):
        raise ConfigError(f"encoder '{encoder}' has no last stage to be the head; try a ResNet of ours, such as 'resnet50'")
    top = body.channels[-1]
    trunk = body.take_last()
    neck = LastMap(body.channels[-1], body.reductions[-1])
    rpn = RPN(
        RPNHead(neck.channels, anchors=15),
        neck.reductions,
        chosen,
        anchor_sizes=[[32, 64, 128, 256, 512]],
        training=Selection(before=12000, after=2000),
        inference=Selection(before=6000, after=1000),
    )
    makers = {"fcn": partial(FCNMasks, top, convs=0, width=mask_width), "mlp": partial(MLPMasks, top, 7)}
    mask = None
    if masks:
        mask = _mask_head(num_classes, choose(makers, mask_head, "mask_head"), mask_activation, class_agnostic_masks)
    model = MaskRCNN(
        body,
        neck,
        rpn,
        _regions(14, reductions=neck.reductions, conventions=chosen, pooler=pooler, mode=mode, trunk=trunk),
        BoxHead(MeanLayers(top), num_classes),
        mask_head=mask,
        samples=samples,
        conventions=chosen,
    )
    if convention == "detectron2":
        model.stride = 1  # it pads pictures only for a pyramid, and what lies beyond the border changes the last column
    return model


def _encoder(
    name: str,
    in_channels: int,
    norm: str,
    eps: float,
    stride_in_1x1: bool,
    frozen_stages: int,
    pretrained: bool,
    upsample: str = "nearest",
) -> ResNet | HRNet | TimmEncoder:
    make_norm = choose(NORMS, norm, "norm")
    if eps != 1e-5:
        if norm not in ("batch", "frozen"):
            raise ConfigError(f"norm_eps is {eps}, which norm '{norm}' does not have; choose 'batch' or 'frozen'")
        if norm == "batch" and eps <= 0:
            raise ConfigError(f"norm_eps is {eps}, with which norm 'batch' cannot learn; keep 'frozen', or set norm_eps=1e-5")
        make_norm = partial(make_norm, eps=eps)  # type: ignore[call-arg]
    options: dict[str, Any] = {"stride_in_1x1": True} if stride_in_1x1 else {}
    if name in HRNETS or upsample != "nearest":
        options["upsample"] = upsample
    body = named_encoder(name, in_channels, norm=make_norm, pretrained=pretrained, **options)
    if frozen_stages:
        if not isinstance(body, ResNet):
            raise ConfigError(f"frozen_stages is {frozen_stages}, but encoder '{name}' has no stages that can be frozen")
        body.freeze(frozen_stages)
    return body


def _regions(
    size: int,
    *,
    reductions: tuple[int, ...],
    conventions: DetectorConventions,
    pooler: str,
    mode: str,
    trunk: nn.Module | None = None,
) -> RegionFeatures:
    operation, chosen = choose(POOLERS, pooler, "pooler"), choose(MODES, mode, "mode")
    usual: Mode = "max" if operation == "roi_pool" else "mean"
    return RegionFeatures(size, reductions, conventions, pooler=operation, mode=chosen or usual, trunk=trunk)


def _mask_head(classes: int, make_layers: Callable[[int], nn.Module], activation: str, agnostic: bool) -> MaskHead:
    chosen = choose(ACTIVATIONS, activation, "mask_activation")
    outputs = MaskHead.outputs(classes, activation=chosen, agnostic=agnostic)
    return MaskHead(make_layers(outputs), activation=chosen, agnostic=agnostic)

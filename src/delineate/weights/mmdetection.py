"""Mask R-CNN and Faster R-CNN of MMDetection 2 and 3 (names and numbers of its version 3.3).

Its files of version 1 mean boxes that are one pixel wider, name their heads otherwise and are not recognised.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from delineate.models.backbones.named import HRNETS
from delineate.weights import hrnet
from delineate.weights.coco import class_names
from delineate.weights.conventions import Conventions, Resize
from delineate.weights.encoders import recognise_resnet
from delineate.weights.importer import Imported, Importer, Rule, State, rename

RULES: list[Rule] = [
    (r"data_preprocessor\.(?:mean|std)", None),
    (r"backbone\.(.+)", r"encoder.\1"),
    (r"neck\.reduction_conv\.conv\.(.+)", r"neck.reduce.0.\1"),
    (r"neck\.lateral_convs\.(\d)\.conv\.(.+)", r"neck.lateral.\1.0.\2"),
    (r"neck\.fpn_convs\.(\d)\.conv\.(.+)", r"neck.output.\1.0.\2"),
    (r"rpn_head\.rpn_conv\.(.+)", r"rpn.head.convs.0.0.\1"),
    (r"rpn_head\.rpn_cls\.(.+)", r"rpn.head.objectness.\1"),
    (r"rpn_head\.rpn_reg\.(.+)", r"rpn.head.deltas.\1"),
    (r"roi_head\.bbox_head\.shared_fcs\.(\d)\.(.+)", lambda m: f"box_head.layers.fcs.{2 * int(m[1])}.{m[2]}"),
    (r"roi_head\.bbox_head\.fc_cls\.(.+)", r"box_head.classifier.\1"),
    (r"roi_head\.bbox_head\.fc_reg\.(.+)", r"box_head.deltas.\1"),
    (r"roi_head\.mask_head\.convs\.(\d)\.conv\.(.+)", r"mask_head.layers.convs.\1.0.\2"),
    (r"roi_head\.mask_head\.upsample\.(.+)", r"mask_head.layers.up.\1"),
    (r"roi_head\.mask_head\.conv_logits\.(.+)", r"mask_head.layers.logits.\1"),
]
PYTORCH = Conventions(outputs="instances", resize=Resize(800, 1333, "bilinear"))
CAFFE = Conventions("bgr", 1.0, mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0), outputs="instances", resize=PYTORCH.resize)
RESNEXT_32X8D = Conventions(
    "bgr", 1.0, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395), outputs="instances", resize=PYTORCH.resize
)
STYLES = {
    "resnet50": {"r50_fpn": PYTORCH, "r50_caffe_fpn": CAFFE},
    "resnet101": {"r101_fpn": PYTORCH, "r101_caffe_fpn": CAFFE},
    "resnext101_32x8d": {"x101_32x8d_fpn": RESNEXT_32X8D},
    **{name: {name.replace("hrnet", "hrnetv2p"): PYTORCH} for name in HRNETS},
}  # by encoder: the configurations that have it. The "caffe" ones have a bottleneck's stride in its first convolution


def recognise(state: State) -> Sequence[str]:
    """The configurations that may have these tensors: those of "caffe" style have no others."""
    if "rpn_head.rpn_cls.weight" not in state or "roi_head.bbox_head.fc_cls.weight" not in state:
        return []
    task = "mask_rcnn" if "roi_head.mask_head.conv_logits.weight" in state else "faster_rcnn"
    return [f"{task}_{style}" for style in STYLES.get(recognise_encoder(state) or "", {})]


def recognise_encoder(state: State) -> str | None:
    """A ResNet under FPN or an HRNet under HRFPN; None: neither."""
    if "neck.reduction_conv.conv.weight" in state:
        return hrnet.backbone_name(state, "backbone.")
    return recognise_resnet(state, "backbone.")


def convert(state: State, arch: str, num_classes: int | None) -> Imported:
    """Make a detector ours; what goes in, and where the strides are, follows from `arch`."""
    renamed = rename(state, RULES)
    encoder = recognise_encoder(state)
    task, _, style = arch.partition("_rcnn_")
    options: dict[str, Any] = {
        "encoder": encoder,
        "norm": "batch",
        "stride_in_1x1": "caffe" in style,
        "masks": task == "mask",
        "convention": "mmdetection",
    }
    classes = len(renamed["box_head.classifier.bias"]) - 1
    conventions = STYLES[encoder or ""][style]
    model = "mask_rcnn_hrnet_w32" if encoder in HRNETS else "mask_rcnn_resnet50_fpn"
    return Imported(model, classes, renamed, class_names(classes), conventions, options)


IMPORTER = Importer("mmdet", recognise, convert)

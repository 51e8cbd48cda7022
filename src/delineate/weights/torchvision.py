"""Mask R-CNN and Keypoint R-CNN of torchvision, first and second version (names and numbers of torchvision 0.29)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from delineate.skeleton import COCO_PERSON
from delineate.weights.coco import class_names
from delineate.weights.conventions import Conventions, Resize
from delineate.weights.encoders import recognise_resnet
from delineate.weights.importer import Imported, Importer, Rule, State, ambiguous, rename

RULES: list[Rule] = [
    (r"backbone\.body\.(.+)", r"encoder.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.(weight|bias)", r"neck.lateral.\1.0.\2"),  # until torchvision 0.13
    (r"backbone\.fpn\.layer_blocks\.(\d)\.(weight|bias)", r"neck.output.\1.0.\2"),
    (r"backbone\.fpn\.inner_blocks\.(\d)\.([01]\..+)", r"neck.lateral.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d)\.([01]\..+)", r"neck.output.\1.\2"),
    (r"rpn\.head\.conv\.(weight|bias)", r"rpn.head.convs.0.0.\1"),  # until 0.13
    (r"rpn\.head\.conv\.(\d)\.0\.(.+)", r"rpn.head.convs.\1.0.\2"),
    (r"rpn\.head\.cls_logits\.(.+)", r"rpn.head.objectness.\1"),
    (r"rpn\.head\.bbox_pred\.(.+)", r"rpn.head.deltas.\1"),
    (r"roi_heads\.box_head\.fc6\.(.+)", r"box_head.layers.fcs.0.\1"),
    (r"roi_heads\.box_head\.fc7\.(.+)", r"box_head.layers.fcs.2.\1"),
    (r"roi_heads\.box_head\.([0-3])\.([01]\..+)", r"box_head.layers.convs.\1.\2"),  # of the second version
    (r"roi_heads\.box_head\.5\.(.+)", r"box_head.layers.fcs.0.\1"),
    (r"roi_heads\.box_predictor\.cls_score\.(.+)", r"box_head.classifier.\1"),
    (r"roi_heads\.box_predictor\.bbox_pred\.(.+)", r"box_head.deltas.\1"),
    (
        r"roi_heads\.mask_head\.mask_fcn([1-4])\.(.+)",
        lambda m: f"mask_head.layers.convs.{int(m[1]) - 1}.0.{m[2]}",
    ),  # until 0.13
    (r"roi_heads\.mask_head\.([0-3])\.([01]\..+)", r"mask_head.layers.convs.\1.\2"),
    (r"roi_heads\.mask_predictor\.conv5_mask\.(.+)", r"mask_head.layers.up.\1"),
    (r"roi_heads\.mask_predictor\.mask_fcn_logits\.(.+)", r"mask_head.layers.logits.\1"),
    (r"roi_heads\.keypoint_head\.(\d+)\.(.+)", lambda m: f"keypoint_head.convs.{int(m[1]) // 2}.0.{m[2]}"),  # ReLUs between
    (r"roi_heads\.keypoint_predictor\.kps_score_lowres\.(.+)", r"keypoint_head.heatmaps.\1"),
]


def from_torchvision(state: State) -> dict[str, Tensor]:
    """Return a detector's tensors under our names, with the background, which is torchvision's first class, where we have it.

    The classifier has it last; boxes and masks of the background, which nothing reads, are left out.
    """
    renamed = rename(state, RULES)
    for kind in ("weight", "bias"):
        rows = {
            f"box_head.classifier.{kind}": lambda x: x.roll(-1, dims=0),
            f"box_head.deltas.{kind}": lambda x: x[4:],
            f"mask_head.layers.logits.{kind}": lambda x: x[1:],
        }
        renamed |= {name: change(renamed[name]) for name, change in rows.items() if name in renamed}
    return renamed


def recognise(state: State) -> Sequence[str]:
    """The architecture of a detector's state dict in torchvision's words, with the encoder's name for that of ResNet-50."""
    encoder = recognise_resnet(state, "backbone.body.")
    if encoder is None or "rpn.head.cls_logits.weight" not in state:
        return []
    if "roi_heads.keypoint_predictor.kps_score_lowres.weight" in state:
        return [f"keypointrcnn_{encoder}_fpn"]
    version = "_v2" if "roi_heads.box_head.0.0.weight" in state else ""
    return [f"maskrcnn_{encoder}_fpn{version}"] if "roi_heads.mask_predictor.conv5_mask.weight" in state else []


def convert(state: State, arch: str, num_classes: int | None, *, norm_eps: float | None = None) -> Imported:
    """Make a detector ours; `norm_eps` is what frozen batch normalisation adds to the variance, which the file cannot tell."""
    renamed = from_torchvision(state)
    counters = [name for name in renamed if name.startswith("encoder.") and name.endswith("num_batches_tracked")]
    if norm_eps is None and not counters:
        why = "torchvision's own weights of the first version take 0, networks trained from an ImageNet encoder 1e-5"
        raise ambiguous("norm_eps", why, "0", "1e-5")
    frozen = norm_eps is not None  # trained batch normalisation has 1e-5 and counts its batches
    if frozen:
        renamed = {name: tensor for name, tensor in renamed.items() if name not in counters}
    keypoints = len(renamed["keypoint_head.heatmaps.bias"]) if "keypoint_head.heatmaps.bias" in renamed else 0
    options: dict[str, Any] = {
        "encoder": recognise_resnet(state, "backbone.body."),
        "norm": "frozen" if frozen else "batch",
        "norm_eps": 1e-5 if norm_eps is None else norm_eps,
        "convention": "torchvision",
        "width": len(renamed["neck.lateral.0.0.weight"]),
        "box_width": len(renamed["box_head.layers.fcs.0.weight"]),
        **({"num_keypoints": keypoints} if keypoints else {}),
    }
    models = {"keypointrcnn": "keypoint_rcnn_resnet50_fpn", "maskrcnn": "mask_rcnn_resnet50_fpn"}
    model = models[arch.split("_")[0]] + ("_v2" if arch.endswith("_v2") else "")
    classes = len(renamed["box_head.classifier.bias"]) - 1
    conventions = Conventions(
        outputs="instances",
        resize=Resize(800, 1333, "bilinear"),
        keypoints=COCO_PERSON if keypoints == len(COCO_PERSON.names) else None,
    )
    names = ("person",) if keypoints and classes == 1 else class_names(classes)
    return Imported(model, classes, renamed, names, conventions, options)


IMPORTER = Importer("torchvision", recognise, convert)

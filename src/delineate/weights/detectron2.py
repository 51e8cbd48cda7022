"""Mask R-CNN, Keypoint R-CNN, Faster R-CNN and Panoptic FPN of Detectron2 (names and numbers of its commit 02b5c4e)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from delineate.skeleton import COCO_PERSON
from delineate.weights.coco import class_names, stuff_names
from delineate.weights.conventions import Conventions, Resize
from delineate.weights.encoders import recognise_resnet
from delineate.weights.importer import Imported, Importer, Rule, State, rename

PIXEL_MEAN = (103.53, 116.28, 123.675)  # blue, green, red
PIXEL_STDS = {"R": (1.0, 1.0, 1.0), "X": (57.375, 57.12, 58.395)}  # of Microsoft's ResNets, and of ResNeXts


def _block(match: re.Match[str]) -> str:
    """`res2.0.conv1.norm.weight` as `layer1.0.bn1.weight`."""
    stage, block, layer, norm, kind = match.groups()
    shortcut = f"downsample.{1 if norm else 0}"
    name = shortcut if layer == "shortcut" else f"{'bn' if norm else 'conv'}{layer[-1]}"
    return f"encoder.layer{int(stage) - 1}.{block}.{name}.{kind}"


def _level(match: re.Match[str]) -> str:
    """`fpn_lateral2.norm.weight` as `neck.lateral.0.1.weight`."""
    kind, level, norm, rest = match.groups()
    return f"neck.{kind}.{int(level) - 2}.{1 if norm else 0}.{rest}"


def _semantic_layer(match: re.Match[str]) -> str:
    """`p4.2.norm.weight`, of a convolution and an enlargement a step, as `levels.2.5.weight`, of four layers a step."""
    level, place, norm, rest = match.groups()
    return f"semantic_head.branch.levels.{int(level) - 2}.{2 * int(place) + (1 if norm else 0)}.{rest}"


def _head_layer(target: str) -> Any:
    """`NAME1.norm.weight` as `target.0.1.weight`."""
    return lambda m: f"{target}.{int(m[1]) - 1}.{1 if m[2] else 0}.{m[3]}"


LAYER = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
RULES: list[Rule] = [
    (r"pixel_(?:mean|std)", None),  # read by `_conventions`
    (r"proposal_generator\.anchor_generator\.cell_anchors\.\d+", None),  # computed
    (r"backbone\.(?:bottom_up\.)?stem\.conv1\.weight", "encoder.conv1.weight"),
    (rf"backbone\.(?:bottom_up\.)?stem\.conv1\.norm\.{LAYER}", r"encoder.bn1.\1"),
    (rf"(?:backbone\.(?:bottom_up\.)?|roi_heads\.)res([2-5])\.(\d+)\.(conv[1-3]|shortcut)\.(norm\.)?{LAYER}", _block),
    (rf"backbone\.fpn_(lateral|output)([2-5])\.(norm\.)?{LAYER}", _level),
    (rf"proposal_generator\.rpn_head\.conv\.{LAYER}", r"rpn.head.convs.0.0.\1"),
    (rf"proposal_generator\.rpn_head\.conv\.conv(\d)\.{LAYER}", r"rpn.head.convs.\1.0.\2"),
    (rf"proposal_generator\.rpn_head\.objectness_logits\.{LAYER}", r"rpn.head.objectness.\1"),
    (rf"proposal_generator\.rpn_head\.anchor_deltas\.{LAYER}", r"rpn.head.deltas.\1"),
    (rf"roi_heads\.box_head\.conv(\d)\.(norm\.)?{LAYER}", _head_layer("box_head.layers.convs")),
    (rf"roi_heads\.box_head\.fc(\d)\.{LAYER}", lambda m: f"box_head.layers.fcs.{2 * int(m[1]) - 2}.{m[2]}"),
    (rf"roi_heads\.box_predictor\.cls_score\.{LAYER}", r"box_head.classifier.\1"),
    (rf"roi_heads\.box_predictor\.bbox_pred\.{LAYER}", r"box_head.deltas.\1"),
    (rf"roi_heads\.mask_head\.mask_fcn(\d)\.(norm\.)?{LAYER}", _head_layer("mask_head.layers.convs")),
    (rf"roi_heads\.mask_head\.deconv\.{LAYER}", r"mask_head.layers.up.\1"),
    (rf"roi_heads\.mask_head\.predictor\.{LAYER}", r"mask_head.layers.logits.\1"),
    (rf"roi_heads\.keypoint_head\.conv_fcn(\d)\.{LAYER}", lambda m: f"keypoint_head.convs.{int(m[1]) - 1}.0.{m[2]}"),
    (rf"roi_heads\.keypoint_head\.score_lowres\.{LAYER}", r"keypoint_head.heatmaps.\1"),
    (rf"sem_seg_head\.p([2-5])\.(\d)\.(norm\.)?{LAYER}", _semantic_layer),
    (rf"sem_seg_head\.predictor\.{LAYER}", r"semantic_head.classifier.\1"),
]
MODELS = {
    "faster": "mask_rcnn_resnet50_fpn",
    "mask": "mask_rcnn_resnet50_fpn",
    "keypoint": "keypoint_rcnn_resnet50_fpn",
    "panoptic": "panoptic_fpn_resnet50",
}
ENCODERS = {"resnet50": "R_50", "resnet101": "R_101", "resnext101_32x8d": "X_101_32x8d"}


def recognise(state: State) -> Sequence[str]:
    """The architecture as Detectron2's configurations name it: mask_rcnn_R_50_FPN ..."""
    if "proposal_generator.rpn_head.anchor_deltas.weight" not in state:
        return []
    encoder = ENCODERS.get(recognise_resnet(rename(state, RULES), "encoder.") or "")
    body = "C4" if "roi_heads.res5.0.conv1.weight" in state else "FPN" if "backbone.fpn_lateral2.weight" in state else None
    if encoder is None or body is None:
        return []
    heads = {
        "sem_seg_head.predictor.weight": "panoptic_fpn",
        "roi_heads.keypoint_head.score_lowres.weight": "keypoint_rcnn",
        "roi_heads.mask_head.predictor.weight": "mask_rcnn",
        "roi_heads.box_predictor.cls_score.weight": "faster_rcnn",
    }
    task = next((task for name, task in heads.items() if name in state), None)
    if task is None or (body == "C4" and task not in ("mask_rcnn", "faster_rcnn")):
        return []
    return [f"{task}_{encoder}" if task == "panoptic_fpn" else f"{task}_{encoder}_{body}"]


def convert(state: State, arch: str, num_classes: int | None, *, stride_in_1x1: bool | None = None) -> Imported:
    """Make a detector ours. Its configuration belongs to `arch`: the stride of a bottleneck is in the 1x1 convolution of a
    ResNet and in the 3x3 of a ResNeXt, unless `stride_in_1x1` says otherwise.
    """
    renamed = rename(state, RULES)
    letter = re.search(r"_([RX])_\d", arch)
    assert letter is not None
    trained = any(name.endswith("num_batches_tracked") for name in renamed)
    options: dict[str, Any] = {
        "encoder": recognise_resnet(renamed, "encoder."),
        "norm": "batch" if trained else "frozen",
        "stride_in_1x1": letter[1] == "R" if stride_in_1x1 is None else stride_in_1x1,
        "convention": "detectron2",
    }
    if arch.endswith("C4"):
        model = "mask_rcnn_resnet50_c4"
        renamed = rename(renamed, [(r"encoder\.layer4\.(.+)", r"box_regions.trunk.\1")])
        options["masks"] = arch.startswith("mask")
    else:
        model = MODELS[arch.split("_")[0]]
        options |= _heads(renamed)
    classes = len(renamed["box_head.classifier.bias"]) - 1
    keypoints = options.get("num_keypoints", 0)
    schema = COCO_PERSON if keypoints == len(COCO_PERSON.names) else None
    names = ("person",) if keypoints and classes == 1 else class_names(classes)
    conventions = Conventions(
        color="bgr",
        value_range=1.0,
        mean=_three(state.get("pixel_mean"), PIXEL_MEAN),
        std=_three(state.get("pixel_std"), PIXEL_STDS[letter[1]]),
        outputs="instances",
        resize=Resize(800, 1333, "pillow"),
        keypoints=schema,
        stuff=stuff_names(options.get("num_stuff", 0)),
    )
    return Imported(model, classes, renamed, names, conventions, options)


def _heads(state: State) -> dict[str, Any]:
    """Options of the heads of an FPN network, told by the tensors that are there."""

    def count(pattern: str) -> int:
        return sum(re.fullmatch(pattern, name) is not None for name in state)

    keypoints, stuff = state.get("keypoint_head.heatmaps.bias"), state.get("semantic_head.classifier.bias")
    return {
        "masks": "mask_head.layers.logits.bias" in state,
        "head_norm": "batch" if "neck.lateral.0.1.running_var" in state else "none",
        "rpn_convs": count(r"rpn\.head\.convs\.\d\.0\.weight"),
        "box_convs": count(r"box_head\.layers\.convs\.\d\.0\.weight"),
        "box_width": len(state["box_head.layers.fcs.0.weight"]),
        "box_fcs": count(r"box_head\.layers\.fcs\.\d\.weight"),
        "num_keypoints": 0 if keypoints is None else len(keypoints),
        "num_stuff": 0 if stuff is None else len(stuff) - 1,
    }


def _three(stored: Tensor | None, usual: tuple[float, ...]) -> tuple[float, ...]:
    """The numbers of the three channels that the file holds, or the usual ones."""
    return usual if stored is None else tuple(round(value, 6) for value in stored.flatten().tolist())


IMPORTER = Importer("detectron2", recognise, convert)

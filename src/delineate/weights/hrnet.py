"""HRNet-Semantic-Segmentation, branches HRNet-OCR and pytorch-v1.1, and classifiers of HRNet: the names of their tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from delineate.data.formats.cityscapes import CITYSCAPES_CLASSES
from delineate.errors import ConfigError, DataError
from delineate.models.backbones.hrnet import STEM
from delineate.weights.conventions import Conventions
from delineate.weights.importer import Imported, Importer, Rule, State, ambiguous, rename

BACKBONE = r"(?:conv[12]|bn[12]|layer1|transition[123]|stage[234])\..+"
ATTENTION = {"f_pixel": "query", "f_object": "key", "f_down": "value", "f_up": "up"}

PREFIX = r"(?:model\.)?"  # of the files that the branch HRNet-OCR writes
OCR_RULES: list[Rule] = [
    (rf"{PREFIX}conv3x3_ocr\.(.+)", r"head.pixels.\1"),
    (rf"{PREFIX}aux_head\.(.+)", r"head.regions.\1"),
    (rf"{PREFIX}cls_head\.(.+)", r"classifier.\1"),
    *(
        rule
        for theirs, ours in ATTENTION.items()
        for rule in (
            (rf"{PREFIX}ocr_distri_head\.object_context_block\.{theirs}\.0\.(.+)", rf"head.attention.{ours}.0.\1"),
            (rf"{PREFIX}ocr_distri_head\.object_context_block\.{theirs}\.1\.0\.(.+)", rf"head.attention.{ours}.1.\1"),
            (rf"{PREFIX}ocr_distri_head\.object_context_block\.{theirs}\.2\.(.+)", rf"head.attention.{ours}.3.\1"),
            (rf"{PREFIX}ocr_distri_head\.object_context_block\.{theirs}\.3\.0\.(.+)", rf"head.attention.{ours}.4.\1"),
        )
    ),
    (rf"{PREFIX}ocr_distri_head\.conv_bn_dropout\.0\.(.+)", r"head.merge.0.\1"),
    (rf"{PREFIX}ocr_distri_head\.conv_bn_dropout\.1\.0\.(.+)", r"head.merge.1.\1"),
]
RULES: list[Rule] = [
    *OCR_RULES,
    (rf"{PREFIX}last_layer\.(.+)", r"head.\1"),
    (rf"{PREFIX}({BACKBONE})", r"backbone.\1"),
    (r"loss\..+", None),  # weights of the classes in the loss, which the branch HRNet-OCR saves too
    (r"(?:incre_modules|downsamp_modules|final_layer|classifier)\..+", None),  # of a classifier of pictures
]


def backbone_name(state: State, prefix: str) -> str | None:
    """The name of our backbone that has the tensors which begin with `prefix`, such as "hrnet_w18_small"; None: of none."""
    branch = state.get(f"{prefix}stage4.0.branches.0.0.conv1.weight")
    if branch is None:
        return None
    small = f"{prefix}stage4.0.branches.0.2.conv1.weight" not in state
    return f"hrnet_w{branch.shape[0]}{'_small' if small else ''}"


def recognise(state: State) -> Sequence[str]:
    """The architecture of a state dict: "hrnet_w48", "hrnet_w48_ocr" ..., both of them for a classifier of pictures."""
    prefix = "model." if "model.conv1.weight" in state else ""
    name = backbone_name(state, prefix)
    if name is None:
        return []
    if f"{prefix}cls_head.weight" in state:
        return [f"{name}_ocr"]
    return [name] if f"{prefix}last_layer.0.weight" in state else [name, f"{name}_ocr"]


def convert(
    state: State, arch: str, num_classes: int | None, *, align_corners: bool | None = None, upsample: str | None = None
) -> Imported:
    """The network of our zoo with the same name; 19 classes are those of Cityscapes.

    Classifiers, timm's and the authors', enlarge branches by `upsample` "nearest", networks of classes "bilinear"; whoever goes
    on training may want the latter for the former's weights, as the authors did.
    """
    prefix = "model." if "model.conv1.weight" in state else ""
    if len(state[f"{prefix}layer1.0.conv1.weight"]) != STEM:
        raise DataError(f"{arch} is the authors' 'small v1', which we do not have; we have their 'small v2' (hrnet_w18_small)")
    heads = [name for name in state if name.endswith(("cls_head.weight", "last_layer.3.weight"))]
    if heads and align_corners is None:
        reason = (
            "the tensors do not say how maps are enlarged; it is MODEL.ALIGN_CORNERS of the training's configuration "
            "(where it is not set: true in the branch HRNet-OCR, false in pytorch-v1.1)"
        )
        raise ambiguous("align_corners", reason, "true", "false")
    if not heads and num_classes is None:
        raise ConfigError(
            "num_classes is not known: the file is a classifier of pictures; say how many classes the network has"
        )
    count = len(state[heads[0]]) if heads else int(num_classes or 0)
    stem = next(tensor for name, tensor in state.items() if name.endswith("conv1.weight"))
    options: dict[str, Any] = {
        "in_channels": stem.shape[1],
        "width": len(state[f"{prefix}stage4.0.branches.0.0.conv1.weight"]),
        "small": "_small" in arch,
        "upsample": upsample or ("bilinear" if heads else "nearest"),
        "align_corners": bool(align_corners),
    }
    if f"{prefix}cls_head.weight" in state:
        options["channels"] = len(state[f"{prefix}conv3x3_ocr.0.weight"])
        options["keys"] = len(state[f"{prefix}ocr_distri_head.object_context_block.f_down.0.weight"])
    return Imported(
        "hrnet_w48_ocr" if arch.endswith("_ocr") else "hrnet_w48",
        count,
        rename(state, RULES),
        class_names(count),
        Conventions(),
        options,
        fresh=() if heads else ("head.", "classifier."),
    )


def class_names(count: int) -> tuple[str, ...]:
    """Those of Cityscapes, if it is as many."""
    return CITYSCAPES_CLASSES if count == len(CITYSCAPES_CLASSES) else tuple(f"class {index}" for index in range(count))


IMPORTER = Importer("hrnet", recognise, convert)

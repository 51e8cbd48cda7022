"""NVIDIA/semantic-segmentation: HRNet with object context, and with hierarchical multi-scale attention over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from delineate.weights.conventions import Conventions
from delineate.weights.hrnet import OCR_RULES, PREFIX, backbone_name, class_names
from delineate.weights.importer import Imported, Importer, Rule, State, ambiguous, rename

ATTENTION_RULES: list[Rule] = [
    (r"scale_attn\.conv0\.(.+)", r"head.0.\1"),
    (r"scale_attn\.bn0\.(.+)", r"head.1.\1"),
    (r"scale_attn\.conv1\.(.+)", r"head.3.\1"),
    (r"scale_attn\.bn1\.(.+)", r"head.4.\1"),
    (r"scale_attn\.conv2\.(.+)", r"head.6.\1"),
    (r"scale_attn\.(\d\..+)", r"head.\1"),  # of their first files ("MSCALE_OLDARCH")
]


def recognise(state: State) -> Sequence[str]:
    """The architecture of a state dict: "hmsa_hrnet_w48_ocr", or "hrnet_w48_ocr" without attention over scales."""
    name = backbone_name(state, "backbone.")
    if name is None or "ocr.cls_head.weight" not in state:
        return []
    attends = any(key.startswith("scale_attn.") for key in state)
    return [f"hmsa_{name}_ocr" if attends else f"{name}_ocr"]


def convert(state: State, arch: str, num_classes: int | None, *, align_corners: bool | None = None) -> Imported:
    """The network of our zoo with the same name; 19 classes are those of Cityscapes."""
    if align_corners is None:
        reason = "the tensors do not say how maps are enlarged; false unless it was trained with --align_corners"
        raise ambiguous("align_corners", reason, "true", "false")
    attends = arch.startswith("hmsa_")
    inside = "model." if attends else ""
    count = len(state["ocr.cls_head.weight"])
    inner: dict[str, Any] = {
        "width": len(state["backbone.stage4.0.branches.0.0.conv1.weight"]),
        "small": "_small" in arch,
        "channels": len(state["ocr.conv3x3_ocr.0.weight"]),
        "keys": len(state["ocr.ocr_distri_head.object_context_block.f_down.0.weight"]),
        "align_corners": align_corners,
    }
    options = inner
    if attends:
        channels = next(len(tensor) for name, tensor in state.items() if name.startswith("scale_attn.") and tensor.dim() == 4)
        options = {"options": inner, "channels": channels}
    return Imported(
        "hmsa_hrnet_w48_ocr" if attends else "hrnet_w48_ocr",
        count,
        rename(state, [*ATTENTION_RULES, *_nested(inside)]),
        class_names(count),
        Conventions(),
        {"in_channels": state["backbone.conv1.weight"].shape[1], **options},
    )


def _nested(inside: str) -> list[Rule]:
    """Rules for the network under `inside`; here normalisation and ReLU are one module, unlike in HRNet's files."""
    common = [(pattern.replace(PREFIX, r"ocr\."), f"{inside}{new}") for pattern, new in OCR_RULES]
    return [
        (r"ocr\.conv3x3_ocr\.1\.0\.(.+)", rf"{inside}head.pixels.1.\1"),
        (r"ocr\.aux_head\.1\.0\.(.+)", rf"{inside}head.regions.1.\1"),
        (r"ocr\.aux_head\.2\.(.+)", rf"{inside}head.regions.3.\1"),
        *common,
        (r"backbone\.(.+)", rf"{inside}backbone.\1"),
    ]


IMPORTER = Importer("hmsa", recognise, convert)

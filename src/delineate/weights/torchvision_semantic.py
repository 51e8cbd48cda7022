"""DeepLabV3 and FCN of torchvision on ResNet: the names of their tensors."""

from __future__ import annotations

from collections.abc import Sequence

from delineate.weights.conventions import Conventions
from delineate.weights.encoders import recognise_resnet
from delineate.weights.importer import Imported, Importer, Rule, State, rename

VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable"),
    *("dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

DEEPLAB_RULES: list[Rule] = [
    (r"backbone\.(.+)", r"encoder.\1"),
    (r"classifier\.0\.convs\.4\.1\.(.+)", r"decoder.0.branches.4.conv.\1"),
    (r"classifier\.0\.convs\.4\.2\.(.+)", r"decoder.0.branches.4.norm.\1"),
    (r"classifier\.0\.convs\.(.+)", r"decoder.0.branches.\1"),
    (r"classifier\.0\.project\.(.+)", r"decoder.0.project.\1"),
    (r"classifier\.1\.(.+)", r"decoder.1.0.\1"),
    (r"classifier\.2\.(.+)", r"decoder.1.1.\1"),
    (r"classifier\.4\.(.+)", r"classifier.\1"),
    (r"aux_classifier\.(.+)", r"auxiliary.\1"),
]
FCN_RULES: list[Rule] = [
    (r"backbone\.(.+)", r"encoder.\1"),
    (r"classifier\.4\.(.+)", r"classifier.\1"),
    (r"classifier\.(.+)", r"decoder.\1"),
    (r"aux_classifier\.(.+)", r"auxiliary.\1"),
]


def recognise(state: State) -> Sequence[str]:
    """The architecture of a state dict of torchvision's segmentation models, in its own words."""
    if "classifier.4.weight" not in state:
        return []
    encoder = recognise_resnet(state, "backbone.")
    head = "deeplabv3" if "classifier.0.project.0.weight" in state else "fcn"
    return [f"{head}_{encoder}"] if encoder in ("resnet50", "resnet101") else []


def convert(state: State, arch: str, num_classes: int | None) -> Imported:
    """The network of our zoo with the same name; 21 classes are those of Pascal VOC, for which torchvision's were trained."""
    renamed = rename(state, DEEPLAB_RULES if arch.startswith("deeplabv3") else FCN_RULES)
    count = len(state["classifier.4.weight"])
    classes = VOC_CLASSES if count == len(VOC_CLASSES) else tuple(f"class {index}" for index in range(count))
    weight = 0.5 if "aux_classifier.4.weight" in state else 0.0  # as in its training script
    return Imported(arch, count, renamed, classes, Conventions(), {"auxiliary_weight": weight})


IMPORTER = Importer("torchvision", recognise, convert)

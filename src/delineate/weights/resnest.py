"""ResNeSt as its authors published it: the classifiers, and DeepLabV3 and FCN of zhanghang1989/PyTorch-Encoding."""

from __future__ import annotations

from collections.abc import Sequence

from delineate.weights.conventions import Conventions
from delineate.weights.encoders import convert_classifier, networks_on, recognise_resnest
from delineate.weights.importer import Imported, Importer, Rule, State, rename

COMMON_RULES: list[Rule] = [
    (r"pretrained\.(.+)", r"encoder.\1"),
    (r"auxlayer\.conv5\.(.+)", r"auxiliary.\1"),
]
DEEPLAB_RULES: list[Rule] = [
    *COMMON_RULES,
    (r"head\.aspp\.b4\.gap\.1\.(.+)", r"decoder.0.branches.4.conv.\1"),
    (r"head\.aspp\.b4\.gap\.2\.(.+)", r"decoder.0.branches.4.norm.\1"),
    (r"head\.aspp\.b(\d)\.(.+)", r"decoder.0.branches.\1.\2"),
    (r"head\.aspp\.project\.(.+)", r"decoder.0.project.\1"),
    (r"head\.block\.([01])\.(.+)", r"decoder.1.\1.\2"),
    (r"head\.block\.4\.(.+)", r"classifier.\1"),
]
FCN_RULES: list[Rule] = [
    *COMMON_RULES,
    (r"head\.conv5\.4\.(.+)", r"classifier.\1"),
    (r"head\.conv5\.(.+)", r"decoder.\1"),
]
HEADS = {"head.block.4.weight": "deeplabv3", "head.conv5.4.weight": "fcn"}


def recognise(state: State) -> Sequence[str]:
    """Of a network of PyTorch-Encoding head and encoder, such as "deeplabv3_resnest50"; of a classifier `networks_on`."""
    encoder = recognise_resnest(state, "pretrained.")
    if encoder:
        return [f"{head}_{encoder}" for mark, head in HEADS.items() if mark in state]
    encoder = recognise_resnest(state, "")
    return networks_on(encoder) if encoder else []


def convert(state: State, arch: str, num_classes: int | None) -> Imported:
    """The same network of our zoo, with the authors' alignment of corners; or a network that starts from the classifier."""
    classifier = recognise_resnest(state, "")
    if classifier:
        return convert_classifier(state, classifier, arch, num_classes, {})
    head, encoder = arch.split("_")
    mark = next(mark for mark, name in HEADS.items() if name == head)
    count = len(state[mark])
    return Imported(
        f"{head}_resnet50" if head == "fcn" else arch,
        count,
        rename(state, FCN_RULES if head == "fcn" else DEEPLAB_RULES),
        tuple(f"class {index}" for index in range(count)),
        Conventions(),
        {
            "encoder": encoder,
            "align_corners": True,
            "auxiliary_weight": 0.2 if "auxlayer.conv5.4.weight" in state else 0.0,
        },
    )


IMPORTER = Importer("resnest", recognise, convert)

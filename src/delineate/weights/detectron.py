"""The first Detectron's files, which are recognised and refused: its numbers would not come.

Its boxes are a pixel wider, its anchors are rounded, its regions are read half a pixel off, its masks are enlarged otherwise.
Detectron2, which can load these files, says itself that they give other results there (docs/notes/compatibility.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from delineate.errors import ConfigError
from delineate.weights.importer import Importer, State


def recognise(state: State) -> Sequence[str]:
    """Whether these are Caffe2's blobs."""
    return ["detectron"] if "res2_0_branch2a_w" in state or "conv_rpn_w" in state else []


def convert(state: State, arch: str, num_classes: int | None) -> NoReturn:
    """Say why not."""
    if not any("rpn" in name or name.startswith("cls_score") for name in state):
        raise ConfigError(
            "this is a classifier of Caffe2, from which Detectron and Detectron2 start; take one of torchvision or timm, "
            "or a whole network of Detectron2"
        )
    raise ConfigError(
        "this is a file of the first Detectron, whose boxes count a pixel more than ours; take the same network of Detectron2, "
        "such as COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
    )


IMPORTER = Importer("detectron", recognise, convert)

"""The first Detectron's files, which are recognised and refused: its boxes are a pixel wider, so its numbers would not come."""

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
    raise ConfigError(
        "this is a file of the first Detectron, whose boxes count a pixel more than ours; take the same network of Detectron2, "
        "such as COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
    )


IMPORTER = Importer("detectron", recognise, convert)

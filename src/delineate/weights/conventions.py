"""`Conventions`: what a network expects of its input and means by its output, stored with its weights."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from delineate.skeleton import KeypointSchema

Color = Literal["gray", "rgb", "bgr"]
Normalization = Literal["fixed", "image"]
ResizeFilter = Literal["bilinear", "pillow"]  # without antialiasing, as torchvision; Pillow's bilinear of uint8, as Detectron2
Outputs = Literal["classes", "multilabel", "border", "distance", "instances"]


@dataclass(frozen=True, slots=True)
class Resize:
    """How a picture is resized before it is read: its shorter side to `shortest`, but the longer one to at most `longest`."""

    shortest: int = 800
    longest: int = 1333
    filter: ResizeFilter = "bilinear"

    def new_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width in which a detector sees a picture of `size`, in prediction as in training; at least 1 each.

        The shorter side becomes `shortest`, unless the longer one would exceed `longest`. What is left of a pixel is cut off
        with the filter "bilinear" (torchvision's `GeneralizedRCNNTransform`, in float64 as there, so that 800 may become 799)
        and rounded with "pillow" (Detectron2's `ResizeShortestEdge`).

        >>> [Resize(filter=filter).new_size((427, 640)) for filter in ("bilinear", "pillow")]
        [(800, 1199), (800, 1199)]
        >>> [Resize(800, 1000, filter).new_size((640, 426)) for filter in ("bilinear", "pillow")]
        [(1000, 665), (1000, 666)]
        """
        if self.filter == "bilinear":
            scale = min(self.shortest / min(size), self.longest / max(size))
            height, width = (max(1, math.floor(side * scale)) for side in size)
            return height, width
        scale = self.shortest / min(size)
        sides = [float(self.shortest) if side == min(size) else side * scale for side in size]
        if max(sides) > self.longest:
            scale = self.longest / max(sides)
            sides = [side * scale for side in sides]
        return max(1, int(sides[0] + 0.5)), max(1, int(sides[1] + 0.5))


@dataclass(frozen=True, slots=True)
class Conventions:
    """How pixels become the network's input, and what its output channels are.

    Input: the picture in `color`, divided by `value_range`, minus `mean`, divided by `std`; with `normalization="image"` mean
    and standard deviation are those of each whole picture, channel by channel, and `mean` and `std` are not used.
    Outputs, for K = len(classes):
    `classes`: K logits, softmax. `multilabel`: K logits, a sigmoid each. `border`: K logits, then one of the border between
    touching objects, softmax over K + 1. `distance`: K logits, then one map of the distance to the object's edge, 0 outside,
    1 at its deepest point. `instances`: `Detections` of K classes, none of them a background, with the keypoints of
    `keypoints`; the picture is resized by `resize` first. Panoptic networks also tell the classes `stuff`, after one that
    stands for all objects.
    """

    color: Color = "rgb"
    value_range: float = 255.0
    normalization: Normalization = "fixed"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    outputs: Outputs = "classes"
    resize: Resize | None = None
    keypoints: KeypointSchema | None = None
    stuff: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """Number of input channels."""
        return 1 if self.color == "gray" else 3

    def output_channels(self, num_classes: int) -> int:
        """Number of output channels of a network for `num_classes` classes."""
        return num_classes + (self.outputs in ("border", "distance"))

    def to_json(self) -> str:
        """Return the JSON text that `from_json` reads back."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Conventions:
        """Rebuild from `to_json`'s text; an unknown field raises TypeError."""
        fields: dict[str, Any] = _tuples(json.loads(text))
        for name, part in (("resize", Resize), ("keypoints", KeypointSchema)):
            if fields.get(name) is not None:
                fields[name] = part(**fields[name])
        return cls(**fields)


def _tuples(value: Any) -> Any:
    """Lists, however deep, as tuples."""
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value

"""What every network that finds objects has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from delineate.models.detector_conventions import DetectorConventions
from delineate.ops.instances import Detections, InstanceTargets

if TYPE_CHECKING:
    from delineate.weights.conventions import Conventions


class InstanceModel(nn.Module, ABC):
    """A network that finds the objects in pictures (B, C, H, W), normalised and padded with zeros at the right and below.

    Without targets, in evaluation, it returns `Detections`; with them, in training, its losses, a scalar each: those of
    rpn_objectness, rpn_box, classifier, box, mask, keypoint and semantic that apply.
    """

    stride: int = 32  # H and W must be multiples of it
    has_masks: bool = False
    num_keypoints: int = 0  # of an object; 0: the network finds none
    num_stuff: int = 0  # classes of what is no object, of panoptic networks; 0: it finds none
    detector_conventions: DetectorConventions
    architecture: dict[str, Any]  # "name", "num_classes", "options", from which `create_model` builds an equal one

    # Settings of prediction, which may be changed at any time:
    score_threshold: float = 0.05  # of a detection
    nms_threshold: float = 0.5  # largest IoU of two detections of a class
    detections_per_image: int = 100
    min_stuff_area: int = 4096  # pixels that a kind of stuff must have in a picture, of panoptic networks

    # Filled by `load_model`:
    classes: tuple[str, ...]
    conventions: Conventions
    extra: dict[str, Any]  # what the writer added

    @abstractmethod
    def forward(
        self, images: Tensor, sizes: Tensor | None = None, targets: InstanceTargets | None = None
    ) -> Detections | dict[str, Tensor]:
        """Return detections, or losses if there are `targets`; `sizes` (B, 2) int64 is height and width before padding."""

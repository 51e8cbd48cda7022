"""A detector that finds what it is told to: for the tests of what comes before and after a network."""

from __future__ import annotations

import torch
from torch import Tensor

from delineate.models.detector_conventions import DETECTOR_CONVENTIONS
from delineate.models.instance import InstanceModel
from delineate.ops.instances import Detections
from delineate.skeleton import KeypointSchema
from delineate.weights import Conventions
from delineate.weights.conventions import Resize

SKELETON = KeypointSchema(("nose", "left_eye", "right_eye"), ((0, 1), (0, 2)), ((1, 2),), (0.03, 0.03, 0.03))


class FakeDetector(InstanceModel):
    """Finds `boxes` (N, 4), as shares of the picture's width and height, with `labels` and `scores`, in every picture.

    Masks are all ones; keypoints lie at the corners of the box. The first score of a picture is the mean of what the network
    sees of it, so that results show which picture they belong to. `seen` keeps the inputs.
    """

    def __init__(
        self,
        boxes: list[list[float]],
        scores: list[float],
        labels: list[int] | None = None,
        classes: tuple[str, ...] = ("cat", "dog"),
        source: str = "detectron2",
        masks: bool = True,
        keypoints: KeypointSchema | None = None,
        capacity: int = 5,
        **conventions,
    ) -> None:
        super().__init__()
        self.boxes, self.scores = torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores)
        self.labels = torch.tensor(labels if labels is not None else [0] * len(boxes), dtype=torch.int64)
        self.classes = classes
        filter = "bilinear" if source == "torchvision" else "pillow"
        settings = {"outputs": "instances", "resize": Resize(80, 133, filter), "keypoints": keypoints} | conventions
        self.conventions = Conventions(**settings)
        self.detector_conventions = DETECTOR_CONVENTIONS[source]  # pyright: ignore[reportArgumentType]
        self.has_masks, self.num_keypoints = masks, 0 if keypoints is None else len(keypoints.names)
        self.capacity = capacity
        self.parameter = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, images: Tensor, sizes: Tensor | None = None, targets: object = None) -> Detections:
        assert sizes is not None
        self.seen.append((images.clone(), sizes.clone()))
        batch, count, total = len(images), len(self.boxes), max(self.capacity, len(self.boxes))
        found = Detections(
            boxes=torch.zeros(batch, total, 4),
            scores=torch.zeros(batch, total),
            labels=torch.zeros(batch, total, dtype=torch.int64),
            valid=torch.zeros(batch, total, dtype=torch.bool),
            masks=torch.zeros(batch, total, 28, 28) if self.has_masks else None,
        )
        found.boxes[:, :count] = self.boxes * sizes.flip(1).repeat(1, 2)[:, None]
        found.scores[:, :count] = self.scores
        found.labels[:, :count] = self.labels
        found.valid[:, :count] = self.scores >= self.score_threshold
        if found.masks is not None:
            found.masks[:, :count] = 1
        return found if not self.num_keypoints else self._with_keypoints(found)

    def _with_keypoints(self, found: Detections) -> Detections:
        left, top, right, bottom = found.boxes.unbind(-1)
        corners = torch.stack([left, top, right, top, left, bottom], -1).unflatten(-1, (3, 2))
        scores = torch.linspace(0.2, 1, 3).expand(corners.shape[:-1])
        return found._replace(keypoints=corners, keypoint_logits=10 * scores, keypoint_scores=scores)


class ScriptedDetector(FakeDetector):
    """Finds in each picture what `answers` has for the grey value of its first pixel: boxes in pixels, scores, labels."""

    def __init__(self, answers: dict[int, tuple[list, list, list]], **options) -> None:
        plain = {"color": "gray", "value_range": 1.0, "mean": (0.0,), "std": (1.0,), "resize": None}
        super().__init__([], [], **plain | options)
        self.answers = answers

    def forward(self, images: Tensor, sizes: Tensor | None = None, targets: object = None) -> Detections:
        parts = []
        for n in range(len(images)):
            boxes, scores, labels = self.answers[round(float(images[n, 0, 0, 0]))]
            self.capacity, self.scores = 9, torch.tensor(scores).float()
            self.boxes, self.labels = torch.tensor(boxes).float().reshape(-1, 4), torch.tensor(labels).long()
            one = super().forward(images[n : n + 1], torch.ones(1, 2, dtype=torch.int64))  # shares of 1 x 1: pixels
            parts.append(one)
        fields = zip(*parts, strict=True)
        return Detections(*(None if field[0] is None else torch.cat(field) for field in fields))

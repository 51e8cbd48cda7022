"""Pictures of any size through a network that finds objects: `Results` in pixels of the picture."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from delineate.data.panoptic import PanopticMap
from delineate.devices import Precision
from delineate.models.instance import InstanceModel
from delineate.ops.boxes import clip_boxes
from delineate.ops.instances import Detections
from delineate.predict.detecting import DetectingNetwork, Prepared
from delineate.predict.masks import BoxMasks
from delineate.predict.panoptic import merge_panoptic, semantic_classes
from delineate.predict.pictures import Picture
from delineate.predict.results import Results

_GROUPS = 4  # times `batch` pictures may wait for others of their size
_SURE = 0.05  # softmax score from which Detectron2 draws a keypoint


class InstancePredictor:
    """Predicts pictures with a detector; arguments as those of `Predictor`."""

    background = None  # of the classes none is a background

    def __init__(
        self,
        model: InstanceModel,
        *,
        device: torch.device,
        precision: Precision,
        score_threshold: float,
        batch: int,
        compile: bool,
    ) -> None:
        self.classes, self.conventions = tuple(model.classes), model.conventions
        self.detector_conventions = model.detector_conventions
        self.has_masks, self.num_keypoints, self.num_stuff = model.has_masks, model.num_keypoints, model.num_stuff
        self.min_stuff_area = model.min_stuff_area
        self.score_threshold, self.batch = score_threshold, batch
        self.network = DetectingNetwork(
            model, device=device, precision=precision, score_threshold=score_threshold, compile=compile
        )

    def predict(self, picture: Picture) -> Results:
        """Predict one picture."""
        return next(self.predict_all([picture]))

    def predict_all(self, pictures: Iterable[Picture], score_threshold: float | None = None) -> Iterator[Results]:
        """Yield the results of each picture, in order; `score_threshold` takes the place of the predictor's own.

        Pictures that are padded to the same size go through the network together, so that each has the result that it has
        alone; some wait for others of their size, but never more than a few batches.
        """
        threshold = self.score_threshold if score_threshold is None else score_threshold
        waiting: dict[tuple[int, int], list[_Waiting]] = {}
        finished: dict[int, Results] = {}
        given = 0
        for number, picture in enumerate(pictures):
            entry = self._prepare(number, picture)
            group = waiting.setdefault(entry.prepared.padded, [])
            group.append(entry)
            if len(group) == self.batch:
                finished |= self._detect(waiting.pop(entry.prepared.padded), threshold)
            elif sum(map(len, waiting.values())) >= _GROUPS * self.batch:
                largest = max(waiting, key=lambda size: len(waiting[size]))
                finished |= self._detect(waiting.pop(largest), threshold)
            while given in finished:
                yield finished.pop(given)
                given += 1
        for group in waiting.values():
            finished |= self._detect(group, threshold)
        yield from (finished[number] for number in sorted(finished))

    def _prepare(self, number: int, picture: Picture) -> _Waiting:
        start = time.perf_counter()
        with picture.opened() as reader:
            prepared = self.network.prepare(reader)
            _, height, width = reader.shape
        if prepared.note:
            warnings.warn(f"{picture.path or picture.title}: {prepared.note}", stacklevel=2)
        return _Waiting(number, picture, (height, width), prepared, time.perf_counter() - start)

    def _detect(self, group: list[_Waiting], threshold: float) -> dict[int, Results]:
        """The results of pictures of one padded size, by their numbers."""
        start = time.perf_counter()
        found = self.network([entry.prepared for entry in group])
        results = {entry.number: self._results(entry, one, threshold) for entry, one in zip(group, found, strict=True)}
        seconds = (time.perf_counter() - start) / len(group)
        for entry in group:
            results[entry.number].seconds = entry.seconds + seconds
        return results

    def _results(self, entry: _Waiting, found: Detections, threshold: float) -> Results:
        """What was found, in pixels of the picture; boxes that vanish in it are dropped, as in Detectron2."""
        (height, width), (rows, columns) = entry.size, entry.prepared.pixels.shape[1:]
        scale = torch.tensor([width / columns, height / rows])
        boxes = clip_boxes(found.boxes * scale.repeat(2), entry.size)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1) & (found.scores >= threshold)
        boxes, conventions = boxes[kept], self.detector_conventions
        masks = None
        if found.masks is not None:
            masks = BoxMasks(found.masks[kept], boxes, entry.size, conventions.paste)
        return Results(
            size=entry.size,
            classes=self.classes,
            name=entry.picture.title,
            path=entry.picture.path,
            frame=entry.picture.frame,
            background=None,
            boxes=boxes,
            scores=found.scores[kept],
            labels=found.labels[kept],
            masks=masks,
            keypoints=None if found.keypoints is None else self._keypoints(found, scale)[kept],
            skeleton=self.conventions.keypoints,
            panoptic=None if masks is None else self._panoptic(entry, found, kept, masks),
            stuff=self.conventions.stuff,
            keypoints_shown=None if found.keypoint_scores is None else sure_keypoints(found.keypoint_scores[kept]),
            notes=(entry.prepared.note,) if entry.prepared.note else (),
        )

    def _panoptic(self, entry: _Waiting, found: Detections, kept: Tensor, masks: BoxMasks) -> PanopticMap | None:
        """Objects and stuff as one; None where the network knows no stuff."""
        if found.semantic is None:
            return None
        height, width = entry.prepared.pixels.shape[1:]
        semantic = semantic_classes(found.semantic, (height, width), entry.size)
        scores, labels = found.scores[kept], found.labels[kept]
        return merge_panoptic(masks.crops(), scores, labels, semantic, len(self.classes), min_stuff_area=self.min_stuff_area)

    def _keypoints(self, found: Detections, scale: Tensor) -> Tensor:
        """Points (N, K, 3) as the data's annotations mean them, with the score that the network's source gives them."""
        scores = found.keypoint_scores if self.detector_conventions.keypoint_score == "softmax" else found.keypoint_logits
        assert found.keypoints is not None
        assert scores is not None
        return torch.cat([found.keypoints * scale - self.detector_conventions.keypoint_offset, scores[..., None]], -1)


def sure_keypoints(scores: Tensor) -> Tensor:
    """Return which of the keypoints (N, K) of figures are sure enough to be drawn, by their softmax scores.

    Those with more than 0.05, as in Detectron2, and those with more than a tenth of their figure's best: the heatmaps of a
    network that has not learned for days are wide, and all of its scores below 0.05.

    >>> sure_keypoints(torch.tensor([[0.8, 0.06, 0.04], [0.02, 0.004, 0.001]])).tolist()
    [[True, True, False], [True, True, False]]
    """
    return scores > (scores.amax(1, keepdim=True) / 10).clamp(max=_SURE)


class _Waiting(NamedTuple):
    """A picture that waits for others of its size."""

    number: int
    picture: Picture
    size: tuple[int, int]  # height and width of the picture as it is
    prepared: Prepared
    seconds: float

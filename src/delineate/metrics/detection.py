"""`DetectionScores`: average precision straight from results and truth, picture by picture, and across processes.

What is kept of a picture is which of its detections hit (`Matches`): no masks, and nothing of the size of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from delineate.errors import DataError
from delineate.metrics.average_precision import ApSettings, Category, Curves, IouType
from delineate.metrics.backends import BackendName, backend_for
from delineate.metrics.bootstrap import Draws
from delineate.metrics.coco_input import coco_data
from delineate.metrics.matches import ImageId, Matches, merge_matches
from delineate.metrics.object_iou import mask_codes


@runtime_checkable
class CodedMasks(Protocol):
    """Masks that know their run-length codes, as those of `Results` do."""

    def rle(self) -> Sequence[Any]:
        """Return COCO's compressed run-length codes."""
        ...


class Found(Protocol):
    """What was found in a picture: `delineate.Results` is one, `FoundObjects` another."""

    @property
    def boxes(self) -> Any: ...  # (N, 4) xyxy, pixels
    @property
    def scores(self) -> Any: ...  # (N,)
    @property
    def labels(self) -> Any: ...  # (N,) index into the classes
    @property
    def masks(self) -> Any: ...  # CodedMasks, run-length codes, (N, H, W), or None
    @property
    def keypoints(self) -> Any: ...  # (N, K, 3), or None


@dataclass(frozen=True, slots=True, eq=False)
class FoundObjects:
    """N detections in a picture; what is not measured may be left out."""

    scores: ArrayLike  # (N,)
    labels: ArrayLike  # (N,) index into the classes
    boxes: ArrayLike | None = None  # (N, 4) xyxy, pixels
    masks: Any = None  # something with `rle()`, COCO's run-length codes, or (N, H, W) bool
    keypoints: ArrayLike | None = None  # (N, K, 3) x, y, anything


@dataclass(frozen=True, slots=True, eq=False)
class TrueObjects:
    """N true objects in a picture; what is not measured may be left out."""

    labels: ArrayLike  # (N,) index into the classes
    boxes: ArrayLike | None = None  # (N, 4) xyxy, pixels
    masks: Any = None  # something with `rle()`, COCO's run-length codes, or (N, H, W) bool
    keypoints: ArrayLike | None = None  # (N, K, 3) x, y, v: 0 = not labelled
    crowd: ArrayLike | None = None  # (N,) bool: stands for a group, is never a miss
    areas: ArrayLike | None = None  # (N,) pixels; by default of the masks, else of the boxes
    negative: Sequence[int] = ()  # LVIS: classes known not to be in the picture
    not_exhaustive: Sequence[int] = ()  # LVIS: classes of which not all objects are annotated


class DetectionScores:
    """Average precision over pictures that come one at a time.

    `classes`: names; labels are indices into them. A background among them has no true objects and so does not count.

    Processes that each measure a part of the pictures pass their `DetectionScores`, which pickle, to `merge`
    (`torch.distributed.all_gather_object`). A picture that several of them measured counts once.

    >>> scores = DetectionScores(["cell"], "bbox")
    >>> truth = TrueObjects(labels=[0, 0], boxes=[[0, 0, 4, 4], [6, 6, 9, 9]])
    >>> scores.update("a.png", FoundObjects(boxes=[[0, 0, 4, 4]], scores=[0.9], labels=[0]), truth)
    >>> round(scores.summary()["AP"], 4), scores.summary()["AR100"]
    (0.505, 0.5)
    """

    def __init__(
        self,
        classes: Sequence[str],
        settings: ApSettings | IouType = "bbox",
        *,
        frequencies: Sequence[str] | None = None,
        backend: BackendName = "hotcoco",
    ) -> None:
        """`frequencies`: LVIS's r, c or f of each class."""
        self.settings = settings if isinstance(settings, ApSettings) else ApSettings.coco(settings)
        kinds = [""] * len(classes) if frequencies is None else list(frequencies)
        self.categories = tuple(Category(k, name, kind) for k, (name, kind) in enumerate(zip(classes, kinds, strict=True)))
        self._backend = backend
        self._parts: list[Matches] = []
        self._images: set[ImageId] = set()

    def update(self, image: ImageId, found: Found | FoundObjects, truth: TrueObjects) -> None:
        """Add one picture; `image` names it, all by texts or all by numbers: equal scores count in the order of these.

        Raises `DataError` that names the picture where something measured is missing, not finite, or of another size, and where
        the picture was added before.
        """
        if image in self._images:
            raise DataError(f"image {image!r} was added before; give each picture once")
        try:
            part = self._matched(image, found, truth)
        except DataError as error:
            raise DataError(f"{image}: {error}") from error
        self._images.add(image)
        self._parts.append(part)

    def merge(self, other: DetectionScores) -> None:
        """Add the pictures of `other`; one that both have counts once, and `DataError` is raised where it differs."""
        self._parts = [self.matches().merge(other.matches())]
        self._images |= other._images

    def matches(self) -> Matches:
        """Return what each picture adds, to resample or to keep."""
        if len(self._parts) != 1:
            parts = self._parts or [Matches.empty(self.settings, self.categories)]
            self._parts = [merge_matches(parts)]
        return self._parts[0]

    def curves(self) -> Curves:
        """Return precision and recall of each class."""
        return self.matches().curves()

    def summary(self) -> dict[str, float]:
        """COCO's numbers under their names; -1 where there is nothing to count."""
        return self.curves().summary()

    def scores(self, draws: Draws) -> dict[str, NDArray[np.float64]]:
        """Scores of pictures, in the order of `matches().images`, drawn as often as `draws` (R, N) says; NaN for -1."""
        return self.matches().scores(draws)

    def _matched(self, image: ImageId, found: Any, truth: TrueObjects) -> Matches:
        detections, annotations = (_records(image, side, self.settings.iou_type) for side in (found, truth))
        _add(detections, "score", found.scores)
        _add(annotations, "iscrowd", None if truth.crowd is None else _array(truth.crowd).astype(int))
        _add(annotations, "area", truth.areas)
        size = next((r["segmentation"]["size"] for r in (*annotations, *detections) if "segmentation" in r), (None, None))
        labels = {r["category_id"] for r in (*annotations, *detections)}
        categories = [{"id": c.id, "name": c.name, "frequency": c.frequency} for c in self.categories if c.id in labels]
        if strange := labels - {c["id"] for c in categories}:
            raise DataError(f"label {min(strange)}: there are {len(self.categories)} classes, from 0")
        content = {
            "images": [{"id": image, "height": size[0], "width": size[1]} | _federation(truth, self.settings)],
            "categories": categories,
            "annotations": annotations,
        }
        data = coco_data(content, detections, self.settings)
        part = backend_for(self._backend, self.settings).matches(data, self.settings)
        return part.with_categories(self.categories)


def _federation(truth: TrueObjects, settings: ApSettings) -> dict[str, list[int]]:
    if not settings.federated:
        return {}
    return {"neg_category_ids": list(truth.negative), "not_exhaustive_category_ids": list(truth.not_exhaustive)}


def _records(image: ImageId, side: Any, iou_type: IouType) -> list[dict[str, Any]]:
    """COCO's records of one side, with what `iou_type` measures, and the boxes and masks that areas come from."""
    labels = _array(side.labels).astype(np.int64).tolist()
    records: list[dict[str, Any]] = [{"image_id": image, "category_id": label} for label in labels]
    boxes, masks, points = side.boxes, side.masks, side.keypoints
    if iou_type in ("segm", "boundary"):
        _add(records, "segmentation", None if masks is None else _codes(masks))
    elif iou_type == "keypoints":
        _add(records, "keypoints", None if points is None else [row.ravel().tolist() for row in _array(points)])
    if iou_type in ("bbox", "keypoints") and boxes is not None:
        corners = _array(boxes).astype(np.float64).reshape(-1, 4)
        _add(records, "bbox", np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1))
    return records


def _add(records: list[dict[str, Any]], key: str, values: Any) -> None:
    if values is None:
        return
    rows = values if isinstance(values, list) else _array(values).tolist()
    if len(rows) != len(records):
        raise DataError(f"{len(rows)} values of '{key}' for {len(records)} labels")
    for record, value in zip(records, rows, strict=True):
        record[key] = value


def _codes(masks: Any) -> list[dict[str, Any]]:
    return mask_codes(masks.rle() if isinstance(masks, CodedMasks) else masks)


def _array(values: Any) -> NDArray[Any]:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)

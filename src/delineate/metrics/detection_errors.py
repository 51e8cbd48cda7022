"""Why detections miss average precision: six kinds of error, and the AP that repairing each would gain.

Bolya, Foley, Hays and Hoffman 2020, "TIDE: A General Toolbox for Identifying Object Detection Errors", sections 2 and 3; where
the paper leaves a choice, as its authors' tidecv 1.0.1 decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from delineate.errors import ConfigError
from delineate.metrics.average_precision import ApSettings
from delineate.metrics.coco_input import Detections, Truth, coco_data

if TYPE_CHECKING:
    from rich.table import Table

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Record = dict[str, Any]

ERRORS = ("classification", "localisation", "both", "duplicate", "background", "missed")
"""Kinds of error, in the order of tables and plots."""

_CLASSIFICATION, _LOCALISATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(6)
_CORRECT = -1
_RECALLS = np.arange(101) / 100


@dataclass(frozen=True, slots=True)
class DetectionErrors:
    """AP at one IoU, and what repairing every error of one kind would add to it; all from 0 to 1.

    The gains do not add up to 1 - AP: each is of one repair alone, and two repairs together can gain more or less.
    """

    iou_type: str
    iou_threshold: float
    background_threshold: float
    ap: float
    delta_ap: dict[str, float]  # by the names of ERRORS
    false_positive: float  # gained if every false positive had a lower score than every true one
    false_negative: float  # gained if what no detection found were not in the truth
    counts: dict[str, int]  # of detections, or for "missed" of true objects, by the names of ERRORS
    kinds: tuple[str, ...]  # of each detection: "correct", one of ERRORS, or "ignored": in a crowd, or beyond max_detections

    def summary(self) -> dict[str, float]:
        """Flat numbers: "errors/ap", then the gains as "errors/classification" ... "errors/false_negative"."""
        gains = self.delta_ap | {"false_positive": self.false_positive, "false_negative": self.false_negative}
        return {"errors/ap": self.ap} | {f"errors/{name}": gain for name, gain in gains.items()}

    def table(self) -> Table:
        """The kinds of error, how many there are, and the AP that repairing each would gain, for a terminal."""
        from rich.table import Table

        table = Table("error", title=f"errors at IoU {self.iou_threshold:g}, AP {self.ap:.4f}", title_justify="left")
        for column in ("count", "AP gained"):
            table.add_column(column, justify="right")
        for name, gain in self.delta_ap.items():
            table.add_row(name, f"{self.counts[name]:,}", f"{gain:.4f}")
        table.add_row("false positive", "", f"{self.false_positive:.4f}")
        table.add_row("false negative", "", f"{self.false_negative:.4f}")
        return table


def detection_errors(
    truth: Truth,
    detections: Detections,
    iou_type: Literal["bbox", "segm"] = "bbox",
    *,
    iou_threshold: float = 0.5,
    background_threshold: float = 0.1,
    max_detections: int = 100,
) -> DetectionErrors:
    """Explain the errors of `detections` (COCO's list of results) against `truth` (COCO's annotations): objects or JSON files.

    From the best score down, a detection is right if the best true object of its class that is still free has an IoU of at
    least t = `iou_threshold`. With b = `background_threshold`, each other one has the first that applies of

    - localisation: b <= IoU <= t with the best object of its class;
    - classification: IoU >= t with an object of another class;
    - duplicate: IoU >= t with an object of its class, which another detection has;
    - background: IoU <= b with every object;
    - both: what is left.

    An object is missed if no detection has it, nor would have it after its localisation or its class were repaired. The
    `max_detections` best of a picture count, of all classes together. What lies in a crowd of its class is no error.

    AP is the mean over the classes that have objects or detections; a class without objects has 0, other than in COCO.
    Repaired, the best localisation or classification error of each free object becomes right, in the class of the object, and
    the others vanish; duplicates, background and both vanish; missed objects leave the truth. Raises `DataError` as
    `coco_scores`.

    >>> truth = {"images": [{"id": 1, "height": 9, "width": 9}],
    ...          "categories": [{"id": 1, "name": "cell"}, {"id": 2, "name": "dirt"}],
    ...          "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}]}
    >>> errors = detection_errors(truth, [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 4, 4], "score": 0.9}])
    >>> errors.kinds, errors.ap, errors.delta_ap["classification"]
    (('classification',), 0.0, 1.0)
    """
    if not 0 <= background_threshold <= iou_threshold <= 1 or iou_threshold == 0:
        raise ConfigError(
            f"background_threshold {background_threshold}, iou_threshold {iou_threshold}: expected 0 <= background <= iou <= 1"
        )
    data = coco_data(truth, detections, ApSettings(iou_type=iou_type))
    assert isinstance(data.truth, dict)  # files are left alone only where that is asked for
    assert isinstance(data.detections, list)
    place = {category.id: k for k, category in enumerate(data.categories)}
    annotations = data.truth["annotations"]
    objects = _Objects.of([a for a in annotations if not a["iscrowd"]], place, iou_type)
    crowds = _Objects.of([a for a in annotations if a["iscrowd"]], place, iou_type)
    found = _Objects.of(data.detections, place, iou_type)
    pictures = []
    for image in range(len(data.image_ids)):
        mine = found.best_of(image, max_detections)
        pictures.append(_diagnose(mine, objects.best_of(image), crowds.best_of(image), iou_threshold, background_threshold))
    errors = _Errors(found, objects, *(np.concatenate(column) for column in zip(*pictures, strict=True)))
    ap, delta_ap, false_positive, false_negative = errors.gains(len(place))
    return DetectionErrors(
        iou_type,
        iou_threshold,
        background_threshold,
        ap,
        delta_ap,
        false_positive,
        false_negative,
        errors.counts(),
        errors.kinds(),
    )


@dataclass(frozen=True, slots=True)
class _Objects:
    """N detections, true objects or crowds; of one picture or of all."""

    index: Ints  # (N,) place among those of all pictures
    image: Ints  # (N,) from 0
    label: Ints  # (N,) class, from 0
    score: Floats  # (N,) 1 for truth
    shapes: list[Any]  # N boxes xywh, or run-length codes, as pycocotools takes them

    @classmethod
    def of(cls, rows: Sequence[Record], place: Mapping[int, int], iou_type: str) -> _Objects:
        """All of COCO's annotations or results."""
        return cls(
            np.arange(len(rows)),
            np.array([row["image_id"] for row in rows], np.int64),
            np.array([place[row["category_id"]] for row in rows], np.int64),
            np.array([row.get("score", 1.0) for row in rows], np.float64),
            [_shape(row, iou_type) for row in rows],
        )

    def best_of(self, image: int, most: int | None = None) -> _Objects:
        """The `most` of a picture that have the best scores, from the best down."""
        mine = np.flatnonzero(self.image == image)
        mine = mine[np.argsort(-self.score[mine], kind="stable")][:most]
        return _Objects(mine, self.image[mine], self.label[mine], self.score[mine], [self.shapes[k] for k in mine])

    def iou(self, other: _Objects, crowd: bool = False) -> Floats:
        """IoU with each of `other`, (N, M); with `crowd` the share of mine that lies in it."""
        if not self.shapes or not other.shapes:
            return np.zeros((len(self.shapes), len(other.shapes)))
        return np.asarray(coco.iou(self.shapes, other.shapes, [int(crowd)] * len(other.shapes)))


def _shape(row: Record, iou_type: str) -> Any:
    if iou_type == "segm":
        return row["segmentation"]
    return row["bbox"] if "bbox" in row else np.asarray(coco.toBbox(row["segmentation"])).tolist()


class _Diagnoses(NamedTuple):
    """What the D detections of a picture are, from the best score down, and which of its M objects were found."""

    detection: Ints  # (D,) index among all
    kind: Ints  # (D,) index into ERRORS, or _CORRECT
    ignored: Bools  # (D,) in a crowd: no false positive, but a repair may make it right
    target: Ints  # (D,) the free object that the repair of a localisation or classification would give it, or -1
    lost: Ints  # indices of the objects that no detection has


def _diagnose(mine: _Objects, objects: _Objects, crowds: _Objects, t: float, b: float) -> _Diagnoses:
    iou = mine.iou(objects)
    same = mine.label[:, None] == objects.label
    partner = _partners(iou * same, t)
    taken = np.isin(np.arange(len(objects.label)), partner)
    best_same, best_other = ((iou * of_class).max(axis=1, initial=0) for of_class in (same, ~same))
    kind = np.select(
        [
            partner >= 0,
            np.full(len(partner), len(taken) == 0),
            (b <= best_same) & (best_same <= t),
            best_other >= t,
            (iou * (same & taken)).max(axis=1, initial=0) >= t,
            iou.max(axis=1, initial=0) <= b,
        ],
        [_CORRECT, _BACKGROUND, _LOCALISATION, _CLASSIFICATION, _DUPLICATE, _BACKGROUND],
        _BOTH,
    )
    target = np.full(len(partner), -1)
    if len(taken):
        for error, of_class in ((_LOCALISATION, same), (_CLASSIFICATION, ~same)):
            best = (iou * of_class).argmax(axis=1)
            target = np.where((kind == error) & ~taken[best], objects.index[best], target)
    in_crowd = (mine.iou(crowds, crowd=True) > t) & (mine.label[:, None] == crowds.label)
    return _Diagnoses(mine.index, kind, in_crowd.any(axis=1) & (partner < 0), target, objects.index[~taken])


def _partners(iou: Floats, threshold: float) -> Ints:
    """The object that each detection (row) has, or -1: the best one that no detection before it has."""
    free = iou.copy()
    partner = np.full(len(iou), -1)
    if iou.shape[1] == 0:
        return partner
    for row, overlaps in enumerate(free):
        best = int(overlaps.argmax())
        if overlaps[best] >= threshold:
            partner[row] = best
            free[:, best] = 0
    return partner


@dataclass(frozen=True, slots=True)
class _Errors:
    """The diagnoses of all pictures, and the average precision before and after repairs."""

    found: _Objects
    objects: _Objects
    detection: Ints
    kind: Ints
    ignored: Bools
    target: Ints
    lost: Ints

    @property
    def missed(self) -> Ints:
        """Objects that no detection has, and that no repair would give to one."""
        return np.setdiff1d(self.lost, self.target)

    def kinds(self) -> tuple[str, ...]:
        """The name of each detection's kind, in the order in which they were given."""
        names = np.full(len(self.found.label), "ignored", object)
        names[self.detection[~self.ignored]] = np.array([*ERRORS, "correct"], object)[self.kind[~self.ignored]]
        return tuple(names)

    def counts(self) -> dict[str, int]:
        """How many there are of each error."""
        wrong = self.kind[~self.ignored & (self.kind != _CORRECT)]
        counts = np.bincount(wrong, minlength=len(ERRORS))
        counts[_MISSED] = len(self.missed)
        return dict(zip(ERRORS, counts.tolist(), strict=True))

    def gains(self, classes: int) -> tuple[float, dict[str, float], float, float]:
        """AP, and what it gains from the repair of each error, of all false positives, and of all false negatives."""
        label, score = self.found.label[self.detection], self.found.score[self.detection]
        right, wrong = self.kind == _CORRECT, self.kind != _CORRECT
        there = np.bincount(self.objects.label, minlength=classes)
        counted = ~self.ignored
        ap = _mean_ap(label[counted], score[counted], right[counted], there)
        # Of the errors that want one object the first, which has the best score, gets it.
        repaired = np.zeros(len(label), bool)
        repaired[np.unique(self.target, return_index=True)[1]] = True
        repaired &= self.target >= 0
        gains = {}
        for error, name in enumerate(ERRORS):
            mended = repaired & (self.kind == error)
            kept = (wrong & counted & (self.kind != error)) | mended
            # tidecv puts errors before right detections, which decides between equal scores
            order = np.append(np.flatnonzero(kept), np.flatnonzero(right))
            new_label = label.copy()
            new_label[mended] = self.objects.label[self.target[mended]]
            left = there - np.bincount(self.objects.label[self.missed], minlength=classes) * (error == _MISSED)
            gains[name] = max(0.0, _mean_ap(new_label[order], score[order], (right | mended)[order], left) - ap)
        order = np.append(np.flatnonzero(wrong & counted), np.flatnonzero(right))
        label, score, right = label[order], score[order], right[order]
        found_only = there - np.bincount(self.objects.label[self.lost], minlength=classes)
        return ap, gains, _mean_ap(label, right * 1.0, right, there) - ap, _mean_ap(label, score, right, found_only) - ap


def _mean_ap(label: Ints, score: Floats, right: Bools, there: Ints) -> float:
    """Mean AP of the classes that have one of N detections or of `there` (K,) objects; NaN if there is neither.

    AP: mean precision at 101 recalls, where a precision is the best at that recall or above, as in COCO.
    """
    order = np.lexsort((-score, label))  # stable
    ends = np.cumsum(np.bincount(label, minlength=len(there)))
    aps = []
    for objects, hits in zip(there.tolist(), np.split(right[order], ends[:-1]), strict=True):
        if objects == 0:
            aps += [0.0] if len(hits) else []
            continue
        true = np.cumsum(hits)
        precision = true / np.arange(1, len(hits) + 1)
        envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
        aps.append(float(envelope[np.searchsorted(true / objects, _RECALLS)].mean()))
    return float(np.mean(aps)) if aps else math.nan

"""Panoptic quality: segments of things and stuff matched by IoU, as panopticapi counts them, and its boundary variant.

Kirillov et al. 2019, "Panoptic Segmentation", section 4, with COCO's rules for void and crowd; boundary PQ: Cheng et al. 2021,
"Boundary IoU", section 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from delineate.data.formats.panoptic import read_panoptic
from delineate.data.panoptic import PanopticMap
from delineate.errors import DataError
from delineate.metrics.boundary import DILATION_RATIO, boundary_width
from delineate.metrics.overlap import Overlap, joint_counts, nan_mean, ratio
from delineate.metrics.sums import StreamingSums

Group = Literal["all", "things", "stuff"]
IouOf = Literal["mask", "boundary"]

GROUPS: tuple[Group, ...] = ("all", "things", "stuff")


class PanopticQuality(StreamingSums):
    """PQ = SQ RQ of K classes over pictures, from sums that stream and merge.

    `sums` (..., K, 4) float64: true positives, false positives, false negatives (whole numbers) and the sum of the matched IoU
    of each class. Leading axes, one entry a picture for example, stay in the scores (`with_sums`).

    - A match: one class, IoU > 0.5, where pixels of the prediction on void do not count in the union. It is unique.
    - A true crowd is neither matched nor missed. A predicted segment without a match is dropped, not false, when more than half
      of it lies on void and on crowds of its class.
    - A mean is over the classes that occur: TP + FP + FN > 0. One of them without a match has SQ 0.

    With `iou="boundary"` a pair has the smaller of the IoU of its masks and of their boundaries.

    >>> truth = PanopticMap(np.array([[1, 1, 1, 2]]), np.array([0, 1]), np.array([False, False]))
    >>> found = PanopticMap(np.array([[1, 1, 2, 3]]), np.array([0, 0, 1]), np.array([False] * 3))
    >>> quality = PanopticQuality(3, things=[0])
    >>> picture = quality.update(found, truth)
    >>> quality.pq().round(3), float(quality.mean_pq("things").round(3))
    (array([0.444, 1.   ,   nan]), 0.444)
    """

    def __init__(
        self, num_classes: int, things: Iterable[int] = (), *, iou: IouOf = "mask", dilation_ratio: float = DILATION_RATIO
    ) -> None:
        if iou not in ("mask", "boundary"):
            raise ValueError(f"iou is {iou!r}, expected 'mask' or 'boundary'")
        self.things = np.isin(np.arange(num_classes), list(things))
        self.iou: IouOf = iou
        self.dilation_ratio = dilation_ratio
        settings = {"things": tuple(self.things.tolist()), "iou": iou, "dilation_ratio": dilation_ratio}
        super().__init__(np.zeros((num_classes, 4)), settings)

    def update(self, prediction: PanopticMap, truth: PanopticMap) -> PanopticQuality:
        """Add one picture and return the scores of that picture alone; DataError when shapes or classes do not fit."""
        for segments, what in ((prediction, "prediction"), (truth, "truth")):
            if (highest := int(segments.labels.max(initial=0))) >= len(self.things):
                raise DataError(f"the {what} has a segment of class {highest}, but the classes are 0..{len(self.things) - 1}")
        if prediction.segments.shape != truth.segments.shape:
            raise DataError(
                f"prediction has shape {prediction.segments.shape}, truth {truth.segments.shape}; both must be the same"
            )
        meeting = _meeting(prediction.segments, truth.segments)
        iou = meeting.iou
        if self.iou == "boundary":
            iou = np.minimum(iou, _boundary_iou(prediction, truth, meeting, self.dilation_ratio))
        picture = self.with_sums(_count(prediction, truth, meeting, iou, len(self.things)))
        self.merge(picture)
        return picture

    @property
    def true_positives(self) -> NDArray[np.float64]:
        """Matched segments, (..., K)."""
        return self.sums[..., 0]

    @property
    def false_positives(self) -> NDArray[np.float64]:
        """Predicted segments without a partner, (..., K)."""
        return self.sums[..., 1]

    @property
    def false_negatives(self) -> NDArray[np.float64]:
        """True segments without a partner, (..., K)."""
        return self.sums[..., 2]

    def pq(self) -> NDArray[np.float64]:
        """Sum of matched IoU / (TP + FP/2 + FN/2), (..., K); NaN for a class that does not occur."""
        return ratio(self.sums[..., 3], self.true_positives + (self.false_positives + self.false_negatives) / 2)

    def sq(self) -> NDArray[np.float64]:
        """Segmentation quality: mean IoU of the matched segments, (..., K); 0 for a class that occurs without a match."""
        quality = ratio(self.sums[..., 3], self.true_positives, 0.0)
        return np.where(self.sums[..., :3].any(axis=-1), quality, np.nan)

    def rq(self) -> NDArray[np.float64]:
        """Recognition quality: TP / (TP + FP/2 + FN/2), the F1 of the segments, (..., K)."""
        matched = self.true_positives
        return Overlap(matched, matched + self.false_positives, matched + self.false_negatives).dice()

    def mean_pq(self, group: Group = "all") -> NDArray[np.float64]:
        """Mean of `pq` over the classes of the group that occur, (...); NaN when none does."""
        return nan_mean(self.pq()[..., self._in(group)])

    def mean_sq(self, group: Group = "all") -> NDArray[np.float64]:
        """Mean of `sq` over the classes of the group that occur, (...)."""
        return nan_mean(self.sq()[..., self._in(group)])

    def mean_rq(self, group: Group = "all") -> NDArray[np.float64]:
        """Mean of `rq` over the classes of the group that occur, (...)."""
        return nan_mean(self.rq()[..., self._in(group)])

    def means(self) -> dict[str, NDArray[np.float64]]:
        """The nine means, each (...): "pq", "sq", "rq", and the same of things and stuff as "pq_things" ..."""
        named = {"pq": self.mean_pq, "sq": self.mean_sq, "rq": self.mean_rq}
        return {name if g == "all" else f"{name}_{g}": mean(g) for g in GROUPS for name, mean in named.items()}

    def per_class(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """One row a class: name, thing, pq, sq, rq (NaN where it does not occur), and the three counts."""
        if self.sums.shape != (len(classes), 4):
            raise ValueError(f"{len(classes)} names for sums of shape {self.sums.shape}")
        pq, sq, rq = self.pq().tolist(), self.sq().tolist(), self.rq().tolist()
        counts = self.sums[:, :3].astype(int).tolist()
        names = ("true_positives", "false_positives", "false_negatives")
        return [
            {"name": name, "thing": bool(self.things[k]), "pq": pq[k], "sq": sq[k], "rq": rq[k]}
            | dict(zip(names, counts[k], strict=True))
            for k, name in enumerate(classes)
        ]

    def summary(self, classes: Sequence[str] | None = None) -> dict[str, float]:
        """`means` as numbers, and with `classes` also "pq/NAME"; NaN where not defined."""
        flat = {name: float(value) for name, value in self.means().items()}
        return flat | {f"pq/{row['name']}": row["pq"] for row in (self.per_class(classes) if classes else [])}

    def _in(self, group: Group) -> NDArray[np.bool_]:
        if group not in GROUPS:
            raise ValueError(f"group is {group!r}, expected one of {', '.join(GROUPS)}")
        return np.full(len(self.things), True) if group == "all" else self.things == (group == "things")


@dataclass(frozen=True, slots=True)
class PanopticScores:
    """What `score_panoptic_files` found: sums of each picture, from which every score and its interval follow."""

    classes: tuple[str, ...]
    image_ids: tuple[Any, ...]
    quality: PanopticQuality
    sums: NDArray[np.float64]  # (N, K, 4) of each picture; quality.sums is their sum

    def scores(self, draws: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """The means of resampled pictures, each (R,): for `score_intervals` and `compare_scores`."""
        return self.quality.with_sums(np.tensordot(draws, self.sums, 1)).means()


def score_panoptic_files(
    predictions: str | Path,
    truth: str | Path,
    *,
    prediction_folder: str | Path | None = None,
    truth_folder: str | Path | None = None,
    iou: IouOf = "mask",
    dilation_ratio: float = DILATION_RATIO,
) -> PanopticScores:
    """Panoptic quality of COCO panoptic files: two JSON files, and the PNGs of each in a folder (by default named as the JSON).

    Every picture of the truth needs a prediction; the classes are the truth's. Raises DataError naming the file and the picture
    for what is missing, damaged, of another size, of an unknown category, or in a JSON but not in its PNG, and the reverse.
    """
    wanted = read_panoptic(truth, truth_folder)
    found = read_panoptic(predictions, prediction_folder, wanted)
    if superfluous := [image_id for image_id in found.records if image_id not in wanted.records]:
        raise DataError(f"{found.path}: picture {superfluous[0]!r} is not in {wanted.path}; leave it out")
    if not wanted.records:
        raise DataError(f"{wanted.path}: lists no picture")
    quality = PanopticQuality(len(wanted.classes), np.flatnonzero(wanted.things), iou=iou, dilation_ratio=dilation_ratio)
    sums = []
    for image_id, record in wanted.records.items():
        if image_id not in found.records:
            raise DataError(f"{found.path}: has no prediction for picture {image_id!r} of {wanted.path}")
        segments, true_segments = found.records[image_id].load(), record.load()
        if (size := segments.segments.shape) != (true_size := true_segments.segments.shape):
            raise DataError(
                f"{found.records[image_id].picture}: is {size[1]} x {size[0]} pixels, its truth {record.picture} "
                f"{true_size[1]} x {true_size[0]}; both must be the same"
            )
        sums.append(quality.update(segments, true_segments).sums)
    return PanopticScores(wanted.classes, tuple(wanted.records), quality, np.stack(sums))


class _Meeting(NamedTuple):
    """The pairs (true segment, predicted segment) that share pixels; void is segment 0."""

    truth: NDArray[np.int64]  # (P,)
    prediction: NDArray[np.int64]  # (P,)
    pixels: NDArray[np.int64]  # (P,) shared
    iou: NDArray[np.float64]  # (P,) without the prediction's pixels on void


def _meeting(prediction: NDArray[Any], truth: NDArray[Any]) -> _Meeting:
    counts = joint_counts(prediction, truth)
    t, p = counts.truth_ids[counts.truth], counts.prediction_ids[counts.prediction]
    void = np.zeros(len(counts.prediction_ids), np.int64)
    void[counts.prediction[t == 0]] = counts.pixels[t == 0]
    predicted = counts.prediction_pixels - void
    overlap = Overlap(counts.pixels, predicted[counts.prediction], counts.truth_pixels[counts.truth])
    return _Meeting(t, p, counts.pixels, overlap.iou())


def _count(
    prediction: PanopticMap, truth: PanopticMap, meeting: _Meeting, iou: NDArray[np.float64], classes: int
) -> NDArray[np.float64]:
    """Sums (K, 4) of one picture."""
    t, p, pixels, _ = meeting
    label_t, label_p = np.append(-1, truth.labels), np.append(-2, prediction.labels)  # void has no class, and no partner
    crowd = np.append(False, truth.crowd)
    same = label_t[t] == label_p[p]
    matched = same & ~crowd[t] & (iou > 0.5)
    ignored = np.zeros(len(label_p), np.int64)  # pixels of each predicted segment on void and on crowds of its class
    area = np.zeros(len(label_p), np.int64)
    on_ignored = (t == 0) | (same & crowd[t])
    np.add.at(ignored, p[on_ignored], pixels[on_ignored])
    np.add.at(area, p, pixels)
    false = (area > 0) & (2 * ignored <= area)  # a segment without pixels does not count
    false[[0, *p[matched]]] = False
    missed = ~crowd
    missed[np.bincount(t, minlength=len(missed)) == 0] = False
    missed[[0, *t[matched]]] = False
    hits = label_t[t[matched]]
    sums = [
        np.bincount(hits, minlength=classes),
        np.bincount(label_p[false], minlength=classes),
        np.bincount(label_t[missed], minlength=classes),
        np.bincount(hits, iou[matched], minlength=classes),
    ]
    return np.stack(sums, axis=-1).astype(np.float64)


def _boundary_iou(prediction: PanopticMap, truth: PanopticMap, meeting: _Meeting, ratio: float) -> NDArray[np.float64]:
    """IoU of the boundaries of each pair of `meeting`; all interiors are one more segment, void stays void."""
    distance = boundary_width(truth.segments.shape, ratio)
    found, wanted = (_hollow(x.segments.astype(np.int32), len(x.labels) + 1, distance) for x in (prediction, truth))
    edges = _meeting(found, wanted)
    width = len(prediction.labels) + 2
    codes, edge_codes = (m.truth * width + m.prediction for m in (meeting, edges))
    _, here, there = np.intersect1d(codes, edge_codes, assume_unique=True, return_indices=True)
    iou = np.zeros(len(codes))
    iou[here] = edges.iou[there]
    return iou


def _hollow(segments: NDArray[np.int32], interior: int, distance: int) -> NDArray[np.int32]:
    """The map with `interior` where neither another segment nor the outside is within `distance` (a square), save in void.

    What is left of a segment is its mask minus `distance` erosions by 3 x 3; two running extremes give it for all at once.
    """
    size = 2 * distance + 1
    lowest = ndimage.minimum_filter(segments, size, mode="constant", cval=-1)
    highest = ndimage.maximum_filter(segments, size, mode="constant", cval=-1)
    return np.where((lowest == highest) & (segments != 0), np.int32(interior), segments)

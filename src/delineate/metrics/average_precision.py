"""Average precision of scored objects as COCO and LVIS define it: what is measured, and the curves that come out.

Detections of a class are taken from the best score down; at each IoU threshold each is matched to the best free true object of
its picture (Lin et al. 2014, cocodataset/cocoapi's `COCOeval`; Gupta et al. 2019, "LVIS").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from delineate.errors import ConfigError, suggest

IouType = Literal["bbox", "segm", "boundary", "keypoints"]
IOU_TYPES: tuple[IouType, ...] = ("bbox", "segm", "boundary", "keypoints")

COCO_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""0.50, 0.55 ... 0.95, with the last bits that pycocotools has."""

COCO_RECALLS: tuple[float, ...] = tuple(np.linspace(0.0, 1.0, 101).tolist())

COCO_AREAS: Mapping[str, tuple[float, float]] = {
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
"""Areas in pixels, both ends included: an object of exactly 32^2 pixels is small and medium."""

COCO_SIGMAS: tuple[float, ...] = tuple(
    (np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 100 / 10).tolist()
)
"""How far people's clicks scatter, for COCO's 17 points of a person: nose, eyes, ears, shoulders ... ankles."""

USUAL_SIGMA = 0.07
"""For keypoints of which nothing is known: about the mean of COCO's."""

COCO_NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The order of `COCOeval.stats`. s, m, l: areas up to 32^2, 96^2, and above; AR1, 10, 100: recall with that many detections."""

_SHORT = {"small": "s", "medium": "m", "large": "l"}
FREQUENCIES = {"r": "rare", "c": "common", "f": "frequent"}
"""LVIS: how many training pictures show a class: up to 10, up to 100, more."""


@dataclass(frozen=True, slots=True)
class ApSettings:
    """What is measured: COCO's `Params`; the defaults are COCO's for boxes. Build with `coco` or `lvis`.

    Raises `ConfigError` for values that cannot be.

    >>> ApSettings.coco("keypoints", sigmas=(0.1,) * 5).max_detections
    (20,)
    """

    iou_type: IouType = "bbox"
    iou_thresholds: tuple[float, ...] = COCO_THRESHOLDS
    recalls: tuple[float, ...] = COCO_RECALLS
    max_detections: tuple[int, ...] = (1, 10, 100)  # of a class in a picture, ascending; AP counts the last number
    areas: tuple[tuple[str, float, float], ...] = tuple((name, *ends) for name, ends in COCO_AREAS.items())
    sigmas: tuple[float, ...] = COCO_SIGMAS  # keypoints: one for each point
    per_class: bool = True  # False: classes are not told apart
    federated: bool = False  # LVIS: classes are only judged in pictures that are known to have them, or not to
    dilation_ratio: float = 0.02  # boundary: its width over the diagonal of the picture

    @classmethod
    def coco(cls, iou_type: IouType = "bbox", **changes: Any) -> ApSettings:
        """COCO's settings for boxes, masks, boundaries or keypoints, with `changes`."""
        settings = cls(iou_type=iou_type)
        if iou_type == "keypoints":  # small people have no keypoints
            settings = replace(settings, max_detections=(20,), areas=tuple(a for a in settings.areas if a[0] != "small"))
        return replace(settings, **changes)

    @classmethod
    def lvis(cls, iou_type: IouType = "segm", **changes: Any) -> ApSettings:
        """LVIS's settings: federated, the best 300 detections of a picture, all classes together."""
        return replace(cls(iou_type=iou_type, max_detections=(300,), federated=True), **changes)

    def __post_init__(self) -> None:
        if self.iou_type not in IOU_TYPES:
            raise ConfigError(f"iou_type {self.iou_type!r}: expected one of {', '.join(IOU_TYPES)}")
        for name in ("iou_thresholds", "recalls", "max_detections"):
            values = getattr(self, name)
            if not values or list(values) != sorted(set(values)):
                raise ConfigError(f"{name} {values}: expected at least one number, ascending")
        if self.max_detections[0] < 1:
            raise ConfigError(f"max_detections {self.max_detections}: expected at least 1")
        if not 0 < self.iou_thresholds[0] <= self.iou_thresholds[-1] <= 1:
            raise ConfigError(f"iou_thresholds {self.iou_thresholds}: expected numbers above 0 and up to 1")
        names, ends = {name for name, *_ in self.areas}, {tuple(ends) for _, *ends in self.areas}
        if not self.areas or min(len(names), len(ends)) < len(self.areas):
            raise ConfigError(f"areas {self.areas}: expected different ranges (name, least, largest) with different names")
        if self.federated and (self.iou_type == "keypoints" or not self.per_class or len(self.max_detections) > 1):
            raise ConfigError("federated: LVIS measures boxes, masks and boundaries, class by class, with one max_detections")

    def threshold_index(self, iou: float) -> int:
        """Place of an IoU threshold; raises `ConfigError` where it is not measured."""
        close = np.flatnonzero(np.isclose(self.iou_thresholds, iou, rtol=0, atol=1e-9))
        if len(close) == 0:
            raise ConfigError(f"iou {iou}: is not measured; expected one of {', '.join(f'{t:g}' for t in self.iou_thresholds)}")
        return int(close[0])

    def area_index(self, area: str) -> int:
        """Place of an area range; raises `ConfigError` where there is none of that name."""
        names = [name for name, *_ in self.areas]
        if area not in names:
            raise ConfigError(f"area {area!r}: expected one of {', '.join(names)}{suggest(area, names)}")
        return names.index(area)

    def max_detections_index(self, count: int | None) -> int:
        """Place of a number of detections; the largest for None."""
        if count is None:
            return len(self.max_detections) - 1
        if count not in self.max_detections:
            raise ConfigError(f"max_detections {count}: is not measured; expected one of {self.max_detections}")
        return self.max_detections.index(count)


class Category(NamedTuple):
    """A class of objects."""

    id: int
    name: str
    frequency: str = ""  # LVIS: r, c or f


ANY_CATEGORY = Category(-1, "any")
"""The one class of settings that do not tell classes apart."""


class PrecisionRecall(NamedTuple):
    """A precision-recall curve; each (R,)."""

    recall: NDArray[np.float64]
    precision: NDArray[np.float64]  # the best precision at that recall or a higher one
    score: NDArray[np.float64]  # of the detection that reaches it: the threshold to choose for that recall


class Number(NamedTuple):
    """One entry of a summary: which part of the curves a name means."""

    kind: Literal["precision", "recall"]
    iou: int | None = None  # index; None: the mean over all
    area: int = 0
    max_detections: int = -1
    frequency: str = ""


def summary_numbers(settings: ApSettings) -> dict[str, Number]:
    """What COCO's, or LVIS's, names stand for under these settings.

    >>> list(summary_numbers(ApSettings())) == list(COCO_NAMES)
    True
    """
    thresholds = {name: int(i[0]) for name, iou in (("50", 0.5), ("75", 0.75)) if len(i := _at(settings, iou))}
    areas = {_SHORT.get(name, f"_{name}"): a for a, (name, *_) in enumerate(settings.areas) if a > 0}
    names = {"AP": Number("precision")}
    names |= {f"AP{name}": Number("precision", iou=t) for name, t in thresholds.items()}
    names |= {f"AP{name}": Number("precision", area=a) for name, a in areas.items()}
    if settings.federated:
        names |= {f"AP{key}": Number("precision", frequency=key) for key in FREQUENCIES}
    if settings.iou_type == "keypoints":
        names["AR"] = Number("recall")
        names |= {f"AR{name}": Number("recall", iou=t) for name, t in thresholds.items()}
    else:
        names |= {f"AR{count}": Number("recall", max_detections=m) for m, count in enumerate(settings.max_detections)}
    return names | {f"AR{name}": Number("recall", area=a) for name, a in areas.items()}


def _at(settings: ApSettings, iou: float) -> NDArray[np.int64]:
    return np.flatnonzero(np.isclose(settings.iou_thresholds, iou, rtol=0, atol=1e-9))


@dataclass(frozen=True, slots=True)
class Curves:
    """Precision and recall of each class: T thresholds, R recalls, K classes, A areas, M numbers of detections.

    -1 stands for "nothing to count", as in COCO: no true object of that class and area.
    """

    settings: ApSettings
    categories: tuple[Category, ...]  # K, by id; one of id -1 where classes are not told apart
    precision: NDArray[np.float64]  # (T, R, K, A, M)
    recall: NDArray[np.float64]  # (T, K, A, M) that all the counted detections reach
    scores: NDArray[np.float64]  # (T, R, K, A, M) of the detection that reaches each recall; 0 where none does

    def average_precision(
        self, *, iou: float | None = None, area: str = "all", max_detections: int | None = None, category: int | None = None
    ) -> float:
        """Mean precision over recalls, classes and thresholds, or of one threshold or one category id; -1 for nothing."""
        return self._mean(self.precision, iou, area, max_detections, category)

    def average_recall(
        self, *, iou: float | None = None, area: str = "all", max_detections: int | None = None, category: int | None = None
    ) -> float:
        """Mean recall over classes and thresholds, or of one threshold or one category id; -1 for nothing."""
        return self._mean(self.recall, iou, area, max_detections, category)

    def precision_recall(
        self, category: int, *, iou: float = 0.5, area: str = "all", max_detections: int | None = None
    ) -> PrecisionRecall:
        """The curve of one category id at one IoU; all -1 without true objects."""
        s = self.settings
        at = (s.threshold_index(iou), slice(None), self._place(category), s.area_index(area))
        m = s.max_detections_index(max_detections)
        return PrecisionRecall(np.array(s.recalls), self.precision[(*at, m)], self.scores[(*at, m)])

    def summary(self) -> dict[str, float]:
        """COCO's numbers under their names (`COCO_NAMES` for COCO's settings); LVIS's with APr, APc and APf too."""
        return {name: self._number(number) for name, number in summary_numbers(self.settings).items()}

    def per_class(self) -> list[dict[str, Any]]:
        """A row for each class that has true objects: id, name, and its numbers as in `summary`."""
        there = np.any(self.recall[..., -1] > -1, axis=(0, 2)).tolist()
        names = {name: n for name, n in summary_numbers(self.settings).items() if not n.frequency}
        return [
            {"id": category.id, "name": category.name} | {name: self._number(n, k) for name, n in names.items()}
            for k, category in enumerate(self.categories)
            if there[k]
        ]

    def _number(self, number: Number, category: int | None = None) -> float:
        values = getattr(self, number.kind)
        if number.iou is not None:
            values = values[number.iou : number.iou + 1]
        values = values[..., number.area, number.max_detections]
        if category is not None:
            return mean_defined(values[..., category])
        if number.frequency:
            return mean_defined(values[..., [c.frequency == number.frequency for c in self.categories]])
        return mean_defined(values)

    def _mean(self, values: Any, iou: float | None, area: str, max_detections: int | None, category: int | None) -> float:
        s = self.settings
        if iou is not None:
            values = values[[s.threshold_index(iou)]]
        values = values[..., s.area_index(area), s.max_detections_index(max_detections)]
        return mean_defined(values if category is None else values[..., self._place(category)])

    def _place(self, category: int) -> int:
        ids = [c.id for c in self.categories]
        if category not in ids:
            raise ConfigError(f"category {category}: is not among the {len(ids)} category ids")
        return ids.index(category)


def mean_defined(values: NDArray[np.float64]) -> float:
    """Mean of what is not -1, in NumPy's order as pycocotools takes it; -1 where nothing is left."""
    defined = values[values > -1]
    return float(np.mean(defined)) if defined.size else -1.0

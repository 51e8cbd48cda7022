"""What a data set looks like in numbers: sizes, intensities, classes, objects. The planner reads it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy.ndimage import distance_transform_edt

from delineate.data.dataset import Dataset, Record
from delineate.data.decode import Array, image_size
from delineate.data.formats.survey import evenly
from delineate.data.load import load_sample
from delineate.data.sample import IGNORE, Sample
from delineate.errors import DataError

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class ObjectStatistics:
    """Numbers of the objects in the sampled pictures; quantiles are at 5, 25, 50, 75 and 95 %."""

    count: int  # crowd regions left out
    crowds: int
    per_picture: tuple[int, float, int]  # smallest, median, largest
    area: tuple[float, float, float, float, float]  # quantiles, pixels
    diameter: tuple[float, float, float, float, float]  # quantiles of the diameter of the circle of the same area, pixels
    touching: float  # share of objects with another object in the 8-neighbourhood, or overlapping them
    gap: float | None  # smallest distance in pixels between the edges of two objects that do not touch; None: no such pair

    def rows(self) -> list[tuple[str, str]]:
        """Return name and text of each line of a table."""
        low, middle, high = self.per_picture
        gap = "no two neighbours" if self.gap is None else f"{self.gap:.1f} pixels"
        return [
            ("objects", f"{self.count} and {self.crowds} crowd regions; {middle:g} a picture (fewest {low}, most {high})"),
            ("object area", " / ".join(f"{a:.4g}" for a in self.area) + " pixels (5, 25, 50, 75, 95 %)"),
            ("object diameter", " / ".join(f"{d:.3g}" for d in self.diameter) + " pixels"),
            ("touching", f"{self.touching:.1%} of objects; smallest gap of the others {gap}"),
        ]


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """Numbers of a data set; those of pixels come from `sampled` pictures, evenly spread over all that have a truth."""

    kind: Literal["semantic", "instance", "keypoint", "panoptic"]
    classes: tuple[str, ...]  # Dataset.semantic_classes
    pictures: dict[str, int]  # of each split
    sampled: int
    size_min: tuple[int, int]  # height, width, each on its own
    size_median: tuple[int, int]
    size_max: tuple[int, int]
    channels: dict[int, int]  # 1 or 3 -> sampled pictures
    colourless: float  # share of sampled pictures that are grey, or RGB with three equal channels
    dtypes: dict[str, int]  # "uint8", "uint16", "float32" -> sampled pictures
    value_range: tuple[float, float]  # smallest and largest value
    mean: tuple[float, ...]  # of each channel, in units of the file; grey pictures count in all channels
    std: tuple[float, ...]
    brightness_spread: float  # standard deviation of the pictures' means over the standard deviation of all pixels
    class_pixels: tuple[float, ...]  # share of each class in the pixels that count; empty for data without outlines
    class_pictures: tuple[int, ...]  # in how many sampled pictures each class appears
    ignored: float  # share of pixels that do not count
    objects: ObjectStatistics | None  # None for semantic data

    def to_json(self) -> dict[str, Any]:
        """Return plain values for a JSON file."""
        return asdict(self)

    def print(self) -> None:
        """Print a table."""
        from rich.console import Console
        from rich.table import Table

        table = Table(title="Data set", show_header=False, title_justify="left")
        table.add_column(style="bold")
        table.add_column()
        for name, value in self._rows():
            table.add_row(name, value)
        console = Console()
        console.print(table)
        if self.class_pixels:
            console.print(self._class_table())

    def _rows(self) -> list[tuple[str, str]]:
        sizes = [" x ".join(map(str, size)) for size in (self.size_min, self.size_median, self.size_max)]
        channels = ", ".join(f"{n} in {count} pictures" for n, count in self.channels.items())
        rows = [
            ("kind", self.kind),
            ("pictures", ", ".join(f"{name} {count}" for name, count in self.pictures.items())),
            ("pixels read of", f"{self.sampled} pictures"),
            ("height x width", f"{sizes[1]} (smallest {sizes[0]}, largest {sizes[2]})"),
            ("channels", f"{channels}; {self.colourless:.0%} of pictures colourless"),
            ("values", f"{', '.join(self.dtypes)}, {self.value_range[0]:g} to {self.value_range[1]:g}"),
            ("mean, deviation", ", ".join(f"{m:.4g} ± {s:.4g}" for m, s in zip(self.mean, self.std, strict=True))),
            ("brightness spread", f"{self.brightness_spread:.2f} deviations between pictures"),
            ("not counted", f"{self.ignored:.2%} of pixels"),
        ]
        return rows + (self.objects.rows() if self.objects else [])

    def _class_table(self) -> Any:
        from rich.table import Table

        table = Table("class", "share of pixels", "pictures", title="Classes", title_justify="left")
        for name, share, pictures in zip(self.classes, self.class_pixels, self.class_pictures, strict=True):
            table.add_row(name, f"{share:.3%}", str(pictures))
        return table


def dataset_statistics(dataset: Dataset, *, sample: int = 200, split: str | None = None) -> DatasetStatistics:
    """Measure a data set, or one split; pixels are read from at most `sample` pictures, evenly spread over those with a truth.

    Sizes come from all files' headers; `pictures` counts all splits. Pictures that cannot be read are passed over, for
    `check_dataset` names them; raises `DataError` where none can be read.
    """
    records = dataset.records if split is None else dataset.splits[split]
    usable = [r for r in records if r.label_map is not None or r.instances is not None] or list(records)
    pixels, labels = _Pixels(), _Labels(len(dataset.semantic_classes))
    objects = _Objects() if dataset.kind != "semantic" else None
    failure: DataError | None = None
    for record in evenly(usable, sample):
        try:
            read = _read(dataset, record)
        except DataError as error:
            failure = error
            continue
        pixels.add(read.image.numpy())
        labels.add(read.semantic)
        if objects is not None:
            objects.add(read)
    if not pixels.means and failure is not None:
        raise failure
    sizes = np.array([size for record in records if (size := _size(record)) is not None])
    return DatasetStatistics(
        kind=dataset.kind,
        classes=dataset.semantic_classes,
        pictures={name: len(members) for name, members in dataset.splits.items()},
        sampled=len(pixels.means),
        size_min=_pair(sizes.min(0)),
        size_median=_pair(np.median(sizes, 0)),
        size_max=_pair(sizes.max(0)),
        **pixels.summary(),
        **labels.summary(),
        objects=objects.summary() if objects is not None else None,
    )


def _read(dataset: Dataset, record: Record) -> Sample:
    """Load what this record has: classes, objects with outlines, or boxes alone."""
    if record.instances is None:
        want = () if record.label_map is None else ("semantic",) if dataset.kind == "semantic" else ("semantic", "instance_map")
    else:
        outlined = all(i.segmentation is not None for i in record.instances) and len(dataset.classes) < IGNORE
        want = ("semantic", "instance_map", "boxes") if outlined else ("boxes",)
    return load_sample(dataset, record, want)


def _size(record: Record) -> tuple[int, int] | None:
    try:
        return record.size or image_size(record.image, record.frame)
    except DataError:
        return None


def _pair(size: Any) -> tuple[int, int]:
    return int(size[0]), int(size[1])


class _Pixels:
    """Running sums of intensities."""

    def __init__(self) -> None:
        self.count = 0
        self.sums = np.zeros((2, 3))  # of values and of squares, each channel
        self.means: list[float] = []
        self.channels: Counter[int] = Counter()
        self.dtypes: Counter[str] = Counter()
        self.colourless = 0
        self.low, self.high = np.inf, -np.inf

    def add(self, image: Array) -> None:
        """Add a `(C, H, W)` picture."""
        values = image.astype(np.float64).reshape(len(image), -1)
        self.count += values.shape[1]
        self.sums += np.stack([values.sum(1), (values * values).sum(1)]) * np.ones(3 if len(image) == 1 else 1)
        self.means.append(float(values.mean()))
        self.channels[len(image)] += 1
        self.dtypes[str(image.dtype)] += 1
        self.colourless += len(image) == 1 or bool((image[0] == image[1]).all() and (image[0] == image[2]).all())
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    def summary(self) -> dict[str, Any]:
        """Return the fields of `DatasetStatistics` about intensities."""
        colours = 1 if set(self.channels) == {1} else 3
        mean = self.sums[0] / self.count
        variance = np.maximum(self.sums[1] / self.count - mean**2, 0)
        overall = float(np.sqrt(variance.mean() + mean.var()))
        return {
            "channels": dict(sorted(self.channels.items())),
            "colourless": self.colourless / len(self.means),
            "dtypes": dict(self.dtypes),
            "value_range": (self.low, self.high),
            "mean": tuple(mean[:colours].tolist()),
            "std": tuple(np.sqrt(variance)[:colours].tolist()),
            "brightness_spread": float(np.std(self.means)) / overall if overall > 0 else 0.0,
        }


class _Labels:
    """Running counts of class pixels."""

    def __init__(self, num_classes: int) -> None:
        self.counts = np.zeros(256, np.int64)
        self.pictures = np.zeros(256, np.int64)
        self.num_classes = num_classes

    def add(self, semantic: Any) -> None:
        """Add a `(H, W)` map of class ids, or None."""
        if semantic is not None:
            counts = np.bincount(semantic.numpy().ravel(), minlength=256)
            self.counts += counts
            self.pictures += counts > 0

    def summary(self) -> dict[str, Any]:
        """Return the fields of `DatasetStatistics` about classes."""
        if not (total := int(self.counts.sum())):
            return {"class_pixels": (), "class_pictures": (), "ignored": 0.0}
        counted = self.counts[: self.num_classes]
        return {
            "class_pixels": tuple((counted / max(1, counted.sum())).tolist()),
            "class_pictures": tuple(self.pictures[: self.num_classes].tolist()),
            "ignored": float(self.counts[IGNORE]) / total,
        }


class _Objects:
    """Running lists of object sizes and neighbours."""

    def __init__(self) -> None:
        self.per_picture: list[int] = []
        self.areas: list[float] = []
        self.touching = self.mapped = self.crowds = 0
        self.gap: float | None = None

    def add(self, sample: Sample) -> None:
        """Add the objects of a picture: by their pixels where they have outlines, by their boxes otherwise."""
        if sample.labels is None or sample.crowd is None:
            return
        single = ~sample.crowd.numpy()
        self.per_picture.append(int(single.sum()))
        self.crowds += int((~single).sum())
        if sample.instance_map is None:
            boxes = np.zeros((0, 4)) if sample.boxes is None else sample.boxes.numpy()[single]
            self.areas += ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).tolist()
            return
        ids = sample.instance_map.numpy()
        areas = np.bincount(ids.ravel(), minlength=len(single) + 1)[1:]
        self.areas += areas[areas > 0].tolist()
        touching, gap = neighbours(ids)
        self.touching += len(touching)
        self.mapped += int((areas > 0).sum())
        self.gap = gap if self.gap is None else self.gap if gap is None else min(gap, self.gap)

    def summary(self) -> ObjectStatistics:
        """Return the collected numbers."""
        area = np.quantile(self.areas or [0.0], QUANTILES)
        counts = self.per_picture or [0]
        return ObjectStatistics(
            count=sum(self.per_picture),
            crowds=self.crowds,
            per_picture=(min(counts), float(np.median(counts)), max(counts)),
            area=tuple(area.tolist()),
            diameter=tuple((2 * np.sqrt(area / np.pi)).tolist()),
            touching=self.touching / self.mapped if self.mapped else 0.0,
            gap=self.gap,
        )


def neighbours(ids: Array) -> tuple[set[int], float | None]:
    """Return the ids of an instance map that touch another (8-neighbourhood), and the smallest gap between two that do not.

    The gap is a distance in background pixels between two objects of which neither stands between. None without such a pair.

    >>> neighbours(np.array([[1, 0, 0, 2, 3]]))
    ({2, 3}, 2.0)
    """
    touching = [_pair_codes(a, b, (a != b) & (a > 0) & (b > 0)) for a, b in _adjacent(ids, diagonal=True)]
    codes = np.unique(np.concatenate(touching))
    ids_touching = {int(i) for i in np.unique(np.stack([codes >> 32, codes & 0xFFFFFFFF]))}
    if not (ids == 0).any() or not (ids > 0).any():
        return ids_touching, None
    distance, (rows, columns) = distance_transform_edt(ids == 0, return_indices=True)  # pyright: ignore
    gaps = []
    for (a, b), (near, far) in zip(_adjacent(ids[rows, columns]), _adjacent(distance), strict=True):
        # Where the nearest object changes from one pixel to the next, the way between both objects leads through these two.
        meet = (a != b) & (near + far > 0)
        meet[meet] = ~np.isin(_pair_codes(a, b, meet), codes)
        gaps += (near + far)[meet].tolist()
    return ids_touching, min(gaps) if gaps else None


def _adjacent(pixels: Array, diagonal: bool = False) -> list[tuple[Array, Array]]:
    """Return all pairs of neighbouring pixels as pairs of equally shaped views."""
    pairs = [(pixels[:, :-1], pixels[:, 1:]), (pixels[:-1], pixels[1:])]
    return pairs + ([(pixels[:-1, :-1], pixels[1:, 1:]), (pixels[:-1, 1:], pixels[1:, :-1])] if diagonal else [])


def _pair_codes(first: Array, second: Array, where: Array) -> Array:
    """Return one number for each unordered pair of ids."""
    a, b = first[where].astype(np.int64), second[where].astype(np.int64)
    return np.minimum(a, b) << 32 | np.maximum(a, b)

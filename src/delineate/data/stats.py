"""What a data set looks like in numbers: sizes, intensities, classes, objects. The planner reads it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


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


@dataclass(frozen=True, slots=True)
class DatasetStatistics:
    """Numbers of a data set; those of pixels come from `sampled` pictures, evenly spread over all that have a truth."""

    kind: Literal["semantic", "instance", "keypoint"]
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

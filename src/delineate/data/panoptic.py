"""A panoptic segmentation: each pixel in one segment, each segment of one class; things have many segments, stuff has one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from delineate.data.dataset import Instance
from delineate.data.raster import encode_mask, rle_area, rle_box
from delineate.data.sample import IGNORE
from delineate.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class PanopticMap:
    """The segments of one picture, numbered 1 to S; 0 is void: no segment, and in a truth not counted.

    >>> picture = PanopticMap(np.array([[0, 1, 2]]), np.array([4, 5]), np.array([False, False]))
    >>> int(picture.labels[picture.segments[0, 2] - 1])
    5
    """

    segments: NDArray[Any]  # (H, W) integers 0..S
    labels: NDArray[np.int64]  # (S,) class of each segment
    crowd: NDArray[np.bool_]  # (S,) a region of many objects that nobody told apart

    def __post_init__(self) -> None:
        if self.labels.shape != self.crowd.shape or self.labels.ndim != 1:
            raise ValueError(f"labels have shape {self.labels.shape}, crowd {self.crowd.shape}; expected (S,) for both")
        if self.segments.ndim != 2:
            raise ValueError(f"segments have shape {self.segments.shape}, expected (H, W)")
        if (highest := _highest(self.segments, "segments")) > len(self.labels):
            raise ValueError(f"the map holds segment {highest}, but its segments are 1..{len(self.labels)}")


def panoptic_map(
    semantic: NDArray[Any], instances: NDArray[Any] | None = None, *, things: Collection[int] = (), ignore_index: int = 255
) -> PanopticMap:
    """Make the segments of a map of classes (H, W) and a map of objects (H, W), whose numbers need only differ within a class.

    All pixels of a class that is not among `things` are one segment. Of a thing each object is one; its pixels that belong to
    no object (0), and pixels of `ignore_index`, are void. Raises DataError when the shapes differ or a number is negative.

    >>> semantic, instances = np.array([[0, 1, 1, 255]]), np.array([[0, 1, 2, 0]])
    >>> both = panoptic_map(semantic, instances, things={1})
    >>> both.segments.tolist(), both.labels.tolist()
    ([[1, 2, 3, 0]], [0, 1, 1])
    """
    instances = np.zeros(semantic.shape, np.uint8) if instances is None else instances
    if semantic.shape != instances.shape:
        raise DataError(f"the map of classes has shape {semantic.shape}, that of objects {instances.shape}; expected one")
    classes, objects = _highest(semantic, "classes") + 1, _highest(instances, "objects") + 1
    if classes * objects > max(4 * semantic.size, 1 << 16):  # a few objects with large numbers: number them anew, 0 stays 0
        instances = np.unique(np.append(instances, 0), return_inverse=True)[1][:-1].reshape(instances.shape)
        objects = _highest(instances, "objects") + 1
    code = np.multiply(semantic, objects, dtype=np.int64, casting="unsafe")
    np.add(code, instances, out=code, casting="unsafe")
    present = np.zeros(classes * objects, bool)
    present[code] = True
    present = present.reshape(classes, objects)
    stuff = ~np.isin(np.arange(classes), list(things))
    present[:, 0] = np.where(stuff, present.any(axis=1), False)
    present[stuff, 1:] = False
    present[ignore_index : ignore_index + 1] = False
    segment = np.where(present, np.cumsum(present, dtype=np.int32).reshape(present.shape), np.int32(0))
    segment[stuff] = segment[stuff, :1]  # whatever the map of objects says there
    return PanopticMap(segment.reshape(-1).take(code), np.nonzero(present)[0], np.zeros(int(present.sum()), bool))


def things_of(picture: PanopticMap, num_things: int) -> tuple[Instance, ...]:
    """Return the objects of a picture, crowds among them, with their outlines: the segments of classes below `num_things`."""
    numbers = np.flatnonzero(picture.labels < num_things)
    codes = [encode_mask(picture.segments == number + 1) for number in numbers]
    return tuple(
        Instance(int(picture.labels[n]), code, rle_box(code), crowd=bool(picture.crowd[n]), area=float(rle_area(code)))
        for n, code in zip(numbers, codes, strict=True)
    )


def stuff_map(picture: PanopticMap, num_things: int) -> NDArray[np.uint8]:
    """Return what the semantic head of a panoptic network learns, (H, W): 0 on things, s on the s-th kind of stuff, else 255.

    Things are also crowds, and 255, which is not counted, is void: Detectron2's rule, with whose weights the classes agree.

    >>> picture = PanopticMap(np.array([[0, 1, 2, 3]]), np.array([4, 10, 11]), np.zeros(3, bool))
    >>> stuff_map(picture, num_things=10).tolist()
    [[255, 0, 1, 2]]
    """
    kinds = np.maximum(picture.labels - num_things + 1, 0)
    return np.append(IGNORE, kinds).astype(np.uint8)[picture.segments]


def _highest(numbers: NDArray[Any], what: str) -> int:
    """The largest number of a map of integers from 0; 0 for an empty one."""
    if numbers.dtype.kind not in "biu":
        raise DataError(f"the map of {what} has dtype {numbers.dtype}, expected integers")
    if numbers.size and (low := int(numbers.min())) < 0:
        raise DataError(f"the map of {what} holds {low}; {what} are numbered from 0")
    return int(numbers.max(initial=0))

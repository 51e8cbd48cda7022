"""Masks of objects that stay small until someone asks for pixels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from delineate.data.dataset import Polygon, Rle
from delineate.ops.masks import Convention, paste_masks
from delineate.ops.polygons import mask_to_polygons
from delineate.ops.rle import decode_rle, encode_runs, paste_rle, rle_boxes


class Crop(NamedTuple):
    """The pixels of one mask within its bounding box."""

    left: int
    top: int
    mask: NDArray[np.bool_]  # (h, w); one False for an object without pixels


class Outline(NamedTuple):
    """The polygons of one object, along pixel edges: x0, y0, x1, y1, ... in pixels of the picture."""

    outer: list[Polygon]  # one for each piece
    holes: list[Polygon]


class Masks(Protocol):
    """N masks of objects in a picture, whatever they are made of."""

    size: tuple[int, int]  # height and width of the picture

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Tensor]:
        """Yield each mask as (H, W) bool, one at a time."""
        ...

    def dense(self) -> Tensor:
        """Return all masks, (N, H, W) bool: N times the memory of the picture."""
        ...

    def crops(self) -> Iterator[Crop]:
        """Yield the pixels of each mask within its bounding box, (H, W) being much for many small objects."""
        ...

    def rle(self) -> list[Rle]:
        """Return COCO's compressed run-length codes, with text that JSON holds."""
        ...

    def polygons(self) -> list[Outline]:
        """Return the outlines, exact to the pixel."""
        ...


class InstanceMapMasks:
    """Masks of objects that do not overlap: `instance_map` (H, W) int32 holds n where object n - 1 is, 0 elsewhere."""

    def __init__(self, instance_map: NDArray[Any] | Tensor, count: int | None = None) -> None:
        array = instance_map.cpu().numpy() if isinstance(instance_map, Tensor) else instance_map
        self.instance_map = np.ascontiguousarray(array, np.int32)
        self.size: tuple[int, int] = self.instance_map.shape
        self._count = int(self.instance_map.max(initial=0)) if count is None else count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.from_numpy(self.instance_map == number) for number in range(1, len(self) + 1))

    def dense(self) -> Tensor:
        return torch.from_numpy(self.instance_map == np.arange(1, len(self) + 1, dtype=np.int32)[:, None, None])

    def crops(self) -> Iterator[Crop]:
        windows = ndimage.find_objects(self.instance_map, max_label=len(self)) if len(self) else []
        for number, window in enumerate(windows, start=1):
            if window is None:
                yield Crop(0, 0, np.zeros((1, 1), np.bool_))
            else:
                yield Crop(window[1].start, window[0].start, self.instance_map[window] == number)

    def rle(self) -> list[Rle]:
        return instance_map_rles(self.instance_map, len(self))

    def polygons(self) -> list[Outline]:
        return [outline(crop) for crop in self.crops()]


class BoxMasks:
    """Masks as a detector gives them: `probabilities` (N, S, S) over `boxes` (N, 4) xyxy, which may overlap.

    They take no memory for the pixels of the picture until these are asked for. A pixel belongs to an object whose probability
    there, interpolated as `convention` says (see `ops.paste_masks`), is at least `threshold`.
    """

    def __init__(
        self,
        probabilities: Tensor,
        boxes: Tensor,
        size: tuple[int, int],
        convention: Convention = "detectron2",
        threshold: float = 0.5,
    ) -> None:
        self.probabilities, self.boxes, self.size = probabilities, boxes, size
        self.convention: Convention = convention
        self.threshold = threshold

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Tensor]:
        return (self._pasted(slice(n, n + 1))[0] for n in range(len(self)))

    def dense(self) -> Tensor:
        return self._pasted(slice(None))

    def crops(self) -> Iterator[Crop]:
        return map(crop_of, self.rle())

    def rle(self) -> list[Rle]:
        return paste_rle(self.probabilities, self.boxes, self.size, self.threshold, self.convention)

    def polygons(self) -> list[Outline]:
        return [outline(crop) for crop in self.crops()]

    def _pasted(self, part: slice) -> Tensor:
        return paste_masks(self.probabilities[part], self.boxes[part], self.size, self.threshold, self.convention)


def crop_of(code: Rle) -> Crop:
    """Return the pixels of a run-length code within its bounding box."""
    left, top, right, bottom = rle_boxes([code])[0].astype(int).tolist()
    return Crop(left, top, decode_rle([code])[0, top : max(bottom, top + 1), left : max(right, left + 1)].numpy())


def outline(crop: Crop) -> Outline:
    """Return the polygons of a mask, in pixels of the picture."""
    outer, holes = mask_to_polygons(crop.mask)
    shift = (crop.left, crop.top)
    return Outline([_moved(p, shift) for p in outer], [_moved(p, shift) for p in holes])


def instance_map_rles(instance_map: NDArray[np.int32], count: int) -> list[Rle]:
    """Return COCO's compressed run-length codes of the objects 1..`count` of a map (H, W), all from one pass over it.

    >>> instance_map_rles(np.array([[0, 1], [2, 1]], np.int32), 2)
    [{'size': [2, 2], 'counts': '22'}, {'size': [2, 2], 'counts': '112'}]
    """
    height, width = instance_map.shape
    column_major = instance_map.ravel(order="F")
    starts = np.concatenate([[0], np.flatnonzero(np.diff(column_major)) + 1])
    ends = np.append(starts[1:], column_major.size)
    owners = column_major[starts]
    order = np.argsort(owners, kind="stable")  # runs of one object together, in the order of the picture
    bounds = np.searchsorted(owners[order], np.arange(1, count + 2))
    codes = []
    for first, last in pairwise(bounds.tolist()):
        runs = order[first:last]
        edges = np.stack([starts[runs], ends[runs]], 1).ravel()  # where the mask turns on, off, on ...
        lengths = np.diff(np.concatenate([[0], edges, [column_major.size]]))
        codes.append(lengths if lengths[-1] or len(lengths) == 1 else lengths[:-1])  # no run of no pixels at the end
    return encode_runs(codes, (height, width))


def _moved(polygon: Polygon, shift: tuple[int, int]) -> Polygon:
    return (np.reshape(polygon, (-1, 2)) + shift).ravel().tolist()

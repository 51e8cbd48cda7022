"""Random changes of a training picture and of everything known about it, together, in one resampling per patch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from delineate.config import AugmentConfig
from delineate.data.elastic import draw_elastic
from delineate.data.sample import IGNORE, Sample
from delineate.data.warp import Warp
from delineate.skeleton import KeypointSchema

RANGES = {torch.uint8: 255.0, torch.uint16: 65535.0}


@dataclass(frozen=True, slots=True)
class RandomPatch:
    """Cuts a random patch out of a picture, deformed and changed as `augment` says. Made by `build_transforms`."""

    augment: AugmentConfig
    value_range: float | None = None
    keypoints: KeypointSchema | None = None
    mirror: bool = True

    def __call__(self, sample: Sample, rng: np.random.Generator | None = None) -> Sample:
        """Return the patch of `sample`; the same generator state gives the same patch, without one it is a fresh draw."""
        rng = np.random.default_rng() if rng is None else rng
        warp = self._draw_warp(sample, rng)
        image = self._change(self._warp_image(sample.image.as_subclass(Tensor), warp), sample.image.dtype, rng)
        moved = replace(
            sample,
            image=tv_tensors.Image(image),
            semantic=self._warp_labels(sample.semantic, warp, IGNORE),
            instance_map=self._warp_labels(sample.instance_map, warp, 0),
            masks=self._warp_labels(sample.masks, warp, False),
            weight=self._warp_field(sample.weight, warp),
            distance=self._warp_field(sample.distance, warp),
            boxes=_warp_boxes(sample.boxes, warp),
        )
        if sample.keypoints is not None:
            moved.keypoints, moved.visibility = self._warp_keypoints(sample.keypoints, sample.visibility, warp)
        return _drop_unseen(moved)

    def _draw_warp(self, sample: Sample, rng: np.random.Generator) -> Warp:
        a = self.augment
        turn = np.eye(2, dtype=np.float32)
        if rng.random() < a.flip_horizontal:
            turn[:, 1] *= -1
        if rng.random() < a.flip_vertical:
            turn[:, 0] *= -1
        if a.rotate90:
            turn = np.linalg.matrix_power(np.array([[0, 1], [-1, 0]], np.float32), int(rng.integers(4))) @ turn
        zoom = np.exp(rng.uniform(*np.log(a.scale))) if a.scale[0] < a.scale[1] else a.scale[0]
        extent = np.abs(turn) @ np.array(a.patch, np.float32) / zoom  # of the picture that the patch covers, before `rotate`
        angle = np.deg2rad(rng.uniform(-a.rotate, a.rotate)) if a.rotate else 0.0
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)
        centre = self._draw_corner(sample, extent, rng) + (extent - 1) / 2
        elastic = draw_elastic(rng, a.elastic, a.patch) if a.elastic else None
        return Warp(a.patch, sample.size, rotation @ turn / np.float32(zoom), centre.astype(np.float32), elastic)

    def _draw_corner(self, sample: Sample, extent: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the upper left corner, in whole pixels, of the part of `extent` that is cut; negative where it is too large."""
        room = np.array(sample.size) - extent
        low, high = np.ceil(np.minimum(room, 0)), np.floor(np.maximum(room, 0))
        pixel = _rare_pixel(sample, rng) if rng.random() < self.augment.foreground else None
        if pixel is not None:
            return np.clip(np.rint(pixel - (extent - 1) / 2), low, high)
        return rng.integers(low.astype(int), high.astype(int), endpoint=True).astype(float)

    def _warp_image(self, image: Tensor, warp: Warp) -> Tensor:
        patch = torch.from_numpy(warp.take(image.numpy()).astype(np.float32)) if warp.exact else warp.interpolate(image)
        return patch if self.mirror else patch * torch.from_numpy(warp.inside)

    def _warp_labels(self, field: tv_tensors.Mask | None, warp: Warp, outside: int) -> tv_tensors.Mask | None:
        if field is None:
            return None
        patch = warp.take(field.numpy())
        return tv_tensors.Mask(
            torch.from_numpy(patch if self.mirror else np.where(warp.inside, patch, patch.dtype.type(outside)))
        )

    def _warp_field(self, field: tv_tensors.Mask | None, warp: Warp) -> tv_tensors.Mask | None:
        return None if field is None else tv_tensors.Mask(self._warp_image(field.as_subclass(Tensor)[None], warp)[0])

    def _warp_keypoints(
        self, keypoints: tv_tensors.KeyPoints, visibility: Tensor | None, warp: Warp
    ) -> tuple[tv_tensors.KeyPoints, Tensor]:
        """Move keypoints; those that leave the patch become unlabelled, and partners change places where left becomes right."""
        points = torch.from_numpy(warp.points(keypoints.numpy().reshape(-1, 2))).reshape(keypoints.shape)
        seen = torch.full(keypoints.shape[:-1], 2, dtype=torch.uint8) if visibility is None else visibility
        height, width = warp.patch
        x, y = points.unbind(-1)
        seen = torch.where((x >= 0) & (x < width) & (y >= 0) & (y < height), seen, 0).to(torch.uint8)
        if warp.mirrors and self.keypoints is not None:
            order = list(range(keypoints.shape[-2]))
            for left, right in self.keypoints.flip_pairs:
                order[left], order[right] = right, left
            points, seen = points[..., order, :], seen[..., order]
        return tv_tensors.KeyPoints(points, canvas_size=warp.patch), seen  # pyright: ignore[reportCallIssue]

    def _change(self, image: Tensor, dtype: torch.dtype, rng: np.random.Generator) -> Tensor:
        """Change brightness, contrast and gamma, blur and add noise; (C, h, w) float32 in, the stored `dtype` out.

        Noise and blur touch every second patch, so that the network also sees pictures as they are.
        """
        a, x = self.augment, image.numpy()
        top = np.float32(self.value_range or RANGES.get(dtype, 1.0))
        if a.brightness:
            x *= np.float32(rng.uniform(max(0.0, 1 - a.brightness), 1 + a.brightness))
        if a.contrast:
            mean = np.float32(x.mean(dtype=np.float64))
            x -= mean
            x *= np.float32(rng.uniform(max(0.0, 1 - a.contrast), 1 + a.contrast))
            x += mean
        if a.gamma != (1.0, 1.0):
            x = top * (np.maximum(x, 0) / top) ** np.float32(np.exp(rng.uniform(*np.log(a.gamma))))
        if a.blur and rng.random() < 0.5:
            sigma = rng.uniform(0, a.blur)
            x = ndimage.gaussian_filter(x, (0, sigma, sigma), mode="mirror", truncate=3)
        if a.noise and rng.random() < 0.5:
            noise = rng.standard_normal(x.shape, dtype=np.float32)
            noise *= top * np.float32(rng.uniform(0, a.noise))
            x += noise
        if dtype in RANGES:
            x = np.rint(np.clip(x, 0, RANGES[dtype])).astype(np.uint8 if dtype == torch.uint8 else np.uint16)
        return torch.from_numpy(np.ascontiguousarray(x))


def build_transforms(
    augment: AugmentConfig, *, value_range: float | None = None, keypoints: KeypointSchema | None = None, mirror: bool = True
) -> RandomPatch:
    """Return the function Sample -> Sample that training applies: a random patch of `augment.patch`, deformed and changed.

    Every field of the Sample moves together and keeps its dtype; objects that are not seen in the patch are dropped, and
    `instance_map` is renumbered to match. `value_range` is the stored value of white (default: of the dtype; 1 for float).
    `keypoints` names the left-right partners that change places in a mirror image. Where the patch leaves the picture, it is
    mirrored; with `mirror=False` the picture is 0 there, class ids are IGNORE, and there are no objects.
    """
    return RandomPatch(augment, value_range, keypoints, mirror)


def _rare_pixel(sample: Sample, rng: np.random.Generator) -> NDArray[np.intp] | None:
    """Draw a class other than the picture's most frequent one, then one of its pixels (y, x); None if there is no other."""
    if sample.semantic is not None:
        classes = sample.semantic.numpy().ravel()
    elif sample.instance_map is not None:
        classes = (sample.instance_map.numpy() > 0).ravel().astype(np.uint8)
    else:
        return None
    counts = np.bincount(classes, minlength=IGNORE + 1)
    counts[IGNORE] = 0
    counts[counts.argmax()] = 0
    rare = np.flatnonzero(counts)
    if not len(rare):
        return None
    pixels = np.flatnonzero(classes == rng.choice(rare))
    return np.array(np.unravel_index(rng.choice(pixels), sample.size))


def _warp_boxes(boxes: tv_tensors.BoundingBoxes | None, warp: Warp) -> tv_tensors.BoundingBoxes | None:
    """Return the smallest boxes in the patch around the moved outlines, (N, 4) xyxy, cut at the patch's border."""
    if boxes is None:
        return None
    t = np.linspace(0, 1, 9, dtype=np.float32)  # places along each side: an elastic deformation bends it
    zero, one = np.zeros_like(t), np.ones_like(t)
    outline = np.stack([np.concatenate([t, one, t, zero]), np.concatenate([zero, t, one, t])], -1)  # (36, 2) of the unit box
    corners = boxes.numpy().astype(np.float32)
    points = corners[:, None, :2] + outline * (corners[:, None, 2:] - corners[:, None, :2])  # (N, 36, 2)
    moved = warp.points(points.reshape(-1, 2)).reshape(points.shape)
    height, width = warp.patch
    limits = np.array([width, height], np.float32)
    moved = np.concatenate([np.clip(moved.min(1), 0, limits), np.clip(moved.max(1), 0, limits)], -1)
    return tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]
        torch.from_numpy(moved), format="XYXY", canvas_size=warp.patch
    )


def _drop_unseen(sample: Sample) -> Sample:
    """Keep the objects that have a pixel in the patch (without masks: a box of some area), and tighten boxes to the pixels."""
    if sample.masks is not None:
        seen = sample.masks.flatten(1).any(1).as_subclass(Tensor)
    elif sample.instance_map is not None:
        count = int(sample.instance_map.max()) if sample.labels is None else len(sample.labels)
        seen = torch.from_numpy(np.bincount(sample.instance_map.numpy().ravel(), minlength=count + 1)[1:] > 0)
    elif sample.boxes is not None:
        seen = (sample.boxes[:, 2:] - sample.boxes[:, :2]).as_subclass(Tensor).amin(1) > 0
    else:
        return sample
    for name in ("masks", "boxes", "labels", "crowd", "keypoints", "visibility"):
        value: Tensor | None = getattr(sample, name)
        if value is not None:
            setattr(sample, name, _wrap(value.as_subclass(Tensor)[seen], value))
    if sample.instance_map is not None:
        numbers = np.concatenate([[0], (seen.cumsum(0) * seen).numpy()]).astype(np.int32)
        sample.instance_map = tv_tensors.Mask(torch.from_numpy(numbers[sample.instance_map.numpy()]))
    if sample.boxes is not None:
        sample.boxes = _wrap(_tight_boxes(sample, sample.boxes.as_subclass(Tensor)), sample.boxes)
    return sample


def _tight_boxes(sample: Sample, boxes: Tensor) -> Tensor:
    """Return the boxes around the pixels of the objects, (N, 4); `boxes` themselves where the pixels are not known."""
    if sample.masks is not None:
        corners = masks_to_boxes(sample.masks.as_subclass(Tensor))
    elif sample.instance_map is not None:
        places = ndimage.find_objects(sample.instance_map.numpy())
        corners = torch.tensor([(x.start, y.start, x.stop - 1, y.stop - 1) for y, x in places]).reshape(-1, 4)
    else:
        return boxes
    return (corners + torch.tensor([0, 0, 1, 1])).to(boxes.dtype)


def _wrap(value: Tensor, like: Tensor) -> Any:
    return tv_tensors.wrap(value, like=like)  # pyright: ignore[reportCallIssue]

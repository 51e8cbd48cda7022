"""Random changes of a training picture and of everything known about it, together, in one resampling per patch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torchvision import tv_tensors

from delineate.config import AugmentConfig
from delineate.data.elastic import draw_elastic
from delineate.data.moving import move_sample
from delineate.data.sample import IGNORE, Sample
from delineate.data.warp import Floats, Warp
from delineate.skeleton import KeypointSchema

RANGES = {torch.uint8: 255.0, torch.uint16: 65535.0}


@dataclass(frozen=True, slots=True)
class RandomPatch:
    """Cuts a random patch out of a picture, deformed and changed as `augment` says. Made by `build_transforms`."""

    augment: AugmentConfig
    value_range: float | None = None
    keypoints: KeypointSchema | None = None
    mirror: bool = True

    def __call__(
        self, sample: Sample, rng: np.random.Generator | None = None, point: tuple[float, float] | None = None
    ) -> Sample:
        """Return the patch of `sample`; the same generator state gives the same patch, without one it is a fresh draw.

        With a `point` (y, x) of the picture the patch shows it, anywhere in its middle half.
        """
        rng = np.random.default_rng() if rng is None else rng
        warp = self._draw_warp(sample, rng, point)
        moved = move_sample(sample, warp, keypoints=self.keypoints, mirror=self.mirror)
        image = change_colours(moved.image, sample.image.dtype, self.augment, rng, white=self.value_range)
        return replace(moved, image=tv_tensors.Image(image))

    def _draw_warp(self, sample: Sample, rng: np.random.Generator, point: tuple[float, float] | None = None) -> Warp:
        a = self.augment
        turn = draw_turn(a, rng)
        zoom = np.exp(rng.uniform(*np.log(a.scale))) if a.scale[0] < a.scale[1] else a.scale[0]
        extent = np.abs(turn) @ np.array(a.patch, np.float32) / zoom  # of the picture that the patch covers, before `rotate`
        angle = np.deg2rad(rng.uniform(-a.rotate, a.rotate)) if a.rotate else 0.0
        rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)
        centre = self._draw_corner(sample, extent, rng, point) + (extent - 1) / 2
        elastic = draw_elastic(rng, a.elastic, a.patch) if a.elastic else None
        return Warp(a.patch, sample.size, rotation @ turn / np.float32(zoom), centre.astype(np.float32), elastic)

    def _draw_corner(
        self, sample: Sample, extent: NDArray[np.float32], rng: np.random.Generator, point: tuple[float, float] | None
    ) -> NDArray[np.float64]:
        """Draw the upper left corner, in whole pixels, of the part of `extent` that is cut; negative where it is too large."""
        room = np.array(sample.size) - extent
        low, high = np.ceil(np.minimum(room, 0)), np.floor(np.maximum(room, 0))
        if point is not None:
            return np.clip(np.rint(np.array(point) - (extent - 1) * rng.uniform(0.25, 0.75, 2)), low, high)
        pixel = _rare_pixel(sample, rng) if rng.random() < self.augment.foreground else None
        if pixel is not None:
            return np.clip(np.rint(pixel - (extent - 1) / 2), low, high)
        return rng.integers(low.astype(int), high.astype(int), endpoint=True).astype(float)


def draw_turn(augment: AugmentConfig, rng: np.random.Generator) -> Floats:
    """Draw flips and quarter turns: the (2, 2) matrix, on (y, x), from the directions of the patch to those of the picture."""
    turn = np.eye(2, dtype=np.float32)
    if rng.random() < augment.flip_horizontal:
        turn[:, 1] *= -1
    if rng.random() < augment.flip_vertical:
        turn[:, 0] *= -1
    if augment.rotate90:
        turn = np.linalg.matrix_power(np.array([[0, 1], [-1, 0]], np.float32), int(rng.integers(4))) @ turn
    return turn


def change_colours(
    image: Tensor, dtype: torch.dtype, augment: AugmentConfig, rng: np.random.Generator, *, white: float | None = None
) -> Tensor:
    """Change brightness, contrast and gamma, blur and add noise; (C, h, w) float32 in, the stored `dtype` out.

    `white` is the stored value of white, as far as `dtype` holds it; None: that of `dtype`, 1 for float. Noise and blur touch
    every second patch, so that the network also sees pictures as they are. `image` is overwritten.
    """
    a, x = augment, image.numpy()
    top = np.float32(min(white or math.inf, RANGES.get(dtype, white or 1.0)))
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

"""Random resizing of pictures for detectors: the shortest side to one of several lengths, or large-scale jitter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from delineate.config import AugmentConfig
from delineate.data.moving import move_sample
from delineate.data.sample import Sample
from delineate.data.transforms import draw_turn
from delineate.data.warp import Warp
from delineate.skeleton import KeypointSchema
from delineate.weights.conventions import Resize


@dataclass(frozen=True, slots=True)
class RandomResize:
    """Resizes and flips a picture, in one resampling.

    Without `augment.jitter` the shorter side becomes one of `augment.shortest` (default: `resize.shortest`), the longer one at
    most `resize.longest`. With it, large-scale jitter (Ghiasi et al. 2021, "Simple Copy-Paste", section 3): the picture is
    fitted into `augment.patch` times a factor from the range `augment.jitter`, and where it is then larger than the patch, a
    random part of that size is cut out. A smaller one stays small: what fills up the batch is no part of the picture.
    """

    augment: AugmentConfig
    resize: Resize
    keypoints: KeypointSchema | None = None

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return the changed `sample`, its image float32 and not rounded, its outlines `masks`."""
        moved = move_sample(sample, self.draw(sample.size, rng), keypoints=self.keypoints, sharp_boxes=True)
        if moved.instance_map is not None:
            numbers = torch.arange(1, len(moved.labels if moved.labels is not None else ()) + 1)
            masks = tv_tensors.Mask(moved.instance_map == numbers[:, None, None])
            moved = replace(moved, instance_map=None, masks=masks)
        return moved

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> Warp:
        """Draw the map from the pixels of the new picture to those of a picture of `size`."""
        turn = draw_turn(self.augment, rng)
        turned = np.abs(turn).T @ np.array(size)  # height and width after quarter turns
        whole = self._draw_size(turned, rng)
        shown = np.minimum(whole, self.augment.patch) if self.augment.jitter is not None else whole
        corner = rng.integers(0, whole - shown, endpoint=True)
        matrix = (turn * (turned / whole)).astype(np.float32)  # column by column: a direction of the patch each
        centre = (np.array(size) - 1) / 2 + matrix @ (corner + (shown - 1) / 2 - (whole - 1) / 2)
        return Warp((int(shown[0]), int(shown[1])), size, matrix, centre.astype(np.float32))

    def _draw_size(self, size: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw height and width of the whole resized picture."""
        a = self.augment
        if a.jitter is not None:
            factor = rng.uniform(*a.jitter) * (np.array(a.patch) / size).min()
            return np.maximum(1, np.rint(size * factor)).astype(np.int64)
        shortest = int(rng.choice(a.shortest)) if a.shortest else self.resize.shortest
        return np.array(replace(self.resize, shortest=shortest).new_size((int(size[0]), int(size[1]))))

"""`KeypointSchema`: which keypoints an object has, and how they belong together."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeypointSchema:
    """The skeleton that a data set defines."""

    names: tuple[str, ...]
    edges: tuple[tuple[int, int], ...] = ()  # pairs of indices into names
    flip_pairs: tuple[tuple[int, int], ...] = ()  # left and right partners
    sigmas: tuple[float, ...] = ()  # OKS falloff of each keypoint; empty: not known

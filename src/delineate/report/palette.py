"""Colours for classes and objects: distinct from one another, for colour-blind eyes too, and the same in every drawing."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Color = tuple[int, int, int]

BACKGROUND: Color = (0, 0, 0)
IGNORED: Color = (128, 128, 128)

# Okabe and Ito, "Color Universal Design" (2008): colours that the common forms of colour blindness keep apart; black left out.
_OKABE_ITO: tuple[Color, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
# How linear RGB looks without red or without green cones: Machado, Oliveira and Fernandes (2009), table 1, severity 1.
_PROTANOPIA = np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]])
_DEUTERANOPIA = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]])


def palette(count: int) -> tuple[Color, ...]:
    """Return `count` RGB colours (0 to 255): black for the background, then one for each class or object.

    The first colours do not depend on `count`: class 3 has one colour in every drawing. After Okabe and Ito's seven, each next
    colour is the one farthest, in CIELAB, from all before it, as normal, protanope and deuteranope eyes see it. From 256 on the
    colours repeat.

    >>> palette(3)
    ((0, 0, 0), (230, 159, 0), (86, 180, 233))
    """
    colors = _distinct_colors()
    return (BACKGROUND, *(colors[index % len(colors)] for index in range(count - 1)))[: max(count, 0)]


def object_color(index: int) -> Color:
    """The colour of object `index`: one of 64, which are far apart, where 255 would be close."""
    return palette(2 + index % 64)[-1]


@lru_cache(maxsize=1)
def _distinct_colors(count: int = 255) -> tuple[Color, ...]:
    levels = np.linspace(0, 255, 13).round()
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lightness, a, b = _to_lab(_to_linear(grid)).T
    candidates = grid[(lightness > 38) & (lightness < 93) & (np.hypot(a, b) > 28)]  # no greys: grey means "ignored"
    views = _views(candidates)
    distance = np.full(len(candidates), np.inf)
    chosen = [*_OKABE_ITO]
    for seen in _views(np.array([BACKGROUND, IGNORED, *_OKABE_ITO])).swapaxes(0, 1):
        distance = np.minimum(distance, _difference(views, seen))
    while len(chosen) < count:
        best = int(distance.argmax())
        chosen.append((int(candidates[best, 0]), int(candidates[best, 1]), int(candidates[best, 2])))
        distance = np.minimum(distance, _difference(views, views[:, best]))
    return tuple(chosen)


def _views(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIELAB of (N, 3) colours 0..255 as seen by normal, protanope and deuteranope eyes: (3, N, 3)."""
    linear = _to_linear(rgb)
    return np.stack(
        [_to_lab(linear), _to_lab((linear @ _PROTANOPIA.T).clip(0, 1)), _to_lab((linear @ _DEUTERANOPIA.T).clip(0, 1))]
    )


def _difference(views: NDArray[np.float64], seen: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the normal difference and of the worst one: colours must part for everybody, but hue is not thrown away."""
    per_view = np.linalg.norm(views - seen[:, None], axis=-1)  # (3, N)
    return (per_view[0] + per_view.min(0)) / 2


def _to_linear(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    scaled = np.asarray(rgb, np.float64) / 255
    return np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)


def _to_lab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIELAB (D65) of linear sRGB; skimage.color does the same, but takes half a second to import."""
    to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
    relative = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    f = np.where(relative > 0.008856, np.cbrt(relative), 7.787 * relative + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)

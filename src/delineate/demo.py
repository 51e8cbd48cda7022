"""`delineate demo`: a real photograph, start to finish, on the same path as a user's own data."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from delineate.errors import DelineateError
from delineate.files import atomic_path, write_json, write_text

if TYPE_CHECKING:
    from delineate.train.plan import Plan

CUT = 150
"""The row of the photograph between the second and the third row of coins: above it is trained, below it nothing is seen."""


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Where everything lies, and how good it is."""

    data: Path
    run: Path
    predictions: Path
    report: Path
    iou: float  # of the coins' pixels in the unseen half
    found: int  # coins of the unseen half that a predicted object matches with IoU > 0.5
    coins: int  # in the unseen half
    seconds: float


def coin_photograph() -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """Return scikit-image's photograph of coins (303, 384) uint8 and our map of its 24 coins (303, 384), 0 = background.

    Both come with the installed packages; nothing is downloaded. Coins are numbered row by row, as the outlines in
    `demo_data/coins.json` are.

    >>> photograph, coins = coin_photograph()
    >>> photograph.shape == coins.shape, int(coins.max())
    (True, 24)
    """
    from skimage.data import coins as load_photograph

    from delineate.data.raster import decode_rle, segmentation_rle

    photograph = load_photograph()
    content = json.loads((files("delineate") / "demo_data" / "coins.json").read_text(encoding="utf-8"))
    objects = np.zeros(photograph.shape, np.uint16)
    for annotation in content["annotations"]:
        outline = tuple(annotation["segmentation"])
        objects[decode_rle(segmentation_rle(outline, photograph.shape))] = annotation["id"]
    return photograph, objects


def write_demo_data(folder: Path) -> Path:
    """Write the upper half of the photograph to `train/`, the lower, unseen half to `val/`, each with its map of coins."""
    photograph, objects = coin_photograph()
    for split, rows in (("train", slice(None, CUT)), ("val", slice(CUT, None))):
        name = f"coins_{'upper' if split == 'train' else 'lower'}.png"
        _write_png(folder / split / "images" / name, photograph[rows])
        _write_png(folder / split / "instances" / name, objects[rows])
    write_text(folder / "classes.txt", "coin\n")
    return folder


def _write_png(path: Path, pixels: NDArray[Any]) -> None:
    from PIL import Image

    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary)

"""Masks to polygons along pixel edges and back: exact, for COCO's rasteriser and for an independent one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import label as label_pieces
from skimage.draw import polygon2mask

from delineate.data.geometry import crosses_itself, polygon_area
from delineate.data.outlines import polygons_to_mask
from delineate.data.raster import decode_rle, encode_mask, rle_area, rle_box, union_area
from delineate.errors import DataError
from delineate.ops.polygons import mask_to_polygons, rle_polygons
from delineate.ops.rle import encode_rle

masks = arrays(bool, st.tuples(st.integers(1, 14), st.integers(1, 14)))


def parity(polygons: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    """Fill by the even-odd rule from the vertical edges: exact for polygons along pixel edges."""
    toggles = np.zeros((size[0], size[1] + 1), int)
    for polygon in polygons:
        points = np.reshape(polygon, (-1, 2)).astype(int)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
            assert (x0 == x1) != (y0 == y1)
            if x0 == x1:
                toggles[min(y0, y1) : max(y0, y1), x0] += 1
    return np.cumsum(toggles, 1)[:, :-1] % 2 == 1


@settings(deadline=None)
@given(masks)
def test_outlines_fill_to_the_mask(mask: np.ndarray) -> None:
    outer, holes = mask_to_polygons(mask)
    assert np.array_equal(parity(outer + holes, mask.shape), mask)
    eight, four = np.ones((3, 3)), None
    assert len(outer) == label_pieces(mask, eight)[1]
    padded = np.pad(~mask, 1, constant_values=True)
    assert len(holes) == label_pieces(padded, four)[1] - 1


@settings(deadline=None)
@given(masks)
def test_cocos_rasteriser_gives_each_piece_back(mask: np.ndarray) -> None:
    outer, holes = mask_to_polygons(mask)
    for polygon in outer + holes:
        assert np.array_equal(polygons_to_mask([polygon], mask.shape), parity([polygon], mask.shape))


@settings(deadline=None, max_examples=30)
@given(masks)
def test_scikit_image_fills_each_piece_the_same(mask: np.ndarray) -> None:
    for polygon in mask_to_polygons(mask)[0]:
        if not crosses_itself(polygon):
            points = np.reshape(polygon, (-1, 2))[:, ::-1] - 0.5  # its pixel centres lie at whole numbers
            assert np.array_equal(polygon2mask(mask.shape, points), parity([polygon], mask.shape))


def test_of_nothing_and_of_everything() -> None:
    assert mask_to_polygons(np.zeros((3, 4), bool)) == ([], [])
    assert mask_to_polygons(np.ones((3, 4), bool)) == ([[0, 0, 4, 0, 4, 3, 0, 3]], [])
    assert not polygons_to_mask([], (3, 4)).any()
    with pytest.raises(DataError, match="pairs"):
        polygons_to_mask([[0, 0, 1, 1, 2, 2, 3]], (3, 4))


@settings(deadline=None)
@given(masks, masks)
def test_run_length_codes(first: np.ndarray, second: np.ndarray) -> None:
    assert np.array_equal(decode_rle(encode_mask(first)), first)
    assert rle_area(encode_mask(first)) == first.sum()
    if first.shape == second.shape:
        assert union_area([encode_mask(first), encode_mask(second)]) == (first | second).sum()
    if first.any():
        rows, columns = np.nonzero(first)
        assert rle_box(encode_mask(first)) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_area_and_crossing() -> None:
    assert polygon_area([0, 0, 4, 0, 0, 3]) == 6
    assert polygon_area([1e6, 1e6, 1e6 + 4, 1e6, 1e6, 1e6 + 3]) == pytest.approx(6)
    circle = np.linspace(0, 2 * np.pi, 1500, endpoint=False)
    points = np.stack([np.cos(circle), np.sin(circle)], 1)
    assert not crosses_itself(points.ravel().tolist())
    points[[10, 700]] = points[[700, 10]]
    assert crosses_itself(points.ravel().tolist())
    assert not crosses_itself([0, 0, 1, 0, 1, 1, 2, 1, 2, 2, 1, 2, 1, 1, 0, 1])  # two pixels that meet at a corner


@given(masks)
@settings(max_examples=50, deadline=None)
def test_outlines_of_a_code_are_those_of_its_mask(mask: np.ndarray) -> None:
    wide = np.pad(mask, ((3, 1), (2, 5)))
    for pixels in (mask, wide):
        assert rle_polygons(encode_rle(torch.from_numpy(pixels)[None])[0]) == mask_to_polygons(pixels)

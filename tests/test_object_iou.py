"""IoU matrices of masks: equal to counting pixels and to pycocotools, with crowds, beyond 255 masks, empty and mismatched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from delineate.errors import DataError
from delineate.metrics.object_iou import mask_areas, mask_codes, mask_iou

coco: Any = coco_mask


def stacks(most: int = 4) -> st.SearchStrategy[NDArray[np.bool_]]:
    return st.integers(0, most).flatmap(lambda n: hnp.arrays(np.bool_, (n, 5, 7)))


@given(stacks(), stacks(), st.data())
def test_equals_counted_pixels_and_pycocotools(a: NDArray, b: NDArray, data: st.DataObject) -> None:
    crowd = data.draw(st.lists(st.booleans(), min_size=len(b), max_size=len(b)))
    shared = np.einsum("ahw,bhw->ab", a.astype(int), b.astype(int))
    areas_a, areas_b = a.sum(axis=(1, 2))[:, None], b.sum(axis=(1, 2))[None]
    whole = np.where(crowd, areas_a + 0 * areas_b, areas_a + areas_b - shared)
    iou = mask_iou(a, b, crowd)
    np.testing.assert_array_equal(iou, shared / np.maximum(whole, 1))
    np.testing.assert_array_equal(mask_iou(mask_codes(a), torch.from_numpy(b), crowd), iou)
    if len(a) and len(b):
        theirs = coco.iou(coco.encode(_fortran(a)), coco.encode(_fortran(b)), crowd)
        np.testing.assert_array_equal(iou, theirs)
        assert [code["counts"] for code in mask_codes(a)] == [code["counts"] for code in coco.encode(_fortran(a))]


def _fortran(stack: NDArray) -> NDArray[np.uint8]:
    return np.asfortranarray(stack.transpose(1, 2, 0).astype(np.uint8))


def test_areas_of_more_than_255_masks() -> None:
    """pycocotools' area of a list overflows there with NumPy 2."""
    stack = np.random.default_rng(0).random((300, 40, 40)) < 0.5
    codes = coco.encode(_fortran(stack))
    with pytest.raises(OverflowError):
        coco.area(codes)
    np.testing.assert_array_equal(mask_areas(codes), stack.sum(axis=(1, 2)))
    np.testing.assert_array_equal(np.diag(mask_iou(codes, stack)), np.ones(300))


def test_other_integers_and_lists() -> None:
    stack = np.zeros((2, 4, 4), np.int32)
    stack[0, :2], stack[1, 1:3] = 256, 7  # 256 is 0 in a byte
    np.testing.assert_allclose(mask_iou(list(stack), stack), [[1, 1 / 3], [1 / 3, 1]])
    uncompressed: list[dict[str, Any]] = [{"size": [4, 4], "counts": [0, 2, 2, 2, 2, 2, 2, 2, 2]}]
    assert mask_iou(uncompressed, stack)[0, 0] == 1.0


def test_what_cannot_be_compared() -> None:
    """pycocotools gives -1 or nonsense for masks of two sizes."""
    with pytest.raises(DataError, match="different sizes"):
        mask_iou(np.ones((1, 3, 4)), np.ones((1, 4, 3)))
    with pytest.raises(ValueError, match="crowd has 1 entries for 2"):
        mask_iou(np.ones((1, 3, 4)), np.ones((2, 3, 4)), crowd=[True])
    with pytest.raises(ValueError, match="shape"):
        mask_iou(np.ones((3, 4)), np.ones((1, 3, 4)))
    assert mask_iou(np.ones((0, 3, 4)), []).shape == (0, 0)

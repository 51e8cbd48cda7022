"""The native kernels against their twins in NumPy, and the build without them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delineate.ops import native

needs_kernels = pytest.mark.skipif(not native.available, reason="built without a compiler, or switched off")


def test_the_environment_switches_the_kernels_off() -> None:
    code = "from delineate.ops import native; print(native.available)"
    output = subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "DELINEATE_NATIVE": "0"}, text=True)
    assert output.strip() == "False"


@needs_kernels
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_joint_histogram_counts_pairs(data: st.DataObject) -> None:
    """Every pair of integer types, with values on both sides of the table."""
    side = data.draw(st.integers(1, 40))
    dtypes = st.sampled_from("?bBhHiIqQ")
    seed = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    size = data.draw(st.sampled_from([0, 1, 5, 4095, 4097, 30000]))

    def draw(code: str) -> np.ndarray:
        low, high = (0, 1) if code == "?" else (np.iinfo(code).min, np.iinfo(code).max)
        ids = seed.integers(max(low, -3), min(high, side + 3), size, endpoint=True).astype(code)
        ids[seed.random(size) < 0.1] = low
        ids[seed.random(size) < 0.1] = high
        return ids

    rows, columns = draw(data.draw(dtypes)), draw(data.draw(dtypes))
    expected = np.zeros((side, side), np.int64)
    inside = [np.array([v if 0 <= v < side else side - 1 for v in x.astype(object)], int) for x in (rows, columns)]
    np.add.at(expected, tuple(inside), 1)
    np.testing.assert_array_equal(native.joint_histogram(rows, columns, side), expected)


@needs_kernels
def test_joint_histogram_of_strided_arrays_and_wrong_ones() -> None:
    ids = np.arange(24).reshape(4, 6) % 5
    counts = native.joint_histogram(ids[::2, ::-1], ids[::2, ::-1], 6)
    np.testing.assert_array_equal(counts.diagonal(), np.bincount(ids[::2].ravel(), minlength=6))
    with pytest.raises(ValueError, match="one size"):
        native.joint_histogram(ids, ids[:2], 6)
    with pytest.raises(ValueError, match="4096"):
        native.joint_histogram(ids, ids, 5000)
    with pytest.raises(ValueError, match="integers"):
        native.joint_histogram(ids.astype(float), ids, 6)

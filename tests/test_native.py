"""The native kernels against their twins in NumPy, and the build without them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from delineate.ops import native

needs_kernels = pytest.mark.skipif(not native.available, reason="built without a compiler, or switched off")


def test_the_environment_switches_the_kernels_off() -> None:
    code = "from delineate.ops import native; print(native.available)"
    output = subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "DELINEATE_NATIVE": "0"}, text=True)
    assert output.strip() == "False"


def code(value: int, classes: int, ignored: int | None) -> int:
    """The definition of the histogram's rows and columns."""
    return classes if value == ignored else value if 0 <= value < classes else classes + 1


@needs_kernels
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_joint_histogram_counts_pairs(data: st.DataObject) -> None:
    """Every pair of integer types, with ids that are no class, and ignored ids that are one."""
    classes = data.draw(st.integers(1, 40))
    ignored = data.draw(st.sampled_from([None, 0, classes - 1, classes, 255, 65535]))
    dtypes = st.sampled_from("?bBhHiIqQ")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    size = data.draw(st.sampled_from([0, 1, 5, 4095, 4097, 30000]))

    def draw(dtype: str) -> np.ndarray:
        low, high = (0, 1) if dtype == "?" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        ids = rng.integers(max(low, -3), min(high, classes + 3), size, endpoint=True).astype(dtype)
        for value in (low, high, *([ignored] if ignored is not None and ignored <= high else [])):
            ids[rng.random(size) < 0.1] = value
        return ids

    truth, prediction = draw(data.draw(dtypes)), draw(data.draw(dtypes))
    expected = np.zeros((classes + 2, classes + 2), np.int64)
    rows = [code(int(v), classes, ignored) for v in truth]
    columns = [code(int(v), classes, None) for v in prediction]
    np.add.at(expected, (np.array(rows, int), np.array(columns, int)), 1)
    np.testing.assert_array_equal(native.joint_histogram(truth, prediction, classes, ignored), expected)


@needs_kernels
def test_joint_histogram_of_strided_arrays_and_wrong_ones() -> None:
    ids = np.arange(24).reshape(4, 6) % 5
    counts = native.joint_histogram(ids[::2, ::-1], ids[::2, ::-1].astype(">i4"), 5)
    np.testing.assert_array_equal(counts.diagonal()[:5], np.bincount(ids[::2].ravel(), minlength=5))
    with pytest.raises(ValueError, match="one size"):
        native.joint_histogram(ids, ids[:2], 6)
    with pytest.raises(ValueError, match="4094"):
        native.joint_histogram(ids, ids, 5000)
    with pytest.raises(ValueError, match="integers"):
        native.joint_histogram(ids.astype(float), ids, 6)


@needs_kernels
def test_joint_histogram_does_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, prediction = np.random.default_rng(0).integers(0, 30, (2, 1000, 1000), np.uint8)
    counts = native.joint_histogram(truth, prediction, 30)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    np.testing.assert_array_equal(native.joint_histogram(truth, prediction, 30), counts)
    assert counts.sum() == 10**6

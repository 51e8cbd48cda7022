"""The native CPU kernels, and whether there are any: `available` is False where the package was built without a compiler.

The environment variable DELINEATE_NATIVE chooses: 0 switches the kernels off, and a path names another build of the module, as
`make sanitize` does. Callers ask `available` when they run, so that tests may switch it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def _load(choice: str | None) -> ModuleType | None:
    if choice == "0":
        return None
    if choice in (None, "", "1"):
        try:
            return importlib.import_module("delineate._native")
        except ModuleNotFoundError:  # built without a compiler; a module that is there but broken raises
            return None
    spec = importlib.util.spec_from_file_location("delineate._native", choice)
    if spec is None or spec.loader is None:
        raise ImportError(f"DELINEATE_NATIVE is {choice!r}, expected 0, 1 or the path of a built module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kernels: Any = _load(os.environ.get("DELINEATE_NATIVE"))
"""The compiled module, or None. Its functions take contiguous CPU arrays or tensors and write into the caller's."""

available: bool = kernels is not None

MOST_CLASSES = 4094
"""Of a joint histogram: with more the counts of each thread would no longer be small."""


def joint_histogram(
    truth: NDArray[Any], prediction: NDArray[Any], num_classes: int, ignore_index: int | None = None
) -> NDArray[np.int64]:
    """Count the pixels of each pair (true id, predicted id): int64 (K + 2, K + 2) for K classes, truth first.

    The arrays hold integers or booleans and have one size. Row K counts the pixels whose truth is `ignore_index`, even if that
    is a class, row and column K + 1 all ids that are no class. Raises ValueError for other arrays and more than `MOST_CLASSES`.

    >>> joint_histogram(np.array([0, 255, 7]), np.array([0, 0, -1]), 1, 255).tolist()  # doctest: +SKIP
    [[1, 0, 0], [1, 0, 0], [0, 0, 1]]
    """
    joint = np.zeros((num_classes + 2, num_classes + 2), np.int64)
    kernels.joint_histogram(_plain(truth), _plain(prediction), ignore_index, joint, torch.get_num_threads())
    return joint


def _plain(ids: NDArray[Any]) -> NDArray[Any]:
    """The same numbers, contiguous, in this machine's byte order, booleans as bytes."""
    native_order = np.ascontiguousarray(ids, ids.dtype.newbyteorder("="))
    return native_order.view(np.uint8) if ids.dtype == bool else native_order

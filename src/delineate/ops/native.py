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


def joint_histogram(rows: NDArray[Any], columns: NDArray[Any], side: int) -> NDArray[np.int64]:
    """Count how often each pair of values meets: int64 (side, side), rows first.

    `rows` and `columns` are arrays of integers or booleans of one size. Values outside 0..side-2 are counted under side-1.
    Raises ValueError for arrays of two sizes, and for a side above 4096: the counts of each thread would no longer be small.
    """
    joint = np.zeros((side, side), np.int64)
    flat = (np.ascontiguousarray(x).reshape(-1) for x in (rows, columns))
    kernels.joint_histogram(*(x.view(np.uint8) if x.dtype == bool else x for x in flat), joint, torch.get_num_threads())
    return joint

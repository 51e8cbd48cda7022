"""Triton's compiler, where it is installed; elsewhere `available` is False, and modules of kernels can still be imported."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

triton: Any = None
tl: Any = None  # untyped: Triton's own compiler checks its types; to Python's, constants and tensors look alike
with suppress(ModuleNotFoundError):  # PyTorch brings it on Linux only
    triton, tl = importlib.import_module("triton"), importlib.import_module("triton.language")

available: bool = triton is not None and torch.version.hip is None
"""AMD's GPUs are "cuda" too, and untried."""

EXACT: dict[str, Any] = {"enable_fp_fusion": False}
"""Of launches: no fused multiply-adds, so that kernels round as the plain forms do."""


def jit(*counts: str) -> Callable[[Callable[..., Any]], Any]:
    """Decorate what Triton compiles, which it shall not do anew for certain values (1, multiples of 16) of `counts`."""

    def decorate(function: Callable[..., Any]) -> Any:
        return triton.jit(do_not_specialize=list(counts))(function) if available else function

    return decorate


def power_of_two(number: int) -> int:
    """The next power of two.

    >>> [power_of_two(n) for n in (1, 2, 3, 64, 65)]
    [1, 2, 4, 64, 128]
    """
    return 1 << (number - 1).bit_length()

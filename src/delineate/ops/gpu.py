"""Which operations have a kernel on a tensor's GPU. As with the native kernels, callers ask when they run."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from torch import Tensor


def wanted(tensor: Tensor) -> bool:
    """Whether a Triton kernel shall compute; those take no float64."""
    return tensor.device.type == "cuda" and tensor.dtype != torch.float64


def kernels(concept: str, *tensors: Tensor) -> ModuleType | None:
    """The module of a concept's Triton kernels, loaded when they are first wanted, or None: for all tensors, or for none."""
    if not all(map(wanted, tensors)):
        return None
    module = importlib.import_module(f"delineate.ops.{concept}_triton")
    return module if module.available else None

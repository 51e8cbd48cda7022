"""Which device to compute on, and in which precision."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import torch

from delineate.errors import ConfigError

Precision = Literal["fp32", "bf16", "fp16"]
C = TypeVar("C", bound=Callable[..., Any])

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device called `name`: auto (CUDA, else MPS, else the CPU), cpu, cuda, cuda:N or mps.

    Raises `ConfigError` for a name that is not known, or a device that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device '{name}' is unknown; expected auto, cpu, cuda, cuda:N or mps") from error
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}.get(device.type, 0)
    if (device.index or 0) >= count:
        raise ConfigError(f"device '{name}': this machine has {count} devices of type {device.type}; take auto or cpu")
    return device


def pick_precision(name: str, device: torch.device) -> Precision:
    """Return the precision called `name`: fp32, bf16, fp16, or auto: bf16 where `device` computes it fast, else fp32.

    Raises `ConfigError` for an unknown one, and for fp16 on a CPU.
    """
    if name == "auto":
        return "bf16" if has_fast_bf16(device) else "fp32"
    if name not in DTYPES:
        raise ConfigError(f"precision '{name}' is unknown; expected auto, {', '.join(DTYPES)}")
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("precision 'fp16' is not for CPUs; take bf16 or auto")
    return name


def has_fast_bf16(device: torch.device) -> bool:
    """Whether `device` has bfloat16 arithmetic: CUDA from compute capability 8 on, CPUs with AMX or AVX-512 BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    checks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(check() for check in checks if check is not None)


def compiled(model: C, device: torch.device, *, dynamic: bool | None = None) -> C:
    """Return `model`, a network or one of its methods, compiled by torch.compile; itself it stays as it is.

    `dynamic`: for any size at once, and not for the first alone. Raises `ConfigError` where there is no C++ compiler for a CPU.
    """
    compilers = (os.environ.get("CXX"), "g++", "clang++", "cl")
    if device.type == "cpu" and not any(shutil.which(name) for name in compilers if name):
        raise ConfigError("compile needs a C++ compiler on a CPU, and none is found; install g++, or do without compile")
    return cast("C", torch.compile(model, dynamic=dynamic))

"""How much memory a training step takes, and how much there is: measured, so that no batch is proposed that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

Forward = Callable[[], Tensor]

# Beyond what autograd keeps: gradients of the largest activations, the workspaces of convolutions and the allocator's slack.
# With both, nine U-Nets (16 to 64 channels, ResNet-34, fp32 and bf16, CPU) peaked at 0.5 to 0.9 of the estimate.
_SLACK = 1.8
_WORKSPACE = 128 << 20


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes that training takes: once for the network, and again for each picture of the batch."""

    fixed: int
    per_picture: int

    def total(self, batch: int) -> int:
        """Bytes of a step with `batch` pictures.

        >>> StepMemory(fixed=100, per_picture=10).total(4)
        140
        """
        return self.fixed + batch * self.per_picture

    def largest_batch(self, budget: float) -> int:
        """Most pictures whose step stays within `budget` bytes; 0 where not even one does.

        >>> StepMemory(fixed=100, per_picture=10).largest_batch(175)
        7
        """
        return max(0, int((budget - self.fixed) // self.per_picture))


def saved_bytes(forward: Forward, model: nn.Module) -> int:
    """Bytes of activations that autograd keeps between `forward()`, which returns the loss, and its backward pass.

    Counted exactly, each storage once and without the parameters, through `torch.autograd.graph.saved_tensors_hooks`; precision
    and checkpointing are thereby taken as they are.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # autograd holds it, so its address stays unique until the graph is gone

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), torch.enable_grad():
        loss = forward()
    total = sum(kept.values())
    del loss
    return total


def model_bytes(model: nn.Module, *, optimizer_slots: int, averaged: bool) -> int:
    """Bytes of weights, gradients, `optimizer_slots` numbers a weight (SGD 1, AdamW 2) and, if `averaged`, the EMA's copy."""
    copies = 2 + optimizer_slots + int(averaged)
    return copies * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def step_memory(
    forward: Forward, model: nn.Module, *, scale: float = 1.0, optimizer_slots: int = 2, averaged: bool = True
) -> StepMemory:
    """Measure the memory of training steps; `forward()` returns the loss of one picture.

    `scale` is the number of pixels of a picture in training over the number in `forward`. An allowance for workspaces is
    included.
    """
    fixed = _WORKSPACE + model_bytes(model, optimizer_slots=optimizer_slots, averaged=averaged)
    return StepMemory(fixed=fixed, per_picture=max(1, int(_SLACK * scale * saved_bytes(forward, model))))


def available_memory(device: torch.device) -> int:
    """Bytes that `device` has free now; on a CPU also what the process's control group (a container's limit) leaves."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    import psutil

    free = psutil.virtual_memory().available
    limit = cgroup_memory_left()
    return free if limit is None else min(free, limit)


def cgroup_memory_left(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes below the memory limit of this process's control group (version 2, then 1), or None without a limit."""
    for limit_file, usage_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit, usage = (int((root / name).read_text()) for name in (limit_file, usage_file))
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
        if limit < 1 << 60:  # version 1 writes a huge number for "no limit"
            return max(0, limit - usage)
    return None

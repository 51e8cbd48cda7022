"""One optimiser step: forward, loss, backward over the accumulated batches, all processes agreeing on what came of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from delineate.data.batch import Batch, InstanceBatch
from delineate.train.processes import over_processes


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step: the same in all processes."""

    values: dict[str, float]  # "loss" and its terms, mean over the batches and processes
    norm: float  # of the gradient, before clipping
    finite: bool  # False: the weights were left as they were
    stop: bool  # a process was asked to end


def training_step(
    fabric: Fabric,
    model: Any,
    optimizer: Any,
    loss_function: Callable[[Any, Any], tuple[Tensor, dict[str, Tensor]]],
    batches: Sequence[Batch | InstanceBatch],
    *,
    clip_norm: float | None = None,
    stop: bool = False,
) -> StepResult:
    """Change the weights by the mean gradient over `batches`, each of B pictures, and over the processes.

    `model` and `optimizer` are set up by `fabric`; `loss_function(model, batch)` returns the loss and its terms. A loss or
    gradient that is not finite leaves the weights, the optimiser and the running statistics as they were; with fp16 a gradient
    alone is no such case: the loss scaler skips the step and lowers its scale. Returns when the
    step is done, which on a GPU synchronises.
    """
    buffers = [buffer.clone() for buffer in model.buffers()]  # one bad batch would spoil running statistics for good
    optimizer.zero_grad()
    sums = torch.zeros(())
    names: list[str] = []
    for number, batch in enumerate(batches, start=1):
        batch = to_device(batch, fabric.device)
        with fabric.no_backward_sync(model, enabled=number < len(batches)):
            loss, terms = loss_function(model, batch)
            fabric.backward(loss / len(batches))
        names = ["loss", *terms]
        sums = sums.to(fabric.device) + torch.stack([loss.detach(), *terms.values()]).float() / len(batches)
    limit = float("inf") if clip_norm is None else clip_norm
    norm = float(cast("Tensor", fabric.clip_gradients(model, optimizer, max_norm=limit, error_if_nonfinite=False)))
    agreed = over_processes(fabric, torch.cat([sums, torch.tensor([float(stop)], device=sums.device)]), "mean")
    *values, stops = agreed.tolist()
    finite_loss, finite_gradient = all(map(math.isfinite, values)), math.isfinite(norm)
    scaler = getattr(fabric.strategy.precision, "scaler", None)  # fp16 only
    finite = finite_loss and (finite_gradient or (scaler is not None and scaler.get_scale() >= 1))
    if finite:
        optimizer.step()  # the scaler skips it where the gradient is not finite, and lowers its scale
    else:
        _restore(model, buffers)
        if scaler is not None:
            scaler.update()
    return StepResult(dict(zip(names, values, strict=True)), norm, finite, stops > 0)


def to_device(batch: Batch | InstanceBatch, device: torch.device) -> Batch | InstanceBatch:
    """Return the batch on `device`, its pictures channels-last in memory."""
    batch = batch.to(device, non_blocking=True)
    batch.images = batch.images.contiguous(memory_format=torch.channels_last)
    return batch


@torch.no_grad()
def _restore(model: nn.Module, buffers: Sequence[Tensor]) -> None:
    for buffer, former in zip(model.buffers(), buffers, strict=True):
        buffer.copy_(former)

"""The exponential moving average of a network's weights, which is validated and kept in its place."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class AverageModel:
    """A copy of a network whose floating-point tensors follow it: a = d a + (1 - d) w after each step.

    The decay d is min(`decay`, (1 + n) / (10 + n)) after n steps, so that short runs do not average in their random start.
    Running statistics of normalisation are averaged too, so that they fit the averaged weights; other buffers are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follow `model`, a network of the same structure, after an optimiser step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        ours, theirs = _tensors(self.model), _tensors(model)
        floating = [i for i, tensor in enumerate(ours) if tensor.is_floating_point()]
        average = get_ema_multi_avg_fn(decay)
        average([ours[i] for i in floating], [theirs[i] for i in floating], torch.tensor(self.steps))
        for mine, other in zip(ours, theirs, strict=True):
            if not mine.is_floating_point():
                mine.copy_(other)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and the number of steps."""
        return {"model": self.model.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`'s value."""
        self.model.load_state_dict(state["model"])
        self.steps = state["steps"]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*(parameter.detach() for parameter in model.parameters()), *model.buffers()]

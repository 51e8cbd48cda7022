"""Normalisations by name, each a function of the number of channels."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Norm = Callable[[int], nn.Module]  # channels -> normalisation


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics, scale and shift never change: y = (x - mean) / sqrt(var + eps) * weight + bias.

    Its four tensors are buffers under the names that `nn.BatchNorm2d` gives them, without the counter of batches.

    >>> norm = FrozenBatchNorm2d(2, eps=0.0)
    >>> _ = norm.running_mean.fill_(1.0), norm.running_var.fill_(4.0)
    >>> norm(torch.full((1, 2, 1, 1), 5.0)).flatten().tolist()
    [2.0, 2.0]
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()  # (C,)
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None].to(x.dtype) + shift[:, None, None].to(x.dtype)

    def extra_repr(self) -> str:
        return f"{len(self.weight)}, eps={self.eps}"


class InstanceNorm(nn.GroupNorm):
    """Instance normalisation with learned scale and shift, also of a map that is a single pixel (torch's own refuses that).

    It is group normalisation with a group a channel, which reads channels-last maps where `nn.InstanceNorm2d` copies them. Only
    its gradient is slow on CPU, so there each picture of a training batch goes through the batch normalisation of one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.device.type == "cpu":
            return torch.cat([self._normalize_one(picture) for picture in input.split(1)])  # 3 to 18 times as fast
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def _normalize_one(self, picture: Tensor) -> Tensor:
        return torch.batch_norm(picture, self.weight, self.bias, None, None, True, 0.0, self.eps, False)


def group_norm(channels: int, groups: int = 8) -> nn.GroupNorm:
    """Group normalisation with `groups` groups, or as many of them as divide the channels.

    >>> group_norm(12).num_groups
    4
    """
    return nn.GroupNorm(math.gcd(groups, channels), channels)


def normalize_pooled(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply `norm` to vectors (B, C, 1, 1); in training a single one, which has no variance, takes the running statistics.

    Torch's batch normalisation refuses it, though training at batch 1 is common where pictures are large.
    """
    if isinstance(norm, nn.BatchNorm2d) and norm.training and x.shape[0] == 1:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False, eps=norm.eps)
    return norm(x)


NORMS: dict[str, Norm] = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm2d,
    "instance": InstanceNorm,
    "group": group_norm,
}

"""Convolutions whose output is one column wide, which oneDNN gets wrong in 16 bits on a CPU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class NarrowConv2d(nn.Conv2d):
    """A convolution with a stride that is right for outputs one column wide.

    Of these oneDNN computes garbage in bf16 with AMX, another each time (torch 2.15: a 3 x 3 kernel, stride 2, 256 channels,
    22 x 2 pixels). So one column more is computed, which sees zeros, and cut off; no value changes.
    """

    def forward(self, input: Tensor) -> Tensor:
        stride, dilation, kernel = self.stride[1], self.dilation[1], self.kernel_size[1]
        assert isinstance(self.padding, tuple)
        room = input.shape[-1] + 2 * self.padding[1] - dilation * (kernel - 1) - 1
        if not 0 <= room < stride:  # more than one column
            return super().forward(input)
        return super().forward(F.pad(input, (0, stride)))[..., :1]


def allow_narrow_maps(model: nn.Module) -> None:
    """Make the strided convolutions of `model` `NarrowConv2d`s; their weights stay what and where they are."""
    for module in model.modules():
        if type(module) is nn.Conv2d and max(module.stride) > 1 and module.padding_mode == "zeros":
            module.__class__ = NarrowConv2d

"""U-Net as published (Ronneberger, Fischer and Brox 2015): valid convolutions and cropped skip connections."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from delineate.errors import ConfigError
from delineate.models.semantic import SemanticModel

MARGIN = 92  # pixels lost on each side: 572 -> 388
STRIDE = 16
SMALLEST = 188  # with 172 nothing would be left at the end


class UNetOriginal(SemanticModel):
    """Five levels of two 3x3 convolutions with ReLU, 64 to 1024 channels, max-pooling down, 2x2 up-convolutions up.

    The published paper and the published network differ: `up_relu` puts a ReLU after each up-convolution, `last_up_channels`
    is the width of the last of them, `dropout` acts after the two deepest contracting levels, and `skip_first` says whether
    the cropped skip connection comes before the up-convolution's output in the concatenation.
    """

    margin = MARGIN
    stride = STRIDE
    smallest = SMALLEST

    def __init__(
        self, in_channels: int, num_classes: int, *, up_relu: bool, last_up_channels: int, dropout: float, skip_first: bool
    ) -> None:
        super().__init__()
        channels = (64, 128, 256, 512, 1024)
        up_channels = (512, 256, 128, last_up_channels)
        self.skip_first = skip_first
        self.down = nn.ModuleList(_double_conv(i, o) for i, o in zip((in_channels, *channels[:-1]), channels, strict=True))
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(dropout)
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(i, o, 2, stride=2), *([nn.ReLU(inplace=True)] if up_relu else []))
            for i, o in zip(channels[:0:-1], up_channels, strict=True)
        )
        self.join = nn.ModuleList(_double_conv(up + skip, skip) for up, skip in zip(up_channels, channels[-2::-1], strict=True))
        self.head = nn.Conv2d(64, num_classes, 1)
        self.apply(_initialize)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, K, H - 184, W - 184) for pictures (B, C, H, W) with H and W of 16 k + 60, k >= 8."""
        check_input_size(x.shape[-2], x.shape[-1])
        skips = []
        for level, convs in enumerate(self.down):
            x = convs(x if level == 0 else self.pool(x))  # 568, 280, 136, 64, 28
            x = self.dropout(x) if level >= 3 else x
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = up(x)  # 56, 104, 200, 392
            x = join(self._concatenate(center_crop(skip, x.shape[-2], x.shape[-1]), x))  # 52, 100, 196, 388
        return self.head(x)  # (B, K, 388, 388)

    def _concatenate(self, skip: Tensor, up: Tensor) -> Tensor:
        return torch.cat([skip, up] if self.skip_first else [up, skip], dim=1)


def _double_conv(in_channels: int, out_channels: int) -> nn.Sequential:
    first, second = nn.Conv2d(in_channels, out_channels, 3), nn.Conv2d(out_channels, out_channels, 3)
    return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))


def _initialize(module: nn.Module) -> None:
    """Weights from N(0, sqrt(2 / N)), N the number of values that come into one output value (section 3 of the paper)."""
    if isinstance(module, nn.Conv2d):
        incoming = module.weight[0].numel()
    elif isinstance(module, nn.ConvTranspose2d):
        incoming = module.in_channels  # 2x2 with stride 2: windows do not overlap
    else:
        return
    nn.init.normal_(module.weight, std=math.sqrt(2 / incoming))
    assert module.bias is not None
    nn.init.zeros_(module.bias)


def center_crop(x: Tensor, height: int, width: int) -> Tensor:
    """Cut the middle (height, width) out of (B, C, H, W).

    >>> import torch
    >>> center_crop(torch.zeros(1, 2, 64, 64), 56, 52).shape
    torch.Size([1, 2, 56, 52])
    """
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def valid_input_size(output: int) -> int:
    """Return the smallest side that the network takes and that yields at least `output` pixels.

    >>> valid_input_size(388), valid_input_size(1), valid_input_size(389)
    (572, 188, 588)
    """
    steps = max(0, math.ceil((output + 2 * MARGIN - SMALLEST) / STRIDE))
    return SMALLEST + STRIDE * steps


def output_size(size: int) -> int:
    """Return the side of the output for an input of side `size`; a side that does not fit raises `ConfigError`.

    >>> output_size(572)
    388
    """
    check_input_size(size, size)
    return size - 2 * MARGIN


def check_input_size(height: int, width: int) -> None:
    """Raise `ConfigError` unless both sides are 16 k + 60 with k >= 8."""
    wrong = {
        name: side for name, side in (("height", height), ("width", width)) if side < SMALLEST or (side - SMALLEST) % STRIDE
    }
    if wrong:
        below = {name: max(SMALLEST, side - (side - SMALLEST) % STRIDE) for name, side in wrong.items()}
        advice = " and ".join(f"a {name} of {side} or {side + STRIDE}" for name, side in below.items())
        raise ConfigError(
            f"unet_original takes sides of 16 k + 60 (k >= 8), not {height} x {width}: give {advice}, mirrored at the borders"
        )

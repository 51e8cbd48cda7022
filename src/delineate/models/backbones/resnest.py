"""ResNeSt (Zhang et al. 2020) as an encoder, with the parameter names of the official code and timm."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from delineate.models.backbones.resnet import Block, Dilations, ResNet, build_stages, initialize_residual
from delineate.models.norms import Norm, normalize_pooled
from delineate.models.options import choose

BLOCKS = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}
STEM_WIDTHS = {14: 32, 26: 32, 50: 32, 101: 64, 200: 64, 269: 64}
DILATIONS = {"published": False, "timm": True}  # whether a dilated stage pools its shortcut, and not its first block


class SplitAttention(nn.Module):
    """A 3x3 convolution into `radix` maps, and their sum weighted by attention to the pooled whole (section 3 of the paper).

    Each of `groups` cardinal groups attends by itself. Maps keep four dimensions and pooling comes before the sum over splits:
    with a dimension for the splits, channels-last maps take a hundred times as long to sum on a CPU.
    """

    def __init__(self, channels: int, *, stride: int, dilation: int, radix: int, groups: int, norm: Norm) -> None:
        super().__init__()
        self.radix, self.groups = radix, groups
        maps, hidden = radix * channels, max(radix * channels // 4, 32)
        self.conv = nn.Conv2d(channels, maps, 3, stride, padding=dilation, dilation=dilation, groups=groups * radix, bias=False)
        self.bn0 = norm(maps)
        self.fc1 = nn.Conv2d(channels, hidden, 1, groups=groups)
        self.bn1 = norm(hidden)
        self.fc2 = nn.Conv2d(hidden, maps, 1, groups=groups)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.relu(self.bn0(self.conv(x)))  # (B, R C, H, W)
        pooled = maps.mean(dim=(2, 3), keepdim=True).unflatten(1, (self.radix, -1)).sum(dim=1)  # (B, C, 1, 1)
        hidden = self.relu(normalize_pooled(self.bn1, self.fc1(pooled)))
        scores = self.fc2(hidden).unflatten(1, (self.groups, self.radix, -1))  # (B, K, R, C / K, 1, 1)
        scores = scores.transpose(1, 2).flatten(2, 3)  # (B, R, C, 1, 1)
        weights = scores.softmax(dim=1) if self.radix > 1 else scores.sigmoid()
        first, *others = zip(maps.chunk(self.radix, dim=1), weights.unbind(dim=1), strict=True)
        total = first[0] * first[1]  # (B, C, H, W)
        for split, weight in others:
            total = total + split * weight
        return total


class SplitAttentionBlock(Block):
    """A bottleneck whose 3x3 convolution is split attention; average-pooling does what strides do in ResNet."""

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        dilations: Dilations,
        *,
        norm: Norm,
        radix: int,
        groups: int,
        width_per_group: int,
        pool_first: bool,
        smooth_shortcut: bool,
    ) -> None:
        super().__init__()
        inner = width * width_per_group // 64 * groups
        starts_dilation = dilations[0] != dilations[1]
        pooled = stride > 1 or (starts_dilation and not smooth_shortcut)
        self.out_channels = 4 * width
        self.pool_first = pool_first
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = norm(inner)
        self.conv2 = SplitAttention(inner, stride=1, dilation=dilations[0], radix=radix, groups=groups, norm=norm)
        self.pool = nn.AvgPool2d(3, stride, padding=1) if pooled else nn.Identity()
        self.conv3 = nn.Conv2d(inner, self.out_channels, 1, bias=False)
        self.bn3 = norm(self.out_channels)
        self.relu = nn.ReLU(inplace=True)
        smooth = starts_dilation and smooth_shortcut
        self.downsample = pooled_shortcut(in_channels, self.out_channels, stride, norm=norm, smooth=smooth)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.conv2(self.pool(y)) if self.pool_first else self.pool(self.conv2(y))  # (B, inner, H / stride, W / stride)
        y = self.bn3(self.conv3(y))  # (B, 4 W, H / stride, W / stride)
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class SmoothingPool(nn.Module):
    """The mean of each 2x2 square, at every pixel; beyond the right and the lower border there are zeros, which count."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (0, 1, 0, 1)), 2, stride=1)


def pooled_shortcut(in_channels: int, out_channels: int, stride: int, *, norm: Norm, smooth: bool) -> nn.Sequential | None:
    """Average-pooling by `stride` or, if `smooth`, without one, a 1x1 convolution and its normalisation; None: the identity."""
    if stride == 1 and in_channels == out_channels:
        return None
    pool = SmoothingPool() if smooth else nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False), norm(out_channels))


def deep_stem(in_channels: int, width: int, *, norm: Norm) -> nn.Sequential:
    """Three 3x3 convolutions of `width`, `width` and twice as many channels, the first with stride 2."""
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False),
        norm(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        norm(width),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
    )


def resnest(
    depth: int,
    in_channels: int = 3,
    *,
    norm: Norm = nn.BatchNorm2d,
    radix: int = 2,
    groups: int = 1,
    width_per_group: int = 64,
    pool_first: bool = False,
    dilate: tuple[bool, bool] = (False, False),
    dilation: str = "published",
    zero_init: bool = True,
) -> ResNet:
    """Build the ResNeSt of `depth` 14, 26, 50, 101, 200 or 269 layers, without its classifier.

    Args:
        depth: number of layers.
        in_channels: 1 for grey pictures, 3 for RGB.
        norm: makes each normalisation.
        radix: splits of each cardinal group; with 1 the attention is a sigmoid.
        groups: cardinal groups of each block.
        width_per_group: channels of a group in the first stage.
        pool_first: pool before the split attention, not after it, as in the models called "fast".
        dilate: for the third and the fourth stage, whether its stride becomes a dilation of all later convolutions.
        dilation: how the first block of a dilated stage pools, with the same weights: "published" means 3x3 pixels after the
            split attention and nothing in the shortcut, "timm" 2x2 pixels in the shortcut only.
        zero_init: start each block as the identity, with 0 as the scale of its last normalisation (Goyal et al. 2017), as the
            authors trained theirs.
    """
    make_block = partial(
        SplitAttentionBlock,
        norm=norm,
        radix=radix,
        groups=groups,
        width_per_group=width_per_group,
        pool_first=pool_first,
        smooth_shortcut=choose(DILATIONS, dilation, "dilation"),
    )
    stem = deep_stem(in_channels, STEM_WIDTHS[depth], norm=norm)
    stem_channels = 2 * STEM_WIDTHS[depth]
    layers, channels, reductions = build_stages(stem_channels, BLOCKS[depth], make_block, dilate=dilate)
    model = ResNet(stem, norm(stem_channels), layers, (stem_channels, *channels), (2, *reductions))
    initialize_residual(model, zero_init=zero_init)
    return model

"""ResNet (He et al. 2016) and ResNeXt (Xie et al. 2017) as encoders, with the parameter names of torchvision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from delineate.models.norms import Norm
from delineate.models.options import choose

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
WIDTHS = (64, 128, 256, 512)
DILATIONS = {"published": False, "timm": False, "smp": True}  # whether a stage's first block has its dilation already

Dilations = tuple[int, int]  # of a block's 3x3 convolution that may have a stride, and of the one after it, if any
MakeBlock = Callable[[int, int, int, Dilations], "Block"]  # channels in, width, stride, dilations


class Block(nn.Module):
    """A residual block; `out_channels` are those of its output."""

    out_channels: int


class BasicBlock(Block):
    """Two 3x3 convolutions beside a shortcut, for the networks of 18 and 34 layers."""

    def __init__(self, in_channels: int, width: int, stride: int, dilations: Dilations, *, norm: Norm) -> None:
        super().__init__()
        first, second = dilations
        self.out_channels = width
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=first, dilation=first, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=second, dilation=second, bias=False)
        self.bn2 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, width, stride, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))  # (B, W, H / stride, W / stride)
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions beside a shortcut; the output has four times `width` channels.

    The 3x3 convolution has groups * width * width_per_group / 64 channels (ResNeXt has more than one group). It also has the
    stride, unless `stride_in_1x1` gives that to the first convolution, as in the networks that Microsoft published.
    """

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        dilations: Dilations,
        *,
        norm: Norm,
        groups: int = 1,
        width_per_group: int = 64,
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        dilation = dilations[0]
        inner = groups * (width * width_per_group // 64)
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        self.out_channels = 4 * width
        self.conv1 = nn.Conv2d(in_channels, inner, 1, first, bias=False)
        self.bn1 = norm(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, second, padding=dilation, dilation=dilation, groups=groups, bias=False)
        self.bn2 = norm(inner)
        self.conv3 = nn.Conv2d(inner, self.out_channels, 1, bias=False)
        self.bn3 = norm(self.out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, self.out_channels, stride, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))  # (B, inner, H / stride, W / stride)
        y = self.bn3(self.conv3(y))  # (B, 4 W, H / stride, W / stride)
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def shortcut(in_channels: int, out_channels: int, stride: int, *, norm: Norm) -> nn.Sequential | None:
    """A 1x1 convolution and its normalisation where input and output of a block differ in shape."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm(out_channels))


class ResNet(nn.Module):
    """A stem of stride 2, max-pooling, and stages of residual blocks: the maps of the stem and of each stage.

    `conv1` and `norm` are the stem. The stages are `layer1`, `layer2` ... as in torchvision.
    """

    def __init__(
        self, conv1: nn.Module, norm: nn.Module, stages: Sequence[nn.Module], channels: Sequence[int], reductions: Sequence[int]
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.reductions = tuple(reductions)
        self.conv1 = conv1
        self.bn1 = norm
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.stages = [f"layer{number}" for number in range(1, len(stages) + 1)]
        for name, stage in zip(self.stages, stages, strict=True):
            self.add_module(name, stage)
        self.frozen: list[str] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return a map of the stem and of each stage: (B, channels[i], ceil(H / reductions[i]), ceil(W / reductions[i]))."""
        stem = self.relu(self.bn1(self.conv1(x)))  # (B, 64, H / 2, W / 2)
        features = [stem]
        x = self.maxpool(stem)
        for name in self.stages:
            x = getattr(self, name)(x)
            features.append(x)
        return features

    def take_last(self) -> nn.Module:
        """Remove the last stage and return it: in the C4 form of Mask R-CNN it becomes the head of regions."""
        name = self.stages.pop()
        stage = self.get_submodule(name)
        delattr(self, name)
        self.frozen = [other for other in self.frozen if other != name]
        self.channels, self.reductions = self.channels[:-1], self.reductions[:-1]
        return stage

    def freeze(self, parts: int) -> None:
        """Never train the first `parts` of stem, layer1, layer2 ...: neither weights nor statistics of normalisations."""
        names = [("conv1", "bn1"), *((name,) for name in self.stages)][:parts]
        self.frozen = [name for part in names for name in part]
        for name in self.frozen:
            self.get_submodule(name).eval().requires_grad_(False)

    def train(self, mode: bool = True) -> ResNet:
        super().train(mode)
        for name in self.frozen:  # not the modules: synchronised normalisations take the place of others
            self.get_submodule(name).eval()
        return self


def resnet(
    depth: int,
    in_channels: int = 3,
    *,
    norm: Norm = nn.BatchNorm2d,
    groups: int = 1,
    width_per_group: int = 64,
    stride_in_1x1: bool = False,
    dilate: tuple[bool, bool] = (False, False),
    dilation: str = "published",
    zero_init: bool | None = None,
) -> ResNet:
    """Build the ResNet of `depth` 18, 34, 50, 101 or 152 layers, without its classifier.

    Args:
        depth: number of layers; from 50 on the blocks are bottlenecks.
        in_channels: 1 for grey pictures, 3 for RGB.
        norm: makes each normalisation, for example `partial(FrozenBatchNorm2d, eps=0.0)`.
        groups: of each bottleneck's 3x3 convolution; 32 with `width_per_group=8` is ResNeXt 32x8d.
        width_per_group: channels of a group in the first stage.
        stride_in_1x1: put a bottleneck's stride into its first convolution, as in the networks that Microsoft published.
        dilate: for the third and the fourth stage, whether its stride becomes a dilation of all later convolutions.
        dilation: of the first block of a dilated stage: that of the stage before ("published" and "timm", torchvision too), or
            already its own ("smp", as in segmentation_models_pytorch).
        zero_init: start each block as the identity, with 0 as the scale of its last normalisation (Goyal et al. 2017); None:
            bottlenecks only.
    """
    if depth < 50:
        make_block: MakeBlock = partial(BasicBlock, norm=norm)
    else:
        make_block = partial(Bottleneck, norm=norm, groups=groups, width_per_group=width_per_group, stride_in_1x1=stride_in_1x1)
    at_once = choose(DILATIONS, dilation, "dilation")
    layers, channels, reductions = build_stages(64, BLOCKS[depth], make_block, dilate=dilate, at_once=at_once)
    conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
    model = ResNet(conv1, norm(64), layers, (64, *channels), (2, *reductions))
    initialize_residual(model, zero_init=depth >= 50 if zero_init is None else zero_init)
    return model


def build_stages(
    in_channels: int, blocks: Sequence[int], make_block: MakeBlock, *, dilate: tuple[bool, bool], at_once: bool = False
) -> tuple[list[nn.Sequential], list[int], list[int]]:
    """Stages of `blocks[i]` residual blocks each, with the channels and the reduction of each one's map.

    A stage that would halve the map but is dilated keeps its size; its first block still has the dilation of the stage before,
    unless `at_once`.
    """
    layers, channels, reductions = [], [], []
    reduction, dilation = 4, 1
    for number, count in enumerate(blocks):
        previous, stride = dilation, 1 if number == 0 else 2
        if number >= 2 and dilate[number - 2]:
            dilation, stride = 2 * dilation, 1
        stage = nn.Sequential()
        for index in range(count):
            first = index == 0
            dilations = (previous if first and not at_once else dilation, dilation)
            block = make_block(in_channels, WIDTHS[number], stride if first else 1, dilations)
            stage.append(block)
            in_channels = block.out_channels
        reduction *= stride
        layers.append(stage)
        channels.append(in_channels)
        reductions.append(reduction)
    return layers, channels, reductions


def initialize_residual(model: nn.Module, *, zero_init: bool) -> None:
    """Draw each convolution's weights from N(0, 2 / N), N its outgoing values (He et al. 2015); `zero_init` as for `resnet`.

    A frozen normalisation keeps its scale: from 0 it could never learn.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if zero_init and isinstance(module, Block):
            scale = module.get_submodule("bn2" if isinstance(module, BasicBlock) else "bn3").weight
            if isinstance(scale, nn.Parameter):
                nn.init.zeros_(scale)

"""HRNet (Sun et al. 2019, Wang et al. 2020): branches of four resolutions side by side, with the authors' parameter names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from delineate.errors import ConfigError
from delineate.models.backbones.resnet import BasicBlock, Bottleneck, initialize_residual
from delineate.models.norms import Norm

STEM = 64  # channels of both convolutions of the stem, and width of stage 1


class HRNet(nn.Module):
    """A stem of stride 4, then stages of two, three and four branches, whose maps are exchanged after every module.

    `channels` are those of the four branches, `reductions` 4, 8, 16 and 32.
    """

    def __init__(
        self,
        width: int,
        in_channels: int = 3,
        *,
        norm: Norm,
        blocks: int = 4,
        first_blocks: int = 4,
        modules: Sequence[int] = (1, 4, 3),
        upsample: str = "bilinear",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.channels = tuple(width * 2**branch for branch in range(4))
        self.reductions: tuple[int, ...] = (4, 8, 16, 32)
        self.conv1 = nn.Conv2d(in_channels, STEM, 3, 2, padding=1, bias=False)
        self.bn1 = norm(STEM)
        self.conv2 = nn.Conv2d(STEM, STEM, 3, 2, padding=1, bias=False)
        self.bn2 = norm(STEM)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential()
        before = STEM
        for _ in range(first_blocks):
            self.layer1.append(Bottleneck(before, STEM, 1, (1, 1), norm=norm))
            before = 4 * STEM

        def stage(branches: int, count: int) -> nn.Sequential:
            make = partial(Exchange, self.channels[:branches], blocks, norm=norm, upsample=upsample)
            return nn.Sequential(*(make(align_corners=align_corners) for _ in range(count)))

        self.transition1 = Transition([before], self.channels[:2], norm=norm)
        self.stage2 = stage(2, modules[0])
        self.transition2 = Transition(self.channels[:2], self.channels[:3], norm=norm)
        self.stage3 = stage(3, modules[1])
        self.transition3 = Transition(self.channels[:3], self.channels, norm=norm)
        self.stage4 = stage(4, modules[2])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the map of each branch: (B, channels[i], ceil(H / reductions[i]), ceil(W / reductions[i]))."""
        x = self.relu(self.bn1(self.conv1(x)))  # (B, 64, H / 2, W / 2)
        x = self.relu(self.bn2(self.conv2(x)))  # (B, 64, H / 4, W / 4)
        x = self.layer1(x)  # (B, 256, H / 4, W / 4)
        maps = self.stage2(self.transition1([x]))
        maps = self.stage3(self.transition2(maps))
        return self.stage4(self.transition3(maps))


class Transition(nn.ModuleList):
    """From the branches of one stage to those of the next: the new branch comes from the coarsest map."""

    def __init__(self, before: Sequence[int], after: Sequence[int], *, norm: Norm) -> None:
        kept = [nn.Identity() if old == new else _convolve(old, new, 1, norm) for old, new in zip(before, after, strict=False)]
        super().__init__([*kept, nn.Sequential(_convolve(before[-1], after[-1], 2, norm))])

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        *kept, new = self
        return [layer(x) for layer, x in zip(kept, maps, strict=True)] + [new(maps[-1])]


class Exchange(nn.Module):
    """Residual blocks in each branch, then each branch receives the sum of all, brought to its size.

    `upsample` "bilinear" is the authors'; "nearest" is timm's, for which its weights were trained.
    """

    def __init__(self, channels: Sequence[int], blocks: int, *, norm: Norm, upsample: str, align_corners: bool) -> None:
        super().__init__()
        if upsample not in ("bilinear", "nearest"):
            raise ConfigError(f"option 'upsample' is '{upsample}', HRNet knows 'bilinear' and 'nearest'")
        self.upsample = upsample
        self.align_corners = align_corners if upsample == "bilinear" else None
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width, width, 1, (1, 1), norm=norm) for _ in range(blocks))) for width in channels
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_bring(channels, source, target, norm) for source in range(len(channels)))
            for target in range(len(channels))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [self._receive(target, maps) for target in range(len(maps))]

    def _receive(self, target: int, maps: list[Tensor]) -> Tensor:
        size = maps[target].shape[-2:]
        total: Tensor | None = None
        for source, x in enumerate(maps):
            x = self.fuse_layers[target][source](x)  # type: ignore[index]
            if source > target:
                x = F.interpolate(x, size=size, mode=self.upsample, align_corners=self.align_corners)
            total = x if total is None else total + x
        assert total is not None
        return self.relu(total)


def _bring(channels: Sequence[int], source: int, target: int, norm: Norm) -> nn.Module:
    """Layers that give the map of branch `source` the channels of branch `target`, and its size, if that is smaller."""
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(nn.Conv2d(channels[source], channels[target], 1, bias=False), norm(channels[target]))
    halvings = [_convolve(channels[source], channels[source], 2, norm) for _ in range(target - source - 1)]
    return nn.Sequential(*halvings, _convolve(channels[source], channels[target], 2, norm, activation=False))


def _convolve(in_channels: int, out_channels: int, stride: int, norm: Norm, *, activation: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False), norm(out_channels)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if activation else []))


def hrnet(
    width: int,
    in_channels: int = 3,
    *,
    norm: Norm = nn.BatchNorm2d,
    small: bool = False,
    upsample: str = "bilinear",
    align_corners: bool = False,
) -> HRNet:
    """HRNet of `width` channels in its finest branch: 18, 32 or 48 were published.

    Args:
        width: channels of the branch of stride 4; those of stride 8, 16 and 32 have twice as many each.
        in_channels: of the picture.
        norm: function of the channels that makes a normalisation.
        small: the authors' "small v2": two blocks a branch in place of four, and 1, 3, 2 modules a stage in place of 1, 4, 3.
        upsample: how coarser maps are enlarged before they are added: "bilinear", or "nearest" as in timm.
        align_corners: of the bilinear enlargement; belongs to the weights.
    """
    numbers = {"blocks": 2, "first_blocks": 2, "modules": (1, 3, 2)} if small else {}
    model = HRNet(width, in_channels, norm=norm, upsample=upsample, align_corners=align_corners, **numbers)
    initialize_residual(model, zero_init=False)
    return model

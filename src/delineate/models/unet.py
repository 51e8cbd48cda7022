"""U-Net (Ronneberger, Fischer and Brox 2015) with padded convolutions: any encoder, any picture size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delineate.models.blocks import Activation, ConvNormAct, Merge, Upsample
from delineate.models.norms import Norm
from delineate.models.semantic import Encoder, SemanticMaps, SemanticModel


class UpBlock(nn.Module):
    """One step of the expanding path: enlarge by two, join the skip connection, two 3x3 convolutions."""

    def __init__(
        self, in_channels: int, skip_channels: int, out_channels: int, *, upsample: Upsample, norm: Norm, activation: Activation
    ) -> None:
        super().__init__()
        self.merge = Merge(in_channels, skip_channels, out_channels, upsample=upsample)
        self.norm = norm(out_channels)
        self.activation = activation()
        self.conv = ConvNormAct(out_channels, out_channels, norm=norm, activation=activation)

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = self.activation(self.norm(self.merge(x, skip)))  # (B, O, 2H, 2W)
        return self.conv(x)


class UNetDecoder(nn.Module):
    """The expanding path: a block for each doubling of the size, from an encoder's coarsest map to the size of the picture.

    `channels` are those of the blocks' outputs, coarsest first. Where the encoder has no map of a size, its block has no skip
    connection. `dropout` is the probability that a channel of the coarsest map is dropped in training.
    """

    def __init__(
        self,
        encoder_channels: Sequence[int],
        reductions: Sequence[int],
        channels: Sequence[int],
        *,
        upsample: Upsample,
        norm: Norm,
        activation: Activation,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        doublings = reductions[-1].bit_length() - 1
        if len(channels) != doublings:
            raise ValueError(f"{len(channels)} decoder channels given, an encoder of stride {reductions[-1]} needs {doublings}")
        self.dropout = nn.Dropout2d(dropout)
        self.blocks = nn.ModuleList()
        self.skips: list[int | None] = []  # which of the encoder's maps each block takes
        in_channels = encoder_channels[-1]
        for step, out_channels in enumerate(channels, start=1):
            reduction = reductions[-1] >> step
            skip = list(reductions).index(reduction) if reduction in reductions else None
            skip_channels = 0 if skip is None else encoder_channels[skip]
            block = UpBlock(in_channels, skip_channels, out_channels, upsample=upsample, norm=norm, activation=activation)
            self.blocks.append(block)
            self.skips.append(skip)
            in_channels = out_channels

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return the output of each block, finest (the size of the picture) first."""
        x = self.dropout(features[-1])  # (B, C, H / stride, W / stride)
        maps = []
        for block, skip in zip(self.blocks, self.skips, strict=True):
            x = block(x, None if skip is None else features[skip])
            maps.append(x)
        return maps[::-1]


class UNet(SemanticModel):
    """Encoder, decoder and a head that turns the decoder's last map into logits.

    With `auxiliary_heads` (for the maps of half, a quarter ... of the size) the network is deeply supervised: in training, and
    only then, it returns a tuple of logits.
    """

    def __init__(
        self, encoder: Encoder, decoder: nn.Module, head: nn.Conv2d, auxiliary_heads: Sequence[nn.Module] = ()
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.head = head
        self.auxiliary_heads = nn.ModuleList(auxiliary_heads)
        self.stride = encoder.reductions[-1]
        self.feature_channels = head.in_channels

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return logits (B, K, H, W) for pictures (B, C, H, W) of any size.

        In training with deep supervision: a tuple (B, K, H, W), (B, K, ceil(H / 2), ceil(W / 2)), ...
        """
        height, width = x.shape[-2:]
        maps = self._decode(x)
        logits = self.fit(self.head(maps[0]), (height, width))  # (B, K, H, W)
        if not (self.training and self.auxiliary_heads):
            return logits
        auxiliary = [head(x) for head, x in zip(self.auxiliary_heads, maps[1:], strict=False)]
        sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(1, len(auxiliary) + 1)]
        return logits, *(self.fit(x, size) for x, size in zip(auxiliary, sizes, strict=True))

    def maps(self, x: Tensor) -> SemanticMaps:
        finest = self._decode(x)[0]
        return SemanticMaps(finest, self.head(finest))

    def fit(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Cut off what `pad_to_multiple` added."""
        return x[..., : size[0], : size[1]]

    def _decode(self, x: Tensor) -> list[Tensor]:
        features = self.encoder(pad_to_multiple(x, self.stride))  # (B, C_i, H' / r_i, W' / r_i)
        return self.decoder(features)  # (B, D_i, H' / 2^i, W' / 2^i)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of (B, C, H, W) until both sizes divide by `multiple`; H and W may be as small as 1.

    >>> import torch
    >>> pad_to_multiple(torch.zeros(1, 3, 5, 8), 4).shape
    torch.Size([1, 3, 8, 8])
    """
    below, right = -x.shape[-2] % multiple, -x.shape[-1] % multiple
    if torch.compiler.is_compiling():  # one graph for all sizes, in which adding nothing costs nothing
        return F.pad(x, (0, right, 0, below), mode="replicate")
    return F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x

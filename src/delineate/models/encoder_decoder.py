"""The common form of semantic networks: an encoder, a decoder that makes one map of its maps, and a classifier of pixels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from delineate.models.norms import Norm
from delineate.models.semantic import Encoder, SemanticMaps, SemanticModel
from delineate.models.unet import pad_to_multiple
from delineate.ops.outputs import WithAuxiliary


class EncoderDecoder(SemanticModel):
    """Encoder, decoder (from the encoder's maps to one map) and a 1x1 convolution to the classes.

    `auxiliary` turns the encoder's last map but one into logits, in training only. Pictures are padded to a multiple of
    `multiple` pixels, of which the decoder may need 32 so that its maps fit on each other.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: nn.Module,
        classifier: nn.Conv2d,
        auxiliary: nn.Module | None = None,
        *,
        auxiliary_weight: float = 0.4,
        align_corners: bool = False,
        multiple: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.classifier = classifier
        self.auxiliary = auxiliary
        self.auxiliary_weight = auxiliary_weight
        self.align_corners = align_corners
        self.multiple = multiple
        self.stride = encoder.reductions[-1]
        self.feature_channels = classifier.in_channels

    def forward(self, x: Tensor) -> Tensor | WithAuxiliary:
        """Return logits (B, K, H, W) for pictures (B, C, H, W) of any size; in training with a branch, `WithAuxiliary`."""
        size = x.shape[-2:]
        maps = self.maps(x)
        logits = self.fit(maps.logits, size)
        if maps.auxiliary is None:
            return logits
        return WithAuxiliary(logits, (self.fit(maps.auxiliary, size),), (self.auxiliary_weight,))

    def maps(self, x: Tensor) -> SemanticMaps:
        features = self.encoder(pad_to_multiple(x, self.multiple))  # (B, C_i, H' / r_i, W' / r_i)
        decoded = self.decoder(features)  # (B, F, h, w)
        branch = self.auxiliary(features[-2]) if self.training and self.auxiliary is not None else None
        return SemanticMaps(decoded, self.classifier(decoded), branch)

    def fit(self, x: Tensor, size: Sequence[int]) -> Tensor:
        height, width = (-(-side // self.multiple) * self.multiple for side in size)
        return super().fit(x, (height, width))[..., : size[0], : size[1]]


class LastMapDecoder(nn.Sequential):
    """Layers that see the encoder's last map only."""

    def forward(self, input: Sequence[Tensor]) -> Tensor:
        return super().forward(input[-1])


def fcn_layers(in_channels: int, *, norm: Norm, dropout: float) -> list[nn.Module]:
    """What stands before the classifier of a fully convolutional network: a 3x3 convolution to a quarter of the channels."""
    channels = in_channels // 4
    convolution = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return [convolution, norm(channels), nn.ReLU(inplace=True), nn.Dropout(dropout)]

"""Object-contextual representations (Yuan, Chen and Wang 2020): pixels look at the classes' mean features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from delineate.models.hrnet import ConcatenatingHead, concatenate
from delineate.models.norms import Norm
from delineate.models.semantic import Encoder, SemanticMaps, SemanticModel
from delineate.ops.outputs import WithAuxiliary


class ObjectAttention(nn.Module):
    """Each pixel's mixture of the classes' representations, by likeness in a space of `keys` channels (equations 3 to 5)."""

    def __init__(self, channels: int, keys: int, *, norm: Norm) -> None:
        super().__init__()
        self.query = nn.Sequential(*_pointwise(channels, keys, norm), *_pointwise(keys, keys, norm))
        self.key = nn.Sequential(*_pointwise(channels, keys, norm), *_pointwise(keys, keys, norm))
        self.value = nn.Sequential(*_pointwise(channels, keys, norm))
        self.up = nn.Sequential(*_pointwise(keys, channels, norm))

    def forward(self, pixels: Tensor, objects: Tensor) -> Tensor:
        """Return the context (B, C, h, w) of `pixels` (B, C, h, w) among `objects` (B, C, K, 1)."""
        query = self.query(pixels).flatten(2).transpose(1, 2)  # (B, h w, D)
        key = self.key(objects).flatten(2)  # (B, D, K)
        value = self.value(objects).flatten(2).transpose(1, 2)  # (B, K, D)
        likeness = (query @ key * key.shape[1] ** -0.5).softmax(-1)  # (B, h w, K)
        context = (likeness @ value).transpose(1, 2)  # (B, D, h w)
        return self.up(context.unflatten(2, pixels.shape[-2:]))


class OCRHead(nn.Module):
    """From a backbone's features to those that know the context, and to the coarse classes that the context comes from."""

    def __init__(self, in_channels: int, num_classes: int, *, channels: int, keys: int, dropout: float, norm: Norm) -> None:
        super().__init__()
        self.regions = ConcatenatingHead(in_channels, num_classes, norm=norm)
        self.pixels = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1), norm(channels), nn.ReLU(inplace=True))
        self.attention = ObjectAttention(channels, keys, norm=norm)
        self.merge = nn.Sequential(*_pointwise(2 * channels, channels, norm), nn.Dropout2d(dropout))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (B, `channels`, h, w) and the logits of the soft regions (B, K, h, w)."""
        regions = self.regions(x)  # (B, K, h, w)
        pixels = self.pixels(x)  # (B, C, h, w)
        objects = gather(pixels, regions)  # (B, C, K, 1)
        context = self.attention(pixels, objects)  # (B, C, h, w)
        return self.merge(torch.cat([context, pixels], 1)), regions


class OCR(SemanticModel):
    """Backbone, concatenation of its maps, object context, classes; in training also the logits of the soft regions."""

    def __init__(
        self,
        backbone: Encoder,
        head: OCRHead,
        classifier: nn.Conv2d,
        *,
        align_corners: bool = False,
        auxiliary_weight: float = 0.4,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.classifier = classifier
        self.align_corners = align_corners
        self.auxiliary_weight = auxiliary_weight
        self.stride = backbone.reductions[-1]
        self.feature_channels = classifier.in_channels

    def forward(self, x: Tensor) -> Tensor | WithAuxiliary:
        """Return logits (B, K, H, W) for pictures (B, C, H, W) of any size, in training `WithAuxiliary`."""
        maps = self.maps(x)
        logits = self.fit(maps.logits, x.shape[-2:])
        if not self.training or maps.auxiliary is None:
            return logits
        return WithAuxiliary(logits, (self.fit(maps.auxiliary, x.shape[-2:]),), (self.auxiliary_weight,))

    def maps(self, x: Tensor) -> SemanticMaps:
        features, regions = self.head(concatenate(self.backbone(x), self.align_corners))  # (B, F, H / 4, W / 4)
        return SemanticMaps(features, self.classifier(features), regions)


def gather(pixels: Tensor, regions: Tensor) -> Tensor:
    """Mean of `pixels` (B, C, h, w) over the soft region of each class: (B, C, K, 1).

    The weights of a class are the softmax of its logits `regions` (B, K, h, w) over all pixels (equation 2).
    """
    weights = regions.flatten(2).softmax(2)  # (B, K, h w)
    return (pixels.flatten(2) @ weights.transpose(1, 2)).unsqueeze(3)


def _pointwise(in_channels: int, out_channels: int, norm: Norm) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 1, bias=False), norm(out_channels), nn.ReLU(inplace=True)]

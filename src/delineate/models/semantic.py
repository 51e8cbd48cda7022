"""What every network that gives each pixel a class has in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from delineate.weights.conventions import Conventions


class Encoder(Protocol):
    """What networks need of an encoder: maps, finest first, whose channels and down-sampling factors it states."""

    channels: tuple[int, ...]
    reductions: tuple[int, ...]  # powers of two, ascending

    def __call__(self, x: Tensor) -> list[Tensor]: ...


class SemanticMaps(NamedTuple):
    """What a network computes for pictures on its own grid, before `SemanticModel.fit` brings it to their size."""

    features: Tensor  # (B, F, h, w), of which the logits are made
    logits: Tensor  # (B, K, h, w)
    auxiliary: Tensor | None = None  # (B, K, h', w'), logits of a branch that exists to be learned from; None: not computed


class SemanticModel(nn.Module):
    """A network whose forward pass turns pictures (B, C, H, W) into logits (B, K, H - 2 margin, W - 2 margin).

    In training with deep supervision it returns a tuple of logits, full size first, then half, a quarter ...; with auxiliary
    branches it returns `WithAuxiliary`.
    """

    stride: int  # of the coarsest map: what an output pixel sees shifts with windows that do not start at a multiple of it
    margin: int = 0  # pixels lost on each side; 0: padded, any size in
    smallest: int = 1  # side of the smallest input; with a margin, others differ from it by multiples of the stride
    architecture: dict[
        str, Any
    ]  # "name", "num_classes", "options", from which `create_model`, which fills it, builds an equal one

    feature_channels: int = 0  # channels of `maps(x).features`; 0: no `maps`, as of networks with a margin
    auxiliary_weight: float = 0.0  # of the loss of `maps(x).auxiliary`
    align_corners: bool = False  # of the bilinear enlargement of maps; belongs to the weights

    # Filled by `load_model`:
    classes: tuple[str, ...]
    conventions: Conventions
    extra: dict[str, Any]  # what the writer added

    def maps(self, x: Tensor) -> SemanticMaps:
        """Return features and logits for pictures (B, C, H, W), before they get the size of the pictures."""
        raise NotImplementedError(f"{type(self).__name__} has no maps")

    def fit(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """Bring a map (B, N, h, w) on the grid of `maps` to the size (H, W) of the pictures, in float32 at least."""
        return resize(x if x.dtype is torch.float64 else x.float(), size, self.align_corners)


def resize(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Resize maps (B, C, h, w) to `size` (H, W), bilinear without antialiasing.

    >>> resize(torch.tensor([[[[0.0, 1.0]]]]), (1, 4)).flatten().tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=align_corners)

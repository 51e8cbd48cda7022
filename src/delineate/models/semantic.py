"""What every network that gives each pixel a class has in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from delineate.weights.conventions import Conventions


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

    # Filled by `load_model`:
    classes: tuple[str, ...]
    conventions: Conventions
    extra: dict[str, Any]  # what the writer added

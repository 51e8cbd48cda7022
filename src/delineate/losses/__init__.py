"""Losses as free functions of logits and labels, and `build_loss`, which adds them up as a config says."""

from delineate.losses.build import build_loss
from delineate.losses.cross_entropy import border_cross_entropy, cross_entropy
from delineate.losses.distance import distance_loss
from delineate.losses.focal import focal_loss
from delineate.losses.lovasz import lovasz_loss
from delineate.losses.ohem import ohem_cross_entropy
from delineate.losses.region import dice_loss, jaccard_loss, tversky_loss
from delineate.losses.relaxed import relaxed_cross_entropy
from delineate.losses.rmi import rmi_loss

__all__ = [
    "border_cross_entropy",
    "build_loss",
    "cross_entropy",
    "dice_loss",
    "distance_loss",
    "focal_loss",
    "jaccard_loss",
    "lovasz_loss",
    "ohem_cross_entropy",
    "relaxed_cross_entropy",
    "rmi_loss",
    "tversky_loss",
]

"""Measuring segmentations: exact, streaming, with every convention named."""

from delineate.metrics.confusion import ConfusionMatrix
from delineate.metrics.overlap import Overlap, joint_counts

__all__ = ["ConfusionMatrix", "Overlap", "joint_counts"]

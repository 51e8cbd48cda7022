"""Measuring segmentations: exact, streaming, with every convention named."""

from delineate.metrics.bootstrap import Comparison, Interval, bootstrap_interval, paired_bootstrap
from delineate.metrics.clustering import (
    adapted_rand_error,
    best_over_thresholds,
    pixel_error,
    segments_of,
    v_info,
    v_rand,
    variation_of_information,
)
from delineate.metrics.confusion import ConfusionMatrix
from delineate.metrics.multilabel import MultilabelConfusion
from delineate.metrics.objects import Matching, ObjectScores, match_objects, object_scores
from delineate.metrics.overlap import Overlap, joint_counts

__all__ = [
    "Comparison",
    "ConfusionMatrix",
    "Interval",
    "Matching",
    "MultilabelConfusion",
    "ObjectScores",
    "Overlap",
    "adapted_rand_error",
    "best_over_thresholds",
    "bootstrap_interval",
    "joint_counts",
    "match_objects",
    "object_scores",
    "paired_bootstrap",
    "pixel_error",
    "segments_of",
    "v_info",
    "v_rand",
    "variation_of_information",
]

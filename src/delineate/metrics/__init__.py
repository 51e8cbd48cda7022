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
from delineate.metrics.generalised_dice import generalised_dice
from delineate.metrics.instance_iou import CITYSCAPES_CATEGORIES, CITYSCAPES_SIZES, InstanceIoU
from delineate.metrics.multilabel import MultilabelConfusion
from delineate.metrics.objects import Matching, ObjectScores, match_objects, object_scores
from delineate.metrics.overlap import Overlap, joint_counts
from delineate.metrics.panoptic import PanopticQuality, PanopticScores, score_panoptic_files
from delineate.metrics.reductions import MEAN_IOU, Reduction, mean_iou, worst_mean

__all__ = [
    "CITYSCAPES_CATEGORIES",
    "CITYSCAPES_SIZES",
    "MEAN_IOU",
    "Comparison",
    "ConfusionMatrix",
    "InstanceIoU",
    "Interval",
    "Matching",
    "MultilabelConfusion",
    "ObjectScores",
    "Overlap",
    "PanopticQuality",
    "PanopticScores",
    "Reduction",
    "adapted_rand_error",
    "best_over_thresholds",
    "bootstrap_interval",
    "generalised_dice",
    "joint_counts",
    "match_objects",
    "mean_iou",
    "object_scores",
    "paired_bootstrap",
    "pixel_error",
    "score_panoptic_files",
    "segments_of",
    "v_info",
    "v_rand",
    "variation_of_information",
    "worst_mean",
]

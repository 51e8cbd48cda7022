"""Measuring segmentations: exact, streaming, with every convention named."""

from delineate.metrics.average_precision import ApSettings, Curves
from delineate.metrics.bootstrap import Comparison, Interval, bootstrap_interval, paired_bootstrap
from delineate.metrics.boundary import (
    BoundaryScores,
    boundary_iou,
    boundary_region,
    boundary_rles,
    min_boundary_iou,
    min_boundary_iou_matrix,
)
from delineate.metrics.centerline import CenterlineOverlap, centerline_overlap
from delineate.metrics.clustering import (
    adapted_rand_error,
    best_over_thresholds,
    pixel_error,
    rand_error,
    segments_of,
    v_info,
    v_rand,
    variation_of_information,
)
from delineate.metrics.coco import coco_curves, coco_matches, coco_scores
from delineate.metrics.confusion import ConfusionMatrix
from delineate.metrics.contour_measures import CenterlineMeasure, SurfaceMeasure
from delineate.metrics.detection import DetectionScores, FoundObjects, TrueObjects
from delineate.metrics.detection_errors import DetectionErrors, detection_errors
from delineate.metrics.generalised_dice import generalised_dice
from delineate.metrics.instance_iou import CITYSCAPES_CATEGORIES, CITYSCAPES_SIZES, InstanceIoU
from delineate.metrics.matches import Matches
from delineate.metrics.multilabel import MultilabelConfusion
from delineate.metrics.object_iou import mask_areas, mask_iou
from delineate.metrics.objects import Matching, ObjectScores, match_objects, object_scores
from delineate.metrics.overlap import Overlap, joint_counts
from delineate.metrics.panoptic import PanopticQuality, PanopticScores, score_panoptic_files
from delineate.metrics.reductions import MEAN_IOU, Reduction, mean_iou, worst_mean
from delineate.metrics.surface import SurfaceDistances, surface_distances
from delineate.metrics.warping import WarpingError, warping_error

__all__ = [
    "CITYSCAPES_CATEGORIES",
    "CITYSCAPES_SIZES",
    "MEAN_IOU",
    "ApSettings",
    "BoundaryScores",
    "CenterlineMeasure",
    "CenterlineOverlap",
    "Comparison",
    "ConfusionMatrix",
    "Curves",
    "DetectionErrors",
    "DetectionScores",
    "FoundObjects",
    "InstanceIoU",
    "Interval",
    "Matches",
    "Matching",
    "MultilabelConfusion",
    "ObjectScores",
    "Overlap",
    "PanopticQuality",
    "PanopticScores",
    "Reduction",
    "SurfaceDistances",
    "SurfaceMeasure",
    "TrueObjects",
    "WarpingError",
    "adapted_rand_error",
    "best_over_thresholds",
    "bootstrap_interval",
    "boundary_iou",
    "boundary_region",
    "boundary_rles",
    "centerline_overlap",
    "coco_curves",
    "coco_matches",
    "coco_scores",
    "detection_errors",
    "generalised_dice",
    "joint_counts",
    "mask_areas",
    "mask_iou",
    "match_objects",
    "mean_iou",
    "min_boundary_iou",
    "min_boundary_iou_matrix",
    "object_scores",
    "paired_bootstrap",
    "pixel_error",
    "rand_error",
    "score_panoptic_files",
    "segments_of",
    "surface_distances",
    "v_info",
    "v_rand",
    "variation_of_information",
    "warping_error",
    "worst_mean",
]

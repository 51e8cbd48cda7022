"""Operations on regions of interest, boxes and masks: each has a plain PyTorch reference and, on the CPU, a native kernel."""

from delineate.ops.anchors import cell_anchors, grid_anchors
from delineate.ops.boxes import (
    box_area,
    box_iou,
    check_boxes,
    clip_boxes,
    convert_boxes,
    decode_boxes,
    encode_boxes,
    generalized_box_iou,
    large_boxes,
)
from delineate.ops.keypoints import Keypoints, decode_keypoints, encode_keypoints
from delineate.ops.masks import paste_masks
from delineate.ops.nms import Kept, batched_nms, nms, nms_fixed
from delineate.ops.polygons import mask_to_polygons, rle_polygons
from delineate.ops.rle import (
    decode_rle,
    decode_text,
    encode_rle,
    encode_runs,
    encode_text,
    merge_rle,
    paste_rle,
    paste_text,
    rle_area,
    rle_boxes,
    rle_iou,
    rle_runs,
)
from delineate.ops.roi import assign_levels, multilevel_roi_align, roi_align, roi_pool, roi_warp

__all__ = [
    "Kept",
    "Keypoints",
    "assign_levels",
    "batched_nms",
    "box_area",
    "box_iou",
    "cell_anchors",
    "check_boxes",
    "clip_boxes",
    "convert_boxes",
    "decode_boxes",
    "decode_keypoints",
    "decode_rle",
    "decode_text",
    "encode_boxes",
    "encode_keypoints",
    "encode_rle",
    "encode_runs",
    "encode_text",
    "generalized_box_iou",
    "grid_anchors",
    "large_boxes",
    "mask_to_polygons",
    "merge_rle",
    "multilevel_roi_align",
    "nms",
    "nms_fixed",
    "paste_masks",
    "paste_rle",
    "paste_text",
    "rle_area",
    "rle_boxes",
    "rle_iou",
    "rle_polygons",
    "rle_runs",
    "roi_align",
    "roi_pool",
    "roi_warp",
]

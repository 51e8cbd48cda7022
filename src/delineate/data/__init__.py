"""Data: from files on disk to `Sample`, and from samples to batches. The names are imported when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from delineate.data.batch import Batch, InstanceBatch
    from delineate.data.check import CheckReport, Finding, check_dataset
    from delineate.data.convert import conversion_losses, write_dataset
    from delineate.data.dataset import Dataset, Instance, LabelMap, Record
    from delineate.data.decode import decode_image, decode_labels, image_size, list_images, page_count, read_pixels
    from delineate.data.instance_loader import InstanceSet, make_instance_loader
    from delineate.data.intensity import image_statistics, normalize, to_color
    from delineate.data.load import load_sample
    from delineate.data.loader import TrainingSet, make_loader
    from delineate.data.open import open_dataset, split_dataset
    from delineate.data.outlines import polygons_to_mask
    from delineate.data.preview import preview_dataset
    from delineate.data.sample import IGNORE, Sample
    from delineate.data.stats import DatasetStatistics, ObjectStatistics, dataset_statistics
    from delineate.data.synthetic import make_blobs_dataset, make_shapes_dataset
    from delineate.data.targets import border_weight_map, make_targets
    from delineate.data.transforms import build_transforms
    from delineate.data.windows import ImageReader, open_image
    from delineate.skeleton import KeypointSchema

_MODULES = {
    "batch": ("Batch", "InstanceBatch"),
    "check": ("CheckReport", "Finding", "check_dataset"),
    "convert": ("conversion_losses", "write_dataset"),
    "dataset": ("Dataset", "Instance", "KeypointSchema", "LabelMap", "Record"),
    "decode": ("decode_image", "decode_labels", "image_size", "list_images", "page_count", "read_pixels"),
    "instance_loader": ("InstanceSet", "make_instance_loader"),
    "intensity": ("image_statistics", "normalize", "to_color"),
    "load": ("load_sample",),
    "loader": ("TrainingSet", "make_loader"),
    "open": ("open_dataset", "split_dataset"),
    "outlines": ("polygons_to_mask",),
    "preview": ("preview_dataset",),
    "sample": ("IGNORE", "Sample"),
    "stats": ("DatasetStatistics", "ObjectStatistics", "dataset_statistics"),
    "synthetic": ("make_blobs_dataset", "make_shapes_dataset"),
    "targets": ("border_weight_map", "make_targets"),
    "transforms": ("build_transforms",),
    "windows": ("ImageReader", "open_image"),
}
_NAMES = {name: f"delineate.data.{module}" for module, names in _MODULES.items() for name in names}

__all__ = [
    "IGNORE",
    "Batch",
    "CheckReport",
    "Dataset",
    "DatasetStatistics",
    "Finding",
    "ImageReader",
    "Instance",
    "InstanceBatch",
    "InstanceSet",
    "KeypointSchema",
    "LabelMap",
    "ObjectStatistics",
    "Record",
    "Sample",
    "TrainingSet",
    "border_weight_map",
    "build_transforms",
    "check_dataset",
    "conversion_losses",
    "dataset_statistics",
    "decode_image",
    "decode_labels",
    "image_size",
    "image_statistics",
    "list_images",
    "load_sample",
    "make_blobs_dataset",
    "make_instance_loader",
    "make_loader",
    "make_shapes_dataset",
    "make_targets",
    "normalize",
    "open_dataset",
    "open_image",
    "page_count",
    "polygons_to_mask",
    "preview_dataset",
    "read_pixels",
    "split_dataset",
    "to_color",
    "write_dataset",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'delineate.data' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)

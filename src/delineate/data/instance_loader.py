"""From records to batches of pictures with their objects, for detectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor
from torchvision import tv_tensors

from delineate.config import TrainConfig
from delineate.data.batch import InstanceBatch
from delineate.data.copy_paste import copy_paste
from delineate.data.dataset import Dataset, Record
from delineate.data.decode import image_size
from delineate.data.instance_targets import load_objects, make_instance_batch
from delineate.data.intensity import normalize, to_color
from delineate.data.jitter import RandomResize
from delineate.data.load import load_sample
from delineate.data.loader import PatchLoader, PictureSet, Prepared, load_pictures
from delineate.data.objects import listed_labels
from delineate.data.sample import Sample
from delineate.data.samplers import Draw
from delineate.data.transforms import change_colours
from delineate.errors import DataError
from delineate.weights.conventions import Conventions, Resize


class InstanceSet(PictureSet):
    """Pictures with their objects, randomly resized and changed, for the training of a detector.

    `masks`: with their outlines. `stuff`: with the classes of pixels that a panoptic network learns. Keypoints come with
    `conventions.keypoints`; `keypoint_offset` is added to those of the whole picture, in pixels, where the detector's
    conventions ask for it.
    """

    def __init__(
        self,
        dataset: Dataset,
        records: Sequence[Record],
        config: TrainConfig,
        conventions: Conventions,
        *,
        masks: bool = True,
        stuff: bool = False,
        keypoint_offset: float = 0.0,
    ) -> None:
        super().__init__(dataset, records, config, conventions, train=True)
        self.masks, self.stuff, self.keypoint_offset = masks, stuff, keypoint_offset
        self.resize = RandomResize(config.augment, conventions.resize or Resize(), conventions.keypoints)

    def presence(self) -> np.ndarray:
        """Whether picture n shows class k, (N, K) bool; reads label pictures where there are no annotations."""
        presence = np.zeros((len(self), len(self.dataset.classes)), np.bool_)
        for row, record in zip(presence, self.records, strict=True):
            row[[label for label in self._labels(record) if label < len(row)]] = True  # those from there on are stuff
        return presence

    def _labels(self, record: Record) -> list[int]:
        if (listed := listed_labels(record)) is not None:
            return listed
        labels = load_sample(self.dataset, record, ("boxes",)).labels
        return [] if labels is None else labels.tolist()

    def _load(self, record: Record) -> Sample:
        keypoints = self.conventions.keypoints is not None
        sample = load_objects(self.dataset, record, masks=self.masks, keypoints=keypoints, stuff=self.stuff)
        if sample.keypoints is None or not self.keypoint_offset:
            return sample
        points = sample.keypoints.as_subclass(Tensor) + self.keypoint_offset
        return replace(sample, keypoints=tv_tensors.KeyPoints(points, canvas_size=sample.size))  # pyright: ignore[reportCallIssue]

    def _prepare(self, sample: Sample) -> Prepared:
        """Grey pictures among RGB ones get three channels, so that objects of any can be pasted into any."""
        if self.conventions.color != "gray":
            sample = replace(sample, image=tv_tensors.Image(to_color(sample.image.as_subclass(Tensor), "rgb")))
        return super()._prepare(sample)

    def _drawn(self, draw: Draw) -> tuple[Tensor, Sample]:
        """A picture as the network reads it, (C, h, w), and its objects."""
        augment, rng = self.config.augment, np.random.default_rng((self.config.seed, draw.ticket))
        prepared = self.prepared(draw.picture)
        dtype, white = prepared.sample.image.dtype, self.conventions.value_range
        sample = self.resize(prepared.sample, rng)
        if rng.random() < augment.copy_paste:
            other = self.prepared(int(rng.integers(len(self)))).sample
            if other.image.dtype == dtype:  # a tensor has one type, and its colours are changed as that type asks
                sample = copy_paste(sample, self.resize(other, rng), rng)
        image = change_colours(sample.image.as_subclass(Tensor), dtype, augment, rng, white=white)
        return normalize(image, self.conventions, prepared.statistics), sample

    def _joined(self, pictures: list[tuple[Tensor, Sample]]) -> InstanceBatch:
        return make_instance_batch(pictures)


def make_instance_loader(pictures: InstanceSet, *, rank: int = 0, world: int = 1) -> PatchLoader:
    """Return a loader of `InstanceBatch` for process `rank` of `world`, in batches of like shape if the config says so."""
    if not len(pictures):
        raise DataError(f"{pictures.dataset.root}: no pictures for training; check its splits")
    grouped = pictures.config.data.group_aspect and pictures.config.augment.jitter is None
    return load_pictures(pictures, rank=rank, world=world, shapes=_shapes(pictures.records) if grouped else None)


def _shapes(records: Sequence[Record]) -> np.ndarray:
    """Width over height of each picture, as its annotation or its file's header says."""
    sizes = np.array([record.size or image_size(record.image, record.frame) for record in records], np.float64)
    return sizes[:, 1] / sizes[:, 0]

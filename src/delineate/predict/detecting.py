"""A detector made ready for prediction: pictures in, what was found in each out."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from delineate.data.intensity import normalize
from delineate.data.windows import ImageReader
from delineate.devices import DTYPES, Precision, compiled
from delineate.models import fuse_for_inference
from delineate.models.instance import InstanceModel
from delineate.models.mask_rcnn import MaskRCNN
from delineate.models.narrow import allow_narrow_maps
from delineate.ops.instances import Detections
from delineate.predict.pictures import picture_statistics, range_factor
from delineate.predict.resizing import resize_pixels


class Prepared(NamedTuple):
    """A picture as a detector reads it."""

    pixels: Tensor  # (C, h, w) float32, resized and normalised, on the device
    padded: tuple[int, int]  # height and width with the zeros at the right and below
    note: str | None  # what was assumed about its range


class DetectingNetwork:
    """A copy of a detector on `device`, computing in `precision` where that does no harm (autocast); batch norms are folded.

    Detections with a score below `score_threshold` are not asked for, unless the network's own threshold is lower. `model`
    itself is not changed.
    """

    def __init__(
        self, model: InstanceModel, *, device: torch.device, precision: Precision, score_threshold: float, compile: bool
    ) -> None:
        self.conventions, self.device, self.dtype = model.conventions, device, DTYPES[precision]
        self.stride = model.stride
        known = isinstance(model, MaskRCNN) and hasattr(model, "architecture")
        network = fuse_for_inference(model) if known else copy.deepcopy(model).eval().requires_grad_(False)
        network.score_threshold = min(network.score_threshold, score_threshold)
        if device.type == "cpu" and self.dtype != torch.float32:
            allow_narrow_maps(network)
        network.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.model = compiled(network, device) if compile else network

    def prepare(self, reader: ImageReader) -> Prepared:
        """Resize and normalise a picture as `Conventions` say."""
        conventions = self.conventions
        factor, note = range_factor(reader, conventions)
        statistics = picture_statistics(reader, conventions) if conventions.normalization == "image" else None
        _, height, width = reader.shape
        size, pixels = (height, width), torch.from_numpy(reader.read(0, 0, height, width))
        if conventions.resize is not None:
            size = conventions.resize.new_size(size)
            pixels = resize_pixels(pixels, size, conventions.resize.filter)
        pixels = pixels.to(self.device)
        pixels = pixels if factor == 1.0 else pixels.float() * factor
        padded = (-(-size[0] // self.stride) * self.stride, -(-size[1] // self.stride) * self.stride)
        return Prepared(normalize(pixels, conventions, statistics), padded, note)

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Prepared]) -> list[Detections]:
        """Return what is in each of some pictures that are padded to one size, on the CPU, without the rows that do not count.

        Coordinates are pixels of the resized picture.
        """
        height, width = pictures[0].padded
        images = pictures[0].pixels.new_zeros((len(pictures), self.conventions.channels, height, width))
        images = images.contiguous(memory_format=torch.channels_last)
        for image, picture in zip(images, pictures, strict=True):
            image[:, : picture.pixels.shape[1], : picture.pixels.shape[2]] = picture.pixels
        sizes = torch.tensor([picture.pixels.shape[1:] for picture in pictures], device=self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            found = self.model(images, sizes)
        return [_one(found, index) for index in range(len(pictures))]


def _one(found: Detections, index: int) -> Detections:
    """The rows of one picture that count, float32 on the CPU; the semantic logits, which have no rows, as they are."""
    valid = found.valid[index]

    def rows(part: Tensor | None) -> Tensor | None:
        return None if part is None else part[index][valid].cpu()

    semantic = None if found.semantic is None else found.semantic[index].float().cpu()
    parts = {name: rows(part) for name, part in found._asdict().items() if name != "semantic"}
    parts = {name: part.float() if part is not None and part.is_floating_point() else part for name, part in parts.items()}
    return Detections(**parts, semantic=semantic)  # pyright: ignore[reportArgumentType]

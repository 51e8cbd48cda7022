"""What can be predicted: files, PIL images, arrays and tensors, opened as readers; and whether a network can read them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from delineate.data.decode import decode_image
from delineate.data.intensity import to_color, type_factor
from delineate.data.windows import ArrayReader, ImageReader, open_image
from delineate.errors import DataError
from delineate.weights.conventions import Conventions

Source = str | Path | Image.Image | np.ndarray[Any, Any] | Tensor

_ROWS_AT_ONCE = 1 << 22  # pixels that a pass over a picture holds


class Picture(NamedTuple):
    """A picture to predict: a file, or pixels as `as_tensor` takes them."""

    source: Source
    frame: int = 0  # page of a multi-page TIFF
    name: str | None = None  # of its results; None: that of the file, or "image"

    @property
    def path(self) -> Path | None:
        """The file, if it is one."""
        return Path(self.source) if isinstance(self.source, str | Path) else None

    @property
    def title(self) -> str:
        """The name of its results."""
        return self.name or (self.path.stem if self.path else "image")

    @contextmanager
    def opened(self) -> Iterator[ImageReader]:
        """Open it for reading, and put the file's name in front of a `DataError` that lacks it."""
        try:
            reader = open_picture(self.source, self.frame)
            try:
                yield reader
            finally:
                reader.close()
        except DataError as error:
            if self.path is None or str(error).startswith(str(self.source)):
                raise
            raise DataError(f"{self.source}: {error}") from error


def as_tensor(image: Any) -> Tensor:
    """Return a path, a PIL image, an array (H, W) or (H, W, 3), or a tensor (C, H, W) as a tensor (C, H, W) of 1 or 3 channels.

    Arrays are grey or RGB, uint8, uint16 or float. A PIL image is taken as its pixels lie, whatever its EXIF orientation says.
    Raises `DataError` for anything else.
    """
    if isinstance(image, str | Path):
        return decode_image(image)
    if isinstance(image, Tensor):
        return _checked(
            image.detach().cpu().as_subclass(Tensor), image.ndim == 3 and image.shape[0] in (1, 3), "a tensor (C, H, W)"
        )
    array = _pillow_array(image) if isinstance(image, Image.Image) else image
    if not isinstance(array, np.ndarray):
        raise DataError(f"a picture of type {type(image).__name__}; pass a path, a PIL image, an array or a tensor")
    if array.ndim == 2:
        array = array[..., None]
    fits = array.ndim == 3 and array.shape[2] in (1, 3)
    planes = array.transpose(2, 0, 1) if fits else array
    return _checked(torch.from_numpy(np.ascontiguousarray(planes)), fits, "an array (H, W) or (H, W, 3)")


def open_picture(image: Any, frame: int = 0) -> ImageReader:
    """Open what `as_tensor` takes for reading in parts; large TIFFs are not decoded as a whole."""
    return open_image(image, frame) if isinstance(image, str | Path) else ArrayReader(as_tensor(image))


def range_factor(reader: ImageReader, conventions: Conventions) -> tuple[float, str | None]:
    """Return what pixels are multiplied by to reach the range that a network was trained on, and a note where that is not 1.

    A 16-bit picture for a network of 8-bit pictures, and the reverse, are scaled by the ranges of their types. Float pictures
    are taken as they are; `DataError` where they lie in 0..1 and the network expects whole numbers up to 255 or more, and where
    they hold NaN or infinity.
    """
    expected = conventions.value_range
    low, high = value_limits(reader) if reader.dtype.kind == "f" else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError("holds NaN or infinite values; replace them by numbers")
    if (factor := type_factor(reader.dtype.name, conventions)) != 1:
        kind, reached = ("16-bit", "the 8-bit range") if factor < 1 else ("8-bit", f"0..{expected:g}, the range")
        return factor, f"{kind} picture scaled to {reached} that the network was trained on"
    fixed = conventions.normalization == "fixed"
    if fixed and reader.dtype.kind == "f" and expected >= 255 and low >= 0 and 0 < high <= 1:
        raise DataError(f"float pixels in 0..{high:.3g}, but the network expects 0..{expected:g}; multiply by {expected:g}")
    return 1.0, None


def picture_statistics(reader: ImageReader, conventions: Conventions) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (C,) of a whole picture in the network's colour, from one pass in bounded memory.

    The same numbers as `image_statistics(picture, conventions.color)`: parts are merged in float64 (Chan et al. 1979).
    """
    count, mean, squares = 0, torch.zeros(conventions.channels).double(), torch.zeros(conventions.channels).double()
    for part in _parts(reader):
        pixels = to_color(torch.from_numpy(part).float(), conventions.color).flatten(1)  # (C, n)
        variances, means = zip(*(torch.var_mean(channel.double(), correction=0) for channel in pixels), strict=True)
        n, delta = pixels.shape[1], torch.stack(means) - mean
        squares += torch.stack(variances) * n + delta**2 * (count * n / (count + n))
        mean += delta * (n / (count + n))
        count += n
    std = (squares / count).sqrt()
    return mean.float(), torch.where(std <= 1e-6 * mean.abs(), 1.0, std).float()


def value_limits(reader: ImageReader) -> tuple[float, float]:
    """Return the smallest and the largest value of a picture; NaN where it holds one."""
    parts = [(float(part.min()), float(part.max())) for part in _parts(reader)]
    lows, highs = zip(*parts, strict=True)
    return float(np.min(lows)), float(np.max(highs))


def _parts(reader: ImageReader) -> Iterator[np.ndarray[Any, Any]]:
    _, height, width = reader.shape
    rows = max(1, _ROWS_AT_ONCE // width)
    for top in range(0, height, rows):
        yield np.ascontiguousarray(reader.read(top, 0, min(rows, height - top), width))


def _pillow_array(image: Image.Image) -> np.ndarray[Any, Any]:
    if image.mode in ("L", "F") or image.mode.startswith("I;16"):
        return np.array(image)
    if image.mode == "I":  # Pillow's 32-bit integers mostly come from 16-bit files
        wide = np.array(image)
        return wide.astype(np.uint16 if wide.min(initial=0) >= 0 and wide.max(initial=0) <= 65535 else np.float32)
    return np.array(image.convert("L" if image.mode in ("1", "LA", "La") else "RGB"))


def _checked(picture: Tensor, fits: bool, expected: str) -> Tensor:
    if not fits:
        raise DataError(f"a picture of shape {tuple(picture.shape)}; pass {expected}, so keep the channels that matter")
    if 0 in picture.shape:
        raise DataError(f"a picture of shape {tuple(picture.shape)} has no pixels")
    if picture.dtype == torch.bool:
        return picture.to(torch.uint8) * 255
    if picture.dtype in (torch.uint8, torch.uint16) or picture.is_floating_point():
        return picture if not picture.is_floating_point() else picture.float()
    raise DataError(f"a picture of type {picture.dtype}; pass uint8, uint16 or float32".replace("torch.", ""))

"""Reading parts of pictures: large TIFFs by their segments, so that memory stays bounded, all else decoded whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tifffile
from numpy.typing import NDArray
from torch import Tensor

from delineate.data.decode import decode_image, image_size
from delineate.errors import DataError

Array = NDArray[Any]

WHOLE_BYTES = 1 << 26
"""Pictures whose pixels take less are decoded whole, whatever their format."""

_SEGMENT_BYTES = 1 << 27  # a larger segment is no better than the whole
_TIFF_SUFFIXES = (".tif", ".tiff")


class ImageReader(Protocol):
    """A picture that can be read in parts."""

    shape: tuple[int, int, int]  # channels (1: grey, 3: RGB), height, width
    dtype: np.dtype[Any]  # uint8, uint16 or float32
    computed: bool  # pixels are made as they are read, larger than what they are made of: ask for no more than is needed

    def read(self, top: int, left: int, height: int, width: int) -> Array:
        """Return the pixels `(C, height, width)` of a window that lies inside the picture."""
        ...

    def close(self) -> None:
        """Let the file go."""
        ...


class ArrayReader:
    """A picture `(C, H, W)` or `(H, W)` that is in memory: a tensor or an array."""

    computed = False

    def __init__(self, pixels: Tensor | Array) -> None:
        array: Array = np.asarray(pixels.detach().cpu().numpy() if isinstance(pixels, Tensor) else pixels)
        self.pixels = array[None] if array.ndim == 2 else array
        if self.pixels.ndim != 3 or 0 in self.pixels.shape:
            raise DataError(f"a picture of shape {tuple(array.shape)}; expected (C, H, W) or (H, W) with at least one pixel")
        self.shape: tuple[int, int, int] = (self.pixels.shape[0], self.pixels.shape[1], self.pixels.shape[2])
        self.dtype = self.pixels.dtype

    def read(self, top: int, left: int, height: int, width: int) -> Array:
        return self.pixels[:, top : top + height, left : left + width]

    def close(self) -> None:
        """Nothing to let go: the pixels are the caller's."""


class TiffReader:
    """One page of a TIFF, decoded segment by segment (strips or tiles); the segments of the last window are kept."""

    computed = False

    def __init__(self, path: str | Path, frame: int = 0) -> None:
        self.path = Path(path)
        self._file = tifffile.TiffFile(path)
        page: Any = self._file.series[0].pages[frame]
        self._page = page.aspage()
        self._planes = self._page.samplesperpixel if self._page.planarconfig == tifffile.PLANARCONFIG.SEPARATE else 1
        samples = self._page.samplesperpixel
        self.shape: tuple[int, int, int] = (3 if samples >= 3 else 1, self._page.imagelength, self._page.imagewidth)
        stored = np.dtype(self._page.dtype)
        self.dtype = np.dtype(stored.type if stored.kind == "u" and stored.itemsize <= 2 else np.float32)
        self._kept: dict[int, Array] = {}

    def read(self, top: int, left: int, height: int, width: int) -> Array:
        out = np.empty((self.shape[0], height, width), self.dtype)
        with _damage_named(self.path):
            if self._page.is_memmappable:
                self._read_rows(out, top, left)
            else:
                self._read_segments(out, top, left)
        return out

    def close(self) -> None:
        self._file.close()

    def _read_rows(self, out: Array, top: int, left: int) -> None:
        """Rows of an uncompressed page, which lie one after another in the file."""
        page, height, width = self._page, out.shape[1], out.shape[2]
        samples = page.samplesperpixel // self._planes  # of each stored row's pixels
        dtype = np.dtype(page.dtype).newbyteorder(self._file.byteorder)
        row, plane = page.imagewidth * samples, page.imagelength * page.imagewidth * samples
        for p in range(min(self._planes, self.shape[0])):
            self._file.filehandle.seek(page.dataoffsets[0] + (p * plane + top * row) * dtype.itemsize)
            rows = np.frombuffer(self._file.filehandle.read(height * row * dtype.itemsize), dtype)
            rows = rows.reshape(height, page.imagewidth, samples)[:, left : left + width]
            self._place(out, p, rows, slice(0, height), slice(0, width))

    def _read_segments(self, out: Array, top: int, left: int) -> None:
        page, height, width = self._page, out.shape[1], out.shape[2]
        length, breadth = _segment_size(page)
        across, down = -(-page.imagewidth // breadth), -(-page.imagelength // length)
        used: dict[int, Array] = {}
        for p in range(min(self._planes, self.shape[0])):
            for i in range(top // length, -(-(top + height) // length)):
                for j in range(left // breadth, -(-(left + width) // breadth)):
                    index = (p * down + i) * across + j
                    segment = used[index] = self._kept[index] if index in self._kept else self._decode(index)
                    y, x = i * length - top, j * breadth - left  # of the segment in `out`
                    rows = slice(max(y, 0), min(y + segment.shape[0], height))
                    columns = slice(max(x, 0), min(x + segment.shape[1], width))
                    part = segment[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
                    self._place(out, p, part, rows, columns)
        self._kept = used

    def _decode(self, index: int) -> Array:
        """Return segment `index` as `(length, width, samples)`, cut at the picture's edge."""
        page, handle = self._page, self._file.filehandle
        if page.databytecounts[index] == 0:  # a sparse file leaves empty segments out
            data = None
        else:
            handle.seek(page.dataoffsets[index])
            data = handle.read(page.databytecounts[index])
        segment, _, shape = page.decode(data, index, jpegtables=page.jpegtables, jpegheader=page.jpegheader)
        if segment is None:
            return np.full((shape[1], shape[2], shape[3]), page.nodata, page.dtype)
        return segment[0, : shape[1], : shape[2]]

    def _place(self, out: Array, plane: int, pixels: Array, rows: slice, columns: slice) -> None:
        """Write pixels (h, w, samples) of a plane into `out`; samples beyond its channels (alpha) are dropped."""
        if self._planes > 1:
            out[plane, rows, columns] = pixels[..., 0]
        else:
            out[:, rows, columns] = pixels[..., : self.shape[0]].transpose(2, 0, 1)


def open_image(path: str | Path, frame: int = 0, *, whole_bytes: int = WHOLE_BYTES) -> ImageReader:
    """Open a picture for reading in parts, as `decode_image` decodes it; close the reader when done.

    A TIFF of more than `whole_bytes` bytes of pixels is read by its strips or tiles. Palettes, inverted or rotated pictures,
    one-bit pictures and TIFFs that are one large compressed segment are decoded whole, as is every other format. Raises
    `DataError`.
    """
    image_size(path, frame)  # names what is wrong with the file
    if Path(path).suffix.lower() in _TIFF_SUFFIXES:
        reader = TiffReader(path, frame)
        if _by_segments(reader, whole_bytes):
            return reader
        reader.close()
    return ArrayReader(decode_image(path, frame))


def mirrored_indices(start: int, count: int, size: int) -> NDArray[np.intp]:
    """Return the pixels 0 <= i < size that stand at start, start + 1, ... when a row of `size` pixels is mirrored at its ends.

    The mirror is the outermost pixel, which is not repeated; beyond the mirror image the mirror image is mirrored again.

    >>> mirrored_indices(-2, 8, 4).tolist()
    [2, 1, 0, 1, 2, 3, 2, 1]
    """
    period = max(1, 2 * (size - 1))
    folded = np.arange(start, start + count) % period
    return np.minimum(folded, period - folded) if size > 1 else folded


def read_mirrored(reader: ImageReader, top: int, left: int, height: int, width: int) -> Array:
    """Return `(C, height, width)` of a window that may reach over the picture's edges, where the picture is mirrored."""
    _, picture_height, picture_width = reader.shape
    inside = top >= 0 and left >= 0 and top + height <= picture_height and left + width <= picture_width
    if inside:
        return reader.read(top, left, height, width)
    rows, columns = mirrored_indices(top, height, picture_height), mirrored_indices(left, width, picture_width)
    first_row, first_column = int(rows.min()), int(columns.min())
    part = reader.read(first_row, first_column, int(rows.max()) + 1 - first_row, int(columns.max()) + 1 - first_column)
    return part[:, (rows - first_row)[:, None], (columns - first_column)[None]]


def write_label_tiff(
    path: Path, rows: Iterator[Array], height: int, width: int, dtype: np.dtype[Any], *, tile: int = 512
) -> None:
    """Write a label picture of any size as tiled, compressed TIFF from pieces `(n, width)` that follow one another downwards.

    No more than a row of tiles and a piece are held. `path` is written as it is; give it the path of `atomic_path`.
    """
    with tifffile.TiffWriter(path, bigtiff=height * width * dtype.itemsize > 1 << 31) as writer:
        writer.write(
            _tiles(rows, height, width, tile),
            shape=(height, width),
            dtype=dtype,
            tile=(tile, tile),
            photometric="minisblack",
            compression="zlib",
            maxworkers=1,
        )


def _tiles(rows: Iterator[Array], height: int, width: int, tile: int) -> Iterator[Array]:
    """Cut pieces of any height into rows of tiles, padded with zeros at the right and at the end."""
    pending: list[Array] = []
    done = 0
    while done < height:
        while sum(map(len, pending)) < min(tile, height - done):
            pending.append(next(rows))
        stack = np.concatenate(pending)
        row, pending = stack[:tile], [stack[tile:]]
        done += len(row)
        row = np.pad(row, ((0, tile - len(row)), (0, -width % tile)))
        yield from (np.ascontiguousarray(row[:, left : left + tile]) for left in range(0, width, tile))


def _by_segments(reader: TiffReader, whole_bytes: int) -> bool:
    """Whether a page is large, and stored plainly enough to be read in parts."""
    page: Any = reader._page
    nbytes = int(np.prod(reader.shape)) * reader.dtype.itemsize
    plain = (tifffile.PHOTOMETRIC.MINISBLACK, tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    orientation = page.tags.get(274)
    extra = page.samplesperpixel - reader.shape[0]
    if nbytes < whole_bytes or page.photometric not in plain or page.bitspersample not in (8, 16, 32, 64):
        return False
    if (orientation is not None and orientation.value not in (0, 1)) or (extra and not page.extrasamples) or extra > 1:
        return False
    length, breadth = _segment_size(page)
    return page.is_memmappable or length * breadth * reader.dtype.itemsize * page.samplesperpixel <= _SEGMENT_BYTES


def _segment_size(page: Any) -> tuple[int, int]:
    """Height and width of the segments of a page."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return min(page.rowsperstrip, page.imagelength), page.imagewidth


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (DataError, MemoryError):
        raise
    except Exception as error:  # damaged files make decoders fail in every way
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: is damaged or truncated ({reason}); copy it again") from error

"""Decoding picture files: images as the network sees them, label pictures as the numbers they hold."""

from __future__ import annotations

import glob
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision import tv_tensors

from delineate.errors import DataError, suggest

Array = NDArray[Any]

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp"),
    *(".jp2", ".pgm", ".ppm", ".pbm", ".pnm", ".tga", ".jpe", ".jfif"),
)
PIXEL_LIMIT = 2**31
"""More pixels than this in one page that is not a TIFF are refused: Pillow would need them all in memory."""

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_FEW_NAMES = 1000  # among which the closest one is sought
_ORIENTATION = 274  # tag number in EXIF and in TIFF
_pillow_limit = threading.Lock()


def decode_image(path: str | Path, frame: int = 0) -> tv_tensors.Image:
    """Decode one picture as `(C, H, W)`, C = 1 (grey) or 3 (RGB), uint8, uint16 or float32.

    The EXIF orientation is applied. Palettes, CMYK and the like become RGB; an alpha channel is dropped, not blended; one bit
    becomes 0 and 255; 16 bits stay; other number types become float32. `frame` is the page of a TIFF. Raises `DataError` naming
    the file, what was seen and what to do.
    """
    pixels = read_pixels(path, frame)
    planes = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(planes)))


def read_pixels(path: str | Path, frame: int = 0) -> Array:
    """Decode one picture as a numpy array `(H, W)` (grey) or `(H, W, 3)` (RGB); otherwise as `decode_image`."""
    with _explained(path):
        if _is_tiff(path):
            pixels, orientation = _read_tiff_image(path, frame)
        else:
            with _open_pillow(path) as image:
                orientation = _orientation(image)
                pixels = _deep_png(path, image)
                if pixels is None:
                    pixels = _pillow_image(image)
    pixels = _network_dtype(pixels)
    if pixels.dtype == np.float32 and not np.isfinite(pixels).all():
        raise DataError(f"{path}: holds NaN or infinite values; replace them by numbers")
    return _orient(pixels, orientation)


def decode_labels(path: str | Path, frame: int = 0) -> Array:
    """Decode a label picture as the numbers it holds: `(H, W)` integers, or `(H, W, 3)` for an RGB colour map.

    A palette picture gives its indices, never its colours; one bit gives 0 and 1; alpha is dropped; float pictures must
    hold whole numbers. The EXIF orientation is applied as it is to images. Raises `DataError` naming the file.
    """
    with _explained(path):
        if _is_tiff(path):
            labels, orientation = _read_tiff_labels(path, frame)
        else:
            with _open_pillow(path) as image:
                orientation = _orientation(image)
                labels = _deep_png(path, image)
                if labels is None:
                    labels = _pillow_labels(image)
    if labels.dtype.kind == "f":
        whole = labels.astype(np.int32)
        if not np.array_equal(whole, labels):
            raise DataError(
                f"{path}: holds fractions such as {labels[whole != labels][0]:g}; a label picture holds whole numbers"
            )
        labels = whole
    return _orient(labels.astype(labels.dtype.newbyteorder("=")), orientation)


def image_size(path: str | Path, frame: int = 0) -> tuple[int, int]:
    """Return height and width, after the EXIF orientation, without decoding pixels."""
    with _explained(path):
        if _is_tiff(path):
            with tifffile.TiffFile(path) as tiff:
                page = _tiff_page(path, tiff, frame)
                height, width, orientation = page.imagelength, page.imagewidth, _tiff_orientation(page)
        else:
            with _open_pillow(path) as image:
                (width, height), orientation = image.size, _orientation(image)
    return (width, height) if orientation >= 5 else (height, width)


def stored_orientation(path: str | Path) -> int:
    """Return the EXIF orientation 1..8 of a picture; 1 is upright."""
    with _explained(path):
        if _is_tiff(path):
            with tifffile.TiffFile(path) as tiff:
                return _tiff_orientation(_tiff_page(path, tiff, 0))
        with _open_pillow(path) as image:
            return _orientation(image)


def page_count(path: str | Path) -> int:
    """Return the number of pages of a TIFF; every other file has one."""
    with _explained(path):
        if not _is_tiff(path):
            return 1
        with tifffile.TiffFile(path) as tiff:
            return len(tiff.series[0].pages)


def stored_palette(path: str | Path) -> tuple[tuple[int, int, int], ...] | None:
    """Return the colours of a palette picture (not of a TIFF), or None."""
    with _explained(path):
        if _is_tiff(path):
            return None
        with _open_pillow(path) as image:
            flat = image.getpalette("RGB") if image.mode == "P" else None
    return None if flat is None else tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True))


def list_images(path: str | Path) -> list[Path]:
    """Return the sorted pictures that a file, a folder (not its subfolders) or a glob names; none is a `DataError`."""
    path = Path(path)
    if path.is_file():
        return [path]
    if path.is_dir():
        if found := images_in(path):
            return found
        deeper = next((p for p in sorted(path.rglob("*")) if is_image(p)), None)
        hint = (
            f"pictures lie deeper: give {deeper.parent} or a glob such as '{path}/**/*'"
            if deeper
            else "expected .png, .jpg, .tif ..."
        )
        raise DataError(f"{path}: no pictures in this folder; {hint}")
    if glob.has_magic(str(path)):
        found = sorted(p for p in map(Path, glob.glob(str(path), recursive=True)) if is_image(p))  # noqa: PTH207
        if found:
            return found
        raise DataError(f"{path}: no picture matches this pattern")
    raise missing(path)


def images_in(folder: Path) -> list[Path]:
    """Return the sorted pictures that lie in `folder` itself."""
    return sorted(p for p in folder.iterdir() if is_image(p))


def is_image(path: Path) -> bool:
    """Whether the name is that of a picture: by suffix, hidden files aside."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def missing(path: str | Path) -> DataError:
    """Return the error for a path that does not exist, with the name beside it that is alike."""
    path = Path(path)
    where = "; its name has a backslash: write / between folders" if "\\" in path.name else ""
    if not path.parent.is_dir():
        return DataError(f"{path}: does not exist{where}; the folder {path.parent} does not exist either", kind="missing file")
    names, by_stem = _names_in(path.parent, path.parent.stat().st_mtime_ns)
    if (alike := by_stem.get(path.stem.casefold())) is not None:  # another suffix, or upper for lower case
        where += f"; did you mean '{alike}'?"
    elif len(names) <= _FEW_NAMES:
        where += suggest(path.name, names)
    return DataError(f"{path}: does not exist{where}", kind="missing file")


@lru_cache(maxsize=1)
def _names_in(folder: Path, changed: int) -> tuple[tuple[str, ...], dict[str, str]]:
    """The names in a folder, `changed` last then, its pictures by stem in lower case; kept: thousands may be missing."""
    names = tuple(sorted(p.name for p in folder.iterdir()))
    pictures = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    return names, {Path(name).stem.casefold(): name for name in pictures}


@contextmanager
def _explained(path: str | Path) -> Iterator[None]:
    """Turn whatever a decoder throws at a damaged file into one line that names the file."""
    try:
        yield
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise missing(path) from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder, expected a picture") from error
    except PermissionError as error:
        raise DataError(f"{path}: may not be read; check its permissions") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: more than {PIXEL_LIMIT:,} pixels; save it as a tiled TIFF") from error
    except Exception as error:  # damaged files make decoders fail in every way: zlib, struct, index and key errors
        raise DataError(_diagnose(path, error)) from error


def _diagnose(path: str | Path, error: Exception) -> str:
    with Path(path).open("rb") as file:
        head = file.read(16)
    if not head:
        return f"{path}: is empty (0 bytes); copy it again"
    if head[4:8] == b"ftyp":
        return f"{path}: is {head[8:12].decode('latin-1')} (HEIC, AVIF or video), which is not read; save it as PNG or JPEG"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"{path}: is not a picture (it begins with {head[:12]!r}); remove it or save it as PNG, JPEG or TIFF"
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path}: is damaged or truncated ({reason}); copy it again"


def _is_tiff(path: str | Path) -> bool:
    with Path(path).open("rb") as file:
        return file.read(4) in _TIFF_MAGIC


@contextmanager
def _open_pillow(path: str | Path) -> Iterator[Image.Image]:
    # Pillow's limit is global; it is raised only while the header is read, where Pillow checks it.
    with _pillow_limit:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, PIXEL_LIMIT // 2  # an error is raised at twice the limit
        try:
            image = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = before
    with image:
        yield image


def _orientation(image: Image.Image) -> int:
    # Asking a PNG for an EXIF block that it does not have would decode all its pixels.
    if image.format == "PNG" and not {"exif", "Raw profile type exif"} & image.info.keys():
        return 1
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _orient(pixels: Array, orientation: int) -> Array:
    """Turn stored rows and columns upright; the meaning of 1..8 is that of EXIF 2.3, tag 274."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _network_dtype(pixels: Array) -> Array:
    """Return uint8 and uint16 as they are, one bit as 0 and 255, everything else as float32."""
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind == "u" and pixels.dtype.itemsize <= 2:
        return pixels.astype(pixels.dtype.newbyteorder("="))
    return pixels.astype(np.float32)


def _pillow_image(image: Image.Image) -> Array:
    if image.mode in ("1", "L", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    if image.mode == "I":  # Pillow's 32-bit integers mostly come from 16-bit files
        wide = np.asarray(image)
        return wide.astype(np.uint16) if wide.min() >= 0 and wide.max() <= 65535 else wide
    return np.asarray(image.convert("L" if image.mode in ("LA", "La") else "RGB"))


def _pillow_labels(image: Image.Image) -> Array:
    if image.mode in ("LA", "PA", "La"):
        return np.asarray(image)[..., 0]
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8)
    if image.mode in ("L", "P", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image)
    return np.asarray(image.convert("RGB"))


def _deep_png(path: str | Path, image: Image.Image) -> Array | None:
    """Decode a 16-bit PNG of several channels, which Pillow would cut to 8 bits; None for every other file."""
    if image.format != "PNG" or image.mode not in ("RGB", "RGBA", "LA") or ";16" not in str(getattr(image, "tile", "")):
        return None
    pixels = imagecodecs.png_decode(Path(path).read_bytes())
    return pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0]


def _tiff_page(path: str | Path, tiff: tifffile.TiffFile, frame: int) -> Any:
    pages = tiff.series[0].pages
    if not 0 <= frame < len(pages):
        raise DataError(f"{path}: has {len(pages)} pages, page {frame} was asked for")
    page = pages[frame]
    if page is None:
        raise DataError(f"{path}: page {frame} is missing; copy the file again")
    return page.aspage()


def _tiff_orientation(page: Any) -> int:
    tag = page.tags.get(_ORIENTATION)
    return int(tag.value) if tag is not None and tag.value in range(1, 9) else 1


def _read_tiff(path: str | Path, page: Any) -> Array:
    """Return a page as `(H, W)` or `(H, W, 3)`, alpha dropped."""
    pixels = page.asarray()
    if page.samplesperpixel > 1 and pixels.ndim == 3 and page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2:
        return pixels
    channels = pixels.shape[-1] if pixels.ndim == 3 else 0
    if channels == 1 or (channels == 2 and page.extrasamples):
        return pixels[..., 0]
    if channels == 3 or (channels == 4 and page.extrasamples):
        return pixels[..., :3]
    raise DataError(f"{path}: a page of shape {pixels.shape}; expected grey or RGB: export the channels you need")


def _read_tiff_image(path: str | Path, frame: int) -> tuple[Array, int]:
    with tifffile.TiffFile(path) as tiff:
        page = _tiff_page(path, tiff, frame)
        pixels = _read_tiff(path, page)
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            pixels = (page.colormap[:, pixels] >> 8).astype(np.uint8).transpose(1, 2, 0)
        elif page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind in "bu":
            pixels = ~pixels
        elif page.photometric == tifffile.PHOTOMETRIC.SEPARATED:
            raise DataError(f"{path}: a CMYK TIFF; save it as RGB")
        return pixels, _tiff_orientation(page)


def _read_tiff_labels(path: str | Path, frame: int) -> tuple[Array, int]:
    with tifffile.TiffFile(path) as tiff:
        page = _tiff_page(path, tiff, frame)
        labels = _read_tiff(path, page)
        if labels.dtype == bool:
            inverted = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
            labels = (~labels if inverted else labels).astype(np.uint8)
        return labels, _tiff_orientation(page)

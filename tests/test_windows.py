"""Reading pictures in parts: every layout of TIFF against the whole picture; label pictures written strip by strip."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from delineate.data.decode import decode_image, decode_labels
from delineate.data.windows import ArrayReader, TiffReader, mirrored_indices, open_image, read_mirrored, write_label_tiff
from delineate.errors import DataError

SHAPES = {
    "grey": ((301, 203), {}),
    "rgb": ((301, 203, 3), {"photometric": "rgb"}),
    "planar": ((3, 301, 203), {"photometric": "rgb", "planarconfig": "separate"}),
    "rgba": ((301, 203, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
}
LAYOUTS = {
    "contiguous": {},
    "strips": {"rowsperstrip": 17},
    "tiles": {"tile": (64, 48)},
    "deflate": {"tile": (64, 48), "compression": "zlib", "predictor": True},
    "lzw": {"rowsperstrip": 10, "compression": "lzw"},
}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.int16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_windows_of_a_tiff_equal_the_decoded_picture(
    tmp_path: Path, dtype: type, shape: str, layout: str, byteorder: str
) -> None:
    size, options = SHAPES[shape]
    rng = np.random.default_rng(0)
    path = tmp_path / "picture.tif"
    pixels = rng.integers(0, 255, size).astype(dtype)
    tifffile.imwrite(path, pixels, byteorder=byteorder, **options, **LAYOUTS[layout])
    whole = decode_image(path).numpy()
    reader = open_image(path, whole_bytes=0)
    assert isinstance(reader, TiffReader)
    assert (reader.shape, reader.dtype) == (whole.shape, whole.dtype)
    for top, left, height, width in [(0, 0, 301, 203), (5, 7, 40, 50), (300, 202, 1, 1), (63, 47, 2, 2), (100, 0, 64, 203)]:
        window = reader.read(top, left, height, width)
        np.testing.assert_array_equal(window, whole[:, top : top + height, left : left + width])
    reader.close()


def test_colour_jpeg_tiles(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (4, 4, 3)).astype(np.uint8).repeat(64, 0).repeat(64, 1)
    tifffile.imwrite(path, pixels, tile=(64, 64), compression="jpeg", photometric="ycbcr")
    reader = open_image(path, whole_bytes=0)
    assert isinstance(reader, TiffReader)
    np.testing.assert_array_equal(reader.read(60, 10, 90, 200), decode_image(path).numpy()[:, 60:150, 10:210])


@pytest.mark.parametrize(
    "options",
    [
        {"photometric": "miniswhite", "compression": "zlib"},
        {"colormap": np.arange(768, dtype=np.uint16).reshape(3, 256) * 80},
        {"extratags": [(274, 3, 1, 6, True)]},  # turned by 90 degrees
    ],
    ids=["inverted", "palette", "rotated"],
)
def test_unusual_tiffs_are_decoded_whole(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "picture.tif"
    pixels = np.arange(30 * 20, dtype=np.uint8).reshape(30, 20)
    tifffile.imwrite(path, pixels, **options)
    reader = open_image(path, whole_bytes=0)
    assert isinstance(reader, ArrayReader)
    np.testing.assert_array_equal(reader.read(0, 0, *reader.shape[1:]), decode_image(path).numpy())


def test_pages_of_a_stack(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    stack = np.random.default_rng(0).integers(0, 255, (3, 40, 50)).astype(np.uint8)
    tifffile.imwrite(path, stack, photometric="minisblack", compression="zlib")
    for frame in range(3):
        np.testing.assert_array_equal(open_image(path, frame, whole_bytes=0).read(3, 4, 30, 40)[0], stack[frame, 3:33, 4:44])
    with pytest.raises(DataError, match=r"stack\.tif.*3 pages"):
        open_image(path, 3)


def test_small_pictures_and_other_formats_are_decoded_whole(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "b.tif", pixels)
    for name in ("a.png", "b.tif"):
        reader = open_image(tmp_path / name)
        assert isinstance(reader, ArrayReader)
        np.testing.assert_array_equal(reader.read(2, 3, 10, 20), pixels.transpose(2, 0, 1)[:, 2:12, 3:23])


def test_memory_holds_the_segments_of_one_window_only(tmp_path: Path) -> None:
    path = tmp_path / "large.tif"
    tifffile.imwrite(path, np.zeros((640, 640), np.uint8), tile=(64, 64), compression="zlib")
    reader = open_image(path, whole_bytes=0)
    assert isinstance(reader, TiffReader)
    decoded = []
    reader._decode = lambda index, decode=reader._decode: decoded.append(index) or decode(index)  # pyright: ignore
    for top in range(0, 640, 32):
        reader.read(top, 0, min(64, 640 - top), 640)
        assert len(reader._kept) <= 20
    assert sorted(decoded) == list(range(100))  # each tile once, although windows overlap


def test_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "damaged.tif"
    tifffile.imwrite(
        path, np.random.default_rng(0).integers(0, 255, (200, 200)).astype(np.uint8), tile=(64, 64), compression="zlib"
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"damaged\.tif: is damaged"):
        open_image(path, whole_bytes=0).read(0, 0, 200, 200)
    text = tmp_path / "text.tif"
    text.write_text("this is not a picture")
    with pytest.raises(DataError, match=r"text\.tif"):
        open_image(text)
    with pytest.raises(DataError, match="does not exist"):
        open_image(tmp_path / "none.tif")


def test_an_empty_array_is_refused() -> None:
    with pytest.raises(DataError, match="at least one pixel"):
        ArrayReader(np.zeros((1, 0, 5)))


@given(start=st.integers(-50, 50), count=st.integers(1, 80), size=st.integers(1, 20))
def test_mirroring_is_that_of_numpy(start: int, count: int, size: int) -> None:
    before, after = max(0, -start), max(0, start + count - size)
    padded = np.pad(np.arange(size), (before, after), mode="reflect")
    np.testing.assert_array_equal(mirrored_indices(start, count, size), padded[start + before : start + before + count])


@given(top=st.integers(-30, 30), left=st.integers(-30, 30), height=st.integers(1, 40), width=st.integers(1, 40))
def test_windows_beyond_the_picture_are_mirrored(top: int, left: int, height: int, width: int) -> None:
    pixels = np.arange(2 * 7 * 11).reshape(2, 7, 11)
    padded = np.pad(pixels, ((0, 0), (80, 80), (80, 80)), mode="reflect")
    window = read_mirrored(ArrayReader(pixels), top, left, height, width)
    np.testing.assert_array_equal(window, padded[:, 80 + top : 80 + top + height, 80 + left : 80 + left + width])


@pytest.mark.parametrize("size", [(1, 1), (70, 45), (64, 32), (65, 33), (200, 7)], ids=str)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_labels_written_in_pieces_read_back(tmp_path: Path, size: tuple[int, int], dtype: type) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, np.iinfo(dtype).max, size).astype(dtype)
    cuts = [0, *sorted(rng.integers(0, size[0] + 1, 4).tolist()), size[0]]
    rows = (labels[a:b] for a, b in pairwise(cuts))
    write_label_tiff(tmp_path / "labels.tif", rows, *size, np.dtype(dtype), tile=32)
    np.testing.assert_array_equal(decode_labels(tmp_path / "labels.tif"), labels)
    with tifffile.TiffFile(tmp_path / "labels.tif") as tiff:
        assert tiff.pages[0].is_tiled
        assert tiff.pages[0].compression == tifffile.COMPRESSION.ADOBE_DEFLATE

"""Decoding: every kind of picture comes out as stated, and every kind of damage ends in one line that names the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from delineate.data.decode import (
    decode_image,
    decode_labels,
    image_size,
    list_images,
    page_count,
    read_pixels,
    stored_orientation,
    stored_palette,
)
from delineate.errors import DataError

RGB = np.random.default_rng(0).integers(0, 256, (12, 17, 3), np.uint8)
GREY = RGB[..., 0]
SHORT = GREY.astype(np.uint16) * 257 - 3


def save(path: Path, pixels: np.ndarray, mode: str | None = None, **options) -> Path:
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def planes(path: Path, frame: int = 0) -> np.ndarray:
    return decode_image(path, frame).numpy()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "ppm"])
def test_rgb_of_lossless_formats(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", RGB, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(planes(path), RGB.transpose(2, 0, 1))
    assert image_size(path) == (12, 17)


def test_grey_keeps_one_channel_and_its_depth(tmp_path: Path) -> None:
    assert np.array_equal(planes(save(tmp_path / "a.png", GREY)), GREY[None])
    deep = planes(save(tmp_path / "b.png", SHORT))
    assert deep.dtype == np.uint16
    assert np.array_equal(deep, SHORT[None])
    floats = planes(save(tmp_path / "c.tif", GREY.astype(np.float32) / 7))
    assert floats.dtype == np.float32
    assert np.array_equal(floats, GREY[None].astype(np.float32) / 7)


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    alpha = np.dstack([RGB, np.zeros_like(GREY)])
    assert np.array_equal(planes(save(tmp_path / "a.png", alpha)), RGB.transpose(2, 0, 1))
    grey_alpha = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(GREY // 2)])
    grey_alpha.save(tmp_path / "b.png")
    assert np.array_equal(planes(tmp_path / "b.png"), GREY[None])
    assert np.array_equal(decode_labels(tmp_path / "b.png"), GREY)


def test_palette_is_colours_for_images_and_indices_for_labels(tmp_path: Path) -> None:
    indices = GREY % 3
    picture = Image.fromarray(indices)
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    picture.save(tmp_path / "a.png")
    colours = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]], np.uint8)
    assert np.array_equal(read_pixels(tmp_path / "a.png"), colours[indices])
    assert np.array_equal(decode_labels(tmp_path / "a.png"), indices)
    palette = stored_palette(tmp_path / "a.png")
    assert palette is not None
    assert palette[:3] == ((10, 20, 30), (40, 50, 60), (70, 80, 90))
    assert stored_palette(save(tmp_path / "b.png", GREY)) is None


def test_one_bit_is_black_and_white_for_images_and_0_1_for_labels(tmp_path: Path) -> None:
    bits = GREY > 128
    path = save(tmp_path / "a.png", bits)
    assert np.array_equal(read_pixels(path), bits * np.uint8(255))
    assert np.array_equal(decode_labels(path), bits.astype(np.uint8))


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", np.full((8, 8, 3), (250, 20, 30), np.uint8), "CMYK", quality=95)
    assert Image.open(path).mode == "CMYK"
    assert np.abs(read_pixels(path).astype(int) - (250, 20, 30)).max() < 12


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_deep_colour_png_keeps_16_bits(tmp_path: Path, channels: int) -> None:
    import imagecodecs

    deep = np.random.default_rng(1).integers(0, 65536, (9, 7, channels), np.uint16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(deep))
    expected = deep[..., :3].transpose(2, 0, 1) if channels >= 3 else deep[None, ..., 0]
    assert np.array_equal(planes(tmp_path / "a.png"), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_exif_orientation_as_pillow_applies_it(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "tif":
        tifffile.imwrite(path, RGB, extratags=[(274, "H", 1, orientation, True)])
    else:
        exif = Image.Exif()
        exif[274] = orientation
        save(path, RGB, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert np.array_equal(read_pixels(path), expected)
    assert np.array_equal(decode_labels(path), expected)
    assert image_size(path) == expected.shape[:2]
    assert stored_orientation(path) == orientation


def test_image_size_reads_no_pixels(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 200), np.uint8)
    for name in ("a.png", "a.jpg", "a.tif"):
        path = save(tmp_path / name, noise)
        path.write_bytes(path.read_bytes()[:2000] if name != "a.tif" else path.read_bytes())
        assert image_size(path) == (300, 200)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiff_stack_of_grey_pages(tmp_path: Path, compression: str | None, dtype: type) -> None:
    stack = np.random.default_rng(0).integers(0, 200, (5, 20, 30)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", compression=compression)
    assert page_count(tmp_path / "a.tif") == 5
    for frame in range(5):
        page = planes(tmp_path / "a.tif", frame)
        assert page.dtype == dtype
        assert np.array_equal(page, stack[frame][None])
    with pytest.raises(DataError, match=r"a\.tif: has 5 pages, page 5"):
        decode_image(tmp_path / "a.tif", 5)


def test_tiff_colour_in_planes_tiles_stacks_and_with_alpha(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for pixels, options in (
        (RGB.transpose(2, 0, 1), {"planarconfig": "separate"}),
        (np.dstack([RGB, GREY]), {"extrasamples": ["unassalpha"]}),
        (np.stack([RGB, RGB[::-1]]), {}),
    ):
        tifffile.imwrite(path, pixels, photometric="rgb", **options)
        assert np.array_equal(planes(path), RGB.transpose(2, 0, 1))
    assert page_count(path) == 2
    assert np.array_equal(planes(path, 1), RGB[::-1].transpose(2, 0, 1))


def test_tiff_of_imagej_is_a_stack(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 999, (3, 8, 9)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True)
    assert page_count(tmp_path / "a.tif") == 3
    assert np.array_equal(planes(tmp_path / "a.tif", 2), stack[2][None])


def test_tiff_white_is_zero_and_palette(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="miniswhite")
    assert np.array_equal(read_pixels(tmp_path / "a.tif"), 255 - GREY)
    colormap = np.arange(768, dtype=np.uint16).reshape(3, 256) * 85
    tifffile.imwrite(tmp_path / "b.tif", GREY, photometric="palette", colormap=colormap)
    assert np.array_equal(read_pixels(tmp_path / "b.tif"), (colormap[:, GREY] >> 8).transpose(1, 2, 0))
    assert np.array_equal(decode_labels(tmp_path / "b.tif"), GREY)


def test_tiff_of_five_channels_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((8, 9, 5), np.uint8), photometric="rgb", planarconfig="contig")
    with pytest.raises(DataError, match=r"a\.tif: a page of shape"):
        decode_image(tmp_path / "a.tif")


def test_labels_of_floats_must_be_whole(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0.0, 1.0, 300.0]], np.float32))
    assert decode_labels(tmp_path / "a.tif").tolist() == [[0, 1, 300]]
    tifffile.imwrite(tmp_path / "b.tif", np.array([[0.0, 0.25]], np.float32))
    with pytest.raises(DataError, match=r"b\.tif: holds fractions such as 0\.25"):
        decode_labels(tmp_path / "b.tif")


def test_what_is_not_a_picture(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello, I am text")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "photo.jpg").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 100)
    (tmp_path / "folder.png").mkdir()
    for name, words in (
        ("text.png", "is not a picture"),
        ("empty.png", "is empty"),
        ("photo.jpg", "HEIC"),
        ("folder.png", "is a folder"),
        ("tex.png", "does not exist; did you mean 'text.png'"),
    ):
        for read in (decode_image, decode_labels, image_size, page_count):
            if read is page_count and name in ("text.png", "empty.png", "photo.jpg"):
                continue  # by its first bytes not a TIFF: one page
            with pytest.raises(DataError) as caught:
                read(tmp_path / name)
            assert str(caught.value).startswith(str(tmp_path / name))
            assert words in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "lzw.tif", "a.bmp", "a.webp"])
def test_truncated_pictures(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / name
    if name == "lzw.tif":
        tifffile.imwrite(path, noise, compression="lzw")
    else:
        save(path, noise)
    content = path.read_bytes()
    for share in (0.02, 0.3, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(DataError) as caught:
            decode_image(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_bytes_never_end_in_another_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A few wrong bytes give either a picture or a DataError."""
    name = data.draw(st.sampled_from(["a.png", "a.jpg", "a.tif", "a.gif"]))
    path = tmp_path_factory.mktemp("damaged") / name
    save(path, RGB)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    for read in (decode_image, decode_labels, image_size):
        try:
            read(path)
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017


def test_more_pixels_than_pillows_own_limit(tmp_path: Path) -> None:
    side = 14000  # 196 million pixels, above the 179 million at which Pillow refuses
    Image.new("1", (side, side)).save(tmp_path / "a.png")
    before = Image.MAX_IMAGE_PIXELS
    assert image_size(tmp_path / "a.png") == (side, side)
    assert before == Image.MAX_IMAGE_PIXELS


def test_decoded_image_is_a_writable_tensor(tmp_path: Path) -> None:
    image = decode_image(save(tmp_path / "a.png", RGB))
    image += 1
    assert image.dtype == torch.uint8


def test_list_images(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.PNG", "a.tif", "deep/c.jpg", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in list_images(tmp_path)] == ["a.tif", "b.PNG"]
    assert list_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    assert [p.name for p in list_images(tmp_path / "**" / "*")] == ["a.tif", "b.PNG", "c.jpg"]
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "outer" / "inner" / "d.png").write_bytes(b"x")
    for path, words in (
        (tmp_path / "outer", "pictures lie deeper"),
        (tmp_path / "*.gif", "no picture matches"),
        (tmp_path / "nodes.txt", "did you mean 'notes.txt'"),
    ):
        with pytest.raises(DataError, match=words):
            list_images(path)


def test_real_pictures(real_data: Path) -> None:
    """RGBA photographs, 16-bit ids, one-bit truths and 16-bit TIFF of real data sets."""
    nuclei = sorted((real_data / "dsb2018_nuclei" / "images").iterdir())[0]
    assert decode_image(nuclei).shape[0] == 3
    labels = decode_labels(real_data / "dsb2018_nuclei" / "labels" / nuclei.name)
    assert labels.dtype == np.uint16
    assert labels.max() == 16
    truth = decode_labels(real_data / "chase_db1" / "Image_01L_1stHO.png")
    assert set(np.unique(truth)) == {0, 1}
    assert decode_image(real_data / "nuclei_stardist_samples" / "512" / "img2d.tif").dtype == torch.uint16

"""Colour, range and statistics of pictures, and the batches they become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from delineate.data.batch import Batch, collate
from delineate.data.intensity import image_statistics, normalize, to_color
from delineate.errors import ConfigError, DataError
from delineate.weights.conventions import Conventions


def _picture(channels: int, dtype: torch.dtype, size: tuple[int, int] = (9, 11)) -> torch.Tensor:
    values = torch.rand(channels, *size)
    if dtype == torch.float32:
        return values
    high = torch.iinfo(dtype).max
    return (values * high).round().to(torch.int32).to(dtype)


def test_gray_follows_pillow() -> None:
    picture = _picture(3, torch.uint8, (40, 50))
    pillow = np.asarray(Image.fromarray(picture.permute(1, 2, 0).numpy()).convert("L"))
    difference = to_color(picture, "gray")[0].int() - torch.from_numpy(pillow.astype(np.int32))
    assert difference.abs().max() <= 1  # Pillow computes in fixed point
    assert (difference == 0).float().mean() > 0.95


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_colours_keep_dtype_and_grey_values(dtype: torch.dtype) -> None:
    gray = _picture(1, dtype)
    rgb = to_color(gray, "rgb")
    assert rgb.shape == (3, 9, 11)
    assert rgb.dtype == dtype
    back = to_color(rgb, "gray")
    assert back.dtype == dtype
    torch.testing.assert_close(back.float(), gray.float())
    colourful = _picture(3, dtype)
    swapped = to_color(colourful, "bgr")
    assert torch.equal(swapped[0].float(), colourful[2].float())
    assert torch.equal(swapped[1].float(), colourful[1].float())


def test_four_channels_are_refused() -> None:
    with pytest.raises(DataError, match="4 channels"):
        to_color(torch.zeros(4, 5, 5), "rgb")


@pytest.mark.parametrize("batched", [False, True])
def test_fixed_normalization_equals_torchvision(batched: bool) -> None:
    picture = _picture(3, torch.uint8)
    picture = torch.stack([picture, picture.flip(-1)]) if batched else picture
    conventions = Conventions()
    expected = tv.normalize(tv.to_dtype(picture, torch.float32, scale=True), list(conventions.mean), list(conventions.std))
    torch.testing.assert_close(normalize(picture, conventions), expected)


def test_uint16_and_one_value_for_all_channels() -> None:
    picture = _picture(1, torch.uint16)
    conventions = Conventions(value_range=65535.0, mean=(0.5,), std=(0.25,))
    expected = ((picture.float() / 65535 - 0.5) / 0.25).expand(3, -1, -1)
    torch.testing.assert_close(normalize(picture, conventions), expected)


def test_wrong_number_of_means_names_the_key() -> None:
    with pytest.raises(ConfigError, match=r"input\.mean has 3 values for color 'gray'"):
        normalize(_picture(1, torch.uint8), Conventions(color="gray"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_image_normalization_is_of_the_whole_picture(dtype: torch.dtype) -> None:
    conventions = Conventions(normalization="image")
    pictures = torch.stack([_picture(3, dtype), _picture(3, dtype)])
    whole = normalize(pictures, conventions)
    torch.testing.assert_close(whole.mean((-2, -1)), torch.zeros(2, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole.std((-2, -1), correction=0), torch.ones(2, 3))
    part = normalize(pictures[0][:, 2:6, 3:8], conventions, image_statistics(pictures[0], "rgb"))
    torch.testing.assert_close(part, whole[0, :, 2:6, 3:8])


@pytest.mark.parametrize("value", [0, 1, 7, 255])
def test_constant_picture_becomes_zero(value: int) -> None:
    for dtype in (torch.uint8, torch.uint16, torch.float32):
        picture = torch.full((3, 6, 5), value, dtype=dtype)
        for color in ("rgb", "gray"):
            out = normalize(picture, Conventions(color=color, normalization="image"))
            torch.testing.assert_close(out, torch.zeros_like(out), atol=1e-4, rtol=0)


def test_statistics_are_exact_for_large_offsets() -> None:
    picture = (torch.arange(100).reshape(1, 10, 10) % 2 + 60000).to(torch.uint16)
    mean, std = image_statistics(picture)
    assert mean.item() == 60000.5
    assert std.item() == 0.5


def test_batches_join_and_move() -> None:
    def one(name: str) -> Batch:
        return Batch(torch.rand(1, 3, 4, 5), torch.randint(0, 2, (1, 4, 5)), weight=torch.rand(1, 4, 5), names=(name,))

    a, b = one("a"), one("b")
    joined = collate([a, b])
    assert len(joined) == 2
    assert joined.names == ("a", "b")
    assert joined.distance is None
    assert torch.equal(joined.images[1], b.images[0])
    assert joined.weight is not None
    moved = joined.to("meta")
    assert moved.labels.device.type == "meta"
    assert moved.distance is None

"""Strided convolutions of maps that are one column wide afterwards, in 16 bits on a CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import delineate as dl
from delineate.models.narrow import NarrowConv2d, allow_narrow_maps
from delineate.weights import Conventions


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (7, 2, 3), (1, 2, 0), (2, 2, 0), (4, 4, 0), (3, 2, 0)])
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_values_are_those_of_the_plain_convolution(kernel: int, stride: int, padding: int, width: int) -> None:
    plain = nn.Conv2d(8, 6, kernel, stride, padding).double()
    narrow = copy.deepcopy(plain)
    allow_narrow_maps(narrow)
    x = torch.randn(2, 8, 9, width, dtype=torch.float64)
    if width + 2 * padding < kernel:
        with pytest.raises(RuntimeError, match="Kernel size"):
            narrow(x)
        return
    torch.testing.assert_close(narrow(x), plain(x), rtol=1e-12, atol=1e-12)


def test_only_plain_strided_convolutions_change() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, 2, padding_mode="reflect", padding=1))
    allow_narrow_maps(model)
    assert [type(part) for part in model] == [NarrowConv2d, nn.Conv2d, nn.Conv2d]


def test_a_narrow_picture_in_bf16_is_near_its_float32() -> None:
    model = dl.create_model("unet", 2, width=32, depth=6)
    model.classes, model.conventions = ("background", "cell"), Conventions()
    picture = torch.randint(0, 256, (3, 400, 32), dtype=torch.uint8)
    networks = {precision: dl.Predictor(model, "cpu", precision).semantic.network for precision in ("fp32", "bf16")}
    exact, *rounded = (networks[p](networks[p].prepare(picture[None])) for p in ("fp32", "bf16", "bf16"))
    assert torch.equal(*rounded)
    assert (rounded[0] - exact).abs().max() < 0.1

"""The published U-Net: every size of its figure, and its numbers against the same network written as plain functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from delineate.errors import ConfigError
from delineate.models import create_model
from delineate.models.unet_original import check_input_size, output_size, valid_input_size

# The figure of the paper: sides after each convolution, pooling and up-convolution.
SIDES = [570, 568, 284, 282, 280, 140, 138, 136, 68, 66, 64, 32, 30, 28]
SIDES += [56, 54, 52, 104, 102, 100, 200, 198, 196, 392, 390, 388, 388]
DOWN_CHANNELS = [64, 64, 64, 128, 128, 128, 256, 256, 256, 512, 512, 512, 1024, 1024]
UP_CHANNELS = [512, 512, 512, 256, 256, 256, 128, 128, 128, 64, 64, 64, 2]


def trace_shapes(model: nn.Module, side: int) -> list[tuple[int, ...]]:
    """Channels, height and width after each convolution and pooling, on the meta device."""
    shapes: list[tuple[int, ...]] = []
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d)):
            module.register_forward_hook(lambda _m, _i, output: shapes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        model.to("meta").eval()(torch.empty(1, 1, side, side, device="meta"))
    return shapes


@pytest.mark.parametrize(("variant", "last_up"), [("paper", 64), ("release", 128)])
def test_every_size_of_the_figure(variant: str, last_up: int) -> None:
    channels = [*DOWN_CHANNELS, *UP_CHANNELS]
    channels[-4] = last_up
    assert trace_shapes(create_model("unet_original", 2, variant=variant), 572) == [
        (c, side, side) for c, side in zip(channels, SIDES, strict=True)
    ]


def test_crops_and_concatenations() -> None:
    """Skips of 64, 136, 280, 568 are cropped to 56, 104, 200, 392 and joined to as many up-sampled channels."""
    for variant, joined in (("paper", [1024, 512, 256, 128]), ("release", [1024, 512, 256, 192])):
        model: Any = create_model("unet_original", 2, variant=variant)
        seen: list[tuple[int, ...]] = []
        for join in model.join:
            join.register_forward_pre_hook(lambda _m, inputs, seen=seen: seen.append(tuple(inputs[0].shape[1:])))
        model.to("meta").eval()(torch.empty(1, 1, 572, 572, device="meta"))
        assert seen == [(c, side, side) for c, side in zip(joined, (56, 104, 200, 392), strict=True)]


def test_twenty_three_convolutions() -> None:
    for variant, relus in (("paper", 18), ("release", 22)):
        model: Any = create_model("unet_original", 2, variant=variant)
        assert sum(isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)) for m in model.modules()) == 23
        assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == relus
        assert model.dropout.p == (0.5 if variant == "release" else 0.0)
        assert (model.margin, model.stride) == (92, 16)


def reference(weights: dict[str, Tensor], x: Tensor, variant: str) -> Tensor:
    """The same network in functions, reading the weights in the order in which they were registered."""
    values = iter(weights.values())

    def take() -> tuple[Tensor, Tensor]:
        return next(values), next(values)

    down = [(take(), take()) for _ in range(5)]
    up = [take() for _ in range(4)]
    join = [(take(), take()) for _ in range(4)]
    head = take()
    skips: list[Tensor] = []
    for level, pair in enumerate(down):
        x = F.max_pool2d(x, 2) if level else x
        for weight, bias in pair:
            x = torch.relu(F.conv2d(x, weight, bias))
        skips.append(x)
    for level, (weight, bias), pair in zip((3, 2, 1, 0), up, join, strict=True):
        x = F.conv_transpose2d(x, weight, bias, stride=2)
        x = torch.relu(x) if variant == "release" else x
        cut = (skips[level].shape[-1] - x.shape[-1]) // 2
        skip = F.pad(skips[level], (-cut, -cut, -cut, -cut))
        x = torch.cat((x, skip) if variant == "release" else (skip, x), 1)
        for w, b in pair:
            x = torch.relu(F.conv2d(x, w, b))
    return F.conv2d(x, *head)


@pytest.mark.parametrize("variant", ["paper", "release"])
def test_numbers_of_the_functional_reference(variant: str, device: torch.device) -> None:
    model = create_model("unet_original", 2, variant=variant).to(device).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    x = torch.randn(1, 1, 188, 188, device=device)
    with torch.no_grad():
        torch.testing.assert_close(model(x), reference(dict(model.named_parameters()), x, variant), rtol=1e-4, atol=1e-4)


def test_dropout_acts_at_the_two_deepest_contracting_levels_of_the_release() -> None:
    model: Any = create_model("unet_original", 2, variant="release").train()
    seen: list[int] = []
    model.dropout.register_forward_hook(lambda _m, inputs, output: seen.append(output.shape[1]))
    with torch.no_grad():
        model.to("meta")(torch.empty(1, 1, 188, 188, device="meta"))
    assert seen == [512, 1024]


def test_weights_start_as_the_paper_says() -> None:
    """N(0, sqrt(2 / N)): for a 3x3 convolution of 64 channels N = 576; an up-convolution's pixel sees one pixel below."""
    model: Any = create_model("unet_original", 2)
    assert model.down[0][2].weight.std().item() == pytest.approx((2 / 576) ** 0.5, rel=0.02)
    assert model.up[0][0].weight.std().item() == pytest.approx((2 / 1024) ** 0.5, rel=0.02)
    assert all(p.abs().max() == 0 for name, p in model.named_parameters() if name.endswith("bias"))


@given(st.integers(1, 5000))
def test_valid_input_size_is_the_smallest_that_yields_enough(output: int) -> None:
    side = valid_input_size(output)
    assert output_size(side) >= output
    assert side % 16 == 60 % 16
    assert side == 188 or output_size(side - 16) < output


@given(st.integers(0, 2000), st.integers(0, 2000))
def test_only_sides_of_16k_plus_60_are_taken(height: int, width: int) -> None:
    fits = all(side >= 188 and (side - 60) % 16 == 0 for side in (height, width))
    if fits:
        check_input_size(height, width)
        return
    with pytest.raises(ConfigError, match=f"not {height} x {width}"):
        check_input_size(height, width)


def test_the_error_names_the_next_sizes() -> None:
    model = create_model("unet_original", 2)
    with pytest.raises(ConfigError, match=r"not 512 x 100: give a height of 508 or 524 and a width of 188 or 204"):
        model(torch.zeros(1, 1, 512, 100))
    with pytest.raises(ConfigError, match=r"not 512 x 572: give a height of 508 or 524, mirrored"):
        model(torch.zeros(1, 1, 512, 572))

"""The streaming engine against the naive way: every window into one accumulator of the whole picture, then the arg-max."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from delineate.errors import ConfigError
from delineate.predict.tiling import plan_axis, predict_windows

CLASSES = 4


class Padded(nn.Module):
    """A small padded network of stride 4, softmax at its end."""

    margin, stride = 0, 4

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(2, 6, 3, padding=1)
        self.coarse = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Conv2d(12, CLASSES, 3, padding=1)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % 4, 0, -height % 4), mode="replicate")
        x = self.fine(x).relu()
        deep = F.interpolate(self.coarse(F.max_pool2d(x, 4)), scale_factor=4.0)
        return self.head(torch.cat([x, deep], 1))[..., :height, :width].softmax(1)


class Valid(nn.Module):
    """A small U-Net with valid convolutions and max-pooling: n pixels in, n - 10 out, n even."""

    margin, stride, smallest = 5, 2, 12

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3)
        self.deep = nn.Conv2d(6, 6, 3)
        self.head = nn.Conv2d(12, CLASSES, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] % 2 == x.shape[-2] % 2 == 0
        x = self.second(self.first(x).relu()).relu()  # n - 4
        deep = F.interpolate(self.deep(F.max_pool2d(x, 2)).relu(), scale_factor=2.0)  # n - 8
        return self.head(torch.cat([x[..., 2:-2, 2:-2], deep], 1))  # n - 10


def picture(height: int, width: int) -> Tensor:
    return torch.randn(2, height, width)


def streamed(network: nn.Module, image: Tensor, **options) -> Tensor:
    """All strips joined; they must follow one another without a gap."""
    strips = []
    with torch.inference_mode():
        for top, content in predict_windows(network, image, **options):
            assert top == sum(strip.shape[1] for strip in strips)
            strips.append(content)
    return torch.cat(strips, 1)


def naive(network: nn.Module, image: Tensor, window: int, overlap: float, blend: str) -> Tensor:
    """Every window into one (K, H, W) accumulator, with 2-D weights that are divided out at the end."""
    height, width = image.shape[1:]
    rows = plan_axis(height, window, overlap, "constant", network)
    columns = plan_axis(width, window, overlap, "constant", network)
    scores, total = torch.zeros(CLASSES, height, width, dtype=torch.float64), torch.zeros(height, width, dtype=torch.float64)

    def gaussian(n: int) -> Tensor:
        return torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 8)).double() ** 2)

    weights = (
        torch.outer(gaussian(rows.output), gaussian(columns.output))
        if blend == "gaussian"
        else torch.ones(rows.output, columns.output)
    )
    with torch.inference_mode():
        for top in rows.starts:
            for left in columns.starts:
                part = (slice(top, top + rows.output), slice(left, left + columns.output))
                scores[:, *part] += network(image[None, :, *part])[0] * weights
                total[part] += weights
    return scores / total


SIZES = [(1, 1), (5, 3), (16, 16), (17, 16), (16, 33), (40, 40), (41, 63), (32, 400), (100, 7), (64, 64)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("blend", ["gaussian", "constant"])
def test_labels_equal_the_naive_result(size: tuple[int, int], blend: str) -> None:
    network, image = Padded().eval(), picture(*size)
    expected = naive(network, image, 16, 0.25, blend)
    result = streamed(network, image, window=16, blend=blend, batch=3)
    torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=0)
    assert torch.equal(result.argmax(0), expected.argmax(0))


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    window=st.integers(1, 40),
    overlap=st.floats(0, 0.8),
    batch=st.integers(1, 5),
)
def test_any_size_window_and_overlap(height: int, width: int, window: int, overlap: float, batch: int) -> None:
    network, image = Padded().eval(), picture(height, width)
    expected = naive(network, image, window, overlap, "gaussian")
    result = streamed(network, image, window=window, overlap=overlap, batch=batch)
    torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=0)


def test_a_long_thin_picture() -> None:
    network, image = Padded().eval(), picture(32, 4000)
    result = streamed(network, image, window=128, overlap=0.5, batch=8)
    assert torch.equal(result.argmax(0), naive(network, image, 128, 0.5, "gaussian").argmax(0))


def test_a_picture_within_the_window_is_one_forward_pass() -> None:
    network, image = Padded().eval(), picture(30, 50)
    with torch.inference_mode():
        assert torch.equal(streamed(network, image, window=50), network(image[None])[0])


def mirrored_whole(network: nn.Module, image: Tensor) -> Tensor:
    """The network on the whole picture, mirrored by its margin and on to the next size that it takes."""
    height, width = image.shape[1:]
    m = network.margin
    below, right = (2 * m + n - network.smallest for n in (height, width))
    below, right = (max(-n, -n % network.stride) for n in (below, right))
    padded = np.pad(image.numpy(), ((0, 0), (m, m + below), (m, m + right)), mode="reflect")
    with torch.inference_mode():
        return network(torch.from_numpy(padded)[None])[0, :, :height, :width]


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (12, 12), (13, 30), (40, 41), (64, 31), (7, 200)], ids=str)
@pytest.mark.parametrize("overlap", [0.0, 0.3])
def test_overlap_tile_equals_the_whole_mirrored_picture(size: tuple[int, int], overlap: float) -> None:
    network, image = Valid().eval(), picture(*size)
    expected = mirrored_whole(network, image)
    result = streamed(network, image, window=14, overlap=overlap, blend="constant", batch=4)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    assert torch.equal(result.argmax(0), expected.argmax(0))


def test_windows_off_the_pooling_grid_would_not_be_exact() -> None:
    """Why windows start at multiples of the stride: one pixel beside them, max-pooling sees other pairs."""
    network, image = Valid().eval(), picture(40, 41)
    whole, shifted = mirrored_whole(network, image), mirrored_whole(network, image[:, 1:, 1:])
    assert not torch.allclose(shifted[:, 8:-8, 8:-8], whole[:, 9:-8, 9:-8], atol=1e-2)


@pytest.mark.parametrize("make", [Padded, Valid])
@pytest.mark.parametrize("size", [(15, 14), (40, 41)], ids=str)
def test_flips_average_the_mirrored_views(make: type[nn.Module], size: tuple[int, int]) -> None:
    network, image = make().eval(), picture(*size)
    window = 16 if make is Padded else 14

    def view(dims: tuple[int, ...]) -> Tensor:
        if make is Valid:  # exact: the views of windows are windows of the views
            return mirrored_flipped(network, image, dims)
        return streamed(network, image.flip(dims), window=window).flip(dims)

    expected = torch.stack([view(dims) for dims in ((), (-1,), (-2,), (-2, -1))]).mean(0)
    result = streamed(network, image, window=window, flips=True, batch=6, overlap=0.25 if make is Padded else 0.0)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def mirrored_flipped(network: nn.Module, image: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The network on the mirrored view of the padded whole picture, turned back and cropped."""
    height, width = image.shape[1:]
    m = network.margin
    below, right = (max(-n, -n % network.stride) for n in (2 * m + height - network.smallest, 2 * m + width - network.smallest))
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (m, m + below), (m, m + right)), mode="reflect"))
    with torch.inference_mode():
        return network(padded.flip(dims)[None])[0].flip(dims)[:, :height, :width]


def test_scores_are_handed_over_strip_by_strip_and_batches_kept() -> None:
    seen, batches = [], []

    def network(x: Tensor) -> Tensor:
        batches.append(len(x))
        return x

    for top, rows in predict_windows(
        network, picture(500, 90), window=(50, 40), batch=3, decode=lambda scores: scores.shape[1]
    ):
        seen.append((top, rows))
    assert sum(rows for _, rows in seen) == 500
    assert max(rows for _, rows in seen) <= 50
    assert max(batches) == 3


def test_the_identity_network_gives_the_picture_back() -> None:
    image = picture(123, 77)
    for blend in ("gaussian", "constant"):
        torch.testing.assert_close(streamed(lambda x: x, image, window=(31, 20), overlap=0.4, blend=blend), image)  # pyright: ignore


@pytest.mark.parametrize("options", [{"batch": 0}, {"overlap": 1.0}, {"overlap": -0.1}])
def test_wrong_options_are_named(options: dict) -> None:
    with pytest.raises(ConfigError, match="batch"):
        streamed(Padded(), picture(9, 9), **options)


def test_a_window_too_small_for_the_grid_names_one_that_fits() -> None:
    network, image = Valid().eval(), picture(40, 41)
    network.stride, network.smallest = 16, 24  # outputs of 14, 30 ...: no two windows of 14 can start 16 apart
    with pytest.raises(ConfigError, match="take 30"):
        streamed(network, image, window=14, overlap=0.0)
    del Valid.smallest
    try:
        network.__dict__.pop("smallest")
        with pytest.raises(ConfigError, match="smallest"):
            streamed(network, image, window=14)
    finally:
        Valid.smallest = 12

"""The pictures of RoI Pooling and RoI Align cannot lie: what they show, read back, gives what torchvision computes."""

from __future__ import annotations

import doctest
import importlib
import re
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.lines import Line2D
from PIL import Image
from torch import Tensor

from delineate.ops.roi import roi_pool

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "roi_align.md"


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        yield importlib.import_module("roi_align_explained")
    finally:
        sys.path.remove(str(ROOT / "examples"))


@pytest.fixture(scope="module")
def scene(example: ModuleType) -> Any:
    return example.load_scene()


@pytest.fixture(scope="module")
def measured(example: ModuleType, scene: Any) -> Any:
    return example.move(scene, None, range(17))


def any_map(height: int = 37, width: int = 48) -> Tensor:
    return torch.rand(height, width, generator=torch.Generator().manual_seed(1))


def theirs(operation: str, features: Tensor, box: Tensor, bins: int) -> np.ndarray:
    arguments: dict[str, Any] = {"RoIPool": {}, "RoIAlign": {"sampling_ratio": 2, "aligned": True}}[operation]
    function = {"RoIPool": torchvision.ops.roi_pool, "RoIAlign": torchvision.ops.roi_align}[operation]
    return function(features[None, None], [box[None]], bins, 1 / 16, **arguments)[0, 0].numpy()


def bilinear(features: Tensor, x: float, y: float) -> float:
    """By scipy, not by anything of ours; the centre of a cell lies at its half."""
    from scipy.ndimage import map_coordinates

    return float(map_coordinates(features.double().numpy(), [[y - 0.5], [x - 0.5]], order=1, mode="nearest")[0])


def xy(line: Line2D) -> np.ndarray:
    """Of each of a line's points, in cells: (N, 2)."""
    return np.stack([line.get_xdata(), line.get_ydata()], 1)


# ---- What is drawn ----


@pytest.mark.parametrize("coin", [12, 15, 20])
def test_the_drawn_bins_hold_the_cells_whose_maxima_roi_pool_gives(example: ModuleType, scene: Any, coin: int) -> None:
    features, box = any_map(), scene.boxes[coin]
    panel = example.draw_pooling(scene, features, box).axes[2]
    bins = [patch for patch in panel.patches if patch.get_gid() == "bin"]
    corners = [(*np.floor(patch.get_xy()), *np.ceil(patch.get_corners()[2])) for patch in bins]
    largest = [features[int(y0) : int(y1), int(x0) : int(x1)].max() for x0, y0, x1, y1 in corners]
    np.testing.assert_array_equal(np.reshape(largest, (2, 2)), theirs("RoIPool", features, box, 2))
    stars = [xy(line)[0] for line in panel.lines if line.get_marker() == "*"]
    assert [features[int(y), int(x)] for x, y in stars] == largest
    for (x0, y0, x1, y1), (x, y) in zip(corners, stars, strict=True):
        assert x0 < x < x1
        assert y0 < y < y1


@pytest.mark.parametrize("coin", [12, 15, 20])
def test_the_drawn_points_give_what_roi_align_gives(example: ModuleType, scene: Any, coin: int) -> None:
    features, box = any_map(), scene.boxes[coin]
    figure = example.draw_alignment(scene, features, box)
    bins = [xy(line) for line in figure.axes[1].lines if line.get_gid() == "points"]
    values = [[bilinear(features, x, y) for x, y in points] for points in bins]
    assert np.shape(values) == (4, 4)
    np.testing.assert_allclose(np.mean(values, 1).reshape(2, 2), theirs("RoIAlign", features, box, 2), atol=1e-6)
    written = [text.get_text() for text in figure.axes[3].texts]
    for value in values:
        assert f"mean {np.mean(value):.2f}\nmax {max(value):.2f}" in written


def test_the_written_weights_of_the_four_neighbours_give_the_point(example: ModuleType, scene: Any) -> None:
    features, box = any_map(), scene.boxes[15]
    figure = example.draw_alignment(scene, features, box)
    terms = [[float(number) for number in text.get_text().split("×")] for text in figure.axes[2].texts]
    assert sum(weight for _, weight in terms) == pytest.approx(1, abs=0.02)
    ring = next(line for line in figure.axes[1].lines if line.get_markersize() == 18)
    value = bilinear(features, *xy(ring)[0])
    assert f"the point is {value:.2f}" in figure.axes[2].get_xlabel()
    assert sum(v * weight for v, weight in terms) == pytest.approx(value, abs=0.02)


def test_the_comparison_shows_patches_and_points_as_they_are(example: ModuleType, scene: Any) -> None:
    features, box = any_map(), scene.boxes[15]
    figure = example.draw_comparison(scene, features, 15)
    for column, name in ((0, "RoIPool"), (2, "RoIAlign")):
        shown = figure.axes[3 + column].images[0].get_array()
        np.testing.assert_allclose(shown, theirs(name, features, box, 7), atol=1e-6)
    points = next(xy(line) for line in figure.axes[2].lines if line.get_gid() == "RoIAlign")
    values = np.reshape([bilinear(features, x, y) for x, y in points], (7, 2, 7, 2))
    np.testing.assert_allclose(values.mean((1, 3)), theirs("RoIAlign", features, box, 7), atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.tuples(*[st.integers(0, 300)] * 2), st.tuples(*[st.integers(1, 250)] * 2), st.sampled_from([1, 2, 3, 7]))
def test_the_geometry_of_any_box_is_that_of_the_operations(
    example: ModuleType, corner: tuple[int, int], size: tuple[int, int], bins: int
) -> None:
    features = any_map()
    box = torch.tensor([*corner, *(c + s for c, s in zip(corner, size, strict=True))]).float()
    x, y = example.axes_of("RoIPool", box, bins, features.shape)
    ranges = product(zip(y.first, y.last, strict=True), zip(x.first, x.last, strict=True))
    largest = [features[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1].max() for rows, columns in ranges]
    np.testing.assert_array_equal(np.reshape(largest, (bins, bins)), theirs("RoIPool", features, box, bins))
    x, y = example.axes_of("RoIAlign", box, bins, features.shape)
    values = example.interpolate(features, x, y)
    np.testing.assert_allclose(values.mean((2, 3)), theirs("RoIAlign", features, box, bins), atol=1e-5)


# ---- What is measured ----


def test_rounding_costs_what_the_page_says(measured: Any) -> None:
    rows = re.findall(r"^\| (RoI[^|]*) \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \| ([\d.]+) pixels \|$", PAGE.read_text(), re.M)
    assert [name for name, *_ in rows] == ["RoIPool", "RoIWarp", "RoIAlign", "RoIPool, mean error undone"]
    for name, *numbers in rows:
        iou, offset = measured[name].iou.mean(1), measured[name].offset
        found = [iou.mean(), iou.min(), iou.max(), offset.mean()]
        assert [float(n) for n in numbers[:3]] == pytest.approx(found[:3], abs=0.002)
        assert float(numbers[3]) == pytest.approx(found[3], abs=0.1)


def test_only_roi_align_keeps_a_moving_coin_in_its_place(measured: Any) -> None:
    align = measured["RoIAlign"]
    assert align.iou.shape == (17, 12)
    assert align.iou.min() > 0.9
    assert align.offset.max() < 1
    for name in ("RoIPool", "RoIWarp", "RoIPool, mean error undone"):
        assert (measured[name].iou.mean(1) < align.iou.mean(1) - 0.05).all()
        assert (measured[name].offset.mean(1) > align.offset.mean(1) + 1).all()
    np.testing.assert_allclose(align.iou[0], align.iou[16], atol=1e-6)  # a whole cell is no shift at all


def test_without_the_maximum_pooling_is_as_poor_as_warping(
    example: ModuleType, scene: Any, measured: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mean = lambda maps, boxes, size: roi_pool(maps, boxes, size, 1 / 16, mode="mean")  # noqa: E731
    monkeypatch.setitem(example.OPERATIONS, "RoIPool", mean)
    pooled = example.move(scene, None, range(17))["RoIPool"].iou.mean()
    assert pooled == pytest.approx(measured["RoIWarp"].iou.mean(), abs=0.01)


def test_moved_coins_are_the_coins(example: ModuleType, scene: Any) -> None:
    window = importlib.import_module("_regions").window
    for coin, shift in ((12, 0), (18, 5), (23, 16)):
        _, mask, box = window(scene, coin, shift)
        assert mask.sum() == scene.coins[coin].sum()
        np.testing.assert_array_equal(box, torchvision.ops.masks_to_boxes(mask[None])[0] + torch.tensor([0, 0, 1, 1]))
        assert box[:2].tolist() == [32 + shift] * 2


# ---- All of it ----


def test_the_example_trains_and_draws(example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = example.main(tmp_path, steps=2, shifts=(0, 8))
    assert {path.name for path in tmp_path.iterdir()} == set(re.findall(r"figures/(\w+\.png)", PAGE.read_text()))
    for path in tmp_path.iterdir():
        assert path.stat().st_size < 300_000
        assert min(Image.open(path).size) > 800
    true = results["True coverage of the cells"]
    assert f"RoIAlign                       {true['RoIAlign'].iou.mean():.3f}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_networks_own_features_show_the_same(example: ModuleType, scene: Any) -> None:
    curves = example.move(scene, example.train_network(scene, 60), (0, 4, 8, 12))
    assert curves["RoIAlign"].iou.mean() > 0.85
    assert curves["RoIPool"].iou.mean() < curves["RoIAlign"].iou.mean() - 0.1
    assert curves["RoIAlign"].offset.mean() < 2 < curves["RoIPool"].offset.mean()


def test_the_code_on_the_page_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 2
    test = doctest.DocTestParser().get_doctest("".join(blocks), {}, PAGE.name, str(PAGE), 0)
    assert doctest.DocTestRunner().run(test).failed == 0
    assert len(test.examples) == 10

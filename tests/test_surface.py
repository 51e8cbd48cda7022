"""Surface distances against distance transforms, MONAI, DeepMind's surface-distance and numbers of MedPy; how these differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import surface_distance as deepmind
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt

from delineate.errors import ConfigError, DataError
from delineate.metrics.surface import SurfaceDistances, surface_distances

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*scipy.ndimage.* namespace:DeprecationWarning"),  # inside surface-distance
    pytest.mark.filterwarnings("ignore:the (ground truth|prediction) of class:UserWarning"),  # of MONAI, empty masks
]

flat = st.tuples(st.integers(1, 9), st.integers(1, 11))
solid = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
pairs = st.one_of(flat, solid).flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape)))
spacings = st.sampled_from([(1.0, 1.0, 1.0), (0.7, 1.3, 2.1), (3.0, 1.0, 0.5)])

# MedPy 0.5.2 on blobs(seed) and blobs(seed + 1): seed, shape, spacing; hd, hd95, assd, asd.
MEDPY = [
    (1, (64, 48), (1, 1), 19.235384061671343, 15.264337522473747, 6.327665742484469, 4.463357009445795),
    (3, (97, 130), (0.5, 0.8), 37.73592452822641, 28.408449447303525, 9.807239733307759, 9.232635519211247),
    (5, (200, 333), (2.0, 1.5), 258.64454372748713, 177.28520689812254, 68.42329334539215, 61.68763562298599),
]


def blobs(seed: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Six discs, and holes where two of them meet; some are cut by the edge of the picture."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[: shape[0], : shape[1]]
    mask = np.zeros(shape, bool)
    for _ in range(6):
        cy, cx, r = rng.integers(0, shape[0]), rng.integers(0, shape[1]), rng.integers(1, max(2, min(shape) // 3))
        mask ^= (y - cy) ** 2 + (x - cx) ** 2 <= r * r
    return mask


def monai(mask: NDArray) -> torch.Tensor:
    """MONAI's (batch, class, ...)."""
    return torch.from_numpy(mask)[None, None].float()


def by_deepmind(prediction: NDArray, truth: NDArray, spacing: tuple[float, ...]) -> Any:
    return deepmind.compute_surface_distances(truth, prediction, spacing)


@settings(max_examples=100, deadline=None)
@given(pairs, spacings)
def test_distances_are_those_of_the_whole_distance_transform(pair: tuple[NDArray, NDArray], spacing: tuple) -> None:
    prediction, truth = pair
    assume(prediction.any() and truth.any())
    step = spacing[: truth.ndim]
    found = surface_distances(prediction, truth, spacing=step)
    borders = [mask & ~binary_erosion(mask) for mask in pair]
    to_truth, to_prediction = (distance_transform_edt(~border, sampling=step) for border in borders[::-1])
    np.testing.assert_allclose(found.prediction_to_truth, np.asarray(to_truth)[borders[0]], rtol=1e-12)
    np.testing.assert_allclose(found.truth_to_prediction, np.asarray(to_prediction)[borders[1]], rtol=1e-12)


@settings(max_examples=100, deadline=None)
@given(pairs, spacings, st.sampled_from([50.0, 95.0, 100.0]))
def test_voxels_are_those_of_monai(pair: tuple[NDArray, NDArray], spacing: tuple, percentile: float) -> None:
    prediction, truth = pair
    assume(prediction.any() or truth.any())  # of two empty masks MONAI says NaN
    step = spacing[: truth.ndim]
    found = surface_distances(prediction, truth, spacing=step)
    options: Any = {"include_background": True, "spacing": step}
    arrays = monai(prediction), monai(truth)
    hausdorff = compute_hausdorff_distance(*arrays, percentile=percentile, **options)
    if prediction.any() and truth.any():
        assert found.hausdorff(percentile) == pytest.approx(hausdorff.item(), rel=1e-5)
    directed = compute_average_surface_distance(*arrays, **options), compute_average_surface_distance(*arrays[::-1], **options)
    assert found.mean_distances()[0] == pytest.approx(directed[0].item(), rel=1e-5) or not prediction.any()
    assert found.mean_distances()[1] == pytest.approx(directed[1].item(), rel=1e-5) or not truth.any()
    symmetric = compute_average_surface_distance(*arrays, symmetric=True, **options)
    assert found.average_symmetric() == pytest.approx(symmetric.item(), rel=1e-5)
    for tolerance in (0.0, 1.2, 2.3):
        dice = compute_surface_dice(*arrays, [tolerance], **options)
        assert found.normalised_surface_dice(tolerance) == pytest.approx(dice.item(), rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(pairs, spacings, st.sampled_from([51.3, 93.7, 100.0]))
def test_elements_are_those_of_deepmind(pair: tuple[NDArray, NDArray], spacing: tuple, percentile: float) -> None:
    prediction, truth = pair
    assume(prediction.any() and truth.any())  # release 0.1 fails on an empty mask with NumPy 2
    step = spacing[: truth.ndim]
    found = surface_distances(prediction, truth, spacing=step, surface="elements")
    theirs = by_deepmind(prediction, truth, step)
    assert found.truth_weights.sum() == pytest.approx(theirs["surfel_areas_gt"].sum(), rel=1e-12)
    assert found.hausdorff(percentile, "weighted") == pytest.approx(
        deepmind.compute_robust_hausdorff(theirs, percentile), rel=1e-12
    )
    to_prediction, to_truth = deepmind.compute_average_surface_distance(theirs)
    assert found.mean_distances() == pytest.approx((to_truth, to_prediction), rel=1e-12)
    for tolerance in (0.0, 1.2, 2.3):
        dice = deepmind.compute_surface_dice_at_tolerance(theirs, tolerance)
        assert found.normalised_surface_dice(tolerance) == pytest.approx(dice, rel=1e-12)


@settings(max_examples=50, deadline=None)
@given(pairs, spacings)
def test_elements_are_also_monais_subvoxels(pair: tuple[NDArray, NDArray], spacing: tuple) -> None:
    assume(pair[0].any() and pair[1].any())
    step = spacing[: pair[1].ndim]
    dice = compute_surface_dice(
        monai(pair[0]), monai(pair[1]), [1.2], include_background=True, spacing=step, use_subvoxels=True
    )
    found = surface_distances(*pair, spacing=step, surface="elements").normalised_surface_dice(1.2)
    assert found == pytest.approx(dice.item(), rel=1e-5)


@pytest.mark.parametrize("golden", MEDPY, ids=lambda golden: str(golden[1]))
def test_pooled_is_that_of_medpy(golden: tuple) -> None:
    seed, shape, spacing, hd, hd95, assd, asd = golden
    found = surface_distances(blobs(seed, shape), blobs(seed + 1, shape), spacing=spacing)
    assert found.hausdorff() == pytest.approx(hd, rel=1e-12)
    assert found.hausdorff(95, "pooled") == pytest.approx(hd95, rel=1e-12)
    assert found.average_symmetric() == pytest.approx(assd, rel=1e-12)
    assert found.mean_distances()[0] == pytest.approx(asd, rel=1e-12)
    assert found.average_symmetric("directed") == sum(found.mean_distances()) / 2 != found.average_symmetric()


def test_one_pair_has_three_hd95() -> None:
    """A speck far away is many of the prediction's points, few of all points, and little of the outline."""
    truth, prediction = np.zeros((64, 200), bool), np.zeros((64, 200), bool)
    truth[4:60, 4:60] = prediction[4:60, 4:60] = True
    prediction[30:34, 150:154] = True
    voxels, elements = (surface_distances(prediction, truth, surface=name) for name in ("voxels", "elements"))  # type: ignore[arg-type]
    hd95 = [voxels.hausdorff(95), voxels.hausdorff(95, "pooled"), elements.hausdorff(95, "weighted")]
    assert hd95[:2] == pytest.approx([40.95, 0.0])  # MONAI interpolates between 0 and 91 pixels; MedPy dilutes
    assert hd95[2] == 90
    assert hd95[2] == pytest.approx(deepmind.compute_robust_hausdorff(by_deepmind(prediction, truth, (1, 1)), 95))
    assert len({round(value, 6) for value in hd95}) == 3
    assert len({voxels.hausdorff(100, v) for v in ("directed", "pooled", "weighted")}) == 1  # type: ignore[arg-type]


def test_the_two_surfaces_differ_by_half_a_pixel() -> None:
    """A square inside a larger one: border pixels and outlines are equally far apart, but there are more of the latter."""
    truth, prediction = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    truth[5:15, 5:15], prediction[8:12, 8:12] = True, True
    voxels, elements = (surface_distances(prediction, truth, surface=name) for name in ("voxels", "elements"))  # type: ignore[arg-type]
    assert len(voxels.truth_to_prediction) == 36
    assert elements.truth_weights.sum() == pytest.approx(36 + 4 * np.sqrt(0.5))
    assert voxels.hausdorff() == elements.hausdorff() == pytest.approx(3 * np.sqrt(2))
    # A single pixel is one border pixel, but has an outline of four corners.
    dot = np.zeros((5, 5), bool)
    dot[2, 2] = True
    assert surface_distances(dot, np.roll(dot, 1, 0)).normalised_surface_dice(0.0) == 0
    assert surface_distances(dot, np.roll(dot, 1, 0), surface="elements").normalised_surface_dice(0.0) == 0.5


@pytest.mark.parametrize("surface", ["voxels", "elements"])
@pytest.mark.parametrize("shape", [(6, 7), (3, 4, 5)])
def test_empty_masks(surface: Any, shape: tuple[int, ...]) -> None:
    empty, some = np.zeros(shape, bool), np.zeros(shape, bool)
    some[1, 2] = True
    both = surface_distances(empty, empty, surface=surface)
    for variant in ("directed", "pooled", "weighted"):
        assert both.hausdorff(95, variant) == 0
    assert both.mean_distances() == (0, 0)
    assert both.average_symmetric() == both.average_symmetric("directed") == 0
    assert np.isnan(both.normalised_surface_dice(1.0))
    assert both.normalised_surface_dice(1.0, absent=1) == 1
    for pair in ((empty, some), (some, empty)):
        one = surface_distances(*pair, surface=surface)
        for variant in ("directed", "pooled", "weighted"):
            assert one.hausdorff(95, variant) == np.inf
        assert one.mean_distances() == (np.inf, np.inf)
        assert one.average_symmetric() == one.average_symmetric("directed") == np.inf
        assert one.normalised_surface_dice(1.0, absent=1) == 0


def test_packages_disagree_about_two_empty_masks() -> None:
    empty = monai(np.zeros((4, 4), bool))
    assert np.isnan(compute_hausdorff_distance(empty, empty, include_background=True).item())
    assert surface_distances(np.zeros((4, 4)), np.zeros((4, 4))).hausdorff() == 0


def test_a_mask_that_the_picture_cuts_has_a_surface_there() -> None:
    full = np.ones((5, 8), bool)
    assert len(surface_distances(full, full).truth_to_prediction) == 22
    assert surface_distances(full, full, surface="elements").truth_weights.sum() == pytest.approx(22 + 4 * np.sqrt(0.5))


@settings(max_examples=40, deadline=None)
@given(flat.flatmap(lambda shape: st.tuples(*[hnp.arrays(bool, shape)] * 3)))
def test_ignored_pixels_are_in_neither_mask(arrays: tuple[NDArray, NDArray, NDArray]) -> None:
    prediction, truth, ignore = arrays
    found = surface_distances(prediction, truth, ignore=ignore)
    cut = surface_distances(prediction & ~ignore, truth & ~ignore)
    same = surface_distances(prediction | ignore, truth, ignore=ignore)
    for field in SurfaceDistances.__slots__:
        np.testing.assert_array_equal(getattr(found, field), getattr(cut, field))
        np.testing.assert_array_equal(getattr(found, field), getattr(same, field))


def test_ignoring_is_that_of_monai() -> None:
    prediction, truth = blobs(1, (40, 40)), blobs(2, (40, 40))
    ignore = np.zeros((40, 40), bool)
    ignore[10:20] = True
    one_hot = torch.stack([torch.from_numpy(~truth & ~ignore), torch.from_numpy(truth & ~ignore)])[None].float()
    found = torch.stack([torch.from_numpy(~prediction), torch.from_numpy(prediction)])[None].float()
    theirs = compute_surface_dice(found, one_hot, [2.0], ignore_index=-1)  # pixels of no class are ignored
    ours = surface_distances(prediction, truth, ignore=ignore).normalised_surface_dice(2.0)
    assert ours == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("spacing", [0, -1.0, (1.0,), (1, 1, 1), (1, np.inf), (np.nan, 1)])
def test_wrong_spacing_is_named(spacing: Any) -> None:
    with pytest.raises(ConfigError, match="expected one positive number, or one for each of 2 axes"):
        surface_distances(np.ones((3, 3)), np.ones((3, 3)), spacing=spacing)


def test_wrong_arguments_are_named() -> None:
    mask = np.ones((3, 3), bool)
    with pytest.raises(DataError, match=r"truth \(3, 4\)"):
        surface_distances(mask, np.ones((3, 4)))
    with pytest.raises(DataError, match="two and three dimensions"):
        surface_distances(np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="'voxels' or 'elements'"):
        surface_distances(mask, mask, surface="border")  # type: ignore[arg-type]
    found = surface_distances(mask, mask)
    with pytest.raises(ConfigError, match="percentile 101"):
        found.hausdorff(101)
    with pytest.raises(ConfigError, match="tolerance -1"):
        found.normalised_surface_dice(-1)
    with pytest.raises(ValueError, match="variant is 'mean'"):
        found.hausdorff(95, "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="variant is 'mean'"):
        found.average_symmetric("mean")  # type: ignore[arg-type]

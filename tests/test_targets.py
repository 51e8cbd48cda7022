"""Labels, borders, distances and weights against their plain definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from skimage.segmentation import watershed
from torch import Tensor
from torchvision import tv_tensors

from delineate.data.load import load_sample
from delineate.data.open import open_dataset
from delineate.data.sample import IGNORE, Sample
from delineate.data.synthetic import blobs
from delineate.data.targets import border_band, border_weight_map, distance_map, find_objects, make_targets
from delineate.errors import DataError
from delineate.weights.conventions import Conventions

MAPS = arrays(np.int32, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.integers(0, 4))


def _sample(semantic: Any = None, **fields: Any) -> Sample:
    mask = None if semantic is None else tv_tensors.Mask(torch.as_tensor(semantic, dtype=torch.uint8))
    size = (4, 4) if mask is None else tuple(mask.shape)
    return Sample(
        tv_tensors.Image(torch.zeros(1, *size, dtype=torch.uint8)), "picture", Path("picture.png"), semantic=mask, **fields
    )


def _naive_weights(ids: np.ndarray, w0: float, sigma: float) -> np.ndarray:
    """The formula of the paper, with a distance transform of the whole picture for each object."""
    numbers = [i for i in np.unique(ids) if i]
    if len(numbers) < 2:
        return np.ones(ids.shape)
    distances = np.sort([ndimage.distance_transform_edt(ids != i) for i in numbers], axis=0)
    return 1 + np.where(ids == 0, w0 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * sigma**2)), 0)


# ---------------------------------------------------------------- weight map


@settings(max_examples=80, deadline=None)
@given(MAPS, st.floats(0, 20), st.floats(0.3, 8))
def test_weight_map_equals_the_definition(ids: np.ndarray, w0: float, sigma: float) -> None:
    weights = border_weight_map(ids, w0, sigma)
    assert weights.dtype == torch.float32
    np.testing.assert_allclose(weights.numpy(), _naive_weights(ids, w0, sigma), atol=4e-6 * w0 + 1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_weight_map_of_many_objects_equals_the_definition(seed: int) -> None:
    _, ids = blobs((150, 170), seed, count=25)
    ids[border_band(ids, 1).numpy()] = 0
    weights = border_weight_map(ids).numpy()
    np.testing.assert_allclose(weights, _naive_weights(ids, 10, 5), atol=1e-4)
    assert weights.max() > 8


def test_weight_map_without_neighbours_is_flat() -> None:
    for ids in (np.zeros((9, 9), int), np.pad(np.ones((3, 3), int), 3), np.ones((4, 4), int)):
        assert torch.equal(border_weight_map(ids), torch.ones(ids.shape))


def test_balanced_classes_weigh_the_same() -> None:
    classes = np.array([[0, 0, 0, 0, 0, 1, 1, 3, IGNORE, IGNORE]])
    weights = border_weight_map(np.zeros_like(classes), classes=classes).numpy()
    totals = [weights[classes == c].sum() for c in (0, 1, 3)]
    np.testing.assert_allclose(totals, totals[0], rtol=1e-6)
    np.testing.assert_allclose(weights[classes != IGNORE].mean(), 1, rtol=1e-6)
    assert weights[classes == IGNORE].max() == 0


# ---------------------------------------------------------------- distance and border


@settings(max_examples=80, deadline=None)
@given(MAPS)
def test_distance_equals_the_definition(ids: np.ndarray) -> None:
    found = distance_map(ids).numpy()
    for i in range(1, 5):
        inside = ids == i
        if inside.all():
            assert (found == 1).all()
        elif inside.any():
            depth = ndimage.distance_transform_edt(inside)
            np.testing.assert_allclose(found[inside], (depth / depth.max())[inside], rtol=1e-6)
    assert (found[ids == 0] == 0).all()
    assert (found[ids > 0] > 0).all()


@settings(max_examples=80, deadline=None)
@given(MAPS, st.integers(1, 3))
def test_band_equals_the_definition(ids: np.ndarray, width: int) -> None:
    band = border_band(ids, width).numpy()
    for i in (i for i in np.unique(ids) if i):
        inside = ids == i
        depth = np.full(ids.shape, np.inf) if inside.all() else ndimage.distance_transform_edt(inside)
        widths = [w for w in range(width, 0, -1) if depth.max() > w]
        expected = inside & (depth <= widths[0]) if widths else np.zeros_like(inside)
        assert np.array_equal(band & inside, expected)
        assert not (band & inside).all() or not inside.any()
    assert not (band & (ids == 0)).any()


@pytest.mark.parametrize("seed", range(4))
def test_watershed_from_seeds_recovers_touching_objects(seed: int) -> None:
    """The border target does its work: what it separates can be put together again, nothing is lost."""
    _, ids = blobs(160, seed, count=20)
    sample = _sample(ids > 0, instance_map=tv_tensors.Mask(torch.from_numpy(ids)))
    labels = make_targets(sample, Conventions(outputs="border"), 2)["labels"].numpy()
    assert np.array_equal(labels > 0, ids > 0)
    assert ndimage.label(ids > 0)[1] < ids.max()
    seeds, count = ndimage.label(labels == 1)
    owners = [np.unique(ids[seeds == n]) for n in range(1, count + 1)]
    assert all(len(owner) == 1 for owner in owners)  # no seed joins two objects
    assert len(np.unique(np.concatenate(owners))) == ids.max()  # and every object has one
    assert count <= ids.max() + 1  # a narrow waist may give two
    found = watershed(np.zeros(ids.shape), seeds, mask=labels > 0)
    overlaps = []
    for i in range(1, ids.max() + 1):
        own = found == np.bincount(found[ids == i]).argmax()
        overlaps.append((own & (ids == i)).sum() / (own | (ids == i)).sum())
    assert np.median(overlaps) > 0.95
    assert min(overlaps) > 0.5


# ---------------------------------------------------------------- make_targets


def test_classes_are_the_ids() -> None:
    targets = make_targets(_sample([[0, 1], [2, IGNORE]]), Conventions(), 3)
    assert targets["labels"].tolist() == [[0, 1], [2, IGNORE]]
    assert targets["labels"].dtype == torch.int64
    assert set(targets) == {"labels"}


def test_weight_comes_along() -> None:
    weight = tv_tensors.Mask(torch.rand(1, 2))
    targets = make_targets(_sample([[0, 1]], weight=weight), Conventions(), 2)
    assert torch.equal(targets["weight"], weight.as_subclass(Tensor))


def test_multilabel_of_ids_and_of_overlapping_masks() -> None:
    conventions = Conventions(outputs="multilabel")
    hot = make_targets(_sample([[0, 2, IGNORE]]), conventions, 3)["labels"]
    assert hot.tolist() == [[[1, 0, -1]], [[0, 0, -1]], [[0, 1, -1]]]
    masks = tv_tensors.Mask(torch.tensor([[[1, 1, 0, 0]], [[0, 1, 0, 0]], [[0, 0, 0, 1]]], dtype=torch.bool))
    sample = _sample([[1, 2, 0, IGNORE]], masks=masks, labels=torch.tensor([0, 1, 0]), crowd=torch.tensor([False, False, True]))
    hot = make_targets(sample, conventions, 3)["labels"]
    assert hot.dtype == torch.float32
    assert hot.tolist() == [[[0, 0, 1, -1]], [[1, 1, 0, -1]], [[0, 1, 0, -1]]]


def test_border_keeps_ignored_pixels() -> None:
    ids = torch.tensor([[1, 1, 1, 2, 2, 2]], dtype=torch.int32)
    sample = _sample([[1, 1, IGNORE, 1, 1, 1]], instance_map=tv_tensors.Mask(ids))
    labels = make_targets(sample, Conventions(outputs="border"), 2, border_width=1)["labels"]
    assert labels.tolist() == [[1, 1, IGNORE, 2, 1, 1]]


def test_distance_is_computed_once_where_it_is_known() -> None:
    conventions = Conventions(outputs="distance")
    known = tv_tensors.Mask(torch.rand(1, 3))
    sample = _sample([[0, 1, 0]])
    assert make_targets(sample, conventions, 2)["distance"].tolist() == [[0, 1, 0]]
    sample.distance = known
    assert torch.equal(make_targets(sample, conventions, 2)["distance"], known.as_subclass(Tensor))


def test_objects_of_class_ids() -> None:
    semantic = [[1, 1, 0, 2, 2], [1, 0, 1, 2, 1], [IGNORE, 0, 1, 0, 1]]
    every = find_objects(_sample(semantic))
    assert every.dtype == torch.int32
    assert every.max() == 4  # by four neighbours; 2 is an object, IGNORE is not
    assert (every[2, 0], every[0, 2]) == (0, 0)
    assert find_objects(_sample(semantic), 2).max() == 1
    assert find_objects(_sample(semantic), 0).max() == 3


def test_unknown_class_names_the_file() -> None:
    with pytest.raises(DataError, match=r"picture\.png: class id 3 in its labels, but there are 3 classes"):
        make_targets(_sample([[0, 3, IGNORE]]), Conventions(), 3)


def test_sample_without_classes_names_the_file() -> None:
    with pytest.raises(DataError, match=r"picture\.png: has no class ids"):
        make_targets(_sample(), Conventions(), 2)


def test_real_nuclei_keep_their_seeds(real_data: Path) -> None:
    dataset = open_dataset(real_data / "nuclei_stardist_samples")
    record = next(r for r in dataset.records if r.label_map is not None)
    ids = load_sample(dataset, record, ("instance_map",)).instance_map
    assert ids is not None
    inside = ids.numpy() * ~border_band(ids).numpy()
    assert set(np.unique(inside)) == set(np.unique(ids.numpy()))

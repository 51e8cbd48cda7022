"""Random patches: everything known about a picture moves together, exactly where it should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as tv

from delineate.config import AugmentConfig
from delineate.data.elastic import ElasticGrid, draw_elastic
from delineate.data.sample import IGNORE, Sample
from delineate.data.synthetic import blobs
from delineate.data.transforms import build_transforms
from delineate.data.warp import Warp
from delineate.skeleton import KeypointSchema

EVERYTHING: dict[str, Any] = {
    "flip_vertical": 0.5,
    "rotate90": True,
    "rotate": 30,
    "scale": (0.8, 1.25),
    "elastic": 6,
    "foreground": 0.5,
}
STILL: dict[str, Any] = {"flip_horizontal": 0.0, "foreground": 0.0}


def _sample(size: tuple[int, int] = (96, 120), seed: int = 0, dtype: torch.dtype = torch.uint8) -> Sample:
    image, objects = blobs(size, seed, channels=3, classes=2)
    count = int(objects.max())
    places = ndimage.find_objects(objects)
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    if dtype == torch.uint16:
        pixels = (pixels.int() * 257).to(torch.uint16)
    elif dtype == torch.float32:
        pixels = pixels / 255
    centres = [[(x.start + x.stop) / 2, (y.start + y.stop) / 2] for y, x in places]
    return Sample(
        tv_tensors.Image(pixels.contiguous()),
        "picture",
        semantic=tv_tensors.Mask(torch.from_numpy(np.where(objects > 0, 1 + (objects - 1) % 2, 0).astype(np.uint8))),
        instance_map=tv_tensors.Mask(torch.from_numpy(objects)),
        masks=tv_tensors.Mask(torch.from_numpy(objects[None] == np.arange(1, count + 1)[:, None, None])),
        boxes=tv_tensors.BoundingBoxes(
            torch.tensor([[x.start, y.start, x.stop, y.stop] for y, x in places], dtype=torch.float32),
            format="XYXY",
            canvas_size=size,
        ),
        labels=torch.arange(count) % 2,
        crowd=torch.zeros(count, dtype=torch.bool),
        keypoints=tv_tensors.KeyPoints(torch.tensor(centres)[:, None].expand(-1, 2, -1).contiguous(), canvas_size=size),
        visibility=torch.full((count, 2), 2, dtype=torch.uint8),
        weight=tv_tensors.Mask(torch.from_numpy(objects.astype(np.float32))),
        distance=tv_tensors.Mask(torch.from_numpy((objects > 0).astype(np.float32))),
    )


def _draw(
    sample: Sample, seed: int = 0, *, schema: KeypointSchema | None = None, mirror: bool = True, **augment: Any
) -> Sample:
    transform = build_transforms(AugmentConfig(**augment), keypoints=schema, mirror=mirror)
    return transform(sample, np.random.default_rng(seed))


def _some(value: Any) -> Any:
    assert value is not None
    return value.as_subclass(Tensor)


# ---------------------------------------------------------------- where pixels come from


def _warp(picture: tuple[int, int], patch: tuple[int, int], rng: np.random.Generator, *, sigma: float = 0.0) -> Warp:
    angle, zoom = rng.uniform(-np.pi, np.pi), rng.uniform(0.6, 1.6)
    matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32) / np.float32(zoom)
    centre = rng.uniform(0, picture).astype(np.float32)
    return Warp(patch, picture, matrix, centre, draw_elastic(rng, sigma, patch) if sigma else None)


@pytest.mark.parametrize("sigma", [0.0, 5.0])
@pytest.mark.parametrize("picture", [(60, 80), (31, 7), (1, 5)])
def test_resampling_equals_scipy(picture: tuple[int, int], sigma: float) -> None:
    rng = np.random.default_rng(0)
    warp = _warp(picture, (40, 52), rng, sigma=sigma)
    image = rng.uniform(0, 255, picture).astype(np.float32)
    places = np.stack(warp.places)
    expected = ndimage.map_coordinates(image, places, order=1, mode="mirror")
    np.testing.assert_allclose(warp.interpolate(torch.from_numpy(image)[None])[0].numpy(), expected, atol=0.02)
    labels = rng.integers(0, 9, picture)
    near = ndimage.map_coordinates(labels, np.rint(places), order=0, mode="mirror")
    tie = (np.abs(places % 1 - 0.5) < 1e-3).any(0)  # mirrored, it may be rounded to the other side
    assert ((warp.take(labels) == near) | tie).all()


def test_places_follow_torchvision_affine() -> None:
    """A rotation and zoom about the middle of a picture, as another implementation makes it."""
    rng = np.random.default_rng(1)
    image = torch.from_numpy(ndimage.gaussian_filter(rng.uniform(0, 255, (64, 64)), 2).astype(np.float32))[None]
    angle, zoom = np.deg2rad(20), 1.3
    # torchvision turns clockwise for positive angles; y points down
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32) / np.float32(zoom)
    warp = Warp((64, 64), (64, 64), matrix, np.array([31.5, 31.5], np.float32))
    theirs = tv.affine(image, 20.0, [0.0, 0.0], zoom, [0.0], interpolation=tv.InterpolationMode.BILINEAR)
    inner = (slice(None), slice(16, 48), slice(16, 48))
    torch.testing.assert_close(warp.interpolate(image)[inner], theirs[inner], atol=0.02, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 30), st.integers(0, 30))
def test_mirroring_equals_numpy(height: int, width: int, above: int, left: int) -> None:
    picture = np.arange(height * width).reshape(height, width)
    patch = (height + 2 * above, width + 2 * left)
    centre = np.array([(height - 1) / 2, (width - 1) / 2], np.float32)
    warp = Warp(patch, (height, width), np.eye(2, dtype=np.float32), centre)
    assert warp.exact
    expected = np.pad(picture, ((above, above), (left, left)), mode="reflect")
    assert np.array_equal(warp.take(picture), expected)


@pytest.mark.parametrize("quarter", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_quarter_turns_and_flips_are_exact(quarter: int, flip: bool) -> None:
    picture = torch.arange(35).reshape(5, 7)
    matrix = np.linalg.matrix_power(np.array([[0, 1], [-1, 0]], np.float32), quarter)
    matrix = matrix @ np.diag([1, -1 if flip else 1]).astype(np.float32)
    patch = (7, 5) if quarter % 2 else (5, 7)
    warp = Warp(patch, (5, 7), matrix, np.array([2, 3], np.float32))
    turned = torch.rot90(picture, -quarter, (0, 1))
    expected = [torch.rot90(picture, k, (0, 1)) for k in range(4)]
    expected = [e.flip(1) for e in expected] if flip else expected
    found = torch.from_numpy(warp.take(picture.numpy()))
    assert any(torch.equal(found, e) for e in expected)
    assert warp.mirrors == flip
    assert flip or torch.equal(found, turned) or torch.equal(found, torch.rot90(picture, quarter, (0, 1)))


# ---------------------------------------------------------------- elastic deformation


def test_elastic_field_is_torchs_bicubic_interpolation() -> None:
    grid = ElasticGrid(np.random.default_rng(0).normal(0, 10, (3, 3, 2)).astype(np.float32), (57, 90))
    nodes = torch.from_numpy(grid.nodes).permute(2, 0, 1)[None].float()
    expected = F.interpolate(nodes, size=(57, 90), mode="bicubic", align_corners=True)[0]
    np.testing.assert_allclose(np.stack(grid.dense()), expected.numpy(), atol=1e-4)
    points = np.array([[0, 0], [56, 89], [20, 33]], np.float32)
    at = grid.at(points)
    np.testing.assert_allclose(at, expected.numpy()[:, [0, 56, 20], [0, 89, 33]].T, atol=1e-4)


def test_displacements_have_the_stated_deviation() -> None:
    rng = np.random.default_rng(0)
    nodes = np.concatenate([draw_elastic(rng, 10, (512, 512)).nodes.ravel() for _ in range(300)])
    assert abs(nodes.std() - 10) < 0.3
    assert abs(nodes.mean()) < 0.5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 50), st.integers(2, 200), st.integers(2, 200))
def test_elastic_never_folds_and_inverts(seed: int, sigma: float, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    grid = draw_elastic(rng, sigma, (height, width))
    dy, dx = grid.dense()
    jacobian = (1 + np.diff(dy, axis=0)[:, :-1]) * (1 + np.diff(dx, axis=1)[:-1]) - np.diff(dy, axis=1)[:-1] * np.diff(
        dx, axis=0
    )[:, :-1]
    assert jacobian.min() > 0
    points = rng.uniform(0, [height - 1, width - 1], (20, 2)).astype(np.float32)
    found = grid.inverse(points)
    np.testing.assert_allclose(found + grid.at(found), points, atol=1e-3)


# ---------------------------------------------------------------- samples


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_without_changes_a_patch_of_the_picture_size_is_the_picture(dtype: torch.dtype) -> None:
    sample = _sample(dtype=dtype)
    out = _draw(sample, patch=sample.size, **STILL)
    for name in (
        "image",
        "semantic",
        "instance_map",
        "masks",
        "boxes",
        "labels",
        "keypoints",
        "visibility",
        "weight",
        "distance",
    ):
        before, after = _some(getattr(sample, name)), _some(getattr(out, name))
        assert before.dtype == after.dtype, name
        assert torch.equal(before, after) if name != "keypoints" else torch.allclose(before, after, atol=1e-4), name
    assert isinstance(out.image, tv_tensors.Image)
    assert isinstance(out.boxes, tv_tensors.BoundingBoxes)
    assert isinstance(out.keypoints, tv_tensors.KeyPoints)


@pytest.mark.parametrize("seed", range(12))
def test_every_field_moves_alike(seed: int) -> None:
    """Write the truth into the picture, deform, and read it back."""
    sample = _sample(seed=seed)
    sample.image = tv_tensors.Image(_some(sample.semantic)[None].expand(3, -1, -1) * 100)
    out = _draw(sample, seed, patch=(64, 72), **EVERYTHING)
    semantic, objects, masks, labels = (_some(getattr(out, n)) for n in ("semantic", "instance_map", "masks", "labels"))
    shown = out.image.as_subclass(Tensor)[0].float() / 100
    assert ((shown - semantic).abs() < 0.5).float().mean() > 0.97  # only along borders does the nearest pixel win
    assert ((_some(out.distance) > 0.5) == (semantic > 0)).float().mean() > 0.97
    assert len(masks) == len(labels) == len(_some(out.boxes)) == len(_some(out.keypoints)) == len(_some(out.visibility))
    for n, (mask, label) in enumerate(zip(masks, labels, strict=True)):
        assert torch.equal(mask, objects == n + 1)
        assert (semantic[mask] == label + 1).all()
        ys, xs = torch.nonzero(mask, as_tuple=True)
        assert _some(out.boxes)[n].tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize("seed", range(12))
def test_keypoints_land_on_their_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = np.stack([rng.integers(10, 110, 40), rng.integers(10, 80, 40)], -1)
    ids = np.zeros((90, 120), np.uint16)
    for n, (x, y) in enumerate(points, 1):
        ids[y - 1 : y + 2, x - 1 : x + 2] = n  # 3x3 pixels around the point
    sample = Sample(
        tv_tensors.Image(torch.zeros(1, 90, 120, dtype=torch.uint8)),
        "points",
        semantic=tv_tensors.Mask(torch.from_numpy(ids.astype(np.uint8))),
        boxes=tv_tensors.BoundingBoxes(torch.tensor([[0.0, 0, 120, 90]]), format="XYXY", canvas_size=(90, 120)),
        keypoints=tv_tensors.KeyPoints(torch.from_numpy(points + 0.5)[None].float(), canvas_size=(90, 120)),
    )
    out = _draw(sample, seed, patch=(64, 64), **EVERYTHING)
    keypoints, visible, semantic = _some(out.keypoints)[0], _some(out.visibility)[0], _some(out.semantic)
    checked = 0
    for n in range(40):
        if visible[n]:
            x, y = (int(v) for v in keypoints[n])
            around = semantic[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
            assert (around == n + 1).any() or (ids == n + 1).sum() < 9  # unless another point was drawn over it
            checked += 1
    assert checked > 3


def test_mirror_images_swap_partners() -> None:
    sample = _sample()
    points = torch.tensor([[[10.0, 20.0], [30.0, 40.0]]]).expand(len(_some(sample.labels)), -1, -1)
    sample.keypoints = tv_tensors.KeyPoints(points.contiguous(), canvas_size=sample.size)
    schema = KeypointSchema(("left", "right"), flip_pairs=((0, 1),))
    still = {**STILL, "patch": sample.size}
    out = _some(_draw(sample, schema=schema, **{**still, "flip_horizontal": 1.0}).keypoints)[0]
    assert out.tolist() == [[90.0, 40.0], [110.0, 20.0]]
    out = _some(_draw(sample, schema=schema, **{**still, "flip_vertical": 1.0}).keypoints)[0]
    assert out.tolist() == [[30.0, 56.0], [10.0, 76.0]]
    out = _some(_draw(sample, schema=schema, **{**still, "flip_horizontal": 1.0, "flip_vertical": 1.0}).keypoints)[0]
    assert out.tolist() == [[110.0, 76.0], [90.0, 56.0]]
    out = _some(_draw(sample, **{**still, "flip_horizontal": 1.0}).keypoints)[0]
    assert out.tolist() == [[110.0, 20.0], [90.0, 40.0]]


@pytest.mark.parametrize("seed", range(8))
def test_boxes_without_masks_enclose_their_objects(seed: int) -> None:
    sample = _sample(seed=seed)
    tight = _some(_draw(sample, seed, mirror=False, patch=(64, 72), **EVERYTHING).boxes)
    sample.masks = sample.instance_map = None
    boxes = _some(_draw(sample, seed, mirror=False, patch=(64, 72), **EVERYTHING).boxes)
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 72
    assert boxes[:, 3].max() <= 64
    assert len(boxes) >= len(tight) > 0
    for box in tight:
        assert ((boxes[:, :2] <= box[:2] + 1).all(1) & (boxes[:, 2:] >= box[2:] - 1).all(1)).any()


def test_patch_larger_than_the_picture() -> None:
    sample = _sample((20, 30))
    out = _draw(sample, patch=(100, 90), **STILL)
    assert out.size == (100, 90)
    assert IGNORE not in _some(out.semantic)
    padded = np.pad(sample.image.numpy(), ((0, 0), (80, 80), (60, 60)), mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 100, 90))[0]
    assert any((windows[y, x] == out.image.numpy()).all() for y in range(81) for x in range(61))


def test_without_mirroring_the_outside_is_ignored() -> None:
    sample = _sample((20, 30))
    out = _draw(sample, patch=(40, 50), mirror=False, **STILL)
    outside = _some(out.semantic) == IGNORE
    assert outside.sum() == 40 * 50 - 20 * 30
    assert out.image.as_subclass(Tensor)[:, outside].max() == 0
    assert _some(out.instance_map)[outside].max() == 0
    assert not _some(out.masks)[:, outside].any()
    assert _some(out.weight)[outside].max() == 0
    assert torch.equal(out.image.as_subclass(Tensor)[:, ~outside], sample.image.as_subclass(Tensor).reshape(3, -1))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (2, 2)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    image = tv_tensors.Image(torch.full((1, *size), 7, dtype=torch.uint8))
    sample = Sample(image, "tiny", semantic=tv_tensors.Mask(torch.ones(size, dtype=torch.uint8)))
    for seed in range(5):
        out = _draw(sample, seed, patch=(32, 48), **EVERYTHING)
        assert (out.image == 7).all()
        assert (_some(out.semantic) == 1).all()


def test_a_patch_without_objects() -> None:
    sample = _sample()
    empty = torch.zeros(0, dtype=torch.int64)
    sample.instance_map = tv_tensors.Mask(torch.zeros_like(_some(sample.instance_map)))
    sample.masks, sample.labels, sample.crowd = tv_tensors.Mask(_some(sample.masks)[empty]), empty, empty.bool()
    sample.boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=sample.size)
    sample.keypoints = tv_tensors.KeyPoints(torch.zeros(0, 2, 2), canvas_size=sample.size)
    sample.visibility = torch.zeros(0, 2, dtype=torch.uint8)
    out = _draw(sample, patch=(50, 50), **EVERYTHING)
    assert _some(out.masks).shape == (0, 50, 50)
    assert _some(out.boxes).shape == (0, 4)
    assert _some(out.keypoints).shape == (0, 2, 2)


def test_rare_class_is_found() -> None:
    semantic = torch.zeros(300, 300, dtype=torch.uint8)
    semantic[211, 17] = 3
    semantic[100:200, 100:200] = 1
    semantic[:50] = IGNORE
    sample = Sample(tv_tensors.Image(torch.zeros(1, 300, 300, dtype=torch.uint8)), "rare", semantic=tv_tensors.Mask(semantic))
    aimed = [3 in _some(_draw(sample, s, patch=(32, 32), foreground=1.0).semantic) for s in range(60)]
    assert 15 <= sum(aimed) <= 45  # half of the patches: there are two classes beside the most frequent
    blind = [3 in _some(_draw(sample, s, patch=(32, 32), foreground=0.0).semantic) for s in range(60)]
    assert sum(blind) < 6


def test_all_places_are_drawn() -> None:
    seen = torch.zeros(40, 40)
    places = torch.arange(1600, dtype=torch.int32).reshape(40, 40)
    sample = Sample(tv_tensors.Image(torch.zeros(1, 40, 40, dtype=torch.uint8)), "all", instance_map=tv_tensors.Mask(places))
    sample.labels = torch.zeros(1599, dtype=torch.int64)
    transform = build_transforms(AugmentConfig(patch=(32, 32), foreground=0, rotate=10))
    rng = np.random.default_rng(0)
    for _ in range(4000):
        warp = transform._draw_warp(sample, rng)
        seen.view(-1)[torch.from_numpy(warp.nearest).flatten()] += 1
    assert seen.min() > 0


def test_same_generator_same_patch_and_no_global_state() -> None:
    sample = _sample()
    settings_ = {**EVERYTHING, "noise": 0.1, "blur": 2, "brightness": 0.3, "contrast": 0.3, "gamma": (0.7, 1.4)}
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    a, b, c = (_draw(sample, seed, patch=(64, 64), **settings_) for seed in (5, 5, 6))
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.equal(a.image, b.image)
    assert torch.equal(_some(a.instance_map), _some(b.instance_map))
    assert not torch.equal(a.image, c.image)


# ---------------------------------------------------------------- intensities


def test_gamma_equals_torchvision() -> None:
    sample = _sample()
    out = _draw(sample, patch=sample.size, gamma=(1.7, 1.7), **STILL)
    expected = tv.adjust_gamma(sample.image.as_subclass(Tensor), 1.7)
    assert (out.image.as_subclass(Tensor).int() - expected.int()).abs().max() <= 1  # they truncate, we round


@pytest.mark.parametrize(("dtype", "white"), [(torch.uint8, 255), (torch.uint16, 65535), (torch.float32, 1.0)])
def test_noise_is_in_units_of_the_dtype(dtype: torch.dtype, white: float) -> None:
    image = torch.full((1, 200, 200), white / 2).to(dtype)
    sample = Sample(tv_tensors.Image(image), "flat")
    deviations = [
        _draw(sample, s, patch=(200, 200), noise=0.1, **STILL).image.as_subclass(Tensor).float().std() / white
        for s in range(24)
    ]
    noisy = [float(d) for d in deviations if d > 0.002]
    assert 4 < len(noisy) < 20
    assert max(noisy) <= 0.105
    assert max(noisy) > 0.06


def test_brightness_and_contrast_stay_in_their_range() -> None:
    sample = _sample(dtype=torch.float32)
    before = sample.image.as_subclass(Tensor)
    for seed in range(8):
        brighter = _draw(sample, seed, patch=sample.size, brightness=0.25, **STILL).image.as_subclass(Tensor)
        factor = (brighter.sum() / before.sum()).item()
        assert 0.75 <= factor <= 1.25
        torch.testing.assert_close(brighter, before * factor, atol=1e-5, rtol=1e-4)
        steeper = _draw(sample, seed, patch=sample.size, contrast=0.25, **STILL).image.as_subclass(Tensor)
        torch.testing.assert_close(steeper.mean(), before.mean())
        assert 0.75 <= (steeper.std() / before.std()).item() <= 1.25


def test_sixteen_bits_are_not_cut_to_eight() -> None:
    ramp = torch.arange(40000, 40000 + 64 * 64).reshape(1, 64, 64).to(torch.uint16)
    sample = Sample(tv_tensors.Image(ramp), "ramp")
    out = _draw(sample, patch=(64, 64), brightness=0.2, **STILL).image
    assert out.dtype == torch.uint16
    assert len(np.unique(out.numpy())) > 3000


def test_blur_smooths_the_image_only() -> None:
    sample = _sample()
    outs = [_draw(sample, s, patch=sample.size, blur=4.0, **STILL) for s in range(6)]
    rough = [float(o.image.as_subclass(Tensor).float().diff(dim=-1).abs().mean()) for o in outs]
    assert min(rough) < 0.6 * max(rough)
    assert all(torch.equal(_some(o.semantic), _some(sample.semantic)) for o in outs)

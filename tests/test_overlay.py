"""Drawings: right pixels in the right colours, any dtype and size, nothing changed that was given."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import deltaE_cie76, rgb2lab
from skimage.segmentation import find_boundaries
from torch import Tensor

from delineate.data.sample import IGNORE
from delineate.report.canvas import blend
from delineate.report.overlay import (
    draw_errors,
    draw_instances,
    draw_semantic,
    draw_skeletons,
    palette,
    side_by_side,
    to_display,
)
from delineate.report.palette import _to_lab, _to_linear
from delineate.skeleton import KeypointSchema


def gradient(height: int = 40, width: int = 60, channels: int = 3) -> Tensor:
    ramp = torch.arange(height * width).reshape(1, height, width) % 251
    return torch.cat([(ramp + 20 * c) % 251 for c in range(channels)]).to(torch.uint8)


def test_palette_is_stable_and_distinct() -> None:
    colors = palette(256)
    assert colors[0] == (0, 0, 0)
    assert palette(7) == colors[:7]
    assert len(set(colors)) == 256
    assert palette(300)[256] == colors[1]
    assert (palette(0), palette(1)) == ((), ((0, 0, 0),))
    lab = rgb2lab(np.array(colors[:21], np.uint8)[None])[0]
    nearest = min(deltaE_cie76(lab[i], lab[j]) for i in range(21) for j in range(i))
    assert nearest > 15  # 2.3 is a just noticeable difference


def test_palette_measures_in_cielab() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (50, 3)).astype(np.float64)
    np.testing.assert_allclose(_to_lab(_to_linear(rgb)), rgb2lab(rgb.astype(np.uint8)[None])[0], atol=0.05)


def test_display_keeps_colour_and_stretches_the_rest() -> None:
    color = gradient()
    assert torch.equal(to_display(color), color)
    deep = torch.linspace(1000, 3000, 2400).reshape(1, 40, 60)
    for picture in (deep.to(torch.uint16), deep, deep.double(), deep.numpy().astype(np.uint16), (deep / 20).to(torch.uint8)):
        shown = to_display(picture)
        assert shown.shape == (3, 40, 60)
        assert shown.dtype == torch.uint8
        assert (int(shown.min()), int(shown.max())) == (0, 255)
        assert torch.equal(shown[0], shown[2])
        assert bool((shown[0].flatten().diff().to(torch.int16) >= 0).all())


def test_display_of_constant_and_broken_pictures() -> None:
    assert bool((to_display(torch.full((1, 4, 5), 7, dtype=torch.uint8)) == 128).all())
    assert bool((to_display(torch.full((1, 4, 5), math.nan)) == 0).all())
    speck = torch.zeros(1, 50, 50)
    speck[0, 3, 4] = 9.0
    speck[0, 0, 0] = math.inf
    speck[0, 0, 1] = math.nan
    shown = to_display(speck)
    assert int(shown[0, 3, 4]) == 255
    assert int(shown[0, 10, 10]) == 0
    with pytest.raises(ValueError, match=r"\(4, 5, 3\)"):
        to_display(torch.zeros(4, 5, 3))


@given(alpha=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_semantic_blends_by_alpha(alpha: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image, ids = gradient(), torch.from_numpy(rng.integers(0, 4, (40, 60)).astype(np.uint8))
    drawn = draw_semantic(image, ids, alpha=alpha, outlines=False)
    color = torch.tensor(palette(4))[ids.long()].permute(2, 0, 1)
    expected = torch.where(ids > 0, image + (color - image.float()) * alpha, image.float())
    assert bool((drawn - expected).abs().max() <= 0.5 + 1e-3)


def test_semantic_outlines_background_and_colours() -> None:
    image, ids = gradient(), torch.zeros(40, 60, dtype=torch.int64)
    ids[10:20, 10:30], ids[10:20, 30:50] = 1, 2
    drawn = draw_semantic(image, ids, alpha=0.0)
    edge = torch.from_numpy(find_boundaries(ids.numpy(), connectivity=2, mode="inner"))
    assert torch.equal(drawn[:, ids == 0], image[:, ids == 0])
    assert torch.equal(drawn[:, ~edge], image[:, ~edge])
    for value in (1, 2):
        assert bool((torch.tensor(palette(3)[value]) == drawn[:, edge & (ids == value)].T).all())
    all_classes = draw_semantic(image, ids, alpha=1.0, background=None, colors=[(1, 2, 3), (4, 5, 6)])
    assert all_classes[:, 0, 0].tolist() == [1, 2, 3]
    assert all_classes[:, 15, 15].tolist() == [4, 5, 6]
    assert all_classes[:, 15, 40].tolist() == list(palette(3)[2])


def test_ignored_pixels_are_hatched_grey() -> None:
    ids = torch.zeros(40, 60, dtype=torch.uint8)
    ids[:, 30:] = IGNORE
    image = torch.tensor([200, 150, 100], dtype=torch.uint8)[:, None, None].expand(3, 40, 60)
    for drawn in (draw_semantic(image, ids), draw_errors(image, ids * 0, ids)):
        part = drawn[:, :, 30:].float()
        assert part.mean() == pytest.approx(100, abs=25)
        assert float((part.amax(0) - part.amin(0)).max()) <= 41  # of 100 before
        assert float(part.mean(0).std()) > 10  # striped
    assert torch.equal(draw_semantic(image, ids)[:, :, :30], image[:, :, :30])


def test_legend_names_what_occurs() -> None:
    ids = torch.zeros(300, 400, dtype=torch.uint8)
    ids[200:, 200:] = 2
    image = gradient(300, 400)
    plain, named = draw_semantic(image, ids), draw_semantic(image, ids, classes=["background", "cat", "dog"])
    changed = (plain != named).any(0)
    assert bool(changed[:40, :60].any())
    assert not bool(changed[60:].any())
    assert bool((named[:, :30, :30] == torch.tensor(palette(3)[2])[:, None, None]).all(0).any())
    tiny = ids[190:210, 190:210]
    assert torch.equal(
        draw_semantic(image[:, :20, :20], tiny, classes=["a", "b", "c"]), draw_semantic(image[:, :20, :20], tiny)
    )


def test_instances_from_map_and_from_masks_agree() -> None:
    image, ids = gradient(80, 90), torch.zeros(80, 90, dtype=torch.int32)
    ids[5:30, 5:40], ids[5:30, 40:80], ids[50:75, 20:60] = 1, 2, 3
    masks = torch.stack([ids == n for n in (1, 2, 3)])
    from_map = draw_instances(image, instance_map=ids)
    assert torch.equal(from_map, draw_instances(image, masks=masks))
    assert torch.equal(from_map, draw_instances(image, masks=(mask.numpy() for mask in masks)))
    assert torch.equal(from_map[:, ids == 0], image[:, ids == 0])
    middle = [tuple(from_map[:, 17, column].tolist()) for column in (20, 60)]
    assert middle[0] != middle[1]
    by_class = draw_instances(image, instance_map=ids, labels=[1, 1, 0], color_by_class=True, alpha=1.0)
    assert by_class[:, 17, 20].tolist() == by_class[:, 17, 60].tolist() != by_class[:, 60, 40].tolist()


def test_instances_with_large_sparse_ids_and_none_at_all() -> None:
    ids = torch.zeros(20, 20, dtype=torch.int64)
    ids[2:8, 2:8] = 2**40
    drawn = draw_instances(gradient(20, 20), instance_map=ids)
    assert bool((drawn != gradient(20, 20)).any())
    empty = torch.zeros(0, 4)
    assert torch.equal(draw_instances(gradient(), masks=torch.zeros(0, 40, 60), boxes=empty, scores=[]), gradient())


def test_boxes_carry_names_and_scores() -> None:
    image = gradient(200, 300)
    boxes = torch.tensor([[20.0, 30.0, 120.0, 150.0], [290.0, 190.0, 160.0, 60.0]])  # the second from its other corner
    bare = draw_instances(image, boxes=boxes)
    named = draw_instances(image, boxes=boxes, labels=[0, 1], scores=[0.9, 0.25], names=["котик", "dog"])
    color = torch.tensor(palette(3)[1])
    assert bool((color == bare[:, 30, 20:120].T).all())
    assert int((named != bare).any(0)[30:60, 20:120].sum()) > 100
    assert torch.equal(named[:, :, 295:], image[:, :, 295:])


def test_names_leave_thousands_of_small_boxes_visible() -> None:
    """Among many boxes a name stands only where it fits, and over no other; a few boxes have theirs in any case."""
    image = gradient(600, 600)
    corners = torch.cartesian_prod(torch.arange(0, 600, 10), torch.arange(0, 600, 10)).float()
    small = torch.cat([corners, corners + 8], 1)
    large = torch.tensor([[100.0, 100.0, 400.0, 300.0], [100.0, 100.0, 400.0, 299.0], [100.0, 100.0, 400.0, 298.0]])
    words: dict[str, Any] = {"labels": [0] * 3603, "scores": [0.5] * 3603, "names": ["cell"], "colors": [(0, 0, 0)] * 3603}
    bare = draw_instances(image, boxes=torch.cat([small, large]), colors=words["colors"])
    named = draw_instances(image, boxes=torch.cat([small, large]), **words)
    written = (named != bare).any(0)
    assert bool(written[100:130, 100:200].any())  # of the first large box, in its upper corner
    assert bool(written[270:300, 100:200].any())  # of the second, in its lower one; the third finds no place
    written[100:130, 100:200] = written[270:300, 100:200] = False
    assert not bool(written.any())
    few = draw_instances(
        image, boxes=small[-5:], **{key: value if key == "names" else value[:5] for key, value in words.items()}
    )
    assert int((few != draw_instances(image, boxes=small[-5:], colors=words["colors"][:5])).any(0).sum()) > 100


def test_skeletons_draw_only_what_is_seen() -> None:
    image = torch.zeros(3, 100, 100, dtype=torch.uint8)
    image[0, 0, 0] = 1  # a colour picture stays as it is
    points = torch.tensor([[[10.0, 50.0, 0.9], [90.0, 50.0, 0.9], [50.0, 90.0, 0.1], [math.nan, 5.0, 0.9]]])
    edges = [(0, 1), (1, 2), (0, 3)]
    drawn = draw_skeletons(image, points, edges=edges, threshold=0.5)
    assert drawn[:, 50, 50].tolist() == list(palette(2)[1])
    assert not bool(drawn[:, 60:].any())
    hidden = draw_skeletons(image, points[..., :2], edges=edges, visibility=torch.tensor([[2, 0, 0, 0]]))
    assert not bool(hidden[:, 50, 50].any())
    assert bool(hidden[:, 50, 10].any())
    assert torch.equal(draw_skeletons(image, points[:0]), image)


def test_skeletons_tell_left_right_and_middle_apart() -> None:
    """A point in the middle, two at its left and two at its right, in the colours of the documentation, on any ground."""
    left, right, middle = (86, 180, 233), (230, 159, 0), (0, 158, 115)
    names = ("head", "l_hand", "r_hand", "l_foot", "r_foot")
    schema = KeypointSchema(names, ((0, 1), (0, 2), (1, 3), (2, 4), (3, 4)), ((1, 2), (3, 4)))
    points = torch.tensor([[[50.0, 10.0], [90.0, 10.0], [10.0, 10.0], [90.0, 90.0], [10.0, 90.0]]]).repeat(3, 1, 1)
    points[1:] += torch.tensor([[[500.0, 0.0]], [[-500.0, 0.0]]])  # figures beside the picture
    for color in (left, right, middle):
        image = torch.tensor(color, dtype=torch.uint8)[:, None, None].repeat(1, 100, 100)
        drawn = draw_skeletons(image, points, schema=schema)
        seen = [tuple(drawn[:, y, x].tolist()) for x, y in ((70, 10), (90, 50), (30, 10), (10, 50), (50, 90))]
        assert seen == [left, left, right, right, middle]
        assert int(drawn[:, 50, 85:96].sum(0).min()) < 130  # a line lies on a dark one
        assert torch.equal(drawn[:, 40:60, 20:80], image[:, 40:60, 20:80])


def test_lines_suit_the_picture_and_the_figure() -> None:
    """In a large picture a large figure has thick lines, and a small one thin ones."""
    image = torch.full((3, 1400, 1400), 255, dtype=torch.uint8)
    image[0, 0, 0] = 0  # a colour picture stays as it is
    points = torch.tensor([[[200.0, 100.0], [200.0, 1300.0]], [[900.0, 700.0], [900.0, 740.0]]])
    drawn = draw_skeletons(image, points, edges=[(0, 1)])
    marked = (drawn < 255).any(0)
    assert int(marked[700, :600].sum()) in (10, 11)  # 4 pixels for 1400, and 1 more; as many again around it
    assert int(marked[720, 600:].sum()) in (2, 3)


def test_errors_tell_missed_invented_and_confused_apart() -> None:
    truth, found = torch.tensor([[0, 1, 1, 0, 2]] * 5), torch.tensor([[0, 1, 0, 1, 1]] * 5)
    drawn = draw_errors(torch.zeros(1, 5, 5), found, truth).permute(1, 2, 0)[2].int()
    assert drawn[0].tolist() == drawn[1].tolist()
    wanted = [(86, 180, 233), (230, 159, 0), (204, 121, 167)]  # missed, invented, confused
    assert (drawn[2:] - torch.tensor(wanted)).abs().max() < 25


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (700, 20)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    image, ids = torch.rand(1, *size), torch.ones(size, dtype=torch.uint8)
    panels = [
        draw_semantic(image, ids, classes=["a", "b"]),
        draw_instances(image, instance_map=ids),
        draw_errors(image, ids, ids * 0),
    ]
    assert all(panel.shape == (3, *size) for panel in panels)
    assert side_by_side(panels, ["one", "two", "three"]).dtype == torch.uint8


def test_captions_that_are_too_wide_become_smaller_before_they_are_cut() -> None:
    panel = torch.zeros(3, 300, 260, dtype=torch.uint8)
    first, second = (side_by_side([panel], [f"errors: blue missed, orange invented, {end}"], height=300) for end in ("a", "b"))
    assert not torch.equal(first, second)


def test_side_by_side_scales_to_one_height() -> None:
    small, large = gradient(32, 64), gradient(400, 300)
    row = side_by_side([small, large], height=320)
    assert row.shape == (3, 320, 640 + 240 + 5)
    assert torch.equal(row[:, 5::10, 5:640:10], small)  # enlarged pixels stay square and pure
    captioned = side_by_side([small], ["a caption that is far too long for so small a picture, really " * 3])
    assert captioned.shape[1] > 256
    assert captioned.shape[2] == 512
    assert bool((captioned[:, :12] > 200).any())
    with pytest.raises(ValueError, match="at least one"):
        side_by_side([])


def test_wide_pictures_stand_in_two_rows() -> None:
    wide = [gradient(256, 600)] * 4
    assert side_by_side(wide).shape == (3, 2 * 256 + 4, 2 * 600 + 4)
    assert side_by_side(wide, columns=4).shape == (3, 256, 4 * 600 + 3 * 4)
    assert side_by_side(wide[:3]).shape == (3, 256, 3 * 600 + 2 * 4)
    assert torch.equal(side_by_side(wide)[:, 260:, :600], wide[0])


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"semantic of shape \(4, 4\)"):
        draw_semantic(gradient(), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="truth of shape"):
        draw_errors(gradient(), torch.zeros(40, 60), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="keypoints of shape"):
        draw_skeletons(gradient(), torch.zeros(4, 4))


def test_nothing_given_is_changed() -> None:
    image, ids = gradient(), torch.full((40, 60), IGNORE, dtype=torch.uint8)
    before = image.clone()
    draw_semantic(image, ids)
    draw_instances(image, instance_map=ids, masks=ids[None] > 0)
    draw_errors(image, ids, ids)
    assert torch.equal(image, before)


def test_bands_of_a_large_picture_leave_no_seam() -> None:
    """More than a million pixels are blended in bands; each pixel as if it were alone."""
    random = torch.Generator().manual_seed(0)
    canvas = torch.randint(0, 256, (3, 1500, 1100), generator=random, dtype=torch.uint8)
    where = torch.rand(1500, 1100, generator=random) < 0.5
    color = torch.randint(0, 256, (3, 1500, 1100), generator=random, dtype=torch.uint8)
    expected = torch.where(where, (0.75 * canvas.double() + 0.25 * color.double()).round(), canvas.double())
    blend(canvas, where, color, 0.25)
    assert torch.equal(canvas.double(), expected)


def test_lines_leave_small_objects_of_large_pictures_visible() -> None:
    image = gradient(1400, 1400)  # lines are 4 pixels wide
    ids = np.zeros((1400, 1400), dtype=np.int32)
    for n, left in enumerate(range(0, 1400, 40)):
        ids[100:116, left : left + 16] = n + 1
    box = [0.0, 100.0, 15.0, 115.0]
    drawings = (
        draw_instances(image, instance_map=ids, alpha=0),
        draw_instances(image, masks=[ids == 1], alpha=0),
        draw_instances(image, boxes=torch.tensor([box])),
    )
    for drawn in drawings:
        assert torch.equal(drawn[:, 102:114, 2:14], image[:, 102:114, 2:14])
        assert not torch.equal(drawn[:, 100, 2:14], image[:, 100, 2:14])

"""Losses of detectors against torchvision's functions, forwards and backwards, and where these have no answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.roi_heads import fastrcnn_loss, keypointrcnn_loss, maskrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou, roi_align

from delineate.losses.detection import box_losses, keypoint_loss, mask_loss, mask_targets, proposal_losses
from delineate.losses.matching import (
    IGNORED,
    NEGATIVE,
    POSITIVE,
    Sample,
    SampledRegions,
    match_boxes,
    sample_matches,
    sample_regions,
    take_rows,
)
from delineate.ops import encode_boxes
from delineate.ops.instances import InstanceTargets

CLASSES, SIDE = 3, 64


def random_boxes(*shape: int, seed: int, grid: bool = False) -> Tensor:
    """On a grid of few places there are duplicates, ties, and IoUs that are exactly a threshold."""
    generator = torch.Generator().manual_seed(seed)
    if grid:
        low = torch.randint(0, 5, (*shape, 2), generator=generator) * 10
        return torch.cat([low, low + 10 * torch.randint(1, 4, (*shape, 2), generator=generator)], -1).float()
    low = torch.rand(*shape, 2, generator=generator) * (SIDE - 24)
    return torch.cat([low, low + 4 + 20 * torch.rand(*shape, 2, generator=generator)], -1)


def make_targets(counts: list[int], seed: int = 0, *, grid: bool = False, crowds: int = 0, capacity: int | None = None) -> Any:
    """Pictures with `counts` objects, then `crowds` crowd rows, then padding."""
    size = len(counts), max(counts) + crowds if capacity is None else capacity
    generator = torch.Generator().manual_seed(seed)
    row = torch.arange(size[1]).expand(size)
    number = torch.tensor(counts)[:, None]
    valid, crowd = row < number + crowds, (row >= number) & (row < number + crowds)
    boxes = random_boxes(*size, seed=seed, grid=grid) * valid[..., None]
    y, x = torch.arange(SIDE)[:, None], torch.arange(SIDE)
    center, radius = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]).clamp(min=1) / 2
    middle, axes = center[..., None, None], radius[..., None, None]
    masks = ((x - middle[..., 0, :, :]) / axes[..., 0, :, :]) ** 2 + ((y - middle[..., 1, :, :]) / axes[..., 1, :, :]) ** 2 <= 1
    points = boxes[..., None, :2] + torch.rand(*size, 5, 2, generator=generator) * (2.2 * radius[..., None, :])
    points[:, :, 0] = boxes[..., 2:]  # on the last edge
    keypoints = torch.cat([points, torch.randint(0, 3, (*size, 5, 1), generator=generator)], -1) * valid[..., None, None]
    labels = torch.randint(0, CLASSES, size, generator=generator) * valid
    return InstanceTargets(boxes, labels, valid, crowd, masks & valid[..., None, None], keypoints)


def sample_all(kind: Tensor) -> Sample:
    """A quarter of 24 boxes may be positive; always the same ones."""
    return sample_matches(kind, 24, 0.25, torch.Generator().manual_seed(5))


def random_regions(targets: InstanceTargets, seed: int = 3) -> SampledRegions:
    """True boxes, moved a little, and others."""
    moved = targets.boxes.repeat(1, 3, 1)
    moved = moved + torch.randn(moved.shape, generator=torch.Generator().manual_seed(seed))
    boxes = torch.cat([random_boxes(len(moved), 16, seed=seed), moved], 1)
    valid = torch.cat([torch.ones(len(moved), 16, dtype=torch.bool), targets.valid.repeat(1, 3)], 1)
    return sample_regions(boxes, valid, targets, CLASSES, sample_all)


def leaf(*shape: int, seed: int = 1, scale: float = 2.0) -> Tensor:
    return (scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).requires_grad_()


def assert_same(ours: Tensor, theirs: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert ours.requires_grad
    pairs = zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def rows(values: Tensor, chosen: Tensor) -> list[Tensor]:
    """The chosen rows of each picture."""
    return [v[c] for v, c in zip(values, chosen, strict=True)]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=3),
    grid=st.booleans(),
    crowds=st.integers(0, 2),
    thresholds=st.sampled_from([(0.3, 0.7), (0.5, 0.5), (1 / 3, 0.5)]),
    allow=st.booleans(),
)
def test_matching_is_torchvisions(seed, counts, grid, crowds, thresholds, allow):
    targets = make_targets(counts, seed, grid=grid, crowds=crowds)
    boxes = random_boxes(len(counts), 40, seed=seed + 1, grid=grid)
    valid = torch.rand(len(counts), 40, generator=torch.Generator().manual_seed(seed)) < 0.8
    low, high = thresholds
    matches = match_boxes(boxes, targets, valid=valid, low=low, high=high, allow_low_quality=allow, crowd_overlap=None)
    assert (matches.kind[~valid] == IGNORED).all()
    for b, count in enumerate(counts):
        kind, index = matches.kind[b][valid[b]], matches.object[b][valid[b]]
        quality = box_iou(targets.boxes[b, :count], boxes[b][valid[b]])
        touched = (quality > 0).any(1).nonzero()[:, 0]  # an object that overlaps nothing matches everything there: see below
        if len(touched) == 0:
            assert (kind == NEGATIVE).all()
            continue
        expected = Matcher(high, low, allow)(quality[touched])
        assert torch.equal(index[expected >= 0], touched[expected[expected >= 0]])
        assert torch.equal(kind, torch.where(expected >= 0, 1, torch.where(expected == -1, 0, -1)).to(torch.int8))


def test_object_that_overlaps_no_box_matches_none():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    truth = torch.tensor([[[0.0, 0, 10, 5], [40, 40, 50, 50], [25, 5, 25, 5]]])  # the last one has no area
    there = torch.ones(1, 3, dtype=torch.bool)
    targets = InstanceTargets(truth, torch.zeros(1, 3, dtype=torch.int64), there, ~there)
    matches = match_boxes(boxes, targets, low=0.3, high=0.7, allow_low_quality=True)
    assert matches.kind.tolist() == [[POSITIVE, NEGATIVE]]


def test_boxes_in_crowds_are_neither_found_nor_background():
    targets = make_targets([0], crowds=1)
    x0, y0, x1, y1 = targets.boxes[0, 0].tolist()
    middle = (x0 + x1) / 2
    boxes = torch.tensor(
        [[[x0, y0, middle, y1], [middle, y0, 2 * x1 - middle, y1], [x1, y1, x1 + 9, y1 + 9], [x0, y0, x0, y0]]]
    )
    kinds = [match_boxes(boxes, targets, low=0.5, high=0.5, crowd_overlap=share).kind[0].tolist() for share in (None, 0.6, 0.4)]
    kinds.append(match_boxes(boxes, targets, low=0.5, high=0.5).kind[0].tolist())
    assert kinds == [[0, 0, 0, 0], [-1, 0, 0, 0], [-1, -1, 0, 0], [-1, 0, 0, 0]]


def test_boxes_that_are_not_finite_are_ignored():
    boxes = random_boxes(6, seed=0)
    boxes[1, 2], boxes[4] = torch.nan, torch.inf
    targets = make_targets([3])
    matches = match_boxes(boxes, targets, low=0.3, high=0.7, allow_low_quality=True)
    good = torch.tensor([0, 2, 3, 5])
    alone = match_boxes(boxes[good], targets, low=0.3, high=0.7, allow_low_quality=True)
    assert matches.kind[0, [1, 4]].tolist() == [IGNORED, IGNORED]
    assert torch.equal(matches.kind[:, good], alone.kind)


@given(
    kinds=st.lists(st.lists(st.sampled_from([1, 0, -1]), min_size=12, max_size=12), min_size=1, max_size=3),
    count=st.integers(1, 16),
    fraction=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_samples_hold_what_there_is(kinds, count, fraction):
    kind = torch.tensor(kinds, dtype=torch.int8)
    sample = sample_matches(kind, count, fraction)
    assert sample.rows.shape == sample.valid.shape == (len(kinds), count)
    for b, row in enumerate(kinds):
        drawn = sample.rows[b][sample.valid[b]].tolist()
        found = [row[i] for i in drawn]
        positives = min(row.count(1), int(count * fraction))
        assert found == [1] * positives + [0] * min(row.count(0), count - positives)
        assert len(set(drawn)) == len(drawn)
        assert sample.valid[b, : len(drawn)].all()


def test_each_box_is_drawn_equally_often():
    kind = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0, -1]]).expand(8000, -1)
    sample = sample_matches(kind, 4, 0.5, torch.Generator().manual_seed(0))
    often = torch.bincount(sample.rows[sample.valid], minlength=9) / 8000
    expected = torch.tensor([2 / 3] * 3 + [2 / 5] * 5 + [0.0])
    torch.testing.assert_close(often, expected, rtol=0, atol=0.03)  # five standard deviations


@pytest.mark.parametrize("counts", [[4, 0, 20], [0, 0], [1, 2]])
def test_proposal_losses_are_torchvisions(counts):
    targets = make_targets(counts, crowds=1)
    anchors = random_boxes(50, seed=8)
    matches = match_boxes(anchors, targets, low=0.3, high=0.5, allow_low_quality=True)
    sample = sample_all(matches.kind)
    objectness, deltas = leaf(len(counts), 50), leaf(len(counts), 50, 4, seed=2)
    chosen = torch.zeros(len(counts), 51).scatter(1, torch.where(sample.valid, sample.rows, 50), 1.0)[:, :50].bool()
    drawn = [list(chosen & (matches.kind == kind)) for kind in (POSITIVE, NEGATIVE)]
    fake = cast(Any, SimpleNamespace(fg_bg_sampler=lambda labels: drawn))
    labels = [(k == 1).float() for k in matches.kind]
    goals = list(encode_boxes(take_rows(targets.boxes, matches.object), anchors[None]))
    theirs = RegionProposalNetwork.compute_loss(fake, objectness.reshape(-1, 1), deltas.reshape(-1, 4), labels, goals)
    ours = proposal_losses(objectness, deltas, anchors, targets, matches, sample, beta=1 / 9, per_sample=True)
    assert sum(counts) == 0 or (matches.kind == 1).any()
    for mine, other, leaves in zip(ours, theirs, ([objectness], [deltas]), strict=True):
        assert_same(mine, other, leaves)
    # Detectron2: L1, and both sums over the number of rows, full or not.
    l1 = (deltas - torch.stack(goals))[chosen & (matches.kind == POSITIVE)].abs().sum()
    fixed = proposal_losses(objectness, deltas, anchors, targets, matches, sample)
    torch.testing.assert_close(fixed[0], ours[0] * sample.valid.sum() / (24 * len(counts)))
    torch.testing.assert_close(fixed[1], l1 / (24 * len(counts)))


def test_proposal_losses_divide_by_all_rows_asked_for():
    """As Detectron2 does where there are fewer anchors than rows, and torchvision does not."""
    anchors, targets = random_boxes(8, seed=1), make_targets([0])
    matches = match_boxes(anchors, targets, low=0.3, high=0.7)
    sample = sample_matches(matches.kind, 16, 0.5)
    logits, deltas = torch.zeros(1, 8), torch.zeros(1, 8, 4)
    half, _ = proposal_losses(logits, deltas, anchors, targets, matches, sample)
    whole, _ = proposal_losses(logits, deltas, anchors, targets, matches, sample, per_sample=True)
    torch.testing.assert_close(torch.stack([2 * half, whole]), torch.full((2,), 2.0).log())


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("counts", [[4, 0, 20], [0, 0]])
def test_box_losses_are_torchvisions(counts, agnostic):
    regions = random_regions(make_targets(counts, crowds=1))
    shape = regions.labels.shape
    logits, deltas = leaf(*shape, CLASSES + 1), leaf(*shape, 4 if agnostic else 4 * CLASSES, seed=2)
    ours = box_losses(logits.flatten(0, 1), deltas.flatten(0, 1), regions, beta=1 / 9)
    goals = encode_boxes(regions.targets, regions.boxes, (10, 10, 5, 5))
    labels = [(x + 1) % (CLASSES + 1) for x in rows(regions.labels, regions.valid)]  # background first
    shifts = torch.cat([torch.zeros(*shape, 4), deltas.repeat(1, 1, CLASSES) if agnostic else deltas], -1)[regions.valid]
    theirs = fastrcnn_loss(logits[regions.valid].roll(1, -1), shifts, labels, rows(goals, regions.valid))
    assert not all(regions.valid.flatten())
    assert regions.positive.any() == bool(sum(counts))
    for mine, other, leaves in zip(ours, theirs, ([logits], [deltas]), strict=True):
        assert_same(mine, other, leaves)


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("counts", [[4, 0, 20], [0, 0]])
def test_mask_loss_is_torchvisions(counts, agnostic):
    targets = make_targets(counts, crowds=1)
    regions = random_regions(targets).first(6)
    logits = leaf(*regions.labels.shape, 1 if agnostic else CLASSES, 14, 14)
    ours = mask_loss(logits.flatten(0, 1), mask_targets(targets.masks, regions, 14, soft=True), regions)
    chosen = regions.positive
    theirs = maskrcnn_loss(
        logits[chosen],
        rows(regions.boxes, chosen),
        list(targets.masks),
        list(targets.labels * (not agnostic)),
        rows(regions.object, chosen),
    )
    assert chosen.any() == bool(sum(counts))
    assert not chosen.all()
    assert_same(ours, theirs, [logits])


def test_hard_mask_targets_are_detectron2s():
    """BitMasks.crop_and_resize: aligned, adaptive RoIAlign of each bit map, at least 0.5."""
    targets = make_targets([5, 2])
    regions = random_regions(targets).first(6)
    ours = mask_targets(targets.masks, regions, 14)
    for b in range(2):
        for s in range(6):
            mask = targets.masks[b, regions.object[b, s]][None, None].float()
            expected = roi_align(mask, [regions.boxes[b, s : s + 1]], 14, aligned=True)[0, 0] >= 0.5
            assert torch.equal(ours[b, s], expected.float() * regions.positive[b, s])
    assert 0.2 < ours[regions.positive].mean() < 0.9


def test_softmax_masks_let_classes_compete():
    targets = make_targets([5, 2])
    regions = random_regions(targets).first(6)
    logits = leaf(*regions.labels.shape, CLASSES + 1, 14, 14)
    truth = mask_targets(targets.masks, regions, 14)
    wanted = torch.where(truth > 0, regions.labels[..., None, None], CLASSES)
    theirs = F.cross_entropy(logits[regions.positive], wanted[regions.positive])
    assert_same(mask_loss(logits, truth, regions, activation="softmax"), theirs, [logits])


@pytest.mark.parametrize("counts", [[4, 0, 20], [0, 0]])
def test_keypoint_loss_is_torchvisions(counts):
    targets = make_targets(counts, crowds=1)
    regions = random_regions(targets).first(6)
    logits = leaf(*regions.labels.shape, 5, 8, 8)
    chosen = regions.positive
    theirs = keypointrcnn_loss(
        logits[chosen], rows(regions.boxes, chosen), list(targets.keypoints), rows(regions.object, chosen)
    )
    ours = keypoint_loss(logits.flatten(0, 1), targets.keypoints, regions)
    assert_same(ours, theirs, [logits])
    fixed = keypoint_loss(logits, targets.keypoints, regions, normalizer=10.0)
    assert fixed > ours if sum(counts) else fixed == 0


def all_losses(leaves: list[Tensor], anchors: Tensor, targets: InstanceTargets) -> Tensor:
    objectness, proposal_deltas, logits, deltas, masks, heatmaps = leaves
    matches = match_boxes(anchors, targets, low=0.3, high=0.7, allow_low_quality=True, crowd_overlap=0.5)
    rpn = proposal_losses(objectness, proposal_deltas, anchors, targets, matches, sample_matches(matches.kind, 24, 0.5))
    boxes = anchors.expand(len(objectness), -1, -1)
    regions = sample_regions(boxes, torch.ones_like(objectness) > 0, targets, CLASSES, lambda k: sample_matches(k, 24, 0.25))
    first = regions.first(6)
    mask = mask_loss(masks, mask_targets(cast(Tensor, targets.masks), first, 14), first)
    keypoint = keypoint_loss(heatmaps, cast(Tensor, targets.keypoints), first)
    return torch.stack([*rpn, *box_losses(logits, deltas, regions), mask, keypoint])


def all_leaves(count: int) -> list[Tensor]:
    shapes = [(40,), (40, 4), (24, CLASSES + 1), (24, 4 * CLASSES), (6, CLASSES, 14, 14), (6, 5, 8, 8)]
    return [leaf(count, *shape) for shape in shapes]


def degenerate(targets: InstanceTargets) -> InstanceTargets:
    boxes = targets.boxes.clone()
    boxes[..., 2] = boxes[..., 0]
    return targets._replace(boxes=boxes)


@pytest.mark.parametrize(
    "targets",
    [
        make_targets([0, 0], capacity=0),
        make_targets([0, 0], capacity=2),
        make_targets([0, 0], crowds=2),
        degenerate(make_targets([3, 1])),
        make_targets([3, 1])._replace(keypoints=torch.zeros(2, 3, 5, 3)),
    ],
    ids=["no rows", "only padding", "only crowds", "no area", "no keypoint labelled"],
)
def test_nothing_to_learn_is_zero_and_not_nan(targets, request):
    leaves = all_leaves(2)
    losses = all_losses(leaves, random_boxes(40, seed=4), targets)
    gradients = torch.autograd.grad(losses.sum(), leaves)
    learned = {0, 2}  # background
    if "keypoint" in request.node.callspec.id:
        learned = {0, 1, 2, 3, 4}
    for i, (loss, gradient) in enumerate(zip(losses, gradients, strict=True)):
        assert loss > 0 if i in learned else loss == 0
        assert gradient.isfinite().all()
        assert gradient.any() == (i in learned)


def test_no_region_at_all_is_zero():
    targets = make_targets([0], capacity=0)
    regions = sample_regions(torch.zeros(1, 4, 4), torch.zeros(1, 4) > 0, targets, CLASSES, sample_all)
    logits, deltas = leaf(1, 24, CLASSES + 1), leaf(1, 24, 4)
    losses = torch.stack(box_losses(logits, deltas, regions))
    assert not losses.any()
    assert not any(g.any() for g in torch.autograd.grad(losses.sum(), [logits, deltas]))


def test_half_precision_is_computed_in_float32():
    targets = make_targets([4, 2])
    leaves = [x.detach().bfloat16() for x in all_leaves(2)]
    torch.manual_seed(0)
    losses = all_losses(leaves, random_boxes(40, seed=4), targets)
    torch.manual_seed(0)
    expected = all_losses([x.float() for x in leaves], random_boxes(40, seed=4), targets)
    assert losses.dtype == torch.float32
    assert torch.equal(losses, expected)


def test_losses_compile_as_one_graph():
    targets = make_targets([18, 2], crowds=1)  # more than are matched at a time
    leaves, anchors = all_leaves(2), random_boxes(40, seed=4)
    compiled = torch.compile(all_losses, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    expected = all_losses(leaves, anchors, targets)
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(leaves, anchors, targets), expected)

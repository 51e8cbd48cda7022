"""Non-maximum suppression against torchvision, by the kernel and by the plain form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchvision.ops as tv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torchvision.ops.boxes import _batched_nms_vanilla

from delineate.ops import native
from delineate.ops.nms import batched_nms, nms, nms_fixed, suppress, suppress_reference


@pytest.fixture(params=["native", "plain"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "native" and not native.available:
        pytest.skip("built without the native kernels")
    monkeypatch.setattr(native, "available", request.param == "native")
    return request.param


def many_boxes(count: int, clusters: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes as a proposal network gives them: many around each of a few places."""
    generator = torch.Generator().manual_seed(seed)
    center = 300 * torch.rand(clusters, 2, generator=generator)[torch.randint(clusters, (count,), generator=generator)]
    low = center + 4 * torch.randn(count, 2, generator=generator)
    size = 30 + 8 * torch.randn(count, 2, generator=generator).abs()
    return torch.cat([low, low + size], 1), torch.rand(count, generator=generator)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes on a coarse grid, in any order of corners, some not finite; equal scores; three classes."""
    count = draw(st.integers(0, 30))
    corner = st.sampled_from([0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0, 20.0, -4.0] * 4 + [torch.nan, torch.inf, -torch.inf, 1e30])
    score = st.sampled_from([0.0, 0.25, 0.5, 0.5, 1.0, -1.0, torch.inf, -torch.inf, torch.nan])
    boxes, scores = (draw(arrays(np.float32, shape, elements=e)) for shape, e in (((count, 4), corner), (count, score)))
    return (
        torch.from_numpy(boxes),
        torch.from_numpy(scores),
        torch.from_numpy(draw(arrays(np.int64, count, elements=st.integers(-1, 1)))),
    )


THRESHOLDS = [0.0, 0.1, 0.2, 1 / 3, 0.5, 0.7, 1.0, -1.0]  # with IoUs that equal them, rounded up or down


@given(problems(), st.sampled_from(THRESHOLDS))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equal_torchvision(problem: tuple[Tensor, Tensor, Tensor], threshold: float) -> None:
    boxes, scores, classes = problem
    assert torch.equal(nms(boxes, scores, threshold), tv.nms(boxes, scores, threshold))
    assert torch.equal(nms(boxes.double(), scores, threshold), tv.nms(boxes.double(), scores.double(), threshold))
    expected = _batched_nms_vanilla(boxes, scores, classes, threshold).sort().values  # they sort equal scores in any order
    order = scores[expected].argsort(descending=True, stable=True)
    assert torch.equal(batched_nms(boxes, scores, classes, threshold), expected[order])


@given(problems(), st.sampled_from(THRESHOLDS), st.integers(0, 40))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_fixed_capacity_gives_the_same(problem: tuple[Tensor, Tensor, Tensor], threshold: float, capacity: int) -> None:
    boxes, scores, classes = problem
    usable = torch.arange(len(scores)) % 3 != 1
    kept = nms_fixed(boxes, scores, threshold, capacity, classes=classes, valid=usable)
    place = usable.nonzero()[:, 0]
    expected = place[batched_nms(boxes[usable], scores[usable], classes[usable], threshold)][:capacity]
    assert kept.indices.shape == kept.valid.shape == (capacity,)
    assert torch.equal(kept.indices[kept.valid], expected)
    assert kept.valid.tolist() == [True] * len(expected) + [False] * (capacity - len(expected))
    assert not kept.indices[~kept.valid].any()


def test_the_threshold_is_not_rounded() -> None:
    """An IoU of 1 / 10 is above 0.1 in float32, one of 7 / 10 is not above 0.7; torchvision compares in float64."""
    scores = torch.tensor([1.0, 0.5])
    for sides, threshold, kept in ((1.0, 0.1, 1), (7.0, 0.7, 2)):
        boxes = torch.tensor([[0, 0, 10, 1], [0, 0, sides, 1]])
        assert len(nms(boxes, scores, threshold)) == len(tv.nms(boxes, scores, threshold)) == kept


@pytest.mark.parametrize("clusters", [3, 400])
def test_many_boxes_equal_torchvision(clusters: int) -> None:
    boxes, scores = many_boxes(3000, clusters)
    scores[::7] = 0.5
    classes = torch.arange(3000) % 5
    for threshold in (0.3, 0.7):
        assert torch.equal(nms(boxes, scores, threshold), tv.nms(boxes, scores, threshold))
        expected = _batched_nms_vanilla(boxes, scores, classes, threshold)
        assert set(batched_nms(boxes, scores, classes, threshold).tolist()) == set(expected.tolist())


def test_no_precision_is_lost_to_the_classes() -> None:
    """Moving classes apart costs torchvision digits: at class 10^5 of a large picture, IoUs of small boxes are wrong."""
    boxes = torch.tensor([[5000.0, 10, 5000.7, 12], [5000.2, 10, 5000.9, 12], [4000, 10, 9000, 20]])
    scores, classes = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([100_000, 100_000, 0])
    assert batched_nms(boxes, scores, classes, 0.6).tolist() == [0, 1, 2]  # IoU 5 / 9
    assert batched_nms(boxes, scores, classes, 0.5).tolist() == [0, 2]
    assert tv.batched_nms(boxes, scores, classes, 0.5).tolist() != [0, 2]


def test_hundred_thousand_boxes() -> None:
    boxes, scores = many_boxes(100_000, 40)
    kept = nms(boxes, scores, 0.5)
    assert torch.equal(kept, tv.nms(boxes, scores, 0.5))


def test_pictures_in_a_batch() -> None:
    boxes, scores = (x.unflatten(0, (2, 3, 50)) for x in many_boxes(300, 10))
    usable = torch.arange(50) < 40
    kept = nms_fixed(boxes, scores, 0.5, 20, valid=usable.expand(2, 3, 50))
    assert kept.indices.shape == (2, 3, 20)
    for i in range(2):
        for j in range(3):
            expected = tv.nms(boxes[i, j, :40], scores[i, j, :40], 0.5)[:20]
            assert torch.equal(kept.indices[i, j][kept.valid[i, j]], expected)
    nothing = nms_fixed(torch.zeros(0, 5, 4), torch.zeros(0, 5), 0.5, 3)
    assert nothing.valid.shape == (0, 3)
    assert not nms_fixed(torch.zeros(2, 0, 4), torch.zeros(2, 0), 0.5, 3).valid.any()


def test_strides_and_half_precision() -> None:
    boxes, scores = many_boxes(200, 5)
    wide = torch.stack([boxes, boxes + 1000], 1).flatten(1)[:, :4]
    assert not wide.is_contiguous()
    assert torch.equal(nms(wide, scores.repeat_interleave(2)[::2], 0.5), tv.nms(boxes, scores, 0.5))
    half = boxes.bfloat16()
    assert torch.equal(nms(half, scores, 0.5), tv.nms(half.float(), scores, 0.5))
    assert nms(boxes.requires_grad_(), scores, 0.5).requires_grad is False


def test_wrong_shapes_are_named() -> None:
    for boxes, scores in ((torch.zeros(3, 5), torch.zeros(3)), (torch.zeros(3, 4), torch.zeros(2))):
        with pytest.raises(ValueError, match=r"expected \(N, 4\)"):
            nms(boxes, scores, 0.5)


def test_compile_and_export_take_them_whole(path: str) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor) -> Any:
            return nms_fixed(boxes, scores, 0.5, 8)

    class Free(torch.nn.Module):
        def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
            return batched_nms(boxes, scores, (scores > 0.5).long(), 0.5)

    boxes, scores = many_boxes(60, 4)
    for module in (Fixed(), Free()):
        expected = module(boxes, scores)
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            compiled = torch.compile(module, fullgraph=True, backend="aot_eager")(boxes, scores)
        exported = torch.export.export(module, (boxes, scores)).module()(boxes, scores)
        torch.testing.assert_close(tuple(compiled), tuple(expected))
        torch.testing.assert_close(tuple(exported), tuple(expected))
    sample = (boxes[None], torch.zeros(1, 60, dtype=torch.int64), 0.5)
    torch.library.opcheck(suppress, sample)
    plain = suppress_reference(sample[0][0], sample[1][0], 0.5)
    assert torch.equal(suppress(*sample)[0], plain)

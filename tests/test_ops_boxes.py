"""Boxes and anchors against torchvision, and against numbers of Detectron2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.ops as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator

from delineate.ops.anchors import cell_anchors, grid_anchors
from delineate.ops.boxes import (
    box_area,
    box_iou,
    check_boxes,
    clip_boxes,
    convert_boxes,
    decode_boxes,
    encode_boxes,
    generalized_box_iou,
    large_boxes,
)

# Detectron2 02b5c4e, Box2BoxTransform with weights 10, 10, 5, 5: get_deltas and apply_deltas.
SOURCE, TARGET = [[0.0, 0, 10, 20], [5.5, 3, 100, 7]], [[1.0, 2, 13, 18], [0, 0, 600, 90]]
DELTAS = [[2.0, 0.0, 0.9116079807, -1.1157176495], [26.1640205383, 100.0, 9.2416486740, 15.5675773621]]
APPLIED = [
    [-3.1105947495, -8.2554092407, 15.1105947495, 36.2554092407, 1.2559418678, 1.5067105293, 6.7440581322, 10.4932899475],
    [-2900.3752441406, -120.0000076294, 3005.8752441406, 130.0, 3.5232200623, 2.9134256840, 103.8667755127, 7.2465744019],
]
# Detectron2 02b5c4e, DefaultAnchorGenerator.generate_cell_anchors((32, 64), (0.5, 1, 2)): half widths and heights.
CELL = [
    [22.6274166107, 11.3137083054],
    [16, 16],
    [11.3137083054, 22.6274166107],
    [45.2548332214, 22.6274166107],
    [32, 32],
    [22.6274166107, 45.2548332214],
]


def boxes_of(low: float, high: float, dtype: str = "float32") -> st.SearchStrategy[Tensor]:
    """Boxes (N, 4) whose corners may be in any order, on a coarse grid so that they touch and coincide."""
    corner = st.integers(int(low * 4), int(high * 4)).map(lambda i: i / 4)
    return st.integers(0, 6).flatmap(lambda n: arrays(dtype, (n, 4), elements=corner)).map(torch.from_numpy)


def ordered(boxes: Tensor) -> Tensor:
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([low.minimum(high), low.maximum(high)], -1)


@given(boxes_of(-20, 40), boxes_of(-20, 40))
@settings(max_examples=100, deadline=None)
def test_area_and_overlap_equal_torchvision(a: Tensor, b: Tensor) -> None:
    assert torch.equal(box_area(a), tv.box_area(a))
    a, b = ordered(a), ordered(b)
    for ours, theirs in ((box_iou(a, b), tv.box_iou(a, b)), (generalized_box_iou(a, b), tv.generalized_box_iou(a, b))):
        defined = ~theirs.isnan()  # both boxes without area: 0 here
        assert torch.equal(ours[defined], theirs[defined])
        assert not ours.isnan().any()
    assert (box_iou(a, b)[tv.box_iou(a, b).isnan()] == 0).all()


@given(boxes_of(-20, 40), st.integers(0, 50), st.integers(0, 50), st.sampled_from([0.0, 0.25, 1.0, 7.5]))
@settings(max_examples=100, deadline=None)
def test_clipping_size_and_forms_equal_torchvision(boxes: Tensor, height: int, width: int, side: float) -> None:
    assert torch.equal(clip_boxes(boxes, (height, width)), tv.clip_boxes_to_image(boxes, (height, width)))
    assert torch.equal(large_boxes(boxes, side).nonzero()[:, 0], tv.remove_small_boxes(boxes, side))
    for source in ("xyxy", "xywh", "cxcywh"):
        for target in ("xyxy", "xywh", "cxcywh"):
            converted = convert_boxes(boxes, source, target)
            assert torch.equal(converted, tv.box_convert(boxes, source, target))
            assert torch.equal(convert_boxes(converted, target, source), boxes)  # quarters are exact in float32


@given(boxes_of(1, 40), boxes_of(1, 40), st.sampled_from([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]))
@settings(max_examples=100, deadline=None)
def test_deltas_equal_torchvision(targets: Tensor, references: Tensor, weights: Any) -> None:
    n = min(len(targets), len(references))
    targets, references = ordered(targets[:n]), ordered(references[:n])
    proper = large_boxes(targets, 0.25) & large_boxes(references, 0.25)
    coder = BoxCoder(weights)
    deltas = encode_boxes(targets, references, weights)
    assert not deltas[~proper].any()
    torch.testing.assert_close(deltas[proper], coder.encode_single(targets[proper], references[proper]))
    back = decode_boxes(deltas[proper], references[proper], weights)
    torch.testing.assert_close(back, coder.decode_single(deltas[proper], references[proper])[:, :4])
    large = (deltas[proper][:, 2:] / deltas.new_tensor(weights[2:]) > 4).any(-1)  # clamped
    torch.testing.assert_close(back[~large], targets[proper][~large], rtol=1e-4, atol=1e-3)


def test_deltas_equal_detectron2() -> None:
    weights = (10.0, 10.0, 5.0, 5.0)
    source, target = torch.tensor(SOURCE), torch.tensor(TARGET)
    torch.testing.assert_close(encode_boxes(target, source, weights), torch.tensor(DELTAS))
    deltas = torch.tensor([[1.0, 2, 3, 4, -1, -2, -3, -4], [0, 0, 50, 50, 0.1, 0.2, 0.3, 0.4]])  # two classes, one clamped
    torch.testing.assert_close(decode_boxes(deltas, source, weights), torch.tensor(APPLIED))
    half = decode_boxes(deltas.bfloat16(), source, weights)
    torch.testing.assert_close(half, decode_boxes(deltas.bfloat16().float(), source, weights))


def test_gradients_equal_torchvision() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (ordered(20 * torch.rand(5, 4, generator=generator, dtype=torch.float64)) for _ in range(2))
    weight = torch.rand(5, 5, generator=generator, dtype=torch.float64)

    def gradient(function: Callable[..., Tensor]) -> list[Tensor]:
        inputs = [x.clone().requires_grad_() for x in (a, b)]
        values = function(*inputs)
        return list(torch.autograd.grad((values * weight[:, : values.shape[1]]).sum(), inputs))

    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    for ours, theirs in (
        (box_iou, tv.box_iou),
        (generalized_box_iou, tv.generalized_box_iou),
        (lambda x, y: encode_boxes(x, y, coder.weights), coder.encode_single),
        (lambda x, y: decode_boxes(x / 9, y, coder.weights), lambda x, y: coder.decode_single(x / 9, y)),
    ):
        for mine, reference in zip(gradient(ours), gradient(theirs), strict=True):
            torch.testing.assert_close(mine, reference)


def test_gradients_twice() -> None:
    a, b = (ordered(20 * torch.rand(3, 4, dtype=torch.float64)).requires_grad_() for _ in range(2))
    for function in (box_iou, generalized_box_iou, encode_boxes, lambda x, y: decode_boxes(x / 9, y)):
        assert torch.autograd.gradcheck(function, (a, b))
        assert torch.autograd.gradgradcheck(function, (a, b))


def test_boxes_without_area_have_finite_gradients() -> None:
    empty = torch.zeros(2, 4, requires_grad=True)
    inside_out = torch.tensor([[5.0, 5, 1, 1], [0, 0, 4, 4]], requires_grad=True)
    total = box_iou(empty, inside_out).sum() + generalized_box_iou(empty, empty).sum() + encode_boxes(inside_out, empty).sum()
    gradients = torch.autograd.grad(total + encode_boxes(empty, inside_out).sum(), (empty, inside_out))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_batches_and_dtypes() -> None:
    a, b = ordered(20 * torch.rand(2, 3, 5, 4)), ordered(20 * torch.rand(2, 3, 7, 4))
    for function in (box_iou, generalized_box_iou):
        assert function(a, b).shape == (2, 3, 5, 7)
        assert torch.equal(function(a, b)[1, 2], function(a[1, 2], b[1, 2]))
        strided = a.repeat_interleave(2, -2)[..., ::2, :]
        assert torch.equal(function(strided, b), function(a, b))
    assert decode_boxes(torch.zeros(2, 3, 5, 8), a).shape == (2, 3, 5, 8)
    large = torch.tensor([[0, 0, 100_000, 100_000]], dtype=torch.int32)
    assert box_area(large).item() == 10**10
    assert box_area(large.half() / 100 * 0 + 300).dtype == torch.float32
    half = (1000 * a).half()
    torch.testing.assert_close(box_iou(half, half), box_iou(half.float(), half.float()), equal_nan=True)
    nothing = torch.zeros(0, 4)
    assert box_iou(nothing, nothing).shape == (0, 0)
    assert encode_boxes(nothing, nothing).shape == decode_boxes(nothing, nothing).shape == (0, 4)


def test_infinite_and_missing_coordinates() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, torch.nan, 1, 1], [0, 0, torch.inf, 1]])
    assert box_iou(boxes, boxes).isnan().tolist()[0] == [False, True, False]
    assert large_boxes(boxes, 0.5).tolist() == [True, False, True]
    assert check_boxes(boxes[:1]) is not None
    with pytest.raises(ValueError, match=r"proposals\[1\] is \[0.0, nan, 1.0, 1.0\]"):
        check_boxes(boxes, "proposals")
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        check_boxes(torch.zeros(3, 3))
    with pytest.raises(ValueError, match="'yxyx'"):
        convert_boxes(boxes, "yxyx", "xyxy")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: (box_area(a), box_iou(a, b), generalized_box_iou(a, b), large_boxes(a, 2.0), clip_boxes(a, (9, 12))),
        lambda a, b: (encode_boxes(a, b, (10.0, 10.0, 5.0, 5.0)), decode_boxes(a / 30, b), convert_boxes(a, "xywh", "cxcywh")),
        lambda a, b: grid_anchors(cell_anchors([32], [0.5, 1.0]), (3, 4), 16) + a[0, 0] * b[0, 0],
    ],
)
def test_compile_and_export_take_them_whole(function: Callable[..., Any]) -> None:
    class Module(torch.nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Any:
            return function(a, b)

    a, b = ordered(20 * torch.rand(4, 4)), ordered(20 * torch.rand(4, 4))
    expected = function(a, b)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(a, b)
    exported = torch.export.export(Module(), (a, b)).module()(a, b)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)


@pytest.mark.parametrize(("sizes", "ratios"), [((32,), (0.5, 1.0, 2.0)), ((32, 64, 33), (0.5, 1.0, 2.0)), ((15,), (4.0, 0.3))])
def test_anchors_equal_torchvision(sizes: tuple[int, ...], ratios: tuple[float, ...]) -> None:
    generator = AnchorGenerator((sizes,), (ratios,))
    cell = cell_anchors(sizes, ratios, rounded=True)
    assert torch.equal(cell, generator.cell_anchors[0])
    theirs = generator.grid_anchors([[3, 5]], [[torch.tensor(16), torch.tensor(8)]])[0]
    assert torch.equal(grid_anchors(cell, (3, 5), (16, 8)), theirs)


def test_anchors_equal_detectron2() -> None:
    cell = cell_anchors((32, 64), (0.5, 1, 2), size_major=True)
    half = torch.tensor(CELL)
    torch.testing.assert_close(cell, torch.cat([-half, half], 1), rtol=1e-7, atol=0)
    # Detectron2 02b5c4e, _create_grid_offsets([2, 3], 8, 0.5): x 4, 12, 20, 4, ... and y 4, 4, 4, 12, ...
    centers = convert_boxes(grid_anchors(cell[:1], (2, 3), 8, offset=0.5), "xyxy", "cxcywh")[:, :2]
    expected = torch.tensor([[4.0, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]])
    torch.testing.assert_close(centers, expected)

"""RoIPool, RoIWarp and RoIAlign against torchvision, their definitions and their reference, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from delineate.ops import assign_levels, multilevel_roi_align, native, roi_align, roi_pool, roi_warp
from delineate.ops.roi import pool_regions, pool_regions_backward
from delineate.ops.roi_reference import Mode, Rule, pool_reference

needs_kernels = pytest.mark.skipif(not native.available, reason="built without a compiler, or switched off")
OPERATIONS: dict[str, Callable[..., Tensor]] = {"pool": roi_pool, "warp": roi_warp, "align": roi_align}


@pytest.fixture(params=["native", "reference"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of computing: the kernel, where it is built, and the plain PyTorch reference."""
    if request.param == "native" and not native.available:
        pytest.skip("built without a compiler, or switched off")
    monkeypatch.setattr(native, "available", request.param == "native")
    return request.param


def boxes_of(count: int, images: int = 2, size: float = 200.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random boxes (count, 5), some of which reach beyond a picture of 160 x 240 pixels."""
    corner = torch.rand(count, 2, dtype=dtype) * 220 - 20
    extent = torch.rand(count, 2, dtype=dtype) ** 2 * size
    return torch.cat([torch.randint(0, images, (count, 1)).to(dtype), corner, corner + extent], dim=1)


def with_gradient(f: Callable[[Tensor], Tensor], features: Tensor, grad: Tensor | None = None) -> tuple[Tensor, Tensor]:
    features = features.detach().clone().requires_grad_()
    result = f(features)
    result.backward(torch.linspace(-1, 1, result.numel()).reshape(result.shape).to(result) if grad is None else grad)
    assert features.grad is not None
    return result.detach(), features.grad


def assert_same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], **tolerance: Any) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, **tolerance)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("ratio", "aligned"), [(-1, False), (0, True), (1, True), (2, False), (2, True), (3, False)])
def test_roi_align_is_torchvision(path: str, layout: Any, dtype: torch.dtype, ratio: int, aligned: bool) -> None:
    features = torch.randn(2, 21, 20, 30, dtype=dtype).contiguous(memory_format=layout)
    boxes = boxes_of(40, dtype=dtype)
    ours = with_gradient(lambda x: roi_align(x, boxes, (5, 7), 1 / 8, ratio, aligned), features)
    theirs = with_gradient(lambda x: torchvision.ops.roi_align(x, boxes, (5, 7), 1 / 8, ratio, aligned), features)
    assert_same(ours, theirs, rtol=1e-4, atol=1e-5)
    assert ours[0].is_contiguous(memory_format=layout)
    assert ours[1].is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_roi_pool_is_torchvision(path: str, layout: Any, dtype: torch.dtype) -> None:
    features = torch.randn(2, 21, 20, 30, dtype=dtype).contiguous(memory_format=layout)
    boxes = boxes_of(40, dtype=dtype)
    ours = with_gradient(lambda x: roi_pool(x, boxes, (5, 7), 1 / 8), features)
    theirs = with_gradient(lambda x: torchvision.ops.roi_pool(x, boxes, (5, 7), 1 / 8), features)
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1], theirs[1])


COORDINATE = st.one_of(
    st.floats(-50, 300, width=32),
    st.sampled_from([0.0, -0.0, 0.5, 1.5, 7.9999995, 8.0, 239.0, 240.0, 241.0, -8.0, -8.000001, 1e-30, 4.0, 12.0, 20.0, 1e4]),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), COORDINATE, COORDINATE, COORDINATE, COORDINATE), max_size=6),
    st.sampled_from([(1, 1), (7, 7), (2, 5)]),
    st.sampled_from([1 / 8, 1 / 3, 1.0]),
    st.integers(-1, 3),
    st.booleans(),
    st.sampled_from([(1, 1), (1, 9), (6, 2), (20, 30), (3, 17)]),
    st.booleans(),
    st.booleans(),
)
def test_adversarial_boxes_are_torchvisions(
    rows: list[tuple[float, ...]],
    output: tuple[int, int],
    scale: float,
    ratio: int,
    aligned: bool,
    size: tuple[int, int],
    last: bool,
    kernel: bool,
) -> None:
    """Halves, edges of cells and of the map, boxes of no and of negative size, tiny maps."""
    boxes = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    features = torch.randn(2, 3, *size).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "available", native.available and kernel)
        pooled = with_gradient(lambda x: roi_pool(x, boxes, output, scale), features)
        expected = with_gradient(lambda x: torchvision.ops.roi_pool(x, boxes, output, scale), features)
        assert_same(pooled, expected)
        if ratio <= 0:  # torchvision fails on boxes of negative size, and ours need not agree with a crash
            boxes[:, 3:] = torch.maximum(boxes[:, 1:3], boxes[:, 3:])
        ours = with_gradient(lambda x: roi_align(x, boxes, output, scale, ratio, aligned), features)
        theirs = with_gradient(lambda x: torchvision.ops.roi_align(x, boxes, output, scale, ratio, aligned), features)
        assert_same(ours, theirs, rtol=1e-4, atol=2e-5)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("channels", [1, 16, 83])
@pytest.mark.parametrize("mode", ["mean", "max"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_kernel_and_reference_agree(
    name: str, mode: str, channels: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every operation, in both layouts; sums are made in float32, so that only the last rounding may differ."""
    boxes = boxes_of(12)
    for layout in (torch.contiguous_format, torch.channels_last):
        features = torch.randn(2, channels, 20, 30).to(dtype).contiguous(memory_format=layout)
        results = []
        for available in (True, False):
            monkeypatch.setattr(native, "available", available)
            results.append(with_gradient(lambda x: OPERATIONS[name](x, boxes, 7, 1 / 8, mode=mode), features))
        step = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
        assert_same(results[0], results[1], rtol=step, atol=step if dtype == torch.float32 else step / 4)
        assert results[0][0].dtype == results[0][1].dtype == dtype


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_half_number_passes_unchanged(dtype: torch.dtype) -> None:
    """All 65,536 bit patterns, subnormal ones and infinities too: widening and rounding are exact inverses."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).reshape(1, -1, 1, 1)
    for features in (numbers, numbers.repeat(1, 1, 2, 2).contiguous(memory_format=torch.channels_last)):
        result = roi_pool(features, torch.zeros(1, 5), 1)
        torch.testing.assert_close(result, numbers, rtol=0, atol=0, equal_nan=True)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_pytorchs(dtype: torch.dtype) -> None:
    """The mean of two neighbouring numbers is a tie; ties go to the even one."""
    low = torch.arange(0, 2**15 - 1, dtype=torch.int16).view(dtype)
    low, high = low[:-1], low[1:]
    usable = high.isfinite()
    pair = torch.stack([low[usable], high[usable]]).T.reshape(1, -1, 1, 2)
    result = roi_pool(pair, torch.tensor([[0.0, 0, 0, 1, 0]]), 1, mode="mean")
    assert torch.equal(result.flatten(), pair.float().mul(0.5).sum(-1).to(dtype).flatten())


def test_modes_by_definition(path: str) -> None:
    """Means and maxima of cells and of points, computed by hand."""
    features = torch.arange(36.0).reshape(1, 1, 6, 6)
    box = torch.tensor([[0.0, 0, 0, 3, 3]])
    assert roi_pool(features, box, 2, mode="mean").flatten().tolist() == [3.5, 5.5, 15.5, 17.5]
    assert roi_warp(features, box, 4, sampling_ratio=1).flatten().tolist() == features[0, 0, :4, :4].flatten().tolist()
    points = torch.tensor([0.5, 1.5])  # of the only bin of box (1, 1, 3, 3), two a side, cell centres at 0.5
    values = (points[:, None] + 0.5) * 6 + points + 0.5
    shifted = torch.tensor([[0.0, 1, 1, 3, 3]])
    assert roi_align(features, shifted, 1, sampling_ratio=2, aligned=True, mode="max").item() == values.max()
    assert roi_align(features, shifted, 1, sampling_ratio=2, aligned=True).item() == values.mean()


def test_points_off_the_map_are_zero(path: str) -> None:
    """They count in a mean, and in a maximum where all cells are negative."""
    features = -torch.ones(1, 2, 4, 4)
    box = torch.tensor([[0.0, -6, 0, 2, 4]])  # has points at -5.5, -3.5, -1.5 and 0.5 along x, of which one is on the map
    result = roi_align(features, box, 1, sampling_ratio=4, aligned=True)
    assert torch.equal(result, torch.full_like(result, -0.25))
    grad = with_gradient(lambda x: roi_align(x, box, 1, sampling_ratio=4, aligned=True, mode="max"), features)
    assert not grad[0].any()
    assert not grad[1].any()


def test_warp_is_align_of_the_rounded_box(path: str) -> None:
    features, boxes = torch.randn(2, 3, 20, 30), boxes_of(30)
    start = torch.tensor([[math.floor(v * 0.125 + 0.5) for v in row] for row in boxes[:, 1:3].tolist()])
    end = torch.tensor([[math.floor(v * 0.125 + 0.5) + 1 for v in row] for row in boxes[:, 3:].tolist()])
    rounded = torch.cat([boxes[:, :1], start, end], dim=1).float()
    expected = torchvision.ops.roi_align(features, rounded, 4, 1.0, 2, aligned=True)
    torch.testing.assert_close(roi_warp(features, boxes, 4, 0.125, 2), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["mean", "max"])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("last", [False, True])
def test_first_and_second_derivatives(path: str, name: str, mode: str, last: bool) -> None:
    features = torch.randn(2, 1, 4, 5, dtype=torch.float64)
    features = features.contiguous(memory_format=torch.channels_last) if last else features
    boxes = boxes_of(2, size=100.0, dtype=torch.float64)

    def f(x: Tensor) -> Tensor:
        return OPERATIONS[name](x, boxes, 2, 1 / 48, mode=mode)

    assert torch.autograd.gradcheck(f, features.requires_grad_())
    assert torch.autograd.gradgradcheck(f, features)


def test_reference_differentiates_boxes() -> None:
    """The gradient that the operations leave out, as the published ones do."""
    features = torch.randn(1, 2, 9, 9, dtype=torch.float64)
    rule = Rule(2, 2, False, 2, True, "mean")
    boxes = torch.tensor([[1.3, 2.2, 6.3, 5.7]], dtype=torch.float64, requires_grad=True)

    def f(b: Tensor) -> Tensor:
        rois = torch.cat([torch.zeros(1, 1, dtype=torch.float64), b], dim=1)
        return pool_reference([features], rois, torch.zeros(1, dtype=torch.int64), [1.0], rule)

    assert torch.autograd.gradcheck(f, boxes)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("as_list", [False, True])
def test_levels_are_torchvisions(path: str, aligned: bool, as_list: bool) -> None:
    maps = [torch.randn(2, 4, 256 // s, 320 // s) for s in (4, 8, 16, 32)]
    boxes = boxes_of(60, size=400.0)
    lists = [boxes[boxes[:, 0] == i, 1:] for i in range(2)]
    in_order = torch.cat([torch.cat([torch.full((len(b), 1), float(i)), b], dim=1) for i, b in enumerate(lists)])
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
    ours = multilevel_roi_align(maps, lists if as_list else in_order, 7, scales, 2, aligned)
    if not aligned:
        pyramid = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
        theirs = pyramid({str(i): m for i, m in enumerate(maps)}, lists, [(256, 320)] * 2)
    else:  # which torchvision's pyramid does not offer
        levels = assign_levels(in_order[:, 1:], 2, 5)
        rows = [roi_align(maps[n - 2], in_order[i : i + 1], 7, scales[n - 2], 2, True) for i, n in enumerate(levels.tolist())]
        theirs = torch.cat(rows)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_level_epsilons() -> None:
    """torchvision adds its epsilon after the logarithm, Detectron2 before; sizes just below 224 tell them apart."""
    size = torch.tensor([112.0, 223.9999, 224.0, 448.0, 1e-3, 1e6])
    boxes = torch.stack([torch.zeros(6), torch.zeros(6), size, size], dim=1)
    assert assign_levels(boxes, 2, 5).tolist() == [3, 4, 4, 5, 2, 5]
    assert assign_levels(boxes, 2, 5, epsilon=1e-8, epsilon_inside=True).tolist() == [3, 3, 4, 5, 2, 5]
    strange = torch.tensor([[0.0, 0, 0, 0], [5, 5, 3, 9], [math.nan, 0, 1, 1], [0, 0, math.inf, 5]])
    assert assign_levels(strange, 2, 5).tolist() == [2, 2, 2, 5]


def test_one_call_takes_gradients_of_every_level(path: str) -> None:
    maps = [torch.randn(1, 3, 64 // s, 64 // s, requires_grad=True) for s in (4, 8)]
    boxes = [torch.tensor([[3.0, 4, 30, 32], [0, 0, 60, 62]])]
    multilevel_roi_align(maps, boxes, 2, [1 / 4, 1 / 8], canonical_size=30, canonical_level=2).sum().backward()
    for m, area in zip(maps, (12, 12), strict=True):
        assert m.grad is not None
        assert m.grad.sum().item() == pytest.approx(area)  # 4 bins x 3 channels, each a mean


def test_no_boxes_no_images_and_empty_maps(path: str) -> None:
    for f in OPERATIONS.values():
        for boxes in (torch.zeros(0, 5), [], [torch.zeros(0, 4)] * 2):
            result, grad = with_gradient(lambda x, b=boxes, f=f: f(x, b, 3), torch.randn(2, 4, 5, 6))
            assert result.shape == (0, 4, 3, 3)
            assert not grad.any()
        assert f(torch.zeros(0, 4, 5, 6), torch.zeros(0, 5), 3).shape == (0, 4, 3, 3)
        assert not f(torch.zeros(1, 4, 0, 6), torch.tensor([[0.0, 0, 0, 3, 3]]), 3).any()
        assert f(torch.zeros(1, 0, 4, 6), torch.tensor([[0.0, 0, 0, 3, 3]]), 3).shape == (1, 0, 3, 3)


@pytest.mark.parametrize("mode", ["mean", "max"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_boxes_that_are_not_finite(path: str, name: str, mode: str) -> None:
    """Zero, and without a gradient; an error if that is wished for."""
    features = torch.randn(1, 2, 5, 6)
    finite, gradient = torch.tensor([[0.0, 1, 1, 4, 4], [0, 0, 0, 3, 3]]), torch.randn(2, 2, 2, 2)
    for value in (math.nan, math.inf, -math.inf):
        for column in range(1, 5):
            boxes = finite.clone()
            boxes[1, column] = value
            result, grad = with_gradient(lambda x, b=boxes: OPERATIONS[name](x, b, 2, mode=mode), features, gradient)
            alone = with_gradient(lambda x: OPERATIONS[name](x, finite[:1], 2, mode=mode), features, gradient[:1])
            assert torch.equal(result[:1], alone[0])
            assert not result[1].any()
            assert torch.equal(grad, alone[1])
            with pytest.raises(ValueError, match=r"box 1 is .*(nan|inf).*: coordinates must be finite"):
                OPERATIONS[name](features, boxes, 2, checked=True)


def test_giant_boxes_are_quick_and_right(path: str) -> None:
    """Only the points near the map are visited; their mean is that of a box which the definition can still afford."""
    features = torch.rand(1, 2, 5, 6)
    for edge in (1e5, 1e9, 1e30, 3e38):
        result = roi_align(features, torch.tensor([[0.0, -edge, -edge, edge, edge]]), 3, aligned=True)
        assert result.isfinite().all()
    expected = torchvision.ops.roi_align(features, torch.tensor([[0.0, -900.0, -800, 1000, 900]]), 3, 1.0, -1, True)
    ours = roi_align(features, torch.tensor([[0.0, -900.0, -800, 1000, 900]]), 3, aligned=True)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-9)
    assert roi_pool(features, torch.tensor([[0.0, -1e30, -1e30, 1e30, 1e30]]), 1).isfinite().all()


@pytest.mark.parametrize("index", [2.0, -1.0, 1e9, math.nan])
def test_batch_index_out_of_range_is_an_error(path: str, index: float) -> None:
    features = torch.randn(2, 3, 5, 6)
    for f in OPERATIONS.values():
        with pytest.raises(ValueError, match=r"box 1 is of image .*, but the batch has 2 images"):
            f(features, torch.tensor([[0.0, 0, 0, 1, 1], [index, 0, 0, 1, 1]]), 2)
    with pytest.raises(ValueError, match="for each of 2 images"):
        roi_align(features, [torch.zeros(1, 4)] * 3, 2)


def test_wrong_use_is_named() -> None:
    features = torch.randn(1, 3, 5, 6)
    with pytest.raises(ValueError, match=r"boxes have shape \(2, 4\)"):
        roi_align(features, torch.zeros(2, 4), 2)
    with pytest.raises(ValueError, match="mode is 'median'"):
        roi_align(features, torch.zeros(2, 5), 2, mode="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="output_size"):
        roi_pool(features, torch.zeros(2, 5), (0, 3))
    with pytest.raises(ValueError, match=r"feature maps are \(3, 5, 6\)"):
        roi_pool(features[0], torch.zeros(2, 5), 2)
    with pytest.raises(ValueError, match="falling by halves"):
        multilevel_roi_align([features, features], torch.zeros(1, 5), 2, [1 / 4, 1 / 4])
    with pytest.raises(ValueError, match="of one N and C"):
        multilevel_roi_align([features, features[:, :2]], torch.zeros(1, 5), 2, [1 / 4, 1 / 8])


def test_strides_of_the_input_do_not_matter(path: str) -> None:
    wide = torch.randn(2, 8, 12, 14)
    boxes = boxes_of(9)
    for features in (
        wide[:, ::2],
        wide[..., 1::2],
        wide.transpose(2, 3),
        wide.expand(2, 8, 12, 14),
        wide[:1].expand(2, -1, -1, -1),
    ):
        expected = roi_align(features.contiguous(), boxes, 3, 1 / 16)
        torch.testing.assert_close(roi_align(features, boxes, 3, 1 / 16), expected)
        strided = torch.stack([boxes, boxes], dim=-1)[..., 0]
        torch.testing.assert_close(roi_align(features, strided, 3, 1 / 16), expected)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_results_do_not_depend_on_threads(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, last: bool, mode: Mode) -> None:
    """Bit for bit, backward too, where many boxes add to one cell."""
    features = torch.randn(2, 70, 30, 40).to(dtype)
    features = features.contiguous(memory_format=torch.channels_last) if last else features
    boxes = boxes_of(200)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        results.append(with_gradient(lambda x: roi_align(x, boxes, 7, 1 / 8, mode=mode), features))
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        assert torch.equal(result[1], results[0][1])


@needs_kernels
def test_many_boxes_and_a_huge_map() -> None:
    boxes = boxes_of(100_000, images=1)
    features = torch.rand(1, 1, 20, 30)
    result = roi_align(features, boxes, 2, 1 / 8, 2)
    torch.testing.assert_close(result, torchvision.ops.roi_align(features, boxes, 2, 1 / 8, 2), rtol=1e-4, atol=1e-5)
    huge = torch.zeros(1, 1, 1, 1).expand(1, 1, 20_000, 20_000).to(torch.bfloat16, memory_format=torch.contiguous_format)
    huge[0, 0, -1, -1] = 1
    corner = torch.tensor([[0.0, 19_999, 19_999, 20_000, 20_000]])
    assert roi_align(huge, corner, 1, aligned=True).item() == 1


def test_the_operations_keep_to_the_rules_of_torch_library(path: str) -> None:
    maps = [torch.randn(1, 3, 8, 9, requires_grad=True), torch.randn(1, 3, 4, 5, requires_grad=True)]
    rois = torch.tensor([[0.0, 1, 2, 30, 20], [0, 3, 0, 9, 8]])
    levels = torch.tensor([1, 0])
    for mode in ("mean", "max"):
        rule = (2, 3, False, 2, True, mode)
        torch.library.opcheck(pool_regions, (maps, rois, levels, [0.25, 0.125], *rule, False))
        grad = torch.randn(2, 3, 2, 3)
        torch.library.opcheck(pool_regions_backward, (grad, [m.detach() for m in maps], rois, levels, [0.25, 0.125], *rule))


@pytest.mark.parametrize("last", [False, True])
def test_compiles_whole(path: str, last: bool) -> None:
    """One graph, with the gradient, and the same numbers and layouts as eager."""
    layout = torch.channels_last if last else torch.contiguous_format
    maps = [torch.randn(2, 4, 64 // s, 80 // s).contiguous(memory_format=layout).requires_grad_() for s in (4, 8)]
    boxes = boxes_of(10)

    def f(maps: list[Tensor], boxes: Tensor) -> Tensor:
        whole = multilevel_roi_align([m * 2 for m in maps], boxes, 3, [1 / 4, 1 / 8])
        warped, pooled = roi_warp(maps[0], boxes, 3, 1 / 4), roi_pool(maps[1], boxes, 3, 1 / 8, checked=True)
        return whole + warped.relu() + pooled

    expected = f(maps, boxes)
    grads = torch.autograd.grad(expected.square().sum(), maps)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    result = compiled(maps, boxes)
    assert result.stride() == expected.stride()
    assert_same((result, *torch.autograd.grad(result.square().sum(), maps)), (expected, *grads))


def test_exports_whole(path: str) -> None:
    class Head(torch.nn.Module):
        def forward(self, fine: Tensor, coarse: Tensor, boxes: Tensor) -> Tensor:
            return multilevel_roi_align([fine, coarse], boxes, 3, [1 / 4, 1 / 8])

    maps = [torch.randn(1, 4, 16, 20), torch.randn(1, 4, 8, 10)]
    boxes = torch.export.Dim("boxes", min=0)
    program = torch.export.export(Head(), (*maps, boxes_of(5, 1)), dynamic_shapes=(None, None, {0: boxes}), strict=True)
    for count in (0, 1, 9):
        few = boxes_of(count, 1)
        torch.testing.assert_close(program.module()(*maps, few), Head()(*maps, few))


def test_autocast_keeps_boxes_precise(path: str) -> None:
    """The result has the maps' type; a box at 1000.5 would be at 1000 in bfloat16."""
    features = torch.arange(1200.0).expand(1, 1, 2, 1200)
    box = torch.tensor([[0.0, 1000.5, 0, 1001.5, 1]])
    with torch.autocast("cpu", torch.bfloat16):
        assert roi_align(features, box, 1, aligned=True).item() == 1000.5
        assert roi_align(features.bfloat16(), box, 1, aligned=True).dtype == torch.bfloat16

"""The Triton kernels against the reference and torchvision: in Triton's interpreter, or with `--device cuda` compiled.

Triton decides on its import whether it interprets, so on the CPU the tests run in a process of their own.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from delineate.ops import gpu, multilevel_roi_align, native, roi, roi_align, roi_pool, roi_warp
from delineate.ops.roi_reference import Rule

pytest.importorskip("triton", reason="PyTorch brings Triton on Linux only")
pytestmark = pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")  # NumPy's, in the interpreter
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LAYOUTS = [torch.contiguous_format, torch.channels_last]
RULES = [
    *(Rule(2, 3, True, 0, False, mode) for mode in ("mean", "max")),
    *(Rule(2, 3, False, ratio, aligned, mode) for ratio in (0, 2) for aligned in (False, True) for mode in ("mean", "max")),
    Rule(2, 3, False, 3, True, "mean"),
]


def run(*arguments: str, **environment: str) -> str:
    result = subprocess.run([sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_all_in_the_interpreter(device: torch.device) -> None:
    if INTERPRETED or device.type != "cpu":
        pytest.skip("the other tests run here")
    files = [str(path) for path in Path(__file__).parent.glob("test_ops_triton*.py")]
    arguments = ["-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "interpreted", *files]
    summary = run(*arguments, TRITON_INTERPRET="1").splitlines()[-1]
    assert re.search(r"\d\d passed", summary), summary
    assert "skipped" not in summary


@pytest.fixture
def interpreted(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The kernels, which all operations take, on the CPU too."""
    if not INTERPRETED and device.type == "cpu":
        pytest.skip("test_all_in_the_interpreter runs it")
    from delineate.ops import roi_triton

    assert roi_triton.available
    monkeypatch.setattr(gpu, "wanted", lambda tensor: tensor.dtype != torch.float64)
    return roi_triton


def by_reference(function: Callable[..., Any], *arguments: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "wanted", lambda tensor: False)
        patch.setattr(native, "available", False)
        return function(*arguments)


def with_gradients(function: Callable[[list[Tensor]], Tensor], maps: Sequence[Tensor]) -> list[Tensor]:
    """A result, and the gradients of the maps for a gradient of it that is made here."""
    leaves = [m.detach().clone().requires_grad_() for m in maps]
    result = function(leaves)
    grad = torch.linspace(-1, 1, result.numel()).reshape(result.shape).to(result)
    return [result.detach(), *torch.autograd.grad(result, leaves, grad)]


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor], **tolerance: Any) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.cpu(), other.cpu(), **tolerance)


def features(device: torch.device, *sizes: tuple[int, int], channels: int = 5, images: int = 2) -> list[Tensor]:
    return [torch.randn(images, channels, *size).to(device) for size in sizes]


def boxes_at_edges(device: torch.device) -> Tensor:
    """Boxes (K, 5) around maps of 12 x 18 pixels: usual ones, and those that go wrong."""
    rows = [
        [0, 1.3, 2.1, 13.7, 9.9],
        [1, 4.0, 4.0, 11.0, 8.0],  # on cells
        [0, -0.2, -0.1, 18.1, 12.1],  # bins just larger than three cells, which have four points
        [0, -9.0, -7.0, 4.2, 25.0],  # partly off the map
        [1, 40.0, 2.0, 50.0, 9.0],  # outside
        [1, 5.0, 5.0, 5.0, 5.0],  # without size
        [0, 9.0, 8.0, 3.0, 2.0],  # ends before it starts
        [0, math.nan, 2.0, 9.0, 9.0],
        [1, 2.0, 2.0, math.inf, 9.0],
        [1, -400.0, -500.0, 600.0, 700.0],  # far larger than the map
    ]
    return torch.tensor(rows, device=device)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_interpreted_equals_reference(interpreted: Any, device: torch.device, rule: Rule) -> None:
    maps, boxes = features(device, (6, 9), (3, 5)), boxes_at_edges(device)
    levels = torch.tensor([0, 0, 0, 0, 0, 1, 0, 1, 0, 1], device=device)

    def pooled(maps: list[Tensor]) -> Tensor:
        return roi.pool_regions(maps, boxes, levels, [0.5, 0.25], *rule, False)

    expected = by_reference(with_gradients, pooled, maps)
    assert all(x.isfinite().all() for x in expected)
    number = RULES.index(rule)
    layout = LAYOUTS[(number + number // 2) % 2]  # each for the mean and for the maximum
    ours = with_gradients(pooled, [m.contiguous(memory_format=layout) for m in maps])
    assert_same(ours, expected, rtol=1e-5, atol=2e-6)
    assert all(x.is_contiguous(memory_format=layout) for x in ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_interpreted_half_precision(interpreted: Any, device: torch.device, mode: Any, dtype: torch.dtype) -> None:
    """Sums are made in float32: only the last rounding may differ."""
    (x,) = (m.to(dtype) for m in features(device, (6, 9)))
    boxes = boxes_at_edges(device)[:3]

    def pooled(maps: list[Tensor]) -> Tensor:
        return roi_align(maps[0], boxes, (2, 3), 0.5, 2, True, mode=mode)

    ours, expected = with_gradients(pooled, [x]), by_reference(with_gradients, pooled, [x])
    assert ours[0].dtype == ours[1].dtype == dtype
    assert_same(ours, expected, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_interpreted_equals_torchvision(interpreted: Any, device: torch.device) -> None:
    (x,) = features(device, (6, 9))
    boxes = boxes_at_edges(device)[:4]
    pairs = [
        (roi_align, torchvision.ops.roi_align, (-1, False)),
        (roi_align, torchvision.ops.roi_align, (-1, True)),
        (roi_pool, torchvision.ops.roi_pool, ()),
    ]
    for mine, other, rest in pairs:
        ours = with_gradients(lambda m, f=mine, rest=rest: f(m[0], boxes, (2, 3), 0.5, *rest), [x])
        theirs = with_gradients(lambda m, f=other, rest=rest: f(m[0], boxes.cpu(), (2, 3), 0.5, *rest), [x.cpu()])
        assert_same(ours, theirs, rtol=1e-5, atol=1e-6)


def test_interpreted_first_of_equals_is_the_maximum(interpreted: Any, device: torch.device) -> None:
    x, boxes = torch.ones(1, 2, 6, 9, device=device), boxes_at_edges(device)[:1]
    ours = with_gradients(lambda m: roi_pool(m[0], boxes, (2, 3), 0.5), [x])
    theirs = with_gradients(lambda m: torchvision.ops.roi_pool(m[0], boxes.cpu(), (2, 3), 0.5), [x.cpu()])
    assert_same(ours, theirs)


def test_interpreted_levels_equal_torchvision(interpreted: Any, device: torch.device) -> None:
    maps = features(device, (12, 16), (6, 8), (3, 4))
    boxes = [
        torch.tensor([[3.0, 4, 20, 30], [0, 0, 60, 44]], device=device),
        torch.tensor([[1.0, 2, 30, 40], [30, 9, 33, 14]], device=device),
    ]
    scales = [1 / 4, 1 / 8, 1 / 16]
    pyramid = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2"], 2, 2, canonical_scale=25, canonical_level=3)
    pyramid.scales, pyramid.map_levels = scales, torchvision.ops.poolers.initLevelMapper(2, 4, 25, 3)
    expected = pyramid({str(i): m.cpu() for i, m in enumerate(maps)}, [b.cpu() for b in boxes], [(48, 64)] * 2)
    ours = multilevel_roi_align(maps, boxes, 2, scales, canonical_size=25, canonical_level=3)
    assert_same([ours], [expected], rtol=1e-5, atol=1e-6)
    assert len(roi.assign_levels(torch.cat(boxes), 2, 4, 25, 3).unique()) == 3


def test_interpreted_many_bins_and_channels(interpreted: Any, device: torch.device) -> None:
    """More than one block of bins and of channels, forward and backward; roi_warp."""
    (x,) = features(device, (5, 6), channels=300, images=1)
    boxes = torch.tensor([[0, 0.0, 0.0, 5.0, 4.0]], device=device)
    for mode in ("mean", "max"):

        def pooled(maps: list[Tensor], mode: Any = mode) -> Tensor:
            return roi_warp(maps[0], boxes, (5, 7), 1.0, 1, mode=mode)

        assert_same(with_gradients(pooled, [x]), by_reference(with_gradients, pooled, [x]), rtol=1e-5, atol=1e-6)


def test_interpreted_many_boxes(interpreted: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """More boxes than are looked at together, on one tile and on others, in no order of images."""
    monkeypatch.setattr(interpreted, "_LOOK", 16)
    (x,) = features(device, (3, 12), channels=1)
    corner = torch.rand(36, 2) * torch.tensor([12, 3])
    boxes = torch.cat([torch.arange(36)[:, None] % 2, corner, corner + 2 * torch.rand(36, 2)], 1).to(device)

    def pooled(maps: list[Tensor]) -> Tensor:
        return roi_align(maps[0], boxes, 1, 1.0, 1, True)

    assert_same(with_gradients(pooled, [x]), by_reference(with_gradients, pooled, [x]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_interpreted_gradients_are_the_same_bits(interpreted: Any, device: torch.device, mode: Any) -> None:
    """Whatever was in the memory, every number is written; repeats give the same bits, though many boxes share cells."""
    (x,) = features(device, (6, 9), images=1)
    rois = torch.tensor([[0, 0.1 * i, 0.2 * i, 5 + i, 3 + i] for i in range(6)], device=device)
    levels = torch.zeros(6, dtype=torch.int64, device=device)
    grad = torch.randn(6, 5, 2, 2, device=device)
    repeats = []
    for _ in range(2 if device.type == "cpu" else 20):
        memory = torch.full_like(x, math.nan)
        rule = Rule(2, 2, False, 2, True, mode)
        repeats += interpreted.pool_backward(grad, [x], rois, levels, [1.0], rule, [memory])
    assert repeats[0].isfinite().all()
    assert all(torch.equal(r, repeats[0]) for r in repeats)


def test_interpreted_boxes_of_no_image_read_nothing(interpreted: Any, device: torch.device) -> None:
    (x,) = features(device, (4, 5))
    box = [0.0, 0.0, 3.0, 3.0]
    rois = torch.tensor([[0, *box], [2, *box], [-1, *box], [math.nan, *box], [1e9, *box], [1, *box], [0, *box]], device=device)
    levels = torch.tensor([0, 0, 0, 0, 0, 0, 3], device=device)
    missing = torch.tensor([False, True, True, True, True, False, True], device=device)
    for mode in ("mean", "max"):
        arguments = [1.0], Rule(2, 2, False, 0, True, mode)
        ours = interpreted.pool([x], rois, levels, *arguments, torch.zeros(7, 5, 2, 2, device=device))
        assert torch.equal(ours.isnan().flatten(1).all(1), missing)
        assert not ours[~missing].isnan().any()
        grad = torch.randn(7, 5, 2, 2, device=device)
        (gradient,) = interpreted.pool_backward(grad, [x], rois, levels, *arguments, [torch.empty_like(x)])
        kept = grad[~missing], [x], rois[~missing], levels[~missing], *arguments, [torch.empty_like(x)]
        assert torch.equal(gradient, interpreted.pool_backward(*kept)[0])


def test_interpreted_nothing_to_do(interpreted: Any, device: torch.device) -> None:
    (x,) = features(device, (4, 9))
    none = torch.zeros(0, 5, device=device)
    result, gradient = with_gradients(lambda m: roi_align(m[0], none, (2, 3)), [x])
    assert result.shape == (0, 5, 2, 3)
    assert not gradient.any()
    assert with_gradients(lambda m: roi_pool(m[0], none, 2), [x[:0]])[1].shape == (0, 5, 4, 9)
    assert with_gradients(lambda m: roi_pool(m[0], none, 2), [x[:, :0]])[0].shape == (0, 0, 2, 2)
    box = torch.tensor([[1.0, 0, 0, 3, 3]], device=device)
    for mode in ("mean", "max"):
        rule = Rule(2, 2, False, 0, True, mode)
        on_nothing = [x, x[:, :, :0]]  # its second map has no rows
        result, *gradients = with_gradients(
            lambda m, rule=rule: roi.pool_regions(m, box, box[:, 0].long(), [1.0, 0.5], *rule, False), on_nothing
        )
        assert not result.any()
        assert not gradients[0].any()


@pytest.mark.parametrize("mode", ["mean", "max"])
def test_interpreted_second_derivatives(interpreted: Any, device: torch.device, mode: Any) -> None:
    (x,) = features(device, (4, 5), channels=2)
    boxes = boxes_at_edges(device)[:2]

    def second() -> Tensor:
        leaf = x.clone().requires_grad_()
        result = roi_align(leaf, boxes, 2, 0.3, 2, True, mode=mode)
        (first,) = torch.autograd.grad(result.square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.pow(3).sum(), leaf)[0]

    expected = by_reference(second)
    assert expected.any()
    assert_same([second()], [expected], rtol=1e-4, atol=1e-5)


WITHOUT_TRITON = """
import sys
import torch
from delineate.ops import roi_align
roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 3, 3]]), 2)
assert not any(name.startswith("delineate.ops.roi_triton") for name in sys.modules)
sys.modules["triton"] = None  # as where it is not installed
from delineate.ops import roi_triton
assert not roi_triton.available
"""


def test_triton_is_wanted_by_gpus_only() -> None:
    run("-c", WITHOUT_TRITON)


@pytest.mark.skipif(INTERPRETED, reason="needs the compiler")
@pytest.mark.parametrize(("rule", "dtype"), [(RULES[1], "bf16"), (RULES[2], "bf16"), (RULES[6], "fp32")], ids=str)
def test_compiles_without_a_gpu(rule: Rule, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the interpreter lets pass and the compiler does not; for Hopper, with reads and writes of 16 bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from delineate.ops import roi_triton_kernels as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    array, tensors = f"*{dtype}", [*[("fp32",) * 4] * 3, "*fp32", "*i64"]
    launches = [
        (kernels.forward, [array, (array,) * 4, *tensors, "i32", "i32"], [False, 8, 256]),
        (kernels.backward, [(array,) * 4, array, "*i32", *tensors, *["i32"] * 3], [4, 8, 128, 128, 16, dtype != "fp32"]),
    ]
    for kernel, types, constants in launches:
        names, divides = kernel.arg_names, [["tt.divisibility", 16]]
        signature = dict(zip(names, [*types, *["constexpr"] * (1 + len(constants))], strict=True))
        attributes: dict[tuple[int, ...], Any] = {(i,): divides for i, name in enumerate(names) if name == "channels"}
        attributes |= {(i,): divides for i, t in enumerate(types) if t[0] == "*"}
        attributes |= {(i, j): divides for i, t in enumerate(types) if t[0] == array for j in range(4)}
        source = ASTSource(kernel, signature, dict(zip(names[len(types) :], [rule, *constants], strict=True)), attributes)
        program = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
        assembly = program.asm["ptx"]
        forward = kernel is kernels.forward
        assert "st.global.v4.b32" in assembly
        assert "ld.global.v4.b32" in assembly or (not forward and rule.mode == "max")
        assert ("mma.sync" in assembly) == (not forward and rule.mode == "mean")
        assert "atom." not in assembly
        assert "div.rn.f32" in assembly  # positions need every bit

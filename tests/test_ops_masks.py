"""Pasting against torchvision, PyTorch's grid_sample and masks of Detectron2; the kernel against the plain form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from delineate.ops import native
from delineate.ops.masks import paste, paste_masks

# Detectron2 02b5c4e, paste_masks_in_image(smooth_masks(), BOXES, (40, 60), 0.5), encoded by pycocotools.
BOXES = [[3.25, 2.5, 30.75, 25.0], [-6.5, 10.1, 20.2, 45.9], [40.0, 5.0, 47.5, 6.25], [10.6, -20.0, 90.0, 80.0]]
DETECTRON2 = [
    r"\54S12N1O2N2M4M3M101O000000O2N2O1N1O10001O00000OQY1",
    "?c0e05K1O01O1O1O1O0000O10O010N2L4L5M4Lnc1",
    "Ub11W100000000000S`0",
    r"i?8m06K4M2N2N1O1O1O100O100O1O1O100O1N2O1O1N2O1OQd00P\O001O1O00001O001O",
]


def smooth_masks() -> Tensor:
    """Four blobs (4, 28, 28) in 0..1 that need no random numbers."""
    axis = torch.linspace(-1, 1, 28, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    blobs = [6 * (0.7 - (x**2 + (1 + 0.3 * n) * y**2)) + 2 * torch.sin(5 * x + n) * torch.cos(4 * y - n) for n in range(4)]
    return torch.stack(blobs).sigmoid().float()


def both_paths(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float, convention: str) -> Tensor:
    """Paste by the kernel, if there is one, and by the plain form, which must give the very same pixels."""
    had = native.available
    pasted = paste_masks(masks, boxes, size, threshold, convention)  # type: ignore[arg-type]
    try:
        native.available = False
        plain = paste_masks(masks, boxes, size, threshold, convention)  # type: ignore[arg-type]
    finally:
        native.available = had
    assert torch.equal(pasted, plain)
    return pasted


def sampled(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Detectron2's definition in float64: grid_sample at the pixels' centres, in coordinates -1..1 of the box; (N, H, W)."""
    boxes = boxes.double()
    y, x = (torch.arange(n, dtype=torch.float64) + 0.5 for n in size)
    u = 2 * (x - boxes[:, :1]) / (boxes[:, 2:3] - boxes[:, :1]) - 1  # (N, W)
    v = 2 * (y - boxes[:, 1:2]) / (boxes[:, 3:] - boxes[:, 1:2]) - 1
    shape = len(boxes), *size
    grid = torch.stack([u[:, None].expand(shape), v[:, :, None].expand(shape)], -1)
    return F.grid_sample(masks[:, None].double(), grid, align_corners=False)[:, 0]


def same_but_for_rounding(pasted: Tensor, values: Tensor, threshold: float) -> bool:
    clear = (values - threshold).abs() > 1e-5
    return bool((pasted == (values >= threshold))[clear].all())


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, tuple[int, int]]:
    count, rows, columns = draw(st.integers(0, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    masks = draw(arrays(np.float32, (count, rows, columns), elements=st.floats(0, 1, width=32)))
    low = draw(arrays(np.float32, (count, 2), elements=st.floats(-30, 40, width=32)))
    side = draw(arrays(np.float32, (count, 2), elements=st.floats(0.125, 60, width=32)))
    size = draw(st.tuples(st.integers(0, 40), st.integers(0, 40)))
    return torch.from_numpy(masks), torch.from_numpy(np.concatenate([low, low + side], 1)), size


@given(problems(), st.sampled_from([0.5, 0.3, 0.75]))
@settings(max_examples=150, deadline=None)
def test_equal_grid_sample(problem: tuple[Tensor, Tensor, tuple[int, int]], threshold: float) -> None:
    masks, boxes, size = problem
    pasted = both_paths(masks, boxes, size, threshold, "detectron2")
    assert pasted.shape == (len(masks), *size)
    if pasted.numel():
        assert same_but_for_rounding(pasted, sampled(masks, boxes, size), threshold)


@given(problems(), st.sampled_from([0.5, 0.3, 0.75]))
@settings(max_examples=150, deadline=None)
def test_equal_torchvision(problem: tuple[Tensor, Tensor, tuple[int, int]], threshold: float) -> None:
    masks, boxes, size = problem
    masks = masks[:, : min(masks.shape[1:]), : min(masks.shape[1:])]  # theirs are square
    pasted = both_paths(masks, boxes, size, threshold, "torchvision")
    for mask, box, ours in zip(masks, boxes, pasted, strict=True):
        try:
            theirs = paste_masks_in_image(mask[None, None], box[None], size)[0, 0]
        except RuntimeError:  # theirs cannot paste a box that lies beside the picture
            assert not ours.any()
        else:
            assert same_but_for_rounding(ours, theirs, threshold)


def test_equal_detectron2() -> None:
    pasted = both_paths(smooth_masks(), torch.tensor(BOXES), (40, 60), 0.5, "detectron2")
    assert [coco.encode(np.asfortranarray(mask.numpy(), np.uint8))["counts"].decode() for mask in pasted] == DETECTRON2


@given(
    arrays(np.float32, (3, 5, 4), elements=st.sampled_from([0.0, 0.5, np.float32(0.49999997), 0.50000006, 1.0, -3e38, 3e38]))
)
@settings(max_examples=60, deadline=None)
def test_kernel_rounds_as_the_plain_form(masks: np.ndarray) -> None:
    boxes = torch.tensor([[0.5, 1.5, 10.5, 21.5], [2.0, 2.0, 7.0, 6.0], [-3.3, 0.1, 16.7, 30.9]])
    for convention in ("detectron2", "torchvision"):
        both_paths(torch.from_numpy(masks), boxes, (20, 15), 0.5, convention)


def test_values_that_are_not_finite_are_outside() -> None:
    masks = smooth_masks()
    masks[0, 10:14], masks[1, 3], masks[2, :, 5] = torch.nan, torch.inf, -torch.inf
    pasted = both_paths(masks, torch.tensor(BOXES), (40, 60), 0.5, "detectron2")
    assert not pasted[0, 12:14].any()
    assert pasted[3].any()


def test_boxes_that_cover_nothing() -> None:
    nothing = [
        [5.0, 5, 5, 9],  # no width
        [9, 5, 5, 9],  # inside out
        [torch.nan, 0, 5, 5],
        [0, 0, torch.inf, 5],
        [-torch.inf, 0, torch.inf, 5],
        [-3e38, 0, 3e38, 5],  # its width is infinite
        [100, 100, 120, 120],  # outside
        [-50, -50, -20, -20],
    ]
    masks = torch.ones(len(nothing), 28, 28)
    assert not both_paths(masks, torch.tensor(nothing), (20, 20), 0.5, "detectron2").any()
    proper = both_paths(masks, torch.tensor(nothing), (20, 20), 0.5, "torchvision")
    assert proper.flatten(1).any(1).tolist() == [True] + [False] * 7  # a box without width is a pixel wide there
    huge = torch.tensor([[-1e30, -1e30, 1e30, 1e30], [-1e6, 0, 1e6, 20]])
    assert both_paths(masks[:2], huge, (20, 20), 0.5, "detectron2").all()


def test_shapes_strides_and_dtypes() -> None:
    masks, boxes = smooth_masks(), torch.tensor(BOXES)
    expected = paste_masks(masks, boxes, (40, 60))
    assert paste_masks(masks[:0], boxes[:0], (40, 60)).shape == (0, 40, 60)
    strided = masks.repeat_interleave(2, 2)[:, :, ::2]
    assert torch.equal(both_paths(strided, boxes.T.contiguous().T, (40, 60), 0.5, "detectron2"), expected)
    half = masks.bfloat16()
    assert torch.equal(both_paths(half, boxes, (40, 60), 0.5, "detectron2"), paste_masks(half.float(), boxes, (40, 60)))
    assert not paste_masks(masks.requires_grad_(), boxes, (40, 60)).requires_grad
    many = boxes.repeat(500, 1)
    assert torch.equal(paste_masks(masks.repeat(500, 1, 1), many, (40, 60))[-4:], expected)


def test_wrong_arguments_are_named() -> None:
    masks, boxes = smooth_masks(), torch.tensor(BOXES)
    with pytest.raises(ValueError, match=r"boxes \(3, 4\)"):
        paste_masks(masks, boxes[:3], (9, 9))
    with pytest.raises(ValueError, match=r"masks \(4, 0, 5\)"):
        paste_masks(torch.zeros(4, 0, 5), boxes, (9, 9))
    with pytest.raises(ValueError, match=r"threshold 0\.0"):
        paste_masks(masks, boxes, (9, 9), 0.0)
    with pytest.raises(ValueError, match="'mmdet'"):
        paste_masks(masks, boxes, (9, 9), convention="mmdet")  # type: ignore[arg-type]


def test_compile_and_export_take_it_whole() -> None:
    class Module(torch.nn.Module):
        def forward(self, masks: Tensor, boxes: Tensor) -> Tensor:
            return paste_masks(masks.sigmoid(), boxes, (20, 30))

    inputs = torch.randn(4, 28, 28), torch.tensor(BOXES)
    expected = Module()(*inputs)
    assert torch.equal(torch.compile(Module(), fullgraph=True, backend="aot_eager")(*inputs), expected)
    number = torch.export.Dim("number")
    exported = torch.export.export(Module(), inputs, dynamic_shapes=({0: number}, {0: number})).module()
    assert torch.equal(exported(*inputs), expected)
    assert torch.equal(exported(inputs[0][:3], inputs[1][:3]), expected[:3])
    torch.library.opcheck(paste, (*inputs, 20, 30, 0.5, "detectron2"))

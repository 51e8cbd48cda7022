"""Run-length codes against pycocotools, byte for byte, by the kernel and by the plain form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from pycocotools import mask as coco
from torch import Tensor

from delineate.errors import DataError
from delineate.ops import native
from delineate.ops.masks import paste_masks
from delineate.ops.rle import (
    decode_rle,
    decode_text,
    encode_rle,
    encode_runs,
    encode_text,
    merge_rle,
    paste_rle,
    paste_text,
    rle_area,
    rle_boxes,
    rle_iou,
    rle_runs,
)

both = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["native", "plain"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "native" and not native.available:
        pytest.skip("built without the native kernels")
    monkeypatch.setattr(native, "available", request.param == "native")


def coco_codes(masks: NDArray[np.bool_]) -> list[dict[str, Any]]:
    return [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]


def texts(codes: list[dict[str, Any]]) -> list[bytes]:
    return [code["counts"] if isinstance(code["counts"], bytes) else code["counts"].encode() for code in codes]


@st.composite
def mask_stacks(draw: st.DrawFn, count: int | None = None) -> NDArray[np.bool_]:
    """Masks (N, H, W) of noise or of long runs, up to beyond the 64 columns that the kernel takes at a time."""
    shape = draw(st.integers(0, 4)) if count is None else count, draw(st.integers(1, 12)), draw(st.integers(1, 150))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.01, 0.5, 0.98, 1.0]))
    masks = rng.random(shape) < density
    return masks.repeat(draw(st.integers(1, 9)), axis=1) if draw(st.booleans()) else masks


@given(mask_stacks())
@both
def test_codes_equal_pycocotools(masks: NDArray[np.bool_]) -> None:
    codes, expected = encode_rle(torch.from_numpy(masks)), coco_codes(masks)
    assert texts(codes) == texts(expected)
    assert all(code["size"] == list(masks.shape[1:]) for code in codes)
    if len(masks) == 0:
        return
    assert np.array_equal(decode_rle(codes).numpy(), masks)
    assert np.array_equal(decode_rle(expected).numpy(), masks)  # bytes are read too
    assert np.array_equal(decode_rle([{**code, "counts": rle_runs(code).tolist()} for code in codes]).numpy(), masks)
    assert encode_runs([rle_runs(code) for code in codes], masks.shape[1:]) == codes
    assert rle_area(codes).tolist() == coco.area(expected).tolist()
    xywh = coco.toBbox(expected)
    assert np.array_equal(rle_boxes(codes), np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1))


@given(st.integers(1, 4).flatmap(lambda n: mask_stacks(n)), st.booleans())
@both
def test_overlap_and_merging_equal_pycocotools(masks: NDArray[np.bool_], intersect: bool) -> None:
    masks = np.concatenate([masks, masks[:, ::-1], np.zeros_like(masks[:1])])
    codes, expected = encode_rle(torch.from_numpy(masks)), coco_codes(masks)
    assert texts([merge_rle(codes[:3], intersect)]) == texts([coco.merge(expected[:3], intersect)])
    crowd = [i % 3 == 1 for i in range(len(masks))]
    theirs = np.asarray(coco.iou(expected, expected, crowd))
    ours = rle_iou(codes, codes, crowd)
    empty = ~masks.any((1, 2))
    assert not ours[empty].any()
    assert not ours[:, empty].any()
    np.testing.assert_allclose(ours[~empty][:, ~empty], theirs[~empty][:, ~empty], rtol=1e-12)


@st.composite
def pastes(draw: st.DrawFn) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Small masks of smooth or adversarial values and boxes that stick out, touch pixel centres or are degenerate."""
    count, rows, columns = draw(st.integers(0, 3)), draw(st.integers(1, 14)), draw(st.integers(1, 14))
    tricky = st.sampled_from(
        [np.float32(x) for x in (0.0, 0.5, 0.49999997, 0.50000006, 1.0, -3e38, 3e38, np.nan, np.inf, -np.inf)]
    )
    values = draw(st.sampled_from([st.floats(0, 1, width=32), tricky]))
    masks = draw(arrays(np.float32, (count, rows, columns), elements=values))
    corner = st.one_of(st.floats(-40, 80, width=32), st.integers(-80, 160).map(lambda i: i / 2))
    boxes = draw(arrays(np.float32, (count, 4), elements=corner))
    size = draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    return torch.from_numpy(masks), torch.from_numpy(boxes), size


@given(pastes(), st.sampled_from([0.5, 0.25, 1.0]), st.sampled_from(["detectron2", "torchvision"]))
@example((torch.ones(1, 3, 3), torch.tensor([[-9.0, -9.0, 30.0, 30.0]]), (10, 8)), 0.5, "detectron2")  # all of the picture
@example((torch.ones(1, 3, 3), torch.tensor([[2.0, -9.0, 5.0, 30.0]]), (10, 8)), 0.5, "detectron2")  # runs across columns
@settings(both, max_examples=250)
def test_codes_of_boxes_equal_those_of_pasted_masks(problem: Any, threshold: float, convention: Any) -> None:
    masks, boxes, size = problem
    codes = paste_rle(masks, boxes, size, threshold, convention)
    assert texts(codes) == texts(coco_codes(paste_masks(masks, boxes, size, threshold, convention).numpy()))


def test_codes_of_large_boxes() -> None:
    """Many pixels between two cells of the mask, where the kernel looks for one change by halving."""
    generator = torch.Generator().manual_seed(3)
    masks = torch.rand(6, 28, 28, generator=generator)
    boxes = torch.tensor([[-100.3, -50.2, 700.9, 610.4], [3.1, 8.8, 690.2, 500.5], [0, 0, 640, 480], [100, 100, 228, 228]] * 2)[
        :6
    ]
    for convention in ("detectron2", "torchvision"):
        codes = paste_rle(masks, boxes, (480, 640), 0.5, convention)  # type: ignore[arg-type]
        assert texts(codes) == texts(coco_codes(paste_masks(masks, boxes, (480, 640), 0.5, convention).numpy()))  # type: ignore[arg-type]


def test_edges() -> None:
    assert encode_rle(torch.zeros(0, 4, 5)) == paste_rle(torch.zeros(0, 28, 28), torch.zeros(0, 4), (4, 5)) == []
    assert decode_rle([]).shape == (0, 0, 0)
    assert encode_rle(torch.zeros(1, 0, 3)) == [{"size": [0, 3], "counts": "0"}]
    assert rle_boxes([]).shape == (0, 4)
    assert rle_iou([], []).shape == (0, 0)
    masks = torch.rand(3, 20, 30) > 0.5
    expected = encode_rle(masks)
    assert encode_rle(masks.transpose(1, 2).contiguous().transpose(1, 2)) == expected
    assert encode_rle(masks.float() * 3 - 0) == encode_rle(masks.to(torch.uint8) * 255) == expected
    many = encode_rle(masks[:1].expand(5000, -1, -1))
    assert many == expected[:1] * 5000


DAMAGED = [
    ({"size": [2, 2], "counts": "2"}, "do not add up to 4"),
    ({"size": [2, 2], "counts": "23"}, "do not add up to 4"),
    ({"size": [2, 2], "counts": ""}, "do not add up to 4"),
    ({"size": [2, 2], "counts": "O5"}, "do not add up to 4"),  # a run of -1
    ({"size": [2, 2], "counts": "2R"}, "damaged"),  # ends within a number
    ({"size": [2, 2], "counts": "2 2"}, "damaged"),
    ({"size": [2, 2], "counts": "2\xff2"}, "damaged"),
    ({"size": [2, 2], "counts": "o" * 40 + "1"}, "damaged"),  # longer than any number
    ({"size": [2, 2], "counts": [2, -1, 3]}, "do not add up to 4"),
    ({"size": [2, 2], "counts": [2, 3]}, "do not add up to 4"),
    ({"size": [2, 2]}, "counts None, expected a list or a string"),
    ({"size": [4], "counts": "4"}, r"size \[4\], expected"),
]


@pytest.mark.parametrize(("code", "message"), DAMAGED)
def test_damaged_codes_are_named(code: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rle_runs(code)
    with pytest.raises(DataError, match=r"damaged|expected"):
        decode_rle([code])


def test_wrong_use_is_named() -> None:
    with pytest.raises(DataError, match=r"several sizes: \[\(2, 2\), \(2, 3\)\]"):
        decode_rle([{"size": [2, 2], "counts": "4"}, {"size": [2, 3], "counts": "6"}])
    with pytest.raises(DataError, match="add up to 4"):
        encode_runs([[2, 2], [1, 2]], (2, 2))
    with pytest.raises(ValueError, match="no run-length codes to merge"):
        merge_rle([])
    with pytest.raises(ValueError, match=r"masks \(4, 5\)"):
        encode_rle(torch.zeros(4, 5))


def test_compile_and_export_take_them_whole() -> None:
    class Module(torch.nn.Module):
        def forward(self, masks: Tensor, boxes: Tensor) -> tuple[Tensor, ...]:
            text, ends = paste_text(masks, boxes, 20, 30, 0.5, "detectron2")
            dense = decode_text(text, ends, 20, 30)
            return text, ends, dense, *encode_text(dense)

    inputs = torch.rand(3, 28, 28), torch.tensor([[1.0, 2, 12, 17], [-5, 3, 40, 9], [4, 4, 4, 4]])
    expected = Module()(*inputs)
    assert torch.equal(expected[0], expected[3])
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")(*inputs)
    exported = torch.export.export(Module(), inputs).module()(*inputs)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)
    torch.library.opcheck(decode_text, (*expected[:2], 20, 30))

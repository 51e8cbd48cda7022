"""The Triton kernels of suppression, pasting, run-length codes and keypoints against their plain forms.

In Triton's interpreter, where `test_ops_triton.test_all_in_the_interpreter` runs them, or with `--device cuda` compiled.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torchvision
from pycocotools import mask as coco
from torch import Tensor

from delineate.ops import decode_keypoints, encode_keypoints, encode_rle, gpu, native, nms_fixed, paste_masks, paste_rle
from delineate.ops.keypoints import bicubic_peaks, bicubic_peaks_reference, keypoint_cells_reference, taylor_peaks_reference
from delineate.ops.nms import suppress, suppress_reference

pytest.importorskip("triton", reason="PyTorch brings Triton on Linux only")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's of NaN and infinity, in the interpreter
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture
def interpreted(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels, which all operations take, on the CPU too."""
    if not INTERPRETED and device.type == "cpu":
        pytest.skip("test_ops_triton.test_all_in_the_interpreter runs it")
    monkeypatch.setattr(gpu, "wanted", lambda tensor: tensor.dtype != torch.float64)


def by_reference(function: Callable[..., Any], *arguments: Any) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "wanted", lambda tensor: False)
        patch.setattr(native, "available", False)
        return function(*(a.cpu() if isinstance(a, Tensor) else a for a in arguments))


# Suppression


def clustered(pictures: int, count: int, clusters: int) -> Tensor:
    center = 300 * torch.rand(clusters, 2)[torch.randint(clusters, (pictures, count))]
    low = center + 4 * torch.randn(pictures, count, 2)
    return torch.cat([low, low + 30 + 8 * torch.randn(pictures, count, 2).abs()], -1)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("threshold", [0.5, 0.0, -1.0])
def test_interpreted_suppression_equals_reference(
    device: torch.device, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several tiles and blocks; boxes that are not finite, without area or inside out; classes; pictures."""
    from delineate.ops import nms_triton

    monkeypatch.setattr(nms_triton, "_BLOCK", 128)
    monkeypatch.setattr(nms_triton, "_ROWS", 64)
    boxes, classes = clustered(2, 290, 12), torch.randint(0, 2, (2, 290))
    boxes[:, ::17, 0], boxes[:, ::23, 2], boxes[:, ::13] = torch.nan, torch.inf, 5.0
    boxes[:, ::29] = boxes[:, ::29].roll(2, -1)
    ours = suppress(boxes.to(device), classes.to(device), threshold).cpu()
    expected = torch.stack([suppress_reference(b, k, threshold) for b, k in zip(boxes, classes, strict=True)])
    assert torch.equal(ours, expected)
    assert expected.any()
    assert not expected.all()


@pytest.mark.usefixtures("interpreted")
def test_interpreted_suppression_equals_torchvision(device: torch.device) -> None:
    """Equal scores stay in the order of the input, IoUs that equal the threshold suppress nothing, chains are followed."""
    chain = torch.tensor([[3.0 * i, 0, 3.0 * i + 10, 10] for i in range(70)])  # each suppresses its neighbours alone
    exact = torch.tensor([[0.0, 100, 10, 101], [0, 100, 7, 101], [0, 100, 10, 101]])
    boxes = torch.cat([chain, exact])
    scores = torch.cat([torch.linspace(1, 0.5, 70), torch.tensor([0.3, 0.3, 0.3])])
    for threshold in (0.5, 0.7):
        kept = nms_fixed(boxes.to(device), scores.to(device), threshold, 73)
        assert torch.equal(kept.indices[kept.valid].cpu(), torchvision.ops.nms(boxes, scores, threshold))


@pytest.mark.usefixtures("interpreted")
def test_interpreted_suppression_of_nothing(device: torch.device) -> None:
    assert nms_fixed(torch.zeros(2, 0, 4, device=device), torch.zeros(2, 0, device=device), 0.5, 3).valid.sum() == 0
    assert nms_fixed(torch.zeros(0, 5, 4, device=device), torch.zeros(0, 5, device=device), 0.5, 3).valid.shape == (0, 3)
    one = nms_fixed(torch.ones(3, 1, 4, device=device), torch.ones(3, 1, device=device), 0.5, 2)
    assert one.valid.tolist() == [[True, False]] * 3


# Masks over boxes, and codes

SIZE = 29, 41
BOXES = torch.tensor(
    [
        [3.25, 2.5, 30.75, 25.0],
        [-6.5, 10.1, 20.2, 45.9],
        [30.0, 5.0, 37.5, 6.25],  # flat
        [-10.6, -20.0, 90.0, 80.0],  # larger than the picture: runs go on from column to column
        [0.0, 0.0, 41.0, 29.0],
        [0.2, 0.3, 0.7, 0.8],  # within a pixel
        [5.0, 5.0, 5.0, 9.0],  # without width
        [9.0, 9.0, 3.0, 3.0],
        [torch.nan, 0.0, 3.0, 3.0],
        [100.0, 100.0, 120.0, 130.0],
    ]
)


def small_masks(*shape: int) -> Tensor:
    masks = torch.rand(len(BOXES), *shape)
    masks[4] = 1.0
    masks[1, 0, 0] = torch.nan
    return masks


Convention = Literal["detectron2", "torchvision"]
CASES: list[tuple[tuple[int, int], torch.dtype, float, Convention]] = [
    ((7, 7), torch.float32, 0.5, "detectron2"),
    ((5, 3), torch.bfloat16, 0.1, "torchvision"),
    ((1, 1), torch.float16, 0.5, "detectron2"),
]


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("shape", "dtype", "threshold", "convention"), CASES)
def test_interpreted_pasting_and_codes_equal_reference(
    device: torch.device, shape: tuple[int, int], dtype: torch.dtype, threshold: float, convention: Convention
) -> None:
    """Pixel by pixel, and character by character; codes of masks, too."""
    masks = small_masks(*shape).to(device, dtype)
    given = masks, BOXES.to(device), SIZE, threshold, convention
    expected = by_reference(paste_masks, *given)
    assert torch.equal(paste_masks(*given).cpu(), expected)
    codes = by_reference(paste_rle, *given)
    assert paste_rle(*given) == codes
    assert encode_rle(expected.to(device)) == codes
    assert 0 < expected.sum() < expected.numel()


@pytest.mark.usefixtures("interpreted")
def test_interpreted_codes_equal_pycocotools(device: torch.device) -> None:
    """Long runs, of several characters; masks that begin and end inside; nothing at all."""
    masks = torch.zeros(4, 70, 90, dtype=torch.bool)
    masks[1] = True
    masks[2, 0, 0] = masks[2, -1, -1] = True
    masks[3] = torch.rand(70, 90) < 0.02
    ours = encode_rle(masks.to(device))
    theirs: Any = coco.encode(masks.numpy().astype("uint8").transpose(1, 2, 0).copy("F"))
    assert [code["counts"].encode() for code in ours] == [code["counts"] for code in theirs]
    assert encode_rle(masks[:0].to(device)) == []
    assert encode_rle(masks[:2, :0].to(device)) == by_reference(encode_rle, masks[:2, :0])
    none = torch.zeros(0, 7, 7, device=device), torch.zeros(0, 4, device=device), SIZE
    assert paste_rle(*none) == []
    assert paste_masks(*none).shape == (0, *SIZE)
    nowhere = torch.ones(1, 7, 7, device=device), torch.tensor([[50.0, 50, 60, 60]], device=device), SIZE
    assert paste_rle(*nowhere) == by_reference(paste_rle, *nowhere)


# Keypoints


def heatmaps_and_boxes() -> tuple[Tensor, Tensor]:
    heatmaps = 4 * torch.randn(5, 3, 7, 9)
    low = 40 * torch.rand(5, 2) - 5
    boxes = torch.cat([low, low + 25 * torch.rand(5, 2)], 1)
    boxes[2, 2:] = boxes[2, :2] - 3  # inside out
    return heatmaps, boxes


@pytest.mark.usefixtures("interpreted")
def test_interpreted_bicubic_peaks_equal_reference(device: torch.device) -> None:
    """But for rounding: of the values, and of which pixel is largest."""
    heatmaps, boxes = heatmaps_and_boxes()
    points, values = (x.cpu() for x in bicubic_peaks(heatmaps.to(device), boxes.to(device)))
    expected_points, expected_values = bicubic_peaks_reference(heatmaps, boxes)
    torch.testing.assert_close(values, expected_values)
    torch.testing.assert_close(points, expected_points)
    half = heatmaps[:1].to(device, torch.bfloat16)
    torch.testing.assert_close(bicubic_peaks(half.float(), boxes[:1].to(device)), bicubic_peaks(half, boxes[:1].to(device)))
    wide = torch.tensor([[0.0, 0, 1e6, 1e6], [torch.nan, 0, 5, 5], [0, 0, torch.inf, 5]], device=device)
    assert all(x.isnan().all() for x in bicubic_peaks(heatmaps[:3].to(device), wide))  # nothing waits for an error


@pytest.mark.usefixtures("interpreted")
def test_interpreted_taylor_peaks_equal_reference(device: torch.device) -> None:
    heatmaps, boxes = heatmaps_and_boxes()
    heatmaps[1, 0], heatmaps[1, 1, 6, 8], heatmaps[1, 2, 3, 3] = 1.0, 99.0, torch.nan  # flat, in a corner, missing
    heatmaps[2, 0, 2:4, 5] = 50.0  # two are largest
    ours = decode_keypoints(heatmaps.to(device), boxes.to(device), "taylor")
    points, values = taylor_peaks_reference(heatmaps, boxes)
    torch.testing.assert_close(ours.points.cpu(), points, equal_nan=True, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.logits.cpu(), values, equal_nan=True, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("interpreted")
def test_interpreted_cells_equal_reference(device: torch.device) -> None:
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [3, 3, 3, 9], [9, 9, 0, 0], [0, 0, 9, torch.inf], [torch.nan, 0, 9, 9], [1, 2, 11.3, 7.7]]
    )
    points = torch.cat([torch.randint(-2, 13, (6, 60, 3)).float(), 12 * torch.rand(6, 60, 3)], 1)
    for size in (1, 7, 56):
        cells, valid = (x.cpu() for x in encode_keypoints(points.to(device), boxes.to(device), size))
        expected_cells, expected_valid = keypoint_cells_reference(points, boxes, size)
        assert torch.equal(cells, expected_cells)
        assert torch.equal(valid, expected_valid)
    assert expected_valid.any()
    assert encode_keypoints(points[:0].to(device), boxes[:0].to(device))[0].shape == (0, 120)


# The compiler, without a GPU


def assembly(kernel: Any, *types: str, constants: tuple[Any, ...]) -> str:
    """PTX for Hopper of a kernel with arguments of these types and then these constants."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    signature = dict(zip(names, [*types, *["constexpr"] * len(constants)], strict=True))
    attributes: dict[tuple[int, ...], Any] = {(i,): [["tt.divisibility", 16]] for i, t in enumerate(types) if t[0] == "*"}
    source = ASTSource(kernel, signature, dict(zip(names[len(types) :], constants, strict=True)), attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False}).asm["ptx"]


@pytest.mark.skipif(INTERPRETED, reason="needs the compiler")
def test_compiles_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the interpreter lets pass and the compiler does not. No atomics, and arithmetic that rounds as the plain forms'."""
    from delineate.ops import keypoints_triton, masks_triton, nms_triton, rle_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    of_boxes = "*fp32", "*i64", "fp32"
    of_masks = "*bf16", "i32", "i32", "*fp32", "*fp32", "*i32", "*i32", "fp32", "fp32", "fp32", "fp32", "i32", "i32"
    of_heatmaps = "*fp32", "*fp32", "*bf16", "*fp32", "i32", "i32", "i32"
    divide = [
        assembly(nms_triton.overlaps, "*i64", *of_boxes, "i32", "i32", "i32", constants=(64,)),
        assembly(nms_triton.sweep, "*u8", "*u8", *of_boxes, "i32", "i32", "i32", constants=(128, 32)),
        assembly(masks_triton.paste_tile, "*u8", *of_masks, constants=(8, 128)),
        assembly(rle_triton.paste_edges, "*i64", "*i64", *of_masks, constants=(32, 16, True)),
        assembly(keypoints_triton.resized_peak, *of_heatmaps, "fp32", constants=(512,)),
        assembly(keypoints_triton.top_of_paraboloid, *of_heatmaps, constants=(512,)),
        assembly(keypoints_triton.cells_of, "*i64", "*u8", "*fp32", "*fp32", "i32", "i32", "i32", constants=(256,)),
    ]
    assert all("div.rn.f32" in text for text in divide)
    others = [
        assembly(nms_triton.settle, "*u8", "*i64", "*u8", "i32", "i32", "i32", constants=(64, 8)),
        assembly(rle_triton.spell, "*u8", "*i64", "*i64", "*i64", "*i64", "i32", "i64", constants=(256, 10, True)),
    ]
    assert not any("atom." in text or "fma." in text for text in [*divide, *others])
    assert "bar.sync" in others[0]  # what one thread wrote, others read

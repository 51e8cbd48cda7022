"""Keypoint heatmaps against torchvision and against numbers of Detectron2."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, keypoints_to_heatmap

from delineate.ops import native
from delineate.ops.keypoints import Keypoints, bicubic_peaks, decode_keypoints, encode_keypoints

# Detectron2 02b5c4e: _keypoints_to_heatmap(POINTS, BOXES, 56); x, y, logit and score of heatmaps_to_keypoints(bumps(), BOXES).
BOXES = [[3.25, 2.5, 30.75, 90.0], [100.5, 20.0, 100.9, 20.2], [-4.0, 7.0, 61.5, 40.25]]
POINTS = [
    [[3.25, 2.5, 2], [30.75, 90, 1], [20, 45, 0]],
    [[100.6, 20.1, 1], [100.9, 20, 2], [101, 20, 2]],
    [[61.499, 40.249, 1], [0, 7, 2], [30, 40.25, 1]],
]
CELLS = [[0, 3135, 0], [1581, 55, 0], [3135, 3, 3109]]
VALID = [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
PEAKS = [
    [[14.54464, 45.75284, 6.00863, 0.12734], [18.47321, 46.74716, 6.27024, 0.13480], [22.40179, 45.75284, 6.30145, 0.13747]],
    [[101.0, 20.5, 0.76248, 0.00072], [101.0, 20.5, 1.65386, 0.00131], [101.0, 20.5, 0.33644, 0.00039]],
    [[22.29924, 31.9375, 5.83207, 0.12186], [32.22348, 31.9375, 6.29623, 0.13535], [41.1553, 31.9375, 5.9414, 0.12312]],
]


@pytest.fixture(params=["native", "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "native" and not native.available:
        pytest.skip("built without the native kernels")
    monkeypatch.setattr(native, "available", request.param == "native")


def bumps() -> Tensor:
    """Heatmaps (3, 3, 28, 28), each with one clear peak."""
    axis = torch.linspace(-1, 1, 28, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    k, n = torch.arange(3)[:, None, None], torch.arange(3)[:, None, None, None]
    return (6 * torch.exp(-((x - 0.3 * k + 0.2) ** 2 + (y - 0.25 * n) ** 2) / 0.05) + 0.3 * torch.sin(7 * x * y + k)).float()


@st.composite
def annotations(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Keypoints (N, K, 3) and boxes (N, 4) with area, on a coarse grid, so that points lie on edges."""
    count, kinds = draw(st.integers(0, 4)), draw(st.integers(0, 4))
    place = st.integers(-8, 60).map(lambda i: i / 2)
    low = draw(arrays(np.float32, (count, 2), elements=place))
    side = draw(arrays(np.float32, (count, 2), elements=st.integers(1, 90).map(lambda i: i / 4)))
    points = draw(arrays(np.float32, (count, kinds, 2), elements=place))
    seen = draw(arrays(np.float32, (count, kinds, 1), elements=st.sampled_from([0.0, 1.0, 2.0])))
    return torch.from_numpy(np.concatenate([points, seen], 2)), torch.from_numpy(np.concatenate([low, low + side], 1))


@given(annotations(), st.sampled_from([1, 7, 56]))
@settings(max_examples=150, deadline=None)
def test_targets_equal_torchvision(annotation: tuple[Tensor, Tensor], size: int) -> None:
    cells, valid = encode_keypoints(*annotation, size)
    their_cells, their_valid = keypoints_to_heatmap(*annotation, size)
    assert torch.equal(cells, their_cells)
    assert torch.equal(valid, their_valid.bool())


def test_targets_equal_detectron2() -> None:
    cells, valid = encode_keypoints(torch.tensor(POINTS), torch.tensor(BOXES), 56)
    assert cells.tolist() == CELLS
    assert valid.int().tolist() == VALID


def test_no_keypoint_counts_in_a_box_without_area() -> None:
    points = torch.tensor([[[5.0, 5, 2]], [[5, 5, 2]], [[torch.nan, 5, 2]], [[5, torch.inf, 2]], [[5, 5, 2]]])
    boxes = torch.tensor([[5.0, 0, 5, 9], [9, 9, 0, 0], [0, 0, 9, 9], [0, 0, 9, torch.inf], [torch.nan, 0, 9, 9]])
    cells, valid = encode_keypoints(points, boxes)
    assert not valid.any()
    assert not cells.any()


def no_higher(heatmaps: Tensor, boxes: Tensor, keypoints: Keypoints, moved: Tensor) -> bool:
    """Whether the pixels found are as high as the highest but for rounding, where they are others than torchvision's."""
    for n, k in moved.nonzero().tolist():
        side = (boxes[n, 2:] - boxes[n, :2]).clamp(min=1)
        width, height = side.ceil().int().tolist()
        resized = F.interpolate(heatmaps[n : n + 1, k : k + 1], (height, width), mode="bicubic")[0, 0]
        x, y = ((keypoints.points[n, k] - boxes[n, :2]) / side * torch.tensor([width, height]) - 0.5).round().int().tolist()
        if resized[y, x] < resized.max() - 1e-5:
            return False
    return True


@pytest.mark.usefixtures("path")
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_bicubic_peaks_equal_torchvision(seed: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    heatmaps = 4 * torch.randn(5, 3, rows, columns, generator=generator)
    boxes = 40 * torch.rand(5, 4, generator=generator) - 5
    boxes[:, 2:] = boxes[:, :2] + 30 * torch.rand(5, 2, generator=generator) ** 3
    keypoints = decode_keypoints(heatmaps, boxes)
    points, scores = heatmaps_to_keypoints(heatmaps, boxes)
    if not native.available:  # the plain form resizes as they do
        assert torch.equal(keypoints.points, points[..., :2])
    torch.testing.assert_close(keypoints.logits, scores)
    moved = (keypoints.points != points[..., :2]).any(-1)
    assert not moved.any() or no_higher(heatmaps, boxes, keypoints, moved)


@pytest.mark.usefixtures("path")
def test_bicubic_peaks_equal_detectron2() -> None:
    keypoints = decode_keypoints(bumps(), torch.tensor(BOXES))
    found = torch.cat([keypoints.points, keypoints.logits[..., None], keypoints.scores[..., None]], -1)
    torch.testing.assert_close(found, torch.tensor(PEAKS), rtol=0, atol=2e-5)


def test_taylor_finds_the_top_of_a_paraboloid() -> None:
    """The step is exact where the heatmap is of second degree, also where its axes are turned."""
    top = torch.tensor([[3.3, 4.2], [5.0, 2.6], [6.45, 6.05]], dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(9.0, dtype=torch.float64), torch.arange(11.0, dtype=torch.float64), indexing="ij")
    dx, dy = x - top[:, 0, None, None], y - top[:, 1, None, None]
    heatmaps = (7 - dx**2 - 1.5 * dy**2 + 0.8 * dx * dy)[None].float()
    boxes = torch.tensor([[10.0, 20, 10 + 22, 20 + 36]])  # cells of 2 x 4 pixels
    keypoints = decode_keypoints(heatmaps, boxes, "taylor")
    torch.testing.assert_close(keypoints.points[0].double(), (top + 0.5) * torch.tensor([2, 4]) + torch.tensor([10, 20]))
    torch.testing.assert_close(keypoints.logits, torch.full((1, 3), 7.0))


def test_the_two_methods_agree_on_smooth_peaks() -> None:
    """Within half a pixel, which is the pixel's own size, and a tenth of a cell."""
    boxes = torch.tensor([[3.25, 2.5, 60.75, 90.0], [0.0, 0, 84, 84], [-4.0, 7.0, 161.5, 140.25]])
    bicubic, taylor = decode_keypoints(bumps(), boxes), decode_keypoints(bumps(), boxes, "taylor")
    cell = (boxes[:, None, 2:] - boxes[:, None, :2]) / 28
    assert ((bicubic.points - taylor.points).abs() < 0.5 + 0.1 * cell).all()
    torch.testing.assert_close(bicubic.logits, taylor.logits, rtol=0.02, atol=0)


def test_flat_and_bordering_peaks_stay_in_their_cell() -> None:
    heatmaps = torch.zeros(1, 2, 4, 4)
    heatmaps[0, 1, 0, 3] = 1.0  # in a corner
    keypoints = decode_keypoints(heatmaps, torch.tensor([[0.0, 0, 8, 8]]), "taylor")
    assert keypoints.points[0, 0].tolist() == [1.0, 1.0]
    x, y = keypoints.points[0, 1].tolist()
    assert 6 <= x <= 8
    assert 0 <= y <= 2


@pytest.mark.usefixtures("path")
def test_edges() -> None:
    for method in ("bicubic", "taylor"):
        assert decode_keypoints(torch.zeros(0, 17, 56, 56), torch.zeros(0, 4), method).points.shape == (0, 17, 2)  # type: ignore[arg-type]
        strided = bumps().transpose(0, 1).contiguous().transpose(0, 1)
        for mine, expected in zip(
            decode_keypoints(strided, torch.tensor(BOXES), method),  # type: ignore[arg-type]
            decode_keypoints(bumps(), torch.tensor(BOXES), method),  # type: ignore[arg-type]
            strict=True,
        ):
            torch.testing.assert_close(mine, expected)
    inside_out, missing = decode_keypoints(bumps()[:2], torch.tensor([[9.0, 9, 2, 2], [torch.nan, 0, 9, 9]])).points
    assert inside_out.tolist() == [[9.5, 9.5]] * 3  # as a box of one pixel, like both libraries
    assert missing.isnan().all()
    for wide in (1e6, 3e38):
        with pytest.raises(ValueError, match=r"boxes\[1\] has more than 2\^30 pixels"):
            decode_keypoints(bumps()[:2], torch.tensor([[0.0, 0, 9, 9], [-wide, 0, wide, 1e6]]))
    with pytest.raises(ValueError, match=r"boxes \(2, 4\)"):
        decode_keypoints(bumps(), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="'newton'"):
        decode_keypoints(bumps(), torch.tensor(BOXES), "newton")  # type: ignore[arg-type]


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("method", ["bicubic", "taylor"])
def test_compile_and_export_take_them_whole(method: str) -> None:
    class Module(torch.nn.Module):
        def forward(self, heatmaps: Tensor, boxes: Tensor, points: Tensor) -> tuple[Tensor, ...]:
            return *decode_keypoints(heatmaps, boxes, method), *encode_keypoints(points, boxes)  # type: ignore[arg-type]

    inputs = bumps(), torch.tensor(BOXES), torch.tensor(POINTS)
    expected = Module()(*inputs)
    torch.testing.assert_close(torch.compile(Module(), fullgraph=True, backend="aot_eager")(*inputs), expected)
    torch.testing.assert_close(torch.export.export(Module(), inputs).module()(*inputs), expected)
    torch.library.opcheck(bicubic_peaks, inputs[:2])

"""RoIAlign against numbers of Detectron2: of its own kernel, which it had until February 2021, and those of its tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from delineate.ops import native, roi_align

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "detectron2_roi_align.json").read_text())


@pytest.fixture(params=["native", "reference"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "native" and not native.available:
        pytest.skip("built without a compiler, or switched off")
    monkeypatch.setattr(native, "available", request.param == "native")


def numbers(shape: tuple[int, ...], factor: int, modulus: int, divisor: int) -> Tensor:
    """What the golden file calls i * factor % modulus / divisor - 3."""
    return (torch.arange(torch.Size(shape).numel()) * factor % modulus / divisor - 3).reshape(shape)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['spatial_scale']}-{c['sampling_ratio']}-{c['aligned']}")
def test_equals_detectron2s_kernel(case: dict[str, Any], layout: torch.memory_format) -> None:
    """Boxes on cells and off, without size, outside, and far larger than the map; forward and backward."""
    features = numbers(tuple(GOLDEN["map_shape"]), 37, 101, 16).contiguous(memory_format=layout).requires_grad_()
    size, boxes = tuple(GOLDEN["output_size"]), torch.tensor(GOLDEN["boxes"])
    result = roi_align(features, boxes, size, case["spatial_scale"], case["sampling_ratio"], case["aligned"])
    result.backward(numbers(tuple(result.shape), 29, 53, 8))
    assert features.grad is not None
    for ours, golden in ((result, case["result"]), (features.grad, case["gradient"])):
        torch.testing.assert_close(ours, torch.tensor(golden).reshape(ours.shape), rtol=1e-5, atol=2e-6)


def test_equals_detectron2s_published_numbers() -> None:
    """facebookresearch/detectron2 at 02b5c4e2: tests/layers/test_roi_align.py, test_forward_output and test_empty_box."""
    features, box = torch.arange(25.0).reshape(1, 1, 5, 5), torch.tensor([[0.0, 1, 1, 3, 3]])
    rows, columns = torch.arange(4.0)[:, None] * 2.5, torch.arange(4.0) * 0.5
    assert torch.equal(roi_align(features, box, 4, aligned=False)[0, 0], 7.5 + rows + columns)
    assert torch.equal(roi_align(features, box, 4, aligned=True)[0, 0], 4.5 + rows + columns)
    assert not roi_align(features, torch.tensor([[0.0, 3, 4, 5, 4]]), 7, aligned=True).any()
    assert roi_align(torch.zeros(0, 3, 10, 10), torch.zeros(0, 5), 7, aligned=True).shape == (0, 3, 7, 7)

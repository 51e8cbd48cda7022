"""Object-contextual representations: the published numbers, and its parts on maps that can be computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as V

from _hrnet import TINY_OCR
from delineate.models import create_model
from delineate.models.ocr import gather
from delineate.ops.outputs import WithAuxiliary
from delineate.weights.hrnet import RULES
from delineate.weights.importer import rename

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def golden_picture(golden: Any, size: list[int], data: Path) -> Tensor:
    top, left = golden["crop_top_left"]
    with Image.open(data / golden["image"]) as picture:
        pixels = V.crop(V.to_image(picture.convert("RGB")), top, left, *size)
    return V.normalize(V.to_dtype(pixels, torch.float32, scale=True), list(MEAN), list(STD))[None]


def test_the_authors_network_gives_the_authors_logits(real_data: Path, device: torch.device) -> None:
    """HRNet-Semantic-Segmentation 0bbb288 (branch HRNet-OCR), every tensor filled from its name and shape."""
    folder = real_data.parent / "goldens"
    if not (folder / "hrnet_official.json").exists():
        pytest.skip(f"no outputs of the authors' network in {folder}")
    golden = json.loads((folder / "hrnet_official.json").read_text())
    scope: dict[str, Any] = {}
    exec(compile((folder / "fill.py").read_text(), "fill.py", "exec"), scope)
    state = scope["fill"](golden["tensors"]["hrnet_w48_ocr"])
    model: Any = create_model("hrnet_w48_ocr", 19, align_corners=True)
    model.load_state_dict(rename(state, RULES))
    model.eval().to(device)
    for case in (case for case in golden["cases"] if case["case"].startswith("hrnet_w48_ocr align_corners=True")):
        if case["size"] != [161, 227]:
            continue
        with torch.inference_mode():
            maps = model.maps(golden_picture(golden, case["size"], real_data).to(device))
        logits = maps.auxiliary if case["case"].endswith("auxiliary") else maps.logits
        assert list(logits.shape[1:]) == case["logits"]["shape"]
        torch.testing.assert_close(
            logits[0, :, ::16, ::16].cpu(), torch.tensor(case["logits"]["every_16th"]), atol=1e-4, rtol=0
        )
        assert float(logits.mean()) == pytest.approx(case["logits"]["mean"], abs=1e-5)


def test_gather_takes_the_mean_over_a_soft_region() -> None:
    pixels = torch.tensor([[[[1.0, 2.0], [3.0, 10.0]]]])  # (1, 1, 2, 2)
    regions = torch.zeros(1, 2, 2, 2)
    regions[0, 1] = torch.tensor([[-100.0, 0.0], [0.0, -100.0]])  # the second class owns two pixels alike
    torch.testing.assert_close(gather(pixels, regions).flatten(), torch.tensor([4.0, 2.5]))


def test_auxiliary_logits_come_in_training_only(device: torch.device) -> None:
    model = create_model("hrnet_w48_ocr", 5, **TINY_OCR, auxiliary_weight=0.3).to(device)
    x = torch.randn(2, 3, 33, 30, device=device)
    output = model(x)
    assert isinstance(output, WithAuxiliary)
    assert output.weights == (0.3,)
    assert output.logits.shape == output.auxiliary[0].shape == (2, 5, 33, 30)
    assert model.eval()(x).shape == (2, 5, 33, 30)

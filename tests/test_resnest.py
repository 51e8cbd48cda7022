"""ResNeSt against timm's, forwards and backwards, and against the official code's own numbers."""

from __future__ import annotations

import json
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from _networks import assert_maps_and_gradients_are_those_of, shapes_of
from delineate.models.backbones.resnest import resnest
from delineate.models.norms import normalize_pooled

TIMM = {
    "14": ("resnest14d", {}, {"depth": 14}),
    "26": ("resnest26d", {}, {"depth": 26}),
    "50 of four cardinal groups, radix 1": (
        "resnest50d_1s4x24d",
        {},
        {"depth": 50, "radix": 1, "groups": 4, "width_per_group": 24, "pool_first": True},
    ),
    "50 of two cardinal groups, radix 4": (
        "resnest50d_4s2x40d",
        {},
        {"depth": 50, "radix": 4, "groups": 2, "width_per_group": 40, "pool_first": True},
    ),
    "26 dilated": ("resnest26d", {"output_stride": 8}, {"depth": 26, "dilate": (True, True), "dilation": "timm"}),
}


@pytest.mark.parametrize("case", TIMM)
def test_maps_and_gradients_are_those_of_timm(case: str, device: torch.device) -> None:
    name, their_options, our_options = TIMM[case]
    theirs, ours = timm.create_model(name, **their_options).to(device), resnest(**our_options).to(device)
    assert_maps_and_gradients_are_those_of(theirs, ours, torch.randn(2, 3, 65, 78, device=device))


@pytest.mark.parametrize(
    ("depth", "name"), [(50, "resnest50d"), (101, "resnest101e"), (200, "resnest200e"), (269, "resnest269e")]
)
def test_deep_networks_have_the_tensors_of_timm(depth: int, name: str) -> None:
    with torch.device("meta"):
        theirs, ours = timm.create_model(name), resnest(int(name[7:-1]))
    assert shapes_of(ours) == shapes_of(theirs)


@cache
def goldens(folder: Path) -> tuple[Any, dict[int, dict[str, Tensor]]]:
    """What the official code (github.com/zhanghang1989/ResNeSt, 1dfb3e8) computed, and the weights that it had."""
    if not folder.is_dir():
        pytest.skip(f"golden numbers not found at {folder}")
    golden = json.loads((folder / "resnest_official.json").read_text())
    fill = runpy.run_path(str(folder / "fill.py"))["fill"]
    return golden, {depth: fill(golden["tensors"][f"resnest{depth}"]) for depth in (50, 101)}


@pytest.mark.parametrize("index", [1, 3, 6])  # plain, dilated, and the deep one dilated
def test_maps_and_classes_are_those_of_the_official_code(index: int, real_data: Path) -> None:
    golden, weights = goldens(real_data.parent / "goldens")
    case = golden["cases"][index]
    depth, dilated = int(case["case"][7:].split()[0]), case["case"].endswith("dilated=True")
    state = weights[depth]
    model = resnest(depth, dilate=(dilated, dilated)).eval()
    model.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("fc.")})
    top, left = golden["crop_top_left"]
    height, width = case["size"]
    pixels = np.asarray(Image.open(real_data / golden["image"]).convert("RGB"))[top : top + height, left : left + width]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((torch.from_numpy(pixels.copy()) / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        c4 = model(x)[-1]
    assert list(c4.shape) == case["c4"]["shape"]
    torch.testing.assert_close(c4[0, 0], torch.tensor(case["c4"]["channel0"]), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(float(c4.mean()), case["c4"]["mean"], atol=0, rtol=1e-5)
    torch.testing.assert_close(float(c4.std()), case["c4"]["std"], atol=0, rtol=1e-5)
    logits = c4.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]
    torch.testing.assert_close(logits[0, :50], torch.tensor(case["class_logits_first_50"]), atol=2e-5, rtol=1e-4)


def test_a_single_picture_can_be_trained_on() -> None:
    model = resnest(14).train()
    model(torch.randn(1, 3, 64, 64))[-1].sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    norm, x = nn.BatchNorm2d(4), torch.randn(1, 4, 1, 1)
    norm.running_mean.fill_(2.0)  # type: ignore[union-attr]
    torch.testing.assert_close(normalize_pooled(norm, x), (x - 2) / (1 + norm.eps) ** 0.5)
    assert norm.num_batches_tracked == 0

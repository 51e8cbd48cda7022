"""Semantic FPN: its branch against Detectron2's, the whole on any encoder and any size."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from _networks import assert_close, randomize
from delineate.errors import ConfigError
from delineate.models import create_model, fuse_for_inference
from delineate.models.norms import FrozenBatchNorm2d
from delineate.models.semantic import resize
from delineate.models.semantic_fpn import SemanticBranch

# What SemSegFPNHead of github.com/facebookresearch/detectron2 (02b5c4e) computed with the weights of fill.py, from four maps of
# 8 channels of standard normal numbers (PCG64 seeded by the level), for 3 classes: every 24th pixel from (7, 5) on.
DETECTRON2_MEAN, DETECTRON2_STD = 0.537878155708313, 1.5371310710906982
DETECTRON2_LOGITS = [
    [-0.40157, -1.04554, -0.66462, -1.38618, -0.13852, -1.62716, -0.6789, -1.35374, -0.16605, -0.66019, -0.2801, -0.18567],
    [1.57436, 2.76762, 1.85834, 2.42138, 2.53296, 3.01575, 2.74332, 2.90825, 2.1361, 2.7695, 2.79429, 2.87532],
    [0.0476, 0.12341, 0.04829, -0.05088, -0.75143, 0.74528, -1.00645, 0.70832, -0.75651, -1.29847, -1.28952, -0.4846],
]


def test_the_branch_is_that_of_detectron2(real_data: Path) -> None:
    fill = real_data.parent / "goldens" / "fill.py"
    if not fill.is_file():
        pytest.skip(f"the rule of the weights was not found at {fill}")
    value = runpy.run_path(str(fill))["value"]
    branch = SemanticBranch(8, (4, 8, 16, 32), 64, norm=lambda channels: nn.GroupNorm(32, channels))
    state = {}
    for level, steps in enumerate((1, 1, 2, 3)):
        for step in range(steps):
            theirs, ours = f"p{level + 2}.{2 * step}", f"levels.{level}.{4 * step}"
            state[f"{ours}.weight"] = value(f"{theirs}.weight", (64, 64 if step else 8, 3, 3))
            for part in ("weight", "bias"):
                state[f"levels.{level}.{4 * step + 1}.{part}"] = value(f"{theirs}.norm.{part}", (64,))
    branch.load_state_dict(state)
    maps = [np.random.Generator(np.random.PCG64(i)).standard_normal((1, 8, 64 >> i, 96 >> i)) for i in (2, 3, 4, 5)]
    with torch.no_grad():
        features = branch([torch.from_numpy(x.astype(np.float32)) for x in maps])
        weight, bias = value("predictor.weight", (3, 64, 1, 1)), value("predictor.bias", (3,))
        logits = resize(nn.functional.conv2d(features, weight, bias), (64, 96))
    assert abs(float(logits.mean()) - DETECTRON2_MEAN) < 1e-5
    assert abs(float(logits.std()) - DETECTRON2_STD) < 1e-5
    found = logits[0, :, 7::24, 5::24].flatten(1)
    torch.testing.assert_close(found, torch.tensor(DETECTRON2_LOGITS), atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{"encoder": "resnest14"}, {"encoder": "resnet18", "norm": "frozen", "in_channels": 1}, {"encoder": "convnext_atto"}],
)
def test_any_encoder_any_size(options: dict[str, Any]) -> None:
    model: Any = create_model("semantic_fpn_resnet50", 4, pyramid_channels=16, channels=32, **options)
    randomize(model)
    channels = options.get("in_channels", 3)
    logits = model.train()(torch.randn(2, channels, 33, 70))
    assert logits.shape == (2, 4, 33, 70)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    fused = fuse_for_inference(model.eval())
    assert not any(isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d) for module in fused.modules())
    x = torch.randn(1, channels, 1, 65)
    with torch.no_grad():
        assert_close(fused(x), model(x), 1e-4)


def test_a_pyramid_needs_four_sizes() -> None:
    with pytest.raises(ConfigError, match=r"has maps at \[16\], the pyramid needs 4, 8, 16 and 32"):
        create_model("semantic_fpn_resnet50", 2, encoder="vit_tiny_patch16_224")

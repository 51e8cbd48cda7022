"""The copy for inference gives the same logits, and has no batch normalisation left where it can have none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delineate.errors import DelineateError
from delineate.models import create_model, fuse_for_inference
from delineate.models.blocks import NearestConv
from delineate.models.unet import UNet


def lively(model: Any) -> Any:
    """Give batch normalisations statistics that a wrong fold would show."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.4, 1.2)
            nn.init.normal_(module.bias, std=0.2)
    return model.eval()


def batch_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"width": 8, "depth": 3}, 0),
        ({"width": 8, "depth": 3, "upsample": "bilinear"}, 0),
        ({"width": 8, "depth": 3, "upsample": "transpose", "activation": "leaky_relu"}, 0),
        ({"width": 8, "depth": 3, "norm": "instance", "in_channels": 1}, 0),
        ({"encoder": "resnet34"}, 0),
        ({"encoder": "mobilenetv3_small_050"}, 0),
        ({"encoder": "convnext_atto"}, 0),
    ],
    ids=str,
)
def test_the_fused_network_gives_the_same_logits(options: dict[str, Any], left: int, device: torch.device) -> None:
    model = lively(create_model("unet", 3, **options)).to(device)
    fused = fuse_for_inference(model)
    assert batch_norms(fused) == left
    assert not any(isinstance(module, NearestConv) for module in fused.modules())
    x = torch.randn(2, options.get("in_channels", 3), 70, 45, device=device)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(fused(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_normalisations_that_follow_no_convolution_stay() -> None:
    """DenseNet normalises concatenations."""
    model = lively(create_model("unet", 3, encoder="densenet121"))
    fused = fuse_for_inference(model)
    assert 0 < batch_norms(fused) < batch_norms(model)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(fused(x), expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_the_original_is_left_alone() -> None:
    model = lively(create_model("unet", 3, width=4, depth=3)).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fused = fuse_for_inference(model)
    assert model.training
    assert not fused.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_network_without_batch_normalisation_is_copied() -> None:
    model = create_model("unet_original", 2).eval()
    fused = fuse_for_inference(model)
    x = torch.randn(1, 1, 188, 188)
    with torch.no_grad():
        assert torch.equal(fused(x), model(x))


def test_bfloat16_weights_stay_near_float32(device: torch.device) -> None:
    model = lively(create_model("unet", 3, width=16)).to(device)
    fused = fuse_for_inference(model).bfloat16()
    x = torch.randn(1, 3, 64, 64, device=device)
    with torch.no_grad():
        exact, rounded = model(x), fused(x.bfloat16()).float()
    assert (rounded - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_the_fused_network_exports(device: torch.device) -> None:
    fused = fuse_for_inference(lively(create_model("unet", 3, width=8, depth=3)).to(device))
    x = torch.randn(1, 3, 32, 32, device=device)
    with torch.no_grad():
        torch.testing.assert_close(torch.export.export(fused, (x,)).module()(x), fused(x))


class Treacherous(nn.Module):
    """An encoder that reads a convolution's output twice, once where no hook can see it."""

    channels: tuple[int, ...] = (4,)
    reductions: tuple[int, ...] = (2,)

    def __init__(self, *, through_relu: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.through_relu = through_relu

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.conv(x)
        return [self.norm(F.relu_(x))] if self.through_relu else [self.norm(x) + x]


def treacherous(*, through_relu: bool) -> UNet:
    class Double(nn.Module):
        def forward(self, features: list[Tensor]) -> list[Tensor]:
            return [F.interpolate(features[0], scale_factor=2)]

    model = lively(UNet(Treacherous(through_relu=through_relu), Double(), nn.Conv2d(4, 2, 1)))
    model.architecture = {"options": {"in_channels": 3}}
    return model


def test_a_normalisation_after_a_change_in_place_stays() -> None:
    assert batch_norms(fuse_for_inference(treacherous(through_relu=True))) == 1


def test_a_wrong_fold_is_noticed() -> None:
    with pytest.raises(DelineateError, match="cannot be fused"):
        fuse_for_inference(treacherous(through_relu=False))

"""HRNet against timm's, forwards and backwards, and against what its authors publish."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from delineate.errors import ConfigError
from delineate.models import count_flops, count_parameters, create_model
from delineate.models.backbones.hrnet import hrnet
from delineate.models.fpn import HRFPN
from delineate.models.zoo_hrnet import hrnet_semantic

PEERS = {
    "hrnet_w18_small_v2": {"width": 18, "small": True},
    "hrnet_w18": {"width": 18},
    "hrnet_w32": {"width": 32},
    "hrnet_w48": {"width": 48},
}


def peer(name: str) -> nn.Module:
    """timm's backbone without its classification head and the layers that prepare for it."""
    return timm.create_model(name, features_only=True, feature_location="", out_indices=(1, 2, 3, 4))


@pytest.mark.parametrize("name", PEERS)
def test_tensors_are_named_and_shaped_as_timms(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = peer(name), hrnet(**PEERS[name])
    shapes = {key: tensor.shape for key, tensor in ours.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in theirs.state_dict().items()}


def test_maps_and_gradients_are_timms(device: torch.device) -> None:
    theirs, ours = peer("hrnet_w18_small_v2").to(device), hrnet(18, small=True, upsample="nearest").to(device)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(tensor, low, high)  # type: ignore[arg-type]
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 96, device=device)
    expected, found = theirs.eval()(x), ours.eval()(x)
    for branch, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == (2, 18 * 2**branch, 64 >> (branch + 2), 96 >> (branch + 2))
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    for maps in (expected, found):
        torch.stack([x.square().mean() for x in maps]).sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        gradient = gradients[name]
        assert gradient is not None
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5 * float(gradient.abs().max()), rtol=1e-4)


@pytest.mark.parametrize("size", [(1, 1), (2, 65), (33, 30)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_any_size_goes_in(size: tuple[int, int], align_corners: bool, device: torch.device) -> None:
    model = create_model("hrnet_w18_small", 3, width=2, align_corners=align_corners).to(device)
    assert model.eval()(torch.randn(1, 3, *size, device=device)).shape == (1, 3, *size)


def test_align_corners_reaches_every_enlargement(device: torch.device) -> None:
    model, aligned = hrnet_semantic(3, width=2, small=True), hrnet_semantic(3, width=2, small=True, align_corners=True)
    model.to(device).eval()
    aligned.to(device).eval()
    aligned.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 64, 64, device=device)
    assert not torch.allclose(model.maps(x).logits, aligned.maps(x).logits)
    coarse = torch.randn(1, 3, 4, 4, device=device)
    assert torch.equal(aligned.fit(coarse, (9, 9))[..., ::8, ::8], coarse[..., ::3, ::3])
    assert not torch.equal(model.fit(coarse, (9, 9))[..., ::8, ::8], coarse[..., ::3, ::3])


def test_published_size_and_cost() -> None:
    """HRNet-W48 for 19 classes at 1024 x 2048: 65.8 million parameters, 696.2 GFLOPs (Wang et al. 2020).

    The authors' counter (modelsummary.py of HRNet-Semantic-Segmentation) counts multiply-adds and divides by 1024^3.
    """
    with torch.device("meta"):
        model = create_model("hrnet_w48", 19)
    assert count_parameters(model) == 65_859_379
    assert count_flops(model, (3, 1024, 2048)) / 2 / 1024**3 == pytest.approx(696.2, abs=0.05)


def test_the_pyramid_of_hrnet_averages_one_map(device: torch.device) -> None:
    """As MMDetection 3.3 has it (necks/hrfpn.py): enlarge, concatenate, 1x1, mean of whole squares, 3x3."""
    pyramid = HRFPN((2, 4, 8, 16), (4, 8, 16, 32), 6).to(device)
    maps = [torch.randn(2, 2 * 2**i, 40 >> i, 72 >> i, device=device) for i in range(4)]
    enlarged = [maps[0], *(F.interpolate(x, scale_factor=2**i, mode="bilinear") for i, x in enumerate(maps[1:], start=1))]
    finest = pyramid.reduce(torch.cat(enlarged, 1))
    expected = [conv(F.avg_pool2d(finest, 2**i, 2**i)) for i, conv in enumerate(pyramid.output)]
    for found, level in zip(pyramid(maps), expected, strict=True):
        torch.testing.assert_close(found, level)
    assert [x.shape[-2:] for x in pyramid([x[..., :1, :3] for x in maps])] == [(1, 3), (1, 1), (1, 1), (1, 1), (1, 1)]


def test_a_detector_stands_on_hrnet(device: torch.device) -> None:
    model: Any = create_model("mask_rcnn_hrnet_w32", 2, width=16, box_width=16, mask_convs=1).to(device).eval()
    assert isinstance(model.neck, HRFPN)
    assert model.encoder.stage2[0].upsample == "nearest"
    detections = model(torch.randn(1, 3, 64, 96, device=device), None)
    assert detections.boxes.shape[-1] == 4


def test_unknown_upsampling_is_refused() -> None:
    with pytest.raises(ConfigError, match="bilinear"):
        create_model("hrnet_w18_small", 3, width=2, upsample="cubic")
    with pytest.raises(ConfigError, match="encoder 'resnet18' has no option 'upsample'"):
        create_model("mask_rcnn_resnet50_fpn", 3, encoder="resnet18", upsample="bilinear")


def test_dilation_is_refused() -> None:
    with pytest.raises(ConfigError, match="encoder 'hrnet_w18' cannot keep its last maps large; take output_stride=32"):
        create_model("deeplabv3_resnet50", 3, encoder="hrnet_w18")

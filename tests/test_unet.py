"""The padded U-Net against segmentation_models.pytorch, and its parts against their plain definitions."""

from __future__ import annotations

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from delineate.errors import ConfigError
from delineate.models import create_model
from delineate.models.backbones.timm import timm_encoder
from delineate.models.blocks import Merge, NearestConv, bilinear_conv, initialize
from delineate.models.norms import InstanceNorm
from delineate.models.unet import pad_to_multiple
from delineate.weights.smp import rename_unet


def renamed(state: dict[str, Any]) -> dict[str, Any]:
    """smp's tensors under our names; of ResNet-34's maps by how much they are smaller."""
    return rename_unet(state, {2: 64, 4: 64, 8: 128, 16: 256, 32: 512})[0]


@pytest.fixture(scope="module")
def twins() -> tuple[Any, Any]:
    torch.manual_seed(0)
    theirs: Any = smp.Unet("resnet34", encoder_weights=None, classes=3)
    for module in theirs.modules():  # statistics that do something
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.35, 1.1)
            nn.init.normal_(module.bias, std=0.1)
    ours = create_model("unet", 3, encoder="resnet34")
    ours.load_state_dict(renamed(theirs.state_dict()))
    return ours, theirs


def test_resnet34_evaluates_as_smp(twins: tuple[Any, Any], device: torch.device) -> None:
    ours, theirs = (model.to(device).eval() for model in twins)
    x = torch.randn(2, 3, 64, 96, device=device)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_resnet34_trains_as_smp(twins: tuple[Any, Any], device: torch.device) -> None:
    """In float64, where equal definitions are equal to the last digits: logits, gradients and running statistics."""
    ours, theirs = (model.to(device).double().train() for model in twins)
    x, target = torch.randn(2, 3, 64, 64, device=device).double(), torch.randint(3, (2, 64, 64), device=device)
    logits, expected = ours(x), theirs(x)
    torch.testing.assert_close(logits, expected)
    F.cross_entropy(logits, target).backward()
    F.cross_entropy(expected, target).backward()
    gradients = renamed({name: p.grad for name, p in theirs.named_parameters()})
    found = {name: p.grad for name, p in ours.named_parameters()}
    torch.testing.assert_close(found, gradients, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close(dict(ours.state_dict()), renamed(theirs.state_dict()))
    for model in twins:
        model.float()


def test_resnet34_has_the_parameters_of_smp(twins: tuple[Any, Any]) -> None:
    ours, theirs = (sum(p.numel() for p in model.parameters()) for model in twins)
    assert ours == theirs


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
def test_nearest_conv_is_upsampling_then_convolution(batch: int, ins: int, outs: int, height: int, width: int) -> None:
    module = NearestConv(ins, outs).double()
    nn.init.normal_(module.weight)
    x = torch.randn(batch, ins, height, width, dtype=torch.double, requires_grad=True)
    y = module(x)
    expected = F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), module.weight.transpose(0, 1), padding=1)
    torch.testing.assert_close(y, expected)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, module.weight), upstream)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (x, module.weight), upstream))


@pytest.mark.parametrize("upsample", [NearestConv, bilinear_conv])
def test_merge_is_a_convolution_of_the_concatenation(upsample: Any) -> None:
    merge = Merge(5, 4, 6, upsample=upsample).double()
    initialize(merge, 0.0)
    up: Any = merge.up[1] if isinstance(merge.up, nn.Sequential) else merge.up
    weight = up.weight.transpose(0, 1) if isinstance(up, NearestConv) else up.weight
    x, skip = torch.randn(2, 5, 6, 7).double(), torch.randn(2, 4, 12, 14).double()
    mode: Any = {"mode": "nearest"} if upsample is NearestConv else {"mode": "bilinear", "align_corners": False}
    both = torch.cat([F.interpolate(x, scale_factor=2, **mode), skip], dim=1)
    assert merge.skip is not None
    expected = F.conv2d(both, torch.cat([weight, merge.skip.weight], dim=1), padding=1)
    torch.testing.assert_close(merge(x, skip), expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_bilinear_in_bfloat16(memory_format: torch.memory_format, device: torch.device) -> None:
    """torch once interpolated channels-last bfloat16 wrongly on CPU (pytorch PR 83847)."""
    x = torch.randn(2, 19, 13, 11, device=device, dtype=torch.bfloat16).to(memory_format=memory_format)
    found = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False).float()
    exact = F.interpolate(x.float(), scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, exact, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("training", [True, False])
def test_instance_norm_is_that_of_torch(training: bool, device: torch.device) -> None:
    x = (torch.randn(3, 6, 5, 4, device=device) * 3 + 1).to(memory_format=torch.channels_last).requires_grad_()
    ours, theirs = InstanceNorm(6).to(device).train(training), nn.InstanceNorm2d(6, affine=True).to(device)
    for module in (ours, theirs):
        nn.init.normal_(module.weight, generator=torch.Generator(device).manual_seed(0))
        nn.init.normal_(module.bias, generator=torch.Generator(device).manual_seed(1))
    y, expected = ours(x), theirs(x)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, ours.weight, ours.bias), upstream)
    torch.testing.assert_close(
        found, torch.autograd.grad(expected, (x, theirs.weight, theirs.bias), upstream), rtol=1e-4, atol=1e-4
    )
    dot = ours(torch.randn(1, 6, 1, 1, device=device))
    torch.testing.assert_close(dot.flatten(), ours.bias, rtol=1e-3, atol=1e-3)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 16, 32]))
def test_padding_repeats_the_last_row_and_column(height: int, width: int, multiple: int) -> None:
    x = torch.randn(1, 2, height, width)
    y = pad_to_multiple(x, multiple)
    assert y.shape[-2] % multiple == 0
    assert y.shape[-1] % multiple == 0
    assert y.shape[-2] - height < multiple
    assert y.shape[-1] - width < multiple
    assert torch.equal(y[..., :height, :width], x)
    assert torch.equal(y[..., height:, :width], x[..., -1:, :].expand(-1, -1, y.shape[-2] - height, -1))
    assert torch.equal(y[..., width:], y[..., width - 1 : width].expand(-1, -1, -1, y.shape[-1] - width))


def test_deep_supervision_returns_a_tuple_only_in_training() -> None:
    model = create_model("unet", 3, width=4, depth=5, deep_supervision=True)
    x = torch.randn(2, 3, 33, 18)
    sizes = [tuple(logits.shape) for logits in model.train()(x)]
    assert sizes == [(2, 3, 33, 18), (2, 3, 17, 9), (2, 3, 9, 5)]
    assert model.eval()(x).shape == (2, 3, 33, 18)


def test_weights_start_as_he_et_al() -> None:
    """Each activation keeps its variance: 2 / N before a ReLU, N all values that are summed, also those of two convolutions."""
    model = create_model("unet", 2, width=32)
    first: Any = model.get_submodule("encoder.levels.3.1.conv")
    assert first.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    merge: Any = model.get_submodule("decoder.blocks.0.merge")
    for part in (merge.up, merge.skip):
        assert part.weight.std().item() == pytest.approx((2 / ((512 + 256) * 9)) ** 0.5, rel=0.02)


def test_levels_and_widths() -> None:
    model: Any = create_model("unet", 2, width=16, depth=7, max_width=256)
    assert model.encoder.channels == (16, 32, 64, 128, 256, 256, 256)
    assert model.stride == 64
    assert [block.conv.conv.out_channels for block in model.decoder.blocks] == [256, 256, 128, 64, 32, 16]


@pytest.mark.parametrize(
    ("encoder", "reductions"),
    [("convnext_atto", (4, 8, 16, 32)), ("mobilenetv3_small_050", (2, 4, 8, 16, 32)), ("vit_tiny_patch16_224", (16,))],
)
def test_encoders_of_every_kind(encoder: str, reductions: tuple[int, ...], device: torch.device) -> None:
    """Without a map of half the size, and without any skip connection at all."""
    options: dict[str, Any] = {"in_channels": 1, "encoder": encoder}
    model: Any = create_model("unet", 2, **options).to(device)
    assert model.encoder.reductions == reductions
    logits = model.train()(torch.randn(2, 1, 65, 40, device=device))
    assert logits.shape == (2, 2, 65, 40)
    logits.square().mean().backward()
    assert next(model.encoder.parameters()).grad.abs().max() > 0


def test_pretrained_is_passed_on_and_its_failure_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    build = timm.create_model
    asked: list[bool] = []

    def without_network(name: str, **options: Any) -> nn.Module:
        asked.append(options.pop("pretrained"))
        if asked[-1] and name == "resnet34":
            raise OSError("no\nnetwork")
        return build(name, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    model = create_model("unet", 2, encoder="resnet10t", pretrained=True)
    assert asked == [True]
    assert "pretrained" not in model.architecture["options"]
    with pytest.raises(ConfigError, match=r"no network.*pretrained=false starts without a download"):
        create_model("unet", 2, encoder="resnet34", pretrained=True)


@pytest.mark.slow
def test_learns_a_picture() -> None:
    """From scratch, forty steps are enough to separate noisy discs from their ground."""
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    discs = ((rows % 32 - 16) ** 2 + (columns % 32 - 16) ** 2 < 100).long()
    x = (discs + 0.5 * torch.randn(2, 64, 64))[:, None]
    model = create_model("unet", 2, in_channels=1, width=8, depth=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x), discs.expand(2, -1, -1)).backward()
        optimizer.step()
    fresh = (discs + 0.5 * torch.randn(1, 64, 64))[:, None]
    found = model.eval()(fresh).argmax(1)[0]
    assert (found & discs).sum() / (found | discs).sum() > 0.9


@pytest.mark.parametrize(("name", "last", "counts"), [("resnet18", "bn2", True), ("resnet26", "bn3", False)])
def test_branches_of_timms_basic_blocks_count_from_the_start(name: str, last: str, counts: bool) -> None:
    parameters = timm_encoder(name, 3).named_parameters()
    scales = [p for key, p in parameters if "layer" in key and key.endswith(f"{last}.weight")]
    assert len(scales) == 8
    assert all(bool(scale.any()) == counts for scale in scales)

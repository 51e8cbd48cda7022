"""Attention over scales: one training step and logits of the original code, the rule of fusion, and its rivals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from _hrnet import TINY_OCR, hmsa_name, official_hmsa
from delineate.config import LossTerm
from delineate.data.batch import Batch
from delineate.errors import ConfigError
from delineate.losses.build import build_loss
from delineate.models import create_model, fuse_for_inference
from delineate.models.multiscale_attention import HierarchicalMultiScaleAttention, View, fuse_hierarchically, scaled_size
from delineate.models.semantic import resize
from delineate.weights import Conventions, hmsa, load_model, save_model
from delineate.weights.importer import rename

SMALL = {"width": 4, "depth": 3}

# NVIDIA/semantic-segmentation 7726b14, MscaleOCR on HRNet of width 4 with half the blocks, 16 channels and 8 keys, attention
# of 8 channels, cross-entropy, supervised_mscale_loss_wt 0.05, no dropout, in float64; tensors filled by `_hrnet.value`.
THREE_SCALES = (-17.172946976, 14.1482425854, [-22.0828341, -22.8584488, -15.7817379, -11.1616724, -18.3952366, -27.7684487])
LOSS, NORM = 1.7505593291, 47.4727318818
GRADIENTS = {
    "backbone.conv1.weight": 8.09568,
    "backbone.layer1.1.conv2.weight": 11.901,
    "backbone.transition2.2.0.0.weight": 1.48084,
    "backbone.stage3.1.branches.2.1.conv2.weight": 0.463798,
    "backbone.stage4.1.fuse_layers.0.3.0.weight": 0.0254002,
    "backbone.stage4.1.fuse_layers.3.0.2.1.bias": 0.0134274,
    "ocr.ocr_distri_head.object_context_block.f_object.2.weight": 0.0269789,
    "ocr.ocr_distri_head.object_context_block.f_down.0.weight": 0.260223,
    "ocr.aux_head.2.weight": 0.182061,
    "ocr.cls_head.bias": 0.106755,
    "scale_attn.conv0.weight": 0.0470681,
    "scale_attn.bn1.weight": 0.00436321,
    "scale_attn.conv2.weight": 0.0143146,
}
STATISTICS = {
    "backbone.bn1.running_var": 66.7078,
    "ocr.aux_head.1.0.running_mean": 1.73683,
    "scale_attn.bn0.running_mean": 0.0204934,
}


def original() -> tuple[Any, Batch]:
    """The network above and its batch."""
    model: Any = create_model("hmsa_hrnet_w48_ocr", 3, options={**TINY_OCR, "dropout": 0.0}, channels=8)
    rules = [*hmsa.ATTENTION_RULES, *hmsa._nested("model.")]
    model.load_state_dict(rename(official_hmsa(model.state_dict()), rules))
    draw = np.random.Generator(np.random.PCG64(0))
    images = torch.from_numpy(draw.normal(size=(2, 3, 64, 96)).astype(np.float32))
    labels = torch.from_numpy(draw.integers(0, 3, (2, 64, 96)))
    labels[:, :5] = 255
    return model.double(), Batch(images.double(), labels)


def test_three_scales_give_the_logits_of_the_original() -> None:
    model, batch = original()
    model.eval().scales = (0.5, 1.0, 2.0)
    with torch.no_grad():
        logits = model(batch.images)
    mean, std, first = THREE_SCALES
    assert float(logits.mean()) == pytest.approx(mean, rel=1e-9)
    assert float(logits.std()) == pytest.approx(std, rel=1e-9)
    assert logits[0, :, ::21, ::31].flatten()[:6].tolist() == pytest.approx(first, abs=1e-6)


def test_a_training_step_is_that_of_the_original() -> None:
    model, batch = original()
    conventions = Conventions(outputs="classes")
    loss, values = build_loss([LossTerm(name="cross_entropy")], conventions, 3)(model.train()(batch.images), batch)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(LOSS, rel=1e-9)
    assert set(values) == {"cross_entropy", "auxiliary"}
    found = {hmsa_name(name): parameter for name, parameter in model.named_parameters()}
    total = torch.stack([p.grad.square().sum() for p in found.values() if p.grad is not None]).sum().sqrt()
    assert float(total) == pytest.approx(NORM, rel=1e-9)
    for name, norm in GRADIENTS.items():
        assert float(found[name].grad.norm()) == pytest.approx(norm, rel=1e-5), name  # type: ignore[union-attr]
    state = {hmsa_name(name): tensor for name, tensor in model.state_dict().items()}
    for name, total in STATISTICS.items():
        assert float(state[name].double().sum()) == pytest.approx(total, rel=1e-5), name


def constant(scale: float, logit: float, attention: float, side: int = 8) -> View:
    size = scaled_size((side, side), scale)
    return View(scale, torch.full((1, 1, *size), float(logit)), torch.full((1, 1, *size), attention))


def test_each_scale_weighs_itself_against_all_larger_ones() -> None:
    views = [constant(2, 1, 0.9), constant(1.5, 2, 0.25), constant(1, 4, 0.5), constant(0.5, 8, 0.75)]
    by_hand = 0.75 * 8 + 0.25 * (0.5 * 4 + 0.5 * (0.25 * 2 + 0.75 * 1))
    torch.testing.assert_close(fuse_hierarchically(views), torch.full((1, 1, 8, 8), by_hand))


def test_below_one_the_product_is_enlarged() -> None:
    """Enlarging logits and attention first and then multiplying them would be something else."""
    low = View(0.5, torch.randn(1, 2, 4, 4), torch.rand(1, 1, 4, 4))
    high = View(1.0, torch.randn(1, 2, 8, 8), torch.rand(1, 1, 8, 8))
    assert low.attention is not None
    up = resize(low.attention, (8, 8))
    expected = resize(low.attention * low.logits, (8, 8)) + (1 - up) * high.logits
    torch.testing.assert_close(fuse_hierarchically([high, low]), expected)
    assert not torch.allclose(expected, up * resize(low.logits, (8, 8)) + (1 - up) * high.logits)


def wrapped(fusion: str, **options: Any) -> HierarchicalMultiScaleAttention:
    model = HierarchicalMultiScaleAttention(create_model("unet", 3, **SMALL), fusion=fusion, channels=4, **options)  # type: ignore[arg-type]
    return model.eval()


@pytest.mark.parametrize(("fusion", "reduce"), [("average", torch.mean), ("maximum", torch.amax)])
def test_average_and_maximum_are_those_of_the_scales(fusion: str, reduce: Any) -> None:
    model = wrapped(fusion, scales=(0.5, 1, 2))
    x = torch.randn(1, 3, 24, 20)
    inputs = [resize(x, (12, 10)), x, resize(x, (48, 40))]
    with torch.no_grad():
        expected = reduce(torch.stack([resize(model.model(part), (24, 20)) for part in inputs]), 0)
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-4)


def test_explicit_weights_add_up_to_one_and_belong_to_their_scales() -> None:
    model = wrapped("explicit", scales=(0.5, 1, 2))
    x = torch.randn(1, 3, 24, 20)
    weights = model.attention_maps(x)
    torch.testing.assert_close(torch.stack(list(weights.values())).sum(0), torch.ones(1, 1, 24, 20))
    with torch.no_grad():
        views = {scale: resize(model.model(resize(x, scaled_size((24, 20), scale))), (24, 20)) for scale in weights}
        torch.testing.assert_close(model(x), torch.stack([weights[s] * views[s] for s in weights]).sum(0), atol=1e-5, rtol=1e-4)
    model.scales = (0.5, 1.0)
    with pytest.raises(ConfigError, match="made for the scales"):
        model(x)


@pytest.mark.parametrize("fusion", ["attention", "explicit", "average", "maximum"])
def test_training_supervises_the_fused_logits_and_each_scale(fusion: str, device: torch.device) -> None:
    model = wrapped(fusion).train().to(device)
    output = model(torch.randn(2, 3, 17, 30, device=device))
    assert output.weights == (0.05, 0.05)
    assert {x.shape for x in (output.logits, *output.auxiliary)} == {(2, 3, 17, 30)}
    torch.stack([x.square().mean() for x in (output.logits, *output.auxiliary)]).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (33, 30)])
def test_any_size_goes_in(size: tuple[int, int], device: torch.device) -> None:
    model = wrapped("attention", scales=(0.25, 0.5, 1, 1.5, 2)).to(device)
    x = torch.randn(1, 3, *size, device=device)
    assert model(x).shape == (1, 3, *size)
    assert {scale: tuple(map_.shape[-2:]) for scale, map_ in model.attention_maps(x).items()} == {
        scale: scaled_size(size, scale) for scale in model.scales
    }


def test_evaluation_leaves_auxiliary_branches_and_the_largest_attention_alone() -> None:
    class Counting(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return x

    model = wrapped("attention", scales=(0.5, 1, 2))
    assert model.head is not None
    counting = Counting()
    model.head.append(counting)
    model(torch.randn(1, 3, 16, 16))
    assert counting.calls == 2
    fitted: list[tuple[int, ...]] = []
    ocr: Any = create_model("hmsa_hrnet_w48_ocr", 3, options=TINY_OCR, channels=4).eval()  # type: ignore[arg-type]
    inner, fit = ocr.model, ocr.model.fit
    inner.fit = lambda x, size: fitted.append(x.shape) or fit(x, size)
    ocr(torch.randn(1, 3, 32, 32))
    assert len(fitted) == 3  # two of logits, one of attention


def test_it_saves_and_loads_around_any_network(tmp_path: Path) -> None:
    inner = create_model("unet", 2, **SMALL, norm="instance")
    model = HierarchicalMultiScaleAttention(inner, scales=(0.5, 1, 2), channels=4, norm="group").eval()  # type: ignore[arg-type]
    save_model(model, tmp_path / "model.safetensors", classes=("a", "b"), conventions=Conventions())
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.architecture == model.architecture
    x = torch.randn(1, 3, 20, 20)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


def test_it_is_fused_for_inference() -> None:
    model = create_model("hmsa", 3, options=SMALL, channels=4, scales=[0.5, 1.0, 1.5]).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    fast = fuse_for_inference(model)
    assert not [module for module in fast.modules() if isinstance(module, nn.BatchNorm2d)]
    x = torch.randn(1, 3, 40, 24)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), atol=1e-4, rtol=1e-4)


def test_wrong_use_is_named() -> None:
    with pytest.raises(ConfigError, match="1 among them"):
        wrapped("attention", scales=(0.5, 2))
    with pytest.raises(ConfigError, match="UNetOriginal cannot be run at several scales"):
        HierarchicalMultiScaleAttention(create_model("unet_original", 2))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="did you mean 'average'"):
        create_model("hmsa", 3, options=SMALL, fusion="averag")
    with pytest.raises(ConfigError, match="which finds objects"):
        create_model("hmsa", 3, model="mask_rcnn_resnet50_fpn", options={"encoder": "resnet18"})
    model = wrapped("average")
    model.fusion = "attention"
    with pytest.raises(ConfigError, match="needs a head of its own"):
        model(torch.randn(1, 3, 8, 8))

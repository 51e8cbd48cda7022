"""DeepLabV3, V3+ and FCN against torchvision's and smp's."""

from __future__ import annotations

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from _networks import assert_close, randomize
from delineate.errors import ConfigError
from delineate.models import count_flops, count_parameters, create_model, fuse_for_inference
from delineate.models.norms import FrozenBatchNorm2d
from delineate.ops.outputs import WithAuxiliary
from delineate.weights import smp as smp_importer
from delineate.weights import torchvision_semantic

K = 5


def build_twins(head: str) -> tuple[Any, Any]:
    make = getattr(torchvision.models.segmentation, f"{head}_resnet50")
    theirs = make(weights=None, weights_backbone=None, num_classes=K, aux_loss=True)
    randomize(theirs)
    (arch,) = torchvision_semantic.recognise(theirs.state_dict())
    imported = torchvision_semantic.convert(theirs.state_dict(), arch, None)
    ours = create_model(imported.model, imported.num_classes, **imported.options)
    ours.load_state_dict(imported.state)
    return ours, theirs


@pytest.mark.parametrize("head", ["deeplabv3", "fcn"])
def test_logits_are_those_of_torchvision(head: str, device: torch.device) -> None:
    ours, theirs = (model.to(device).eval() for model in build_twins(head))
    x = torch.randn(2, 3, 91, 118, device=device)
    with torch.no_grad():
        found, expected = ours(x), theirs(x)["out"]
    assert found.shape == (2, K, 91, 118)
    assert_close(found, expected)
    assert count_parameters(ours) == count_parameters(theirs)


def test_a_training_step_is_that_of_torchvision(device: torch.device) -> None:
    """In float64: batch statistics of two pooled vectors would make much of rounding."""
    ours, theirs = (model.to(device).double().train() for model in build_twins("deeplabv3"))
    for model in (ours, theirs):
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    x, target = torch.randn(2, 3, 25, 32, device=device).double(), torch.randint(K, (2, 25, 32), device=device)
    output, expected = ours(x), theirs(x)
    assert isinstance(output, WithAuxiliary)
    assert output.weights == (0.5,)
    assert_close(output.logits, expected["out"])
    assert_close(output.auxiliary[0], expected["aux"])
    (F.cross_entropy(output.logits, target) + 0.5 * F.cross_entropy(output.auxiliary[0], target)).backward()
    (F.cross_entropy(expected["out"], target) + 0.5 * F.cross_entropy(expected["aux"], target)).backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    renamed = torchvision_semantic.convert({**theirs.state_dict(), **gradients}, "deeplabv3_resnet50", None).state
    for name, parameter in ours.named_parameters():
        assert_close(parameter.grad, renamed[name])


@pytest.mark.parametrize(
    ("make", "arch", "options", "choices"),
    [
        (smp.DeepLabV3Plus, "deeplabv3plus_resnet18", {}, {"output_stride": 16, "rates": (12, 24, 36)}),
        (
            smp.DeepLabV3Plus,
            "deeplabv3plus_resnet50",
            {"encoder_output_stride": 8, "decoder_atrous_rates": (6, 12, 18), "decoder_aspp_separable": False},
            {"output_stride": 8, "rates": (6, 12, 18)},
        ),
        (smp.DeepLabV3, "deeplabv3_resnet18", {"decoder_channels": 32}, {"output_stride": 8, "rates": (12, 24, 36)}),
    ],
)
def test_logits_are_those_of_smp(make: Any, arch: str, options: dict[str, Any], choices: dict[str, Any]) -> None:
    theirs = make(arch.split("_")[1], encoder_weights=None, classes=K, **options).eval()
    randomize(theirs)
    assert smp_importer.recognise(theirs.state_dict()) == [arch]
    imported = smp_importer.convert(theirs.state_dict(), arch, None, **choices)
    ours = create_model(imported.model, imported.num_classes, **imported.options).eval()
    ours.load_state_dict(imported.state)
    x = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        assert_close(ours(x), theirs(x))


def test_smp_does_not_tell_its_dilations() -> None:
    state = smp.DeepLabV3Plus("resnet18", encoder_weights=None).state_dict()
    with pytest.raises(ConfigError, match="output_stride=8 or output_stride=16"):
        smp_importer.convert(state, "deeplabv3plus_resnet18", None)
    with pytest.raises(ConfigError, match="rates is not known"):
        smp_importer.convert(state, "deeplabv3plus_resnet18", None, output_stride=16)


SMALL: dict[str, Any] = {"encoder": "resnet18", "channels": 16}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("deeplabv3_resnet50", {"encoder": "resnest14", "output_stride": 16}),
        ("deeplabv3_resnest50", {"encoder": "resnest14", "dilation": "timm", "channels": 16}),
        ("deeplabv3plus_resnet50", {**SMALL, "in_channels": 1}),
        ("deeplabv3plus_resnet50", {**SMALL, "norm": "group", "auxiliary_weight": 0.3}),
        ("deeplabv3plus_resnet50", {**SMALL, "norm": "frozen", "output_stride": 32, "separable": False}),
        ("deeplabv3_resnet50", {"encoder": "convnext_atto", "output_stride": 16, "channels": 16}),
        ("fcn_resnet50", {"encoder": "resnet18", "in_channels": 1}),
    ],
)
def test_any_encoder_any_size(name: str, options: dict[str, Any]) -> None:
    model: Any = create_model(name, K, **options)
    randomize(model)
    channels = options.get("in_channels", 3)
    output = model.train()(torch.randn(1, channels, 33, 50))  # a single picture
    if isinstance(output, WithAuxiliary):
        assert output.auxiliary[0].shape == output.logits.shape == (1, K, 33, 50)
        assert output.weights == (model.architecture["options"]["auxiliary_weight"],)
        output = output.logits + output.auxiliary[0]
    output.square().mean().backward()
    unused = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not unused
    model.eval()
    fused = fuse_for_inference(model)
    for size in ((1, 1), (33, 50)):
        x = torch.randn(2, channels, *size)
        with torch.no_grad():
            assert_close(fused(x), model(x), 1e-4)
    norms = [name for name, m in fused.named_modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
    assert all(name.startswith("auxiliary") for name in norms)


def test_concatenations_keep_channels_last() -> None:
    model: Any = create_model("deeplabv3plus_resnet50", K, encoder="resnest14").eval()
    seen: list[bool] = []

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(look)
    with torch.no_grad():
        model(torch.randn(1, 3, 64, 64).contiguous(memory_format=torch.channels_last))
    assert seen
    assert all(seen)


@pytest.mark.parametrize("training", [False, True])
def test_compiles_without_a_graph_break(training: bool) -> None:
    model: Any = create_model("deeplabv3plus_resnet50", K, encoder="resnest14", channels=16, auxiliary_weight=0.4)
    model.train(training)
    x = torch.randn(2, 3, 33, 50)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    compiled, expected = torch.compile(model, fullgraph=True, backend="eager")(x), model(x)
    torch.testing.assert_close(compiled, expected)


def test_wrong_options_are_refused() -> None:
    for name, options, message in [
        ("deeplabv3_resnet50", {"output_stride": 4}, "output_stride is 4, expected 8, 16 or 32"),
        ("deeplabv3_resnest50", {"dilation": "smp"}, "dilation 'smp' is unknown; known are published, timm"),
        ("deeplabv3_resnet50", {"encoder": "vit_tiny_patch16_224"}, "cannot be built as a feature extractor"),
        ("deeplabv3plus_resnet50", {"variant": "papr"}, "variant 'papr' is unknown; did you mean 'paper'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            create_model(name, K, **options)


def test_flops_are_those_of_torchvision() -> None:
    with torch.device("meta"):
        theirs = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=False)
        ours = create_model("deeplabv3_resnet50", 21, auxiliary_weight=0.0)
    with FlopCounterMode(display=False) as counter:
        theirs.eval()(torch.empty(1, 3, 520, 520, device="meta"))
    assert count_flops(ours, (3, 520, 520)) == counter.get_total_flops()

"""ResNet against torchvision's and timm's, forwards and backwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from torch import nn

from _networks import assert_maps_and_gradients_are_those_of, shapes_of
from delineate.models.backbones.resnest import resnest
from delineate.models.backbones.resnet import ResNet, resnet
from delineate.models.norms import FrozenBatchNorm2d


def smp_encoder(name: str, output_stride: int) -> nn.Module:
    return smp.encoders.get_encoder(name, weights=None, output_stride=output_stride)


CASES = {
    "torchvision resnet18": (lambda: torchvision.models.resnet18(), {"depth": 18}),
    "torchvision resnet50": (lambda: torchvision.models.resnet50(), {"depth": 50}),
    "torchvision resnet50 dilated": (
        lambda: torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]),
        {"depth": 50, "dilate": (True, True)},
    ),
    "torchvision resnext50": (
        lambda: torchvision.models.resnext50_32x4d(),
        {"depth": 50, "groups": 32, "width_per_group": 4, "dilate": (False, False)},
    ),
    "smp resnet18 dilated": (
        lambda: smp_encoder("resnet18", 8),
        {"depth": 18, "dilate": (True, True), "dilation": "smp"},
    ),
    "timm resnet34 dilated": (lambda: timm.create_model("resnet34", output_stride=16), {"depth": 34, "dilate": (False, True)}),
    "timm resnet18 dilated": (lambda: timm.create_model("resnet18", output_stride=8), {"depth": 18, "dilate": (True, True)}),
}


@pytest.mark.parametrize("case", CASES)
def test_maps_and_gradients_are_those_of_the_peer(case: str, device: torch.device) -> None:
    make, options = CASES[case]
    theirs, ours = make().to(device), resnet(**options).to(device)
    assert_maps_and_gradients_are_those_of(theirs, ours, torch.randn(2, 3, 65, 78, device=device))


@pytest.mark.parametrize(("depth", "name"), [(101, "resnet101"), (152, "resnet152")])
def test_deep_networks_have_the_tensors_of_torchvision(depth: int, name: str) -> None:
    with torch.device("meta"):
        theirs, ours = getattr(torchvision.models, name)(), resnet(depth)
    assert shapes_of(ours) == shapes_of(theirs)


def test_stride_moves_to_the_first_convolution() -> None:
    model = resnet(50, stride_in_1x1=True)
    assert model.get_submodule("layer2.0.conv1").stride == (2, 2)
    assert model.get_submodule("layer2.0.conv2").stride == (1, 1)


@pytest.mark.parametrize("eps", [0.0, 1e-5])
def test_frozen_norm_is_torchvisions(eps: float) -> None:
    ours, theirs = FrozenBatchNorm2d(7, eps=eps), torchvision.ops.FrozenBatchNorm2d(7, eps=eps)
    for tensor in theirs.buffers():
        nn.init.uniform_(tensor, 0.5, 1.5)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 7, 5, 4)
    torch.testing.assert_close(ours(x), theirs(x))
    assert not list(ours.parameters())


def test_frozen_parts_do_not_train() -> None:
    model = resnet(18)
    model.freeze(2)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)).train()  # as for several GPUs
    still = {name.split(".")[0] for name, module in synchronized.named_modules() if not module.training}
    assert still == {"conv1", "bn1", "layer1"}
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(torch.randn(2, 3, 64, 64))[-1].square().mean().backward()
    optimizer.step()
    changed = {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"layer2", "layer3", "layer4"}


def test_options_of_the_build() -> None:
    short = resnet(18, in_channels=1, norm=partial(FrozenBatchNorm2d, eps=0.0))
    last = short.take_last()
    assert short.channels == (64, 64, 128, 256)
    assert short.reductions == (2, 4, 8, 16)
    maps = short(torch.randn(1, 1, 32, 32))
    assert len(maps) == 4
    assert last(maps[-1]).shape == (1, 512, 1, 1)


@pytest.mark.parametrize(
    ("encoder", "identity"),
    [
        (partial(resnet, 50), True),
        (partial(resnet, 50, zero_init=False), False),
        (partial(resnet, 50, norm=FrozenBatchNorm2d), False),  # its scale would stay 0 for ever
        (partial(resnest, 26), True),  # as its authors train it
        (partial(resnest, 26, zero_init=False), False),
    ],
)
def test_blocks_begin_as_the_identity(encoder: Callable[[], ResNet], identity: bool) -> None:
    x = torch.rand(1, 256, 8, 8)
    block = encoder().get_submodule("layer1.1").eval()
    assert torch.equal(block(x), x) == identity

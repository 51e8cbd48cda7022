"""Parameters and FLOPs against counts by hand, and smp's."""

from __future__ import annotations

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch

from delineate.models import count_flops, count_parameters, create_model, fuse_for_inference, model_table


def original_by_hand(num_classes: int, last_up: int, crop: int = 572) -> tuple[int, int]:
    """Parameters and multiply-adds of the published network, from its figure alone."""
    parameters = multiply_adds = 0
    side, before = crop, 1

    def convolve(ins: int, outs: int, kernel: int, out_side: int) -> None:
        nonlocal parameters, multiply_adds
        parameters += kernel * kernel * ins * outs + outs
        # every output value of a k x k convolution takes k^2 * ins products; of a 2x2 stride-2 up-convolution only ins
        multiply_adds += (kernel * kernel if kernel != 2 else 1) * ins * outs * out_side**2

    for level, channels in enumerate((64, 128, 256, 512, 1024)):
        side = side // 2 if level else side
        convolve(before, channels, 3, side - 2)
        convolve(channels, channels, 3, side - 4)
        side, before = side - 4, channels
    for channels in (512, 256, 128, 64):
        up = last_up if channels == 64 else channels
        convolve(before, up, 2, 2 * side)
        side = 2 * side
        convolve(up + channels, channels, 3, side - 2)
        convolve(channels, channels, 3, side - 4)
        side, before = side - 4, channels
    convolve(64, num_classes, 1, side)
    assert side == crop - 184
    return parameters, multiply_adds


@pytest.mark.parametrize(("variant", "last_up"), [("paper", 64), ("release", 128)])
def test_the_published_network_by_hand(variant: str, last_up: int) -> None:
    model = create_model("unet_original", 2, variant=variant)
    parameters, multiply_adds = original_by_hand(2, last_up)
    assert count_parameters(model) == parameters
    assert count_flops(model, (1, 572, 572)) == 2 * multiply_adds


def test_the_resnet_encoder_costs_what_it_costs_in_smp() -> None:
    ours: Any = create_model("unet", 2, encoder="resnet34")
    theirs: Any = smp.Unet("resnet34", encoder_weights=None, classes=2)
    assert count_parameters(ours) == count_parameters(theirs)
    assert count_flops(ours.encoder, (3, 128, 128)) == count_flops(theirs.encoder, (3, 128, 128))
    # In the decoder nine taps on each enlarged map are done as four, after adding up taps: 9 x 16 products a pair of channels.
    saved = added = 0
    for side, (ins, outs) in zip((8, 16, 32, 64, 128), ((512, 256), (256, 128), (128, 64), (64, 32), (32, 16)), strict=True):
        saved += 2 * (9 - 4) * ins * outs * side**2
        added += 2 * 9 * 16 * ins * outs
    expected = count_flops(theirs, (3, 128, 128)) - saved
    assert count_flops(ours, (3, 128, 128)) == expected + added
    assert count_flops(fuse_for_inference(ours), (3, 128, 128)) == expected


def test_counting_leaves_the_model_alone() -> None:
    model = create_model("unet", 2, width=4, depth=3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_flops(model, (3, 64, 64))
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_frozen_parameters_are_not_counted() -> None:
    model: Any = create_model("unet", 2, width=4, depth=3)
    total = count_parameters(model)
    model.head.requires_grad_(False)
    assert count_parameters(model) == total - 4 * 2 - 2


def test_the_table_takes_networks_of_every_kind() -> None:
    names = ["unet_original", "unet", "semantic_fpn_resnet50", "mask_rcnn_resnet50_fpn"]
    rows = model_table(names)
    assert [row.name for row in rows] == names
    assert all(row.flops > row.parameters > 0 for row in rows)
    original = rows[0]
    assert (original.parameters, original.flops) == tuple(n * k for n, k in zip(original_by_hand(3, 64), (1, 2), strict=True))
    assert original.size == (1, 572, 572)

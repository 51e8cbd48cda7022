"""Files of torchvision, smp, timm and the authors of ResNeSt become networks of ours that compute the same."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from PIL import Image

import delineate as dl
from _networks import assert_close, randomize
from delineate.errors import ConfigError, DataError
from delineate.weights import resnest as resnest_importer
from delineate.weights.importing import import_checkpoint, recognise

# What DeepLabV3 on ResNeSt-50 of github.com/zhanghang1989/PyTorch-Encoding (ac74841) computed with the weights of fill.py, for
# 19 classes, from the 81 x 110 pixels at (60, 40) of the picture; logits of class 18 at every 27th pixel.
ENCODING_MEAN, ENCODING_STD = 0.0545901320874691, 0.07341687381267548
ENCODING_LOGITS = [
    [0.11696, 0.11447, 0.11454, 0.11496, 0.07853],
    [0.1007, 0.14441, 0.14408, 0.14528, 0.12869],
    [0.10106, 0.14581, 0.14616, 0.14691, 0.129],
]


def save(state: dict[str, torch.Tensor], folder: Path) -> Path:
    torch.save(state, folder / "foreign.pth")
    return folder / "foreign.pth"


def test_the_authors_deeplab_on_resnest(real_data: Path) -> None:
    folder = real_data.parent / "goldens"
    if not folder.is_dir():
        pytest.skip(f"golden numbers not found at {folder}")
    shapes = json.loads((folder / "resnest_official.json").read_text())["tensors"]["resnest50"]
    shapes = {f"pretrained.{name}": shape for name, shape in shapes.items() if not name.startswith("fc.")} | HEAD_SHAPES
    state = runpy.run_path(str(folder / "fill.py"))["fill"](shapes)
    assert resnest_importer.recognise(state) == ["deeplabv3_resnest50"]
    imported = resnest_importer.convert(state, "deeplabv3_resnest50", None)
    model: Any = dl.create_model(imported.model, imported.num_classes, **imported.options).eval()
    model.load_state_dict(imported.state)
    pixels = np.asarray(Image.open(real_data / "camvid/val/0016E5_07959.png").convert("RGB"))[60:141, 40:150]
    mean, std = (torch.tensor(numbers) for numbers in (imported.conventions.mean, imported.conventions.std))
    x = ((torch.from_numpy(pixels.copy()) / 255 - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = model(x)
    assert abs(float(logits.mean()) - ENCODING_MEAN) < 1e-5
    assert abs(float(logits.std()) - ENCODING_STD) < 1e-5
    torch.testing.assert_close(logits[0, 18, ::27, ::27], torch.tensor(ENCODING_LOGITS), atol=2e-5, rtol=0)


def norm_shapes(prefix: str, channels: int) -> dict[str, list[int]]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}.{part}": [channels] for part in parts} | {f"{prefix}.num_batches_tracked": []}


HEAD_SHAPES: dict[str, list[int]] = {
    "head.aspp.b0.0.weight": [256, 2048, 1, 1],
    "head.aspp.b1.0.weight": [256, 2048, 3, 3],
    "head.aspp.b2.0.weight": [256, 2048, 3, 3],
    "head.aspp.b3.0.weight": [256, 2048, 3, 3],
    "head.aspp.b4.gap.1.weight": [256, 2048, 1, 1],
    "head.aspp.project.0.weight": [256, 1280, 1, 1],
    "head.block.0.weight": [256, 256, 3, 3],
    "head.block.4.weight": [19, 256, 1, 1],
    "head.block.4.bias": [19],
    "auxlayer.conv5.0.weight": [256, 1024, 3, 3],
    "auxlayer.conv5.4.weight": [19, 256, 1, 1],
    "auxlayer.conv5.4.bias": [19],
}
for name in ("aspp.b0.1", "aspp.b1.1", "aspp.b2.1", "aspp.b3.1", "aspp.b4.gap.2", "aspp.project.1", "block.1"):
    HEAD_SHAPES |= norm_shapes(f"head.{name}", 256)
HEAD_SHAPES |= norm_shapes("auxlayer.conv5.1", 256)


def test_a_file_of_smps_unet(tmp_path: Path) -> None:
    theirs: Any = smp.Unet("resnet18", encoder_weights=None, classes=3, in_channels=1, decoder_channels=(64, 32, 16, 8, 4))
    randomize(theirs)
    ours = import_checkpoint(save(theirs.state_dict(), tmp_path))
    x = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        assert_close(ours(x), theirs.eval()(x))
    state = theirs.state_dict()
    del state["segmentation_head.0.bias"]
    with pytest.raises(DataError, match=r"tensor 'segmentation_head\.0\.bias' is missing, which every unet_resnet18"):
        import_checkpoint(save(state, tmp_path))
    dl.save_model(ours, tmp_path / "ours.safetensors", classes=ours.classes, conventions=ours.conventions)  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.equal(dl.load_model(tmp_path / "ours.safetensors")(x), ours(x))


@pytest.mark.parametrize(
    ("network", "options", "choices", "arch"),
    [
        ("Unet", {"encoder_depth": 4, "decoder_channels": (32, 16, 8, 4)}, {}, "unet_resnet18"),
        ("FPN", {"encoder_name": "tu-resnet18d", "decoder_pyramid_channels": 32}, {}, "fpn_resnet18d"),
        ("Unet", {"encoder_name": "tu-mobilenetv3_small_050"}, {"encoder": "tu-mobilenetv3_small_050"}, "unet"),
    ],
)
def test_other_files_of_smp(network: str, options: Any, choices: Any, arch: str, tmp_path: Path) -> None:
    theirs: Any = getattr(smp, network)(**{"encoder_name": "resnet18", **options}, encoder_weights=None, classes=3)
    randomize(theirs)
    path = save(theirs.state_dict(), tmp_path)
    ours: Any = import_checkpoint(path, **choices)
    assert ours.extra["imported"]["arch"] == arch
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        assert_close(ours(x), theirs.eval()(x))
    if choices:
        with pytest.raises(ConfigError, match="encoder is not known: it is one of timm's"):
            import_checkpoint(path)


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        ("UnetPlusPlus", {}, r"this is smp's unetplusplus, which we do not have; of smp's networks unet, fpn, .* are read"),
        ("MAnet", {}, "this is smp's manet"),
        ("FPN", {"decoder_merge_policy": "cat"}, "decoder_merge_policy='cat'; only the sum"),
        ("FPN", {"encoder_depth": 4}, "with an encoder_depth below 5 .it reads 256 channels, the encoder's last map has 512"),
        ("Unet", {"decoder_attention_type": "scse"}, "with decoder_attention_type='scse', which ours does not have"),
        ("Unet", {"encoder_name": "vgg11_bn"}, r"encoder that is not read \(encoder\.features\.0\.weight \.\.\.\)"),
    ],
)
def test_what_is_not_read_of_smp(network: str, options: Any, message: str) -> None:
    with torch.device("meta"):
        theirs: Any = getattr(smp, network)(**{"encoder_name": "resnet18", **options}, encoder_weights=None, classes=3)
    (guess,) = recognise(theirs.state_dict())
    assert guess.archs[0].startswith(network.lower())
    with pytest.raises(ConfigError, match=message):
        guess.importer.convert(theirs.state_dict(), guess.archs[0], None)


def test_an_encoder_of_timm_that_has_the_name_of_ours_is_not_read() -> None:
    with torch.device("meta"):
        theirs: Any = smp.Unet("tu-hrnet_w18", encoder_weights=None, classes=3)
    (guess,) = recognise(theirs.state_dict())
    with pytest.raises(ConfigError, match=r"the tensors are not those of our hrnet_w18 .* this unet is not read"):
        guess.importer.convert(theirs.state_dict(), "unet", None, encoder="tu-hrnet_w18")


def test_a_file_of_torchvisions_fcn(tmp_path: Path) -> None:
    theirs: Any = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=21)
    ours: Any = import_checkpoint(save(theirs.state_dict(), tmp_path))
    assert ours.classes[15] == "person"
    assert ours.auxiliary is None
    state = theirs.state_dict()
    state["classifier.4.odd"] = state.pop("classifier.4.bias")
    with pytest.raises(DataError, match=r"missing: classifier\.bias.*not of this network: classifier\.odd"):
        import_checkpoint(save(state, tmp_path))


@pytest.mark.parametrize(
    ("name", "source", "arch", "prefix"),
    [
        ("resnet18", None, "unet_resnet18", "encoder."),
        ("resnet18d", None, "unet_resnet18d", "encoder.net."),
        ("resnest14d", "timm", "deeplabv3_resnest14", "encoder."),
        ("resnest14d", "resnest", "semantic_fpn_resnest14", "encoder."),
    ],
)
def test_a_classifier_starts_a_network(name: str, source: str | None, arch: str, prefix: str, tmp_path: Path) -> None:
    theirs = timm.create_model(name)
    randomize(theirs)
    path = save(theirs.state_dict(), tmp_path)
    ours: Any = import_checkpoint(path, source, arch, 2)
    assert all(
        torch.equal(ours.state_dict()[prefix + key], x) for key, x in theirs.state_dict().items() if not key.startswith("fc.")
    )
    assert ours.architecture["options"].get("dilation", "published") == ("timm" if arch.startswith("deeplab") else "published")
    assert ours.eval()(torch.randn(1, 3, 40, 40)).shape == (1, 2, 40, 40)
    with pytest.raises(ConfigError, match="num_classes is not known"):
        import_checkpoint(path, source, arch)
    with pytest.raises(ConfigError, match="may be one of several networks; say which"):
        import_checkpoint(path, source, num_classes=2)


@pytest.mark.parametrize("name", ["resnet50d", "wide_resnet50_2"])
def test_other_encoders_of_timm(name: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(name, num_classes=0).state_dict()
    (guess,) = recognise(state)
    assert guess.archs[-1] == f"unet_{name}"
    with torch.device("cpu" if name.endswith("d") else "meta"):
        ours = dl.create_model("unet", 2, encoder=name)
    room = "encoder.net." if name.endswith("d") else "encoder."
    names = {key.removeprefix(room): x.shape for key, x in ours.state_dict().items() if key.startswith(room)}
    assert names == {key: x.shape for key, x in state.items()}


def test_no_file_is_of_two_libraries_but_a_classifier() -> None:
    with torch.device("meta"):
        segmentation = torchvision.models.segmentation
        networks = {
            "torchvision": [segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)],
            "smp": [smp.Unet("resnext50_32x4d", encoder_weights=None), smp.DeepLabV3Plus("resnet34", encoder_weights=None)],
            "none": [
                segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None),
                timm.create_model("vgg11"),
            ],
        }
    for source, models in networks.items():
        for model in models:
            found = [(guess.importer.source, len(guess.archs)) for guess in recognise(model.state_dict())]
            assert found == ([] if source == "none" else [(source, 1)])

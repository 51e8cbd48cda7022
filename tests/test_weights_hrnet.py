"""Checkpoints of HRNet-Semantic-Segmentation and NVIDIA/semantic-segmentation become networks of ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from _hrnet import TINY, TINY_OCR, hmsa_name, official_hmsa
from _networks import assert_close, randomize
from delineate.errors import ConfigError, DataError
from delineate.models import create_model
from delineate.weights.importing import import_checkpoint

MULTISCALE: dict[str, Any] = {"options": TINY_OCR, "channels": 8}


def official_hrnet(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of our HRNet under the authors' names."""
    state = model.state_dict().items()
    return {name.removeprefix("backbone.").replace("head.", "last_layer."): tensor for name, tensor in state}


def official_ocr(model: Any) -> dict[str, torch.Tensor]:
    """The tensors of our HRNet with object context under the authors' names, which nest less than NVIDIA's."""
    state = {}
    for name, tensor in model.state_dict().items():
        theirs = hmsa_name(f"model.{name}").removeprefix("backbone.").removeprefix("ocr.")
        theirs = theirs.replace("aux_head.2.", "aux_head.3.")
        state[re.sub(r"^(conv3x3_ocr|aux_head)\.1\.0\.", r"\1.1.", theirs)] = tensor
    return state


def agree(found: Any, expected: Any) -> None:
    x = torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        assert torch.equal(found(x), expected.eval()(x))


@pytest.mark.parametrize("prefix", ["", "model."])
def test_both_branches_of_hrnet_are_read(prefix: str, tmp_path: Path) -> None:
    model = create_model("hrnet_w48", 19, **TINY, align_corners=True)
    state = {prefix + name: tensor for name, tensor in official_hrnet(model).items()}
    if prefix:
        state["loss.criterion.weight"] = torch.ones(19)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "hrnet.pth")
    imported: Any = import_checkpoint(tmp_path / "hrnet.pth", align_corners=True)
    agree(imported, model)
    assert imported.classes[0] == "road"
    assert imported.architecture["options"] == model.architecture["options"]


def test_object_context_of_any_width_is_read(tmp_path: Path) -> None:
    model = create_model("hrnet_w48_ocr", 5, **TINY_OCR, align_corners=True)
    torch.save({f"module.model.{name}": tensor for name, tensor in official_ocr(model).items()}, tmp_path / "ocr.pth")
    imported: Any = import_checkpoint(tmp_path / "ocr.pth", align_corners=True)
    agree(imported, model)
    assert imported.architecture["options"] == model.architecture["options"]


def test_the_first_small_network_is_refused(tmp_path: Path) -> None:
    torch.save(timm.create_model("hrnet_w18_small").state_dict(), tmp_path / "small.pth")
    with pytest.raises(DataError, match=r"small\.pth: .*small v1"):
        import_checkpoint(tmp_path / "small.pth", arch="hrnet_w16_small", num_classes=2)


def test_nested_names_of_attention_over_scales_are_read(tmp_path: Path) -> None:
    model = create_model("hmsa_hrnet_w48_ocr", 3, **MULTISCALE)
    state = official_hmsa(model.state_dict())
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "hmsa.pth")
    imported: Any = import_checkpoint(tmp_path / "hmsa.pth", align_corners=False)
    theirs = official_hmsa(imported.state_dict())
    assert theirs.keys() == state.keys()
    ours = imported.state_dict()
    assert torch.equal(ours["head.4.weight"], state["scale_attn.bn1.weight"])
    assert torch.equal(ours["model.head.regions.3.bias"], state["ocr.aux_head.2.bias"])
    assert imported.architecture["options"] == model.architecture["options"]


def test_object_context_without_attention_is_read(tmp_path: Path) -> None:
    model = create_model("hmsa_hrnet_w48_ocr", 3, **MULTISCALE)
    state = {name: tensor for name, tensor in official_hmsa(model.state_dict()).items() if not name.startswith("scale_attn")}
    torch.save(state, tmp_path / "ocr.pth")
    imported: Any = import_checkpoint(tmp_path / "ocr.pth", align_corners=False)
    assert imported.architecture["name"] == "hrnet_w48_ocr"
    assert torch.equal(imported.state_dict()["classifier.bias"], state["ocr.cls_head.bias"])


def stem(classifier: Any, x: torch.Tensor) -> torch.Tensor:
    for convolution, norm in ((classifier.conv1, classifier.bn1), (classifier.conv2, classifier.bn2)):
        x = norm(convolution(x)).relu()
    return x


def test_a_classifier_starts_either_network(tmp_path: Path) -> None:
    """Its maps stay timm's, which enlarges by nearest neighbours."""
    classifier: Any = timm.create_model("hrnet_w18_small_v2").eval()
    randomize(classifier)
    torch.save(classifier.state_dict(), tmp_path / "timm.pth")
    with pytest.raises(ConfigError, match="hrnet_w18_small; source=hrnet arch=hrnet_w18_small_ocr"):
        import_checkpoint(tmp_path / "timm.pth", num_classes=4)
    with pytest.raises(ConfigError, match="how many classes"):
        import_checkpoint(tmp_path / "timm.pth", arch="hrnet_w18_small")
    imported: Any = import_checkpoint(tmp_path / "timm.pth", arch="hrnet_w18_small", num_classes=4)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for found, expected in zip(imported.backbone(x), classifier.stages(stem(classifier, x)), strict=True):
            assert_close(found, expected)
    bilinear: Any = import_checkpoint(tmp_path / "timm.pth", arch="hrnet_w18_small", num_classes=4, upsample="bilinear")
    assert bilinear.backbone.stage2[0].upsample == "bilinear"
    assert imported.head[-1].out_channels == 4


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = official_hrnet(create_model("hrnet_w48", 2, **TINY))
    torch.save(state, tmp_path / "hrnet.pth")
    with pytest.raises(ConfigError, match=r"align_corners is not known.* pytorch-v1\.1.*after --choice"):
        import_checkpoint(tmp_path / "hrnet.pth")
    wrong = {**state, "stage9.weight": torch.zeros(1), "bn1.bias": torch.zeros(3)}
    del wrong["last_layer.0.bias"]
    torch.save(wrong, tmp_path / "wrong.pth")
    with pytest.raises(DataError) as caught:
        import_checkpoint(tmp_path / "wrong.pth", align_corners=False)
    for part in ("missing: head.0.bias", "stage9.weight", "backbone.bn1.bias [3] instead of [64]"):
        assert part in str(caught.value)

"""Networks of other libraries, imported: they compute what they computed there.

Detectron2's numbers are those of `goldens` (see its README), on weights that anyone can rebuild from names and shapes. Those of
MMDetection were made the same way with open-mmlab/mmdetection 3.3.0 on torchvision's RoIAlign and NMS.
"""

from __future__ import annotations

import importlib.util
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models import detection as peers
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

from delineate.cli import run
from delineate.data import open_dataset
from delineate.errors import ConfigError, DataError
from delineate.models import create_model
from delineate.ops import paste_masks
from delineate.predict import Predictor
from delineate.skeleton import COCO_PERSON
from delineate.weights import import_checkpoint, load_model, save_model
from delineate.weights.coco import COCO_CLASSES, COCO_STUFF, TORCHVISION_CLASSES
from delineate.weights.conventions import Resize
from delineate.weights.importing import choose_importer, recognise
from delineate.weights.torchvision import from_torchvision

DETECTRON2 = {
    "keypoint_rcnn_R_50_FPN": "keypoint_rcnn_resnet50_fpn",
    "mask_rcnn_R_50_C4": "mask_rcnn_resnet50_c4",
    "mask_rcnn_R_50_FPN": "mask_rcnn_resnet50_fpn",
    "mask_rcnn_X_101_32x8d_FPN": "mask_rcnn_resnet50_fpn",
    "panoptic_fpn_R_50": "panoptic_fpn_resnet50",
}


@pytest.fixture
def goldens(real_data: Path) -> Path:
    folder = real_data.parent / "goldens"
    if not folder.is_dir():
        pytest.skip(f"goldens not found at {folder}")
    return folder


def load_fill(goldens: Path) -> Any:
    spec = importlib.util.spec_from_file_location("fill", goldens / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- torchvision ----------------------------------------------------------------------------------------------------------


def build_peer(classes: int = 7) -> Any:
    """Torchvision's Mask R-CNN on a ResNet-18 with random weights and statistics, which finds many things."""
    draw = torch.Generator().manual_seed(0)
    backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)  # frozen batch normalisation
    model = peers.MaskRCNN(
        backbone,
        box_head=TwoMLPHead(256 * 7 * 7, 64),
        box_predictor=FastRCNNPredictor(64, classes),
        mask_predictor=MaskRCNNPredictor(256, 256, classes),
        min_size=160,
        max_size=250,
        box_detections_per_img=30,
    ).eval()
    gains = {"cls_logits": 0.3, "rpn.head.bbox_pred": 0.1, "cls_score": 3.0, "box_predictor.bbox_pred": 0.3}
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.8, 1.2, generator=draw)
        elif tensor.ndim > 1:
            gain = next((gain for part, gain in gains.items() if part in name), 1.0)
            tensor.normal_(0, gain * (2 / tensor[0].numel()) ** 0.5, generator=draw)
        else:
            low, high = (0.3, 0.7) if name.endswith("weight") else (-0.1, 0.1)
            tensor.uniform_(low, high, generator=draw)
    return model


def save(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


def test_torchvision_from_file_to_results(tmp_path: Path, real_data: Path) -> None:
    """What the command line imports gives torchvision's boxes, scores, labels and masks, in its order."""
    peer = build_peer(classes=91)
    path, out = save(tmp_path / "peer.pth", peer.state_dict()), tmp_path / "ours.safetensors"
    assert run(["weights", "import", str(path), str(out), "--choice", "norm_eps=1e-5", "--quiet"]) == 0
    model: Any = load_model(out)
    assert model.classes == TORCHVISION_CLASSES
    assert model.conventions.resize == Resize(800, 1333, "bilinear")
    model.conventions = replace(model.conventions, resize=Resize(160, 250, "bilinear"))
    model.detections_per_image = 30
    predictor = Predictor(model, device="cpu", precision="fp32", score_threshold=0.05)
    picture = real_data / "coco2017_mini" / "val2017" / "000000000872.jpg"
    results = predictor(str(picture))
    pixels = torch.from_numpy(np.array(Image.open(picture).convert("RGB"))).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        expected = peer([pixels])[0]
    assert len(results) == len(expected["boxes"]) == 30
    assert len(expected["labels"].unique()) >= 3
    assert torch.equal(results.labels + 1, expected["labels"])
    torch.testing.assert_close(results.boxes, expected["boxes"], rtol=0, atol=0.01)
    torch.testing.assert_close(results.scores, expected["scores"], rtol=0, atol=1e-4)
    assert results.masks is not None
    differing = (results.masks.dense() != (expected["masks"][:, 0] >= 0.5)).flatten(1).sum(1)
    assert (differing <= 2).all()


def test_torchvisions_old_names_are_those_of_today() -> None:
    """Before 0.13 pyramid, proposals and mask head had plain convolutions under other names."""
    new = build_peer().state_dict()
    old = {}
    for name, tensor in new.items():
        parts = name.split(".")
        if ".fpn." in name:
            parts.remove("0") if parts[3] != "0" else parts.pop(4)
        elif name.startswith("rpn.head.conv"):
            parts = [*parts[:3], parts[-1]]
        elif "mask_head" in name:
            parts = [*parts[:2], f"mask_fcn{int(parts[2]) + 1}", parts[-1]]
        old[".".join(parts)] = tensor
    assert len(old) == len(new)
    assert old.keys() != new.keys()
    again, expected = from_torchvision(old), from_torchvision(new)
    assert all(again[name] is tensor or torch.equal(again[name], tensor) for name, tensor in expected.items())


def test_torchvisions_background_is_left_out_and_comes_last() -> None:
    names = ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
    state = {f"roi_heads.{name}.bias": torch.arange(12.0 if "bbox" in name else 3.0) for name in names}
    ours = from_torchvision(state)
    assert ours["box_head.classifier.bias"].tolist() == [1, 2, 0]
    assert ours["box_head.deltas.bias"].tolist() == [4, 5, 6, 7, 8, 9, 10, 11]
    assert ours["mask_head.layers.logits.bias"].tolist() == [1, 2]


def test_what_torchvisions_file_cannot_tell_is_asked_for(tmp_path: Path) -> None:
    state = build_peer().state_dict()
    path = save(tmp_path / "a.pth", state)
    with pytest.raises(ConfigError, match=r"norm_eps is not known: .*; give norm_eps=0 or norm_eps=1e-5"):
        import_checkpoint(path)
    model: Any = import_checkpoint(path, norm_eps=0.0, classes=list("abcdef"))
    assert (model.classes, model.encoder.bn1.eps) == (tuple("abcdef"), 0.0)
    assert model.extra["imported"]["arch"] == "maskrcnn_resnet18_fpn"
    with pytest.raises(ConfigError, match=r"has no choice 'norm_ep'; did you mean 'norm_eps'\?"):
        import_checkpoint(path, norm_ep=0.0)
    with pytest.raises(ConfigError, match=r"num_classes is 7, but .* has 6 classes"):
        import_checkpoint(path, num_classes=7, norm_eps=0.0)
    with pytest.raises(ConfigError, match=r"classes names 2 classes, .* has 6"):
        import_checkpoint(path, classes=["a", "b"], norm_eps=0.0)
    with pytest.raises(ConfigError, match="is no 'maskrcnn_resnet50_fpn'; its tensors are those of maskrcnn_resnet18_fpn"):
        import_checkpoint(path, arch="maskrcnn_resnet50_fpn")
    with pytest.raises(ConfigError, match=r"source 'torchvison' is unknown; did you mean 'torchvision'\?"):
        import_checkpoint(path, source="torchvison")
    with pytest.raises(DataError, match="are no network of detectron2"):
        import_checkpoint(path, source="detectron2")


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = build_peer().state_dict()
    del state["backbone.body.layer2.0.conv1.weight"]
    state["roi_heads.mask_head.9.weight"] = torch.zeros(1)
    state["roi_heads.box_head.fc7.bias"] = torch.zeros(3)
    with pytest.raises(DataError) as caught:
        import_checkpoint(save(tmp_path / "a.pth", state), norm_eps=0.0)
    message = str(caught.value)
    assert "missing: encoder.layer2.0.conv1.weight" in message
    assert "not of this network: roi_heads.mask_head.9.weight" in message
    assert "of another shape: box_head.layers.fcs.2.bias [3] instead of [64]" in message


def test_a_file_of_ours_needs_no_import(tmp_path: Path) -> None:
    model: Any = import_checkpoint(save(tmp_path / "a.pth", build_peer().state_dict()), norm_eps=0.0)
    path = tmp_path / "ours.safetensors"
    save_model(model, path, classes=model.classes, conventions=model.conventions)
    with pytest.raises(ConfigError, match="is a file of delineate already; load it with load_model"):
        import_checkpoint(path)


def test_a_file_of_no_library(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"its tensors \(weight, bias \.\.\.\) are of no library that is known"):
        import_checkpoint(save(tmp_path / "a.pth", nn.Linear(2, 2).state_dict()))


# --- Detectron2 -----------------------------------------------------------------------------------------------------------


def shapes(goldens: Path, name: str) -> dict[str, Tensor]:
    tensors = json.loads((goldens / f"{name}.json").read_text())["tensors"]
    return {key: torch.empty(shape, device="meta") for key, shape in tensors.items()}


@pytest.mark.parametrize("name", DETECTRON2)
def test_detectron2_every_tensor_has_its_place(goldens: Path, name: str) -> None:
    state = shapes(goldens, name)
    importer, arch = choose_importer(name, state, None, None)
    assert (importer.source, arch) == ("detectron2", name)
    imported = importer.convert(state, arch, None)
    assert imported.model == DETECTRON2[name]
    with torch.device("meta"):
        own = create_model(imported.model, imported.num_classes, **imported.options).state_dict()
    assert {key: tensor.shape for key, tensor in imported.state.items()} == {k: v.shape for k, v in own.items()}
    assert imported.options["stride_in_1x1"] == ("_R_" in name)
    assert (imported.conventions.std[0] > 1) == ("_X_" in name)
    assert imported.classes == (("person",) if "keypoint" in name else COCO_CLASSES)
    assert imported.conventions.keypoints == (COCO_PERSON if "keypoint" in name else None)
    assert imported.conventions.stuff == (COCO_STUFF if "panoptic" in name else ())


def test_detectron2_what_older_files_and_configurations_add(goldens: Path) -> None:
    state = shapes(goldens, "mask_rcnn_R_50_FPN")
    state["pixel_mean"] = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    state["pixel_std"] = torch.tensor([4.0, 5.0, 6.0])[:, None, None]
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)
    importer, arch = choose_importer("a", state, "detectron2", None)
    imported = importer.convert(state, arch, None, stride_in_1x1=False)
    assert (imported.conventions.mean, imported.conventions.std) == ((1, 2, 3), (4, 5, 6))
    assert imported.options["stride_in_1x1"] is False
    assert not [name for name in imported.state if "pixel" in name or "anchor" in name]


@pytest.mark.slow
def test_detectron2_panoptic_fpn_from_file_to_results(goldens: Path, real_data: Path, tmp_path: Path) -> None:
    """One picture through Panoptic FPN at its own size: boxes, masks, classes of pixels and segments."""
    golden = json.loads((goldens / "panoptic_fpn_R_50.json").read_text())
    state = load_fill(goldens).fill(golden["tensors"], golden["cls_gain"])
    path = tmp_path / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": {name: x.numpy() for name, x in state.items()}, "__author__": "fill"}, 2))
    predictor = Predictor(import_checkpoint(path), device="cpu", precision="fp32", score_threshold=golden["score_threshold"])
    expected = golden["images"][0]
    results = predictor(str(real_data / expected["image"]))
    assert len(results) == 100
    assert results.labels.tolist() == expected["labels"]
    torch.testing.assert_close(results.boxes, torch.tensor(expected["boxes_xyxy"]), rtol=0, atol=0.01)
    torch.testing.assert_close(results.scores, torch.tensor(expected["scores"]), rtol=0, atol=1e-4)
    assert results.masks is not None
    codes = [code["counts"] for code in results.masks.rle()[:40]]
    same = sum(code == true["counts"] for code, true in zip(codes, expected["masks_rle_first_40"], strict=True))
    assert same >= 33  # in the others a pixel lies on the threshold
    assert results.panoptic is not None
    truth = np.asarray(Image.open(goldens / "panoptic_fpn_R_50_000000000872_panoptic.png"))
    assert (results.panoptic.segments == truth).mean() > 0.9999
    categories = [s["category_id"] + (0 if s["isthing"] else 80 - 1) for s in expected["segments_info"]]
    assert results.panoptic.labels.tolist() == categories


# --- MMDetection ----------------------------------------------------------------------------------------------------------

MMDET_GAINS = {  # of the weights
    "rpn_cls": 0.3,
    "rpn_reg": 0.1,
    "fc_cls": 0.5,
    "fc_reg": 0.3,
    "conv_logits": 0.3,
    "reduction_conv": 0.1,
}
MMDET_R50 = {
    "boxes": [
        [141.022, 129.741, 197.754, 144.457],
        [181.34, 43.868, 224.0, 139.714],
        [150.302, 119.291, 217.077, 141.888],
        [137.682, 143.194, 190.461, 157.788],
        [140.727, 135.29, 191.879, 150.018],
        [40.691, 14.503, 66.344, 81.351],
        [179.24, 47.839, 209.236, 98.279],
        [0.0, 78.968, 43.985, 117.147],
    ],
    "scores": [0.13053, 0.12498, 0.12441, 0.11944, 0.11707, 0.11625, 0.11623, 0.11548],
    "labels": [70, 70, 52, 70, 70, 43, 52, 52],
    "areas": [76, 724, 15, 168, 134, 1004, 7, 28],
}
MMDET_HRNET = {
    "boxes": [
        [33.722, 76.045, 209.009, 160.0],
        [15.196, 38.207, 153.156, 83.398],
        [26.86, 71.247, 166.346, 115.777],
        [31.532, 82.06, 123.682, 110.674],
        [3.173, 53.901, 146.408, 99.285],
        [115.356, 8.031, 174.806, 112.924],
        [66.685, 89.859, 154.917, 118.124],
        [81.634, 46.005, 157.232, 70.771],
    ],
    "scores": [0.05526, 0.05039, 0.04997, 0.04879, 0.04878, 0.04837, 0.04735, 0.0469],
    "labels": [8, 37, 37, 37, 37, 41, 37, 56],
    "areas": [11474, 377, 296, 58, 396, 58, 196, 230],
}


def mmdet_names(encoder: str = "resnet50") -> dict[str, tuple[int, ...]]:
    """Names and shapes of MMDetection's R50-FPN, or of HRNet-W18 with HRFPN; timm names the layers of HRNet alike."""
    import timm

    with torch.device("meta"):
        body = timm.create_model(encoder).state_dict()
    ahead = ("fc.", "classifier.", "incre_modules.", "downsamp_modules.", "final_layer.")
    names = {f"backbone.{name}": tuple(x.shape) for name, x in body.items() if not name.startswith(ahead)}
    necks = {
        "resnet50": {f"neck.lateral_convs.{i}.conv": (256, 256 * 2**i, 1, 1) for i in range(4)},
        "hrnet_w18": {"neck.reduction_conv.conv": (256, 18 + 36 + 72 + 144, 1, 1)},
    }
    layers = {
        **necks[encoder],
        **{f"neck.fpn_convs.{i}.conv": (256, 256, 3, 3) for i in range(4 if encoder == "resnet50" else 5)},
        "rpn_head.rpn_conv": (256, 256, 3, 3),
        "rpn_head.rpn_cls": (3, 256, 1, 1),
        "rpn_head.rpn_reg": (12, 256, 1, 1),
        "roi_head.bbox_head.fc_cls": (81, 1024),
        "roi_head.bbox_head.fc_reg": (320, 1024),
        "roi_head.bbox_head.shared_fcs.0": (1024, 12544),
        "roi_head.bbox_head.shared_fcs.1": (1024, 1024),
        **{f"roi_head.mask_head.convs.{i}.conv": (256, 256, 3, 3) for i in range(4)},
        "roi_head.mask_head.upsample": (256, 256, 2, 2),
        "roi_head.mask_head.conv_logits": (80, 256, 1, 1),
    }
    for name, shape in layers.items():
        names |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return names


def mmdet_file(goldens: Path, path: Path, encoder: str) -> Path:
    value = load_fill(goldens).value
    state = {name: value(name, shape) for name, shape in mmdet_names(encoder).items()}
    for name, tensor in state.items():
        if name.endswith("weight"):
            tensor *= MMDET_GAINS.get(name.removesuffix(".conv.weight").removesuffix(".weight").split(".")[-1], 1.0)
    return save(path, {"meta": {"epoch": 12}, "state_dict": state})


def assert_finds_what_mmdetection_finds(model: Any, real_data: Path, expected: dict[str, Any]) -> None:
    picture = Image.open(real_data / "coco2017_mini" / "val2017" / "000000000872.jpg").convert("RGB")
    crop = torch.from_numpy(np.array(picture)[200:360, 200:424]).permute(2, 0, 1).float()
    mean, std = (torch.tensor(v)[:, None, None] * 255 for v in (model.conventions.mean, model.conventions.std))
    model.score_threshold = 0.02
    with torch.no_grad():
        found = model(((crop - mean) / std)[None])
    torch.testing.assert_close(found.boxes[0, :8], torch.tensor(expected["boxes"]), rtol=0, atol=0.01)
    torch.testing.assert_close(found.scores[0, :8], torch.tensor(expected["scores"]), rtol=0, atol=2e-5)
    assert found.labels[0, :8].tolist() == expected["labels"]
    areas = (paste_masks(found.masks[0, :8], found.boxes[0, :8], (160, 224)) >= 0.5).flatten(1).sum(1)
    assert (areas - torch.tensor(expected["areas"])).abs().max() <= 1


def test_mmdetection_computes_the_same(goldens: Path, real_data: Path, tmp_path: Path) -> None:
    path = mmdet_file(goldens, tmp_path / "epoch_12.pth", "resnet50")
    with pytest.raises(
        ConfigError, match="say which: source=mmdet arch=mask_rcnn_r50_fpn; source=mmdet arch=mask_rcnn_r50_caffe"
    ):
        import_checkpoint(path)
    assert_finds_what_mmdetection_finds(import_checkpoint(path, arch="mask_rcnn_r50_fpn"), real_data, MMDET_R50)


def test_mmdetections_hrnet_computes_the_same(goldens: Path, real_data: Path, tmp_path: Path) -> None:
    """160 pixels are 2.5 cells of the coarsest map, of which MMDetection keeps 2."""
    model: Any = import_checkpoint(mmdet_file(goldens, tmp_path / "hrnet.pth", "hrnet_w18"))
    assert model.extra["imported"]["arch"] == "mask_rcnn_hrnetv2p_w18"
    assert_finds_what_mmdetection_finds(model, real_data, MMDET_HRNET)


def test_mmdetections_caffe_style() -> None:
    state = {name: torch.empty(shape, device="meta") for name, shape in mmdet_names().items()}
    (guess,) = recognise(state)
    assert guess.archs == ("mask_rcnn_r50_fpn", "mask_rcnn_r50_caffe_fpn")
    plain, caffe = (guess.importer.convert(state, arch, None) for arch in guess.archs)
    assert (plain.options["stride_in_1x1"], caffe.options["stride_in_1x1"]) == (False, True)
    assert (plain.conventions.color, caffe.conventions.color) == ("rgb", "bgr")
    assert caffe.conventions.std == (1, 1, 1)


# --- names ----------------------------------------------------------------------------------------------------------------


def test_names_of_coco_are_those_of_its_files(real_data: Path) -> None:
    folder = real_data / "coco2017_mini" / "annotations"
    categories = json.loads((folder / "instances_val2017.json").read_text())["categories"]
    assert tuple(category["name"] for category in categories) == COCO_CLASSES
    assert all(TORCHVISION_CLASSES[category["id"] - 1] == category["name"] for category in categories)
    categories = json.loads((folder / "panoptic_val2017.json").read_text())["categories"]
    assert tuple(category["name"] for category in categories if not category["isthing"]) == COCO_STUFF
    assert open_dataset(folder.parent, "coco:keypoint").keypoints == COCO_PERSON
    assert (len(COCO_CLASSES), len(TORCHVISION_CLASSES), len(set(COCO_STUFF))) == (80, 90, 53)


def test_weights_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.pth", build_peer().state_dict())
    assert run(["weights", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "could be maskrcnn_resnet18_fpn of torchvision (choices: norm_eps)" in shown
    assert "backbone.body.conv1.weight" in shown
    assert "64 x 3 x 7 x 7" in shown
    assert run(["weights", "show", str(path), "--json", "-"]) == 0
    content = json.loads(capsys.readouterr().out)
    (reading,) = content["readings"]
    assert reading.pop("note").startswith("norm_eps is not known")
    assert reading == {"source": "torchvision", "arch": "maskrcnn_resnet18_fpn", "choices": ["norm_eps"]}
    out = tmp_path / "ours.safetensors"
    assert run(["weights", "import", str(path), str(out), "--choice", "norm_eps=0"]) == 0
    assert run(["weights", "show", str(out)]) == 0
    assert "imported from torchvision: maskrcnn_resnet18_fpn" in capsys.readouterr().out
    assert run(["weights", "import", str(path), str(tmp_path / "ours.pth")]) == 2
    assert run(["weights", "import", str(path), str(out), "--choice", "norm_eps"]) == 2


def test_the_first_detectron_is_recognised_and_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, zeros = tmp_path / "model_final.pkl", np.zeros((64, 64, 1, 1), np.float32)
    path.write_bytes(pickle.dumps({"blobs": {"res2_0_branch2a_w": zeros, "conv_rpn_fpn2_w": zeros}}, 2))
    with pytest.raises(ConfigError, match="of the first Detectron, whose boxes count a pixel more"):
        import_checkpoint(path)
    assert run(["weights", "show", str(path)]) == 0
    assert "  this is a file of the first Detectron, whose boxes" in capsys.readouterr().out
    path.write_bytes(pickle.dumps({"blobs": {"res2_0_branch2a_w": zeros}}, 2))
    with pytest.raises(ConfigError, match="this is a classifier of Caffe2, from which Detectron"):
        import_checkpoint(path)

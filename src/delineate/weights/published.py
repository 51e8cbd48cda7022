"""The published files that are known by name: where they are, how they are checked, and what their tensors do not say.

Checksums are those that the publishers put into the names: the beginning of the sha256 at torchvision and MMDetection
(their `publish_model.py`), and of the md5 at Detectron2 (its MODEL_ZOO.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delineate.errors import ConfigError, suggest
from delineate.weights.download import Progress, check_sha256, download, is_url, matches


@dataclass(frozen=True, slots=True)
class Published:
    """A file that its authors published."""

    url: str
    checksum: str
    source: str
    arch: str | None = None  # None: its tensors tell
    choices: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None  # SPDX name; None: its authors name none for the weights

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2]


def _torchvision(file: str, **choices: Any) -> tuple[str, Published]:
    start = file.removesuffix(".pth").rpartition("-")[2]
    return file, Published(f"https://download.pytorch.org/models/{file}", f"sha256:{start}", "torchvision", choices=choices)


def _detectron2(model: str, rest: str) -> tuple[str, Published]:
    start = rest.removesuffix(".pkl").rpartition("_")[2]
    url = f"https://dl.fbaipublicfiles.com/detectron2/{model}/{rest}"
    return model, Published(url, f"md5:{start}", "detectron2", licence="CC-BY-SA-3.0")


def _mmdetection(arch: str, file: str) -> tuple[str, Published]:
    start = file.removesuffix(".pth").rpartition("-")[2]
    folder = re.split(r"_bbox_mAP|_20\d{6}", file)[0]
    group = "hrnet" if "hrnet" in arch else "mask_rcnn"
    url = f"https://download.openmmlab.com/mmdetection/v2.0/{group}/{folder}/{file}"
    return file, Published(url, f"sha256:{start}", "mmdet", arch)


PUBLISHED: dict[str, Published] = dict(
    [
        _torchvision("maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", norm_eps=0.0),
        _torchvision("maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"),
        _torchvision("keypointrcnn_resnet50_fpn_coco-9f466800.pth", norm_eps=1e-5),
        _torchvision("keypointrcnn_resnet50_fpn_coco-fc266e95.pth", norm_eps=0.0),
        _torchvision("deeplabv3_resnet50_coco-cd0a2569.pth"),
        _torchvision("deeplabv3_resnet101_coco-586e9e4e.pth"),
        _torchvision("fcn_resnet50_coco-1167a1af.pth"),
        _torchvision("fcn_resnet101_coco-7ecb50ca.pth"),
        _detectron2("COCO-Detection/faster_rcnn_R_50_C4_1x", "137257644/model_final_721ade.pkl"),
        _detectron2("COCO-Detection/faster_rcnn_R_50_C4_3x", "137849393/model_final_f97cb7.pkl"),
        _detectron2("COCO-Detection/faster_rcnn_R_101_C4_3x", "138204752/model_final_298dad.pkl"),
        _detectron2("COCO-Detection/faster_rcnn_R_50_FPN_1x", "137257794/model_final_b275ba.pkl"),
        _detectron2("COCO-Detection/faster_rcnn_R_50_FPN_3x", "137849458/model_final_280758.pkl"),
        _detectron2("COCO-Detection/faster_rcnn_R_101_FPN_3x", "137851257/model_final_f6e8b1.pkl"),
        _detectron2("COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x", "139173657/model_final_68b088.pkl"),
        _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x", "137259246/model_final_9243eb.pkl"),
        _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x", "137849525/model_final_4ce675.pkl"),
        _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_101_C4_3x", "138363239/model_final_a2914c.pkl"),
        _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", "137260431/model_final_a54504.pkl"),
        _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x", "137849600/model_final_f10217.pkl"),
        _detectron2("COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x", "138205316/model_final_a3ec72.pkl"),
        _detectron2("COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x", "139653917/model_final_2d9806.pkl"),
        _detectron2("COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x", "137261548/model_final_04e291.pkl"),
        _detectron2("COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x", "137849621/model_final_a6e10b.pkl"),
        _detectron2("COCO-Keypoints/keypoint_rcnn_R_101_FPN_3x", "138363331/model_final_997cc7.pkl"),
        _detectron2("COCO-Keypoints/keypoint_rcnn_X_101_32x8d_FPN_3x", "139686956/model_final_5ad38f.pkl"),
        _detectron2("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x", "139514544/model_final_dbfeb4.pkl"),
        _detectron2("COCO-PanopticSegmentation/panoptic_fpn_R_50_3x", "139514569/model_final_c10459.pkl"),
        _detectron2("COCO-PanopticSegmentation/panoptic_fpn_R_101_3x", "139514519/model_final_cafdb1.pkl"),
        _mmdetection("mask_rcnn_r50_fpn", "mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth"),
        _mmdetection(
            "mask_rcnn_r50_fpn", "mask_rcnn_r50_fpn_2x_coco_bbox_mAP-0.392__segm_mAP-0.354_20200505_003907-3e542a40.pth"
        ),
        _mmdetection("mask_rcnn_r50_fpn", "mask_rcnn_r50_fpn_mstrain-poly_3x_coco_20210524_201154-21b550bb.pth"),
        _mmdetection("mask_rcnn_r101_fpn", "mask_rcnn_r101_fpn_1x_coco_20200204-1efe0ed5.pth"),
        _mmdetection("mask_rcnn_r101_fpn", "mask_rcnn_r101_fpn_mstrain-poly_3x_coco_20210524_200244-5675c317.pth"),
        _mmdetection(
            "mask_rcnn_r50_caffe_fpn",
            "mask_rcnn_r50_caffe_fpn_1x_coco_bbox_mAP-0.38__segm_mAP-0.344_20200504_231812-0ebd1859.pth",
        ),
        _mmdetection("mask_rcnn_r101_caffe_fpn", "mask_rcnn_r101_caffe_fpn_1x_coco_20200601_095758-805e06c1.pth"),
        _mmdetection("mask_rcnn_hrnetv2p_w18", "mask_rcnn_hrnetv2p_w18_1x_coco_20200205-1c3d78ed.pth"),
        _mmdetection("mask_rcnn_hrnetv2p_w18", "mask_rcnn_hrnetv2p_w18_2x_coco_20200212-b3c825b1.pth"),
        _mmdetection("mask_rcnn_hrnetv2p_w32", "mask_rcnn_hrnetv2p_w32_1x_coco_20200207-b29f616e.pth"),
        _mmdetection("mask_rcnn_hrnetv2p_w32", "mask_rcnn_hrnetv2p_w32_2x_coco_20200213-45b75b4d.pth"),
        _mmdetection("mask_rcnn_hrnetv2p_w40", "mask_rcnn_hrnetv2p_w40_1x_coco_20200511_015646-66738b35.pth"),
        _mmdetection("mask_rcnn_hrnetv2p_w40", "mask_rcnn_hrnetv2p_w40_2x_coco_20200512_163732-aed5e4ab.pth"),
    ]
)


def locate(path: str | Path, sha256: str | None = None, progress: Progress | None = None) -> tuple[Path, Published | None]:
    """Return the file that `path` means, a file, a URL or the name of a published file, and the published file that it is.

    Of a URL the user must know the `sha256`, unless it is a published file's; "any" takes whatever comes. Raises `ConfigError`
    without it, and `DataError` for a file that does not have it.
    """
    text = str(path)
    known = PUBLISHED.get(text.removeprefix("detectron2://")) or next((p for p in PUBLISHED.values() if p.url == text), None)
    if known is not None and not Path(text).exists():
        return download(known.url, known.checksum if sha256 is None else check_sha256(sha256), progress=progress), known
    if is_url(text):
        if sha256 is None:
            raise ConfigError(f"{text}: its sha256 is not known; give sha256=DIGEST, or sha256=any to take whatever comes")
        return download(text, None if sha256 == "any" else check_sha256(sha256), progress=progress), None
    file = Path(path)
    if not file.exists() and (hint := suggest(text, list(PUBLISHED))):
        raise ConfigError(f"{text}: no such file, nor is it the name of a published one{hint}")
    same = next((p for p in PUBLISHED.values() if p.file == file.name), None)
    if same is not None and file.is_file() and matches(file, same.checksum):
        return file, same
    return file, None

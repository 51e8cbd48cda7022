"""Annotation files with a defect of those that users report: the check names the record and what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from _configs import QUICK
from delineate.config import build_config
from delineate.data import check_dataset, open_dataset
from delineate.data.instance_loader import InstanceSet, make_instance_loader
from delineate.weights.conventions import Conventions, Resize

OUTLINE = [[10, 6, 20, 6, 20, 16, 10, 16]]
SOUND: dict[str, Any] = {"bbox": [10, 6, 10, 10], "segmentation": OUTLINE, "iscrowd": 0}


def write(folder: Path, annotations: list[dict[str, Any]]) -> Path:
    """One picture, its objects, and the file that lists both."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(folder / "a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 48, "width": 64}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 3, **a} for n, a in enumerate(annotations, 7)],
    }
    (folder / "labels.json").write_text(json.dumps(content))
    return folder / "labels.json"


@pytest.mark.parametrize(
    ("change", "severity", "words"),
    [
        ({}, None, ""),
        ({"bbox": [30, 6, 40, 16], "segmentation": [[30, 6, 40, 6, 40, 16, 30, 16]]}, "warning", "not two corners"),
        ({"bbox": [10, 6, 0, 10]}, "warning", "without extent"),
        ({"bbox": None}, None, ""),
        ({"segmentation": []}, None, ""),
        ({"bbox": None, "segmentation": []}, "error", "neither box, outline nor labelled keypoints"),
        ({"bbox": [float("inf"), 0, 5, 5]}, "error", "expected [x, y, width, height]"),
        ({"bbox": [200, 200, 5, 5]}, "error", "wholly outside the 64 x 48 image"),
        ({"segmentation": [[1, 1, 9, 1, 9, 9, 4]]}, "error", "of 7 numbers; a polygon needs pairs x, y"),
        ({"segmentation": {"size": [64, 48], "counts": [0, 3072]}}, "error", "the picture is [48, 64]"),
        ({"iscrowd": "0"}, "error", "expected 0 or 1"),
        ({"category_id": "3"}, "error", "the category '3', which is not listed"),
        ({"image_id": "1"}, "error", "image_id '1', images 1"),
    ],
)
def test_every_defect_is_named(tmp_path: Path, change: dict[str, Any], severity: str | None, words: str) -> None:
    findings = check_dataset(write(tmp_path, [{**SOUND, **change}])).findings
    assert not findings if severity is None else any(f.severity == severity and words in f.message for f in findings), findings


def test_annotations_need_no_ids(tmp_path: Path) -> None:
    other = {"bbox": [30, 6, 10, 10], "segmentation": [[30, 6, 40, 6, 40, 16, 30, 16]]}
    assert not check_dataset(write(tmp_path, [{**SOUND, "id": None}, {**SOUND, **other, "id": None}])).findings


def test_a_16_bit_picture_among_8_bit_ones_is_as_bright_as_they_are(tmp_path: Path) -> None:
    """Training scales it as prediction does."""
    path = write(tmp_path, [SOUND])
    deep = np.asarray(Image.open(tmp_path / "a.png").convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    content = json.loads(path.read_text())
    content["images"].append({"id": 2, "file_name": "deep.png", "height": 48, "width": 64})
    path.write_text(json.dumps(content))
    assert "number types differ" in {f.kind for f in check_dataset(path).findings}
    dataset = open_dataset(path)
    config = build_config(QUICK | {"data": {"path": str(path)}, "steps_per_epoch": 1})
    pictures = InstanceSet(dataset, dataset.records, config, Conventions(resize=Resize(48, 64)))
    (batch,) = make_instance_loader(pictures)
    shallow, bright = (batch.images[batch.names.index(name)].mean() for name in ("a", "deep"))
    assert bright == pytest.approx(float(shallow), abs=0.2)

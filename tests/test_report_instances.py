"""The report of a detector's run: average precision, curves, errors and pictures, of what `evaluate` measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from _fake_detector import SKELETON, ScriptedDetector
from delineate.config import TrainConfig, dump_config
from delineate.data import open_dataset
from delineate.files import write_json, write_text
from delineate.predict import Predictor
from delineate.predict.evaluate import evaluate
from delineate.report import write_report
from delineate.report.detections import plot_precision_recall
from test_evaluate_instances import flawed, write_coco

HISTORY = """epoch,step,lr,train/loss,train/rpn_box,train/mask,val/keypoint_AP,val/mask_AP,val/box_AP,val/mask_AP/cat,seconds
1,10,0.01,2.1,0.7,1.4,0.1,0.2,0.25,0.2,10
2,20,0.01,1.4,0.5,0.9,0.35,0.4,0.45,0.4,20
3,30,0.001,1.1,0.4,0.7,0.3,0.5,0.55,0.5,30
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    dataset = open_dataset(write_coco(folder / "data", keypoints=True))
    predictor = Predictor(ScriptedDetector(flawed(), keypoints=SKELETON), "cpu", "fp32", score_threshold=0.1)
    evaluation = evaluate(predictor, dataset, dataset.records, split="val", previews=folder / "previews")
    write_json(folder / "evaluation.json", evaluation.to_json())
    write_text(folder / "results.csv", HISTORY)
    config = {
        "data": {"path": "people"},
        "model": {"name": "mask_keypoint_rcnn_resnet50_fpn"},
        "epochs": 3,
        "input": {"resize": {"shortest": 200, "longest": 333}},
        "loss_weights": {"mask": 2.0},
    }
    write_text(folder / "config.yaml", dump_config(TrainConfig.model_validate(config)))
    return folder


def test_the_report_says_what_was_measured(run: Path) -> None:
    page = write_report(run).read_text()
    evaluation = json.loads((run / "evaluation.json").read_text())
    for title, name in (("AP of keypoints", "keypoints/AP"), ("AP of masks", "segm/AP"), ("AP of boxes", "bbox/AP")):
        card = re.search(rf"{title}</div>\s*<div class=\"value\">([\d.]+)", page)
        assert card is not None
        assert float(card[1]) == pytest.approx(evaluation["summary"][name], abs=6e-4)
    table = page[page.index("<h2>Average precision</h2>") :]
    row = re.search(r'<td class="name">masks</td>((?:<td>[^<]*</td>)+)', table)
    assert row is not None
    shown = re.findall(r"<td>([^<]*)</td>", row[1])
    numbers = [evaluation["summary"][f"segm/{name}"] for name in ("AP", "AP50", "AP75")]
    assert [float(text) for text in shown[:3]] == pytest.approx(numbers, abs=6e-4)
    assert "-1" not in shown  # nothing of that size: a dash
    for text in ("panoptic quality", "Resizing", "shorter side to 200", "2 × mask", "pictures a second"):
        assert text in page
    assert page.count("data:image/") == 3
    assert page.index(">0</strong>") > page.index(">2</strong>")  # nothing to find, one invented: the worst
    assert "mean IoU" not in page
    assert {path.name for path in (run / "plots").iterdir()} >= {
        "precision_recall.png",
        "errors.png",
        "metrics.png",
        "loss.png",
    }


def test_curves_have_a_panel_each(run: Path) -> None:
    curves = json.loads((run / "evaluation.json").read_text())["curves"]
    figure = plot_precision_recall(curves)
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Keypoints", "Masks", "Boxes"]
    assert [len(axes.lines) for axes in figure.axes] == [3, 3, 3]
    assert plot_precision_recall([]) is None

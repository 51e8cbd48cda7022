"""Evaluating a network: a network whose answer is known, on pictures made for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from delineate.data import make_blobs_dataset, open_dataset, write_dataset
from delineate.errors import ConfigError, DataError
from delineate.metrics.evaluation import Evaluation
from delineate.predict import Predictor
from delineate.predict.evaluate import evaluate
from delineate.predict.export_formats import ResultsWriter
from delineate.predict.score import score
from delineate.weights import Conventions


class Brightness(nn.Module):
    """The class of a pixel is its grey value over 50; with `sigmoid` each class is a bit of it."""

    margin, stride = 0, 1

    def __init__(self, classes: tuple[str, ...], outputs: str = "classes") -> None:
        super().__init__()
        self.classes = classes
        self.conventions = Conventions(color="gray", value_range=1.0, mean=(0.0,), std=(1.0,), outputs=outputs)  # pyright: ignore
        self.scale = nn.Parameter(torch.tensor(50.0))
        self.channels = self.conventions.output_channels(len(classes))

    def forward(self, x: Tensor) -> Tensor:
        value = (x / self.scale).round()  # (B, 1, H, W)
        if self.conventions.outputs == "multilabel":
            bits = [(value // 2**k) % 2 for k in range(self.channels)]
            return 20 * torch.cat(bits, 1) - 10
        return -10 * (value - torch.arange(self.channels)[:, None, None]).abs()  # (B, K, H, W)


def write_pair(folder: Path, name: str, shown: np.ndarray, truth: np.ndarray, truth_folder: str = "masks") -> None:
    """A picture that the network sees as `shown`, and its truth."""
    for kind, pixels in (("images", (50 * shown).astype(np.uint8)), (truth_folder, truth)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / kind / f"{name}.png")


def predictor_of(*classes: str, outputs: str = "classes") -> Predictor:
    return Predictor(Brightness(classes, outputs), device="cpu", precision="fp32")


def bright_is_object() -> nn.Module:
    """Bright is object."""
    model = Brightness(("background", "object"))
    with torch.no_grad():
        model.scale.fill_(160.0)  # 0 below 80, 1 up to 240, where the nearest of two classes is still 1
    return model


def test_semantic_numbers_previews_and_json(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truths, shown = [], []
    for index in range(10):
        truth = rng.integers(0, 3, (24, 32)).astype(np.uint8)
        seen = np.where(rng.random(truth.shape) < index / 12, 2, truth)
        truth[0] = 255
        write_pair(tmp_path / "data", f"p{index}", seen, truth)
        truths.append(truth)
        shown.append(seen)
    (tmp_path / "data" / "classes.txt").write_text("background\na\nb\n")
    dataset = open_dataset(tmp_path / "data")
    run = tmp_path / "run"
    evaluation = evaluate(
        predictor_of("background", "a", "b"), dataset, dataset.records, split="all", previews=run / "previews"
    )
    t, p = np.stack(truths).ravel(), np.stack(shown).ravel()
    t, p = t[(keep := t != 255)], p[keep]
    wanted = [[int(((t == i) & (p == j)).sum()) for j in range(3)] for i in range(3)]
    assert evaluation.confusion == wanted
    assert (evaluation.kind, evaluation.split, evaluation.objects) == ("semantic", "all", None)
    assert evaluation.images[0].mean_iou == 1.0
    previews = [image.preview for image in evaluation.images if image.preview]
    assert len(previews) == 8
    by_score = sorted(evaluation.images, key=lambda image: image.mean_iou)
    assert all(image.preview for image in (*by_score[:3], *by_score[-3:]))
    for preview in previews:
        with Image.open(run / preview) as picture:
            assert picture.width > 3 * 200  # three panels
    content = json.loads(json.dumps(evaluation.to_json(), allow_nan=False))
    assert {"split", "kind", "classes", "summary", "per_class", "confusion", "images", "objects", "intervals"} <= set(content)
    again = Evaluation.from_json(content)
    assert again.images == evaluation.images
    assert again.summary == evaluation.summary
    low, high = again.intervals["mean_iou"]  # pyright: ignore[reportOptionalSubscript]
    assert low < evaluation.summary["mean_iou"] < high


def test_objects(tmp_path: Path) -> None:
    """Two objects that touch are one connected component; a third is right, a fourth is not there."""
    ids = np.zeros((20, 40), np.uint16)
    ids[2:8, 2:8], ids[2:8, 8:14], ids[12:18, 2:9] = 1, 2, 3
    shown = (ids > 0).astype(np.uint8)
    shown[12:18, 20:30] = 1
    for name in ("a", "b"):
        write_pair(tmp_path, name, shown, ids, "instances")
    dataset = open_dataset(tmp_path)
    evaluation = evaluate(
        predictor_of("background", "object"), dataset, dataset.records, split="all", previews=tmp_path / "previews"
    )
    assert evaluation.kind == "instance"
    assert evaluation.objects is not None
    assert (evaluation.objects["truth_objects"], evaluation.objects["predicted_objects"]) == (6, 6)
    # The joined pair covers half of its union with either, which is a match at 0.5, and none at 0.55.
    assert evaluation.objects["ap50"] == pytest.approx(2 / (2 + 1 + 1))
    assert evaluation.objects["ap55"] == pytest.approx(1 / (1 + 2 + 2))
    assert evaluation.summary["objects/f1_50"] == pytest.approx(2 / 3)
    assert all(image.preview and (tmp_path / image.preview).is_file() for image in evaluation.images)


def test_evaluating_equals_predicting_and_scoring(tmp_path: Path) -> None:
    data = make_blobs_dataset(tmp_path / "data", 3, 64, kind="instance")
    dataset = open_dataset(data)
    predictor = Predictor(bright_is_object(), device="cpu", precision="fp32")
    direct = evaluate(predictor, dataset, dataset.records, split="all")
    for record in dataset.records:
        predictor(record.image).save(tmp_path / "out", formats=("png", "coco"))
    from_pngs = score(tmp_path / "out", data, ci=True)
    assert from_pngs.summary == direct.summary
    assert from_pngs.intervals == direct.intervals
    assert from_pngs.per_class == direct.per_class


def test_coco_numbers_straight_from_results(tmp_path: Path) -> None:
    """The same numbers and intervals as through a JSON file of the results."""
    data = make_blobs_dataset(tmp_path / "data", 3, 64, kind="instance")
    dataset = open_dataset(data)
    predictor = Predictor(bright_is_object(), device="cpu", precision="fp32", min_area=20)
    with ResultsWriter(tmp_path / "out", ("coco",)) as writer:
        for record in dataset.records:
            writer.add(predictor(record.image))
    write_dataset(dataset, tmp_path / "coco", "coco")
    direct = evaluate(predictor, dataset, dataset.records, split="all", iou_types=["segm", "bbox"], surface=2.0)
    found = score(tmp_path / "out" / "coco.json", tmp_path / "coco", ci=True, surface=2.0)
    for name in ("segm/AP", "segm/AP50", "bbox/AP", "bbox/AR100"):
        assert direct.summary[name] == pytest.approx(found.summary[name], abs=1e-12), name
        assert (direct.intervals or {})[name] == pytest.approx((found.intervals or {})[name], abs=1e-12)
    assert 0 < direct.summary["segm/AP"] < 1
    assert "hd95/object" in direct.summary
    without = Predictor(bright_is_object(), device="cpu", precision="fp32", objects="none")
    with pytest.raises(ConfigError, match="iou_types"):
        evaluate(without, dataset, dataset.records, split="all", iou_types=["segm"])


@pytest.mark.parametrize("format", ["coco", "yolo", "labelme"])
def test_every_format_of_predictions_scores_alike(tmp_path: Path, format: str) -> None:
    data = make_blobs_dataset(tmp_path / "data", 3, 64, kind="instance")
    dataset = open_dataset(data)
    predictor = Predictor(bright_is_object(), device="cpu", precision="fp32", min_area=20)
    with ResultsWriter(tmp_path / "out", (format,)) as writer:
        for record in dataset.records:
            writer.add(predictor(record.image))
    direct = evaluate(predictor, dataset, dataset.records, split="all")
    found = score(tmp_path / "out", data)
    assert found.objects == direct.objects
    # Pixels of pieces below min_area are foreground in the label picture, and no object here.
    assert found.summary["mean_iou"] == pytest.approx(direct.summary["mean_iou"], abs=0.02)


def test_membranes(tmp_path: Path) -> None:
    truth = np.ones((16, 33), np.uint8)
    truth[:, 10], truth[:, 21] = 0, 0
    leaky = truth.copy()
    leaky[8, 10] = 1
    write_pair(tmp_path, "a", truth, truth)
    write_pair(tmp_path, "b", leaky, truth)
    dataset = open_dataset(tmp_path)
    predictor = predictor_of(*dataset.semantic_classes)
    whole = evaluate(predictor, dataset, dataset.records[:1], split="all", em=True)
    both = evaluate(predictor, dataset, dataset.records, split="all", em="background")
    assert whole.summary["em/v_rand"] == 1.0
    # Segments of 160, 160 and 176 pixels; merged they are 320 and one pixel of membrane, which does not count.
    merged = (160**2 + 160**2 + 176**2) / ((160**2 + 160**2 + 176**2) / 2 + (320**2 + 176**2) / 2)
    assert both.summary["em/v_rand"] == pytest.approx((1 + merged) / 2)
    with pytest.raises(ConfigError, match="membran"):
        evaluate(predictor, dataset, dataset.records, split="all", em="membran")


def test_multilabel(tmp_path: Path) -> None:
    truth = np.array([[0, 1, 1, 0]], np.uint8)
    write_pair(tmp_path, "a", np.array([[1, 2, 3, 0]]), truth)  # bits: class 0, class 1, both, none
    dataset = open_dataset(tmp_path)
    predictor = predictor_of("background", "foreground", outputs="multilabel")
    evaluation = evaluate(predictor, dataset, dataset.records, split="all", previews=tmp_path / "previews")
    assert [row["iou"] for row in evaluation.per_class] == pytest.approx([1 / 3, 1.0])
    assert evaluation.confusion is None
    assert evaluation.images[0].preview == "previews/a.png"


def test_classes_must_fit(tmp_path: Path) -> None:
    truth = np.zeros((4, 4), np.uint8)
    truth[0] = 1
    write_pair(tmp_path, "a", truth, truth)
    dataset = open_dataset(tmp_path)
    with pytest.raises(DataError, match="names must agree"):
        evaluate(predictor_of("background", "a", "b"), dataset, dataset.records, split="all")
    evaluation = evaluate(predictor_of("background", "nucleus"), dataset, dataset.records, split="all")
    assert evaluation.summary["mean_iou"] == 1.0
    assert "nucleus" in evaluation.notes[0]
    with pytest.raises(DataError, match="'val' has no pictures with a truth"):
        evaluate(predictor_of("background", "foreground"), dataset, (), split="val")


def test_class_order_follows_names(tmp_path: Path) -> None:
    truth = np.array([[0, 1, 2, 2]], np.uint8)
    write_pair(tmp_path, "a", np.array([[0, 2, 1, 1]]), truth)
    (tmp_path / "classes.txt").write_text("background\ncat\ndog\n")
    dataset = open_dataset(tmp_path)
    evaluation = evaluate(predictor_of("background", "dog", "cat"), dataset, dataset.records, split="all")
    assert evaluation.summary["mean_iou"] == 1.0
    assert evaluation.classes == ("background", "cat", "dog")


def test_pictures_without_truth_are_left_out_with_a_note(tmp_path: Path) -> None:
    truth = np.eye(6, dtype=np.uint8)
    for name in ("a", "b"):
        write_pair(tmp_path, name, truth, truth)
    Image.fromarray(truth).save(tmp_path / "images" / "c.png")
    dataset = open_dataset(tmp_path)
    assert len(dataset.records) == 3
    evaluation = evaluate(predictor_of("background", "foreground"), dataset, dataset.records, split="all")
    assert len(evaluation.images) == 2
    assert "1 of 3 pictures have no truth" in evaluation.notes[0]
    assert score(tmp_path / "masks", tmp_path).summary["mean_iou"] == 1.0

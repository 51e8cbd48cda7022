"""Training of detectors: whole runs on small made-up data, the worst data, validation against COCO's own tools."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from torch import Tensor, nn

from _configs import QUICK
from delineate.config import TrainConfig, build_config
from delineate.data import Dataset, open_dataset
from delineate.data.instance_loader import InstanceSet, make_instance_loader
from delineate.data.synthetic import make_blobs_dataset
from delineate.errors import ConfigError, DataError
from delineate.models import create_model
from delineate.models.instance import InstanceModel
from delineate.ops.instances import InstanceTargets
from delineate.predict import Predictor
from delineate.predict.detections import true_objects
from delineate.train import train
from delineate.train.build import prepare_dataset
from delineate.train.optim import build_optimizer
from delineate.train.processes import make_fabric
from delineate.train.runfolder import results_csv
from delineate.train.step import training_step
from delineate.train.task import make_task
from delineate.weights import load_model, read_info

TINY: dict[str, Any] = {
    "encoder": "resnet18",
    "norm": "group",
    "width": 16,
    "box_width": 32,
    "mask_convs": 1,
    "samples": 32,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_blobs_dataset(tmp_path_factory.mktemp("data"), 4, (48, 64), val=2, kind="instance", channels=3, objects=4)


def make_config(data: Path, *, sampling: str = "even", **changes: Any) -> TrainConfig:
    content: dict[str, Any] = {
        "data": {"path": str(data), "sampling": sampling},
        "input": {"resize": {"shortest": 64, "longest": 96}},
        "model": {"name": "mask_rcnn_resnet50_fpn", "options": TINY},
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9, "schedule": "multi_step", "warmup_steps": 1},
        "epochs": 2,
        "steps_per_epoch": 2,
    }
    return build_config(QUICK | content | changes)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(make_config(data, optimizer={"lr": 1e-3, "ema": 0.9}, loss_weights={"mask": 2.0}), out, quiet=True)
    return out


class TestRun:
    def test_holds_what_was_promised(self, run: Path) -> None:
        for name in ("evaluation.json", "report.html", "weights/best.safetensors", "weights/last.safetensors"):
            assert (run / name).is_file(), name

    def test_numbers(self, run: Path) -> None:
        with (run / "results.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 2
        terms = ("rpn_objectness", "rpn_box", "classifier", "box", "mask")
        for row in rows:
            assert 0 <= float(row["val/mask_AP"]) <= 1
            assert {"val/mask_AP50", "val/box_AP", "images_per_second"} <= row.keys()
            assert "val/mean_iou" not in row
            parts = [float(row[f"train/{name}"]) for name in terms]
            assert float(row["train/loss"]) == pytest.approx(sum(parts) + parts[-1], rel=1e-4)  # masks weigh two

    def test_weights_find_objects(self, run: Path) -> None:
        info = read_info(run / "weights" / "last.safetensors")
        assert info.classes == ("object",)
        assert info.conventions.outputs == "instances"
        assert info.conventions.resize is not None
        assert info.conventions.resize.shortest == 64
        results = Predictor(run / "weights" / "last.safetensors", device="cpu", score_threshold=0.0)(
            np.zeros((40, 50, 3), np.uint8)
        )
        assert results.masks is not None
        assert len(results.masks) == len(results.boxes)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    """Two epochs at once, and one and then the other, end with the same weights."""
    augment = {"patch": [64, 64], "jitter": [0.5, 1.5], "copy_paste": 0.5}
    ends = {}
    for name, epochs in (("whole", (2,)), ("parts", (1, 2))):
        for number in epochs:
            schedule = {"name": "sgd", "lr": 0.01, "momentum": 0.9, "schedule": "constant"}
            config = make_config(data, epochs=number, augment=augment, optimizer=schedule, deterministic=True)
            train(config, tmp_path / name, resume=number > epochs[0], quiet=True)
        ends[name] = load_model(tmp_path / name / "weights" / "last.safetensors").state_dict()
    assert all(torch.equal(tensor, ends["parts"][key]) for key, tensor in ends["whole"].items())


# --- the worst data -----------------------------------------------------------------------------------------------------


def square(x: float, y: float, side: float, **changes: Any) -> dict[str, Any]:
    outline = [x, y, x + side, y, x + side, y + side, x, y + side]
    points = [x + side / 2, y + side / 2, 2, x, y, 1, 0, 0, 0]
    content = {"bbox": [x, y, side, side], "segmentation": [outline], "area": side * side, "iscrowd": 0, "keypoints": points}
    return content | {"num_keypoints": 2} | changes


WORST: dict[str, list[dict[str, Any]]] = {
    "no objects": [],
    "only crowds": [square(5, 5, 30, iscrowd=1), square(20, 5, 9, iscrowd=1)],
    "degenerate boxes": [square(5, 5, 0), {**square(5, 5, 9), "bbox": [5, 5, 0, 9]}],
    "objects of a pixel": [square(5, 5, 1), square(60, 40, 1), square(63, 47, 1)],
    "objects outside": [square(200, 200, 9), square(-50, -50, 20), square(60, 44, 50)],
    "the same box again and again": [square(9, 9, 20)] * 9,
    "500 objects": [square(2 + 2.4 * (n % 25), 1 + 2.2 * (n // 25), 2) for n in range(500)],
    "no point labelled": [square(9, 9, 20, keypoints=[0] * 9, num_keypoints=0)] * 2,
    "one object that fills the picture": [square(0, 0, 64)],
}


def write_worst(folder: Path) -> Path:
    images, annotations = [], []
    for number, (name, members) in enumerate(WORST.items(), start=1):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.png", "height": 48, "width": 64})
        annotations += [member | {"image_id": number, "category_id": 1} for member in members]
    categories = [{"id": 1, "name": "square", "keypoints": ["middle", "left", "right"], "skeleton": [[1, 2]]}]
    numbered = [annotation | {"id": number} for number, annotation in enumerate(annotations, start=1)]
    path = folder / "worst.json"
    path.write_text(json.dumps({"images": images, "annotations": numbered, "categories": categories}))
    return path


@pytest.fixture(scope="module")
def worst(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    dataset = open_dataset(write_worst(tmp_path_factory.mktemp("worst")), "coco:keypoint")
    return replace(dataset, splits={"train": dataset.records, "val": dataset.records})


@pytest.mark.parametrize("options", [{}, {"num_keypoints": 3, "keypoint_convs": 1, "keypoint_width": 16}])
def test_no_loss_or_gradient_of_the_worst_data_is_nan(worst: Dataset, options: dict[str, Any]) -> None:
    model = {"name": "mask_rcnn_resnet50_fpn", "options": TINY | options}
    config = make_config(worst.root, batch=1, model=model, steps_per_epoch=None)
    task = make_task(config, worst, fresh=True)
    assert task.notes == (
        "4 of 522 objects are left out of the training: box or outline without extent",
        "outside the image: 2 of 518 objects, such as object 10 of objects outside.png has the box (60, 44, 110, 94), which "
        "reaches outside the 64 x 48 image",
    )
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(task.model, build_optimizer(task.model, config.optimizer))
    seen = []
    for batch in task.loader(rank=0, world=1):
        result = training_step(fabric, model, optimizer, task.loss, [batch])
        assert result.finite, (batch.names, result)
        assert all(map(math.isfinite, result.values.values())), (batch.names, result)
        seen += batch.names
    assert sorted(seen) == sorted(WORST)
    (batch,) = make_instance_loader(_pictures(task, worst, batch=len(WORST)))
    assert training_step(fabric, model, optimizer, task.loss, [batch]).finite
    assert set(task.measure(fabric)(task.model)) <= set(task.measure(fabric).names())


def test_groups_are_normalised_where_the_config_says(data: Path) -> None:
    """Encoder by `norm`; pyramid, box and mask head by `head_norm`; a step changes the scale of each."""
    options = TINY | {"norm": "group", "head_norm": "group", "box_convs": 2, "box_fcs": 1}
    config = make_config(data, model={"name": "mask_rcnn_resnet50_fpn", "options": options})
    task = make_task(config, prepare_dataset(config.data), fresh=True)
    assert not any("BatchNorm" in type(layer).__name__ for layer in task.model.modules())
    norms = {name: layer for name, layer in task.model.named_modules() if isinstance(layer, nn.GroupNorm)}
    parts = Counter(name.partition(".")[0] for name in norms)
    assert parts == {"encoder": 20, "neck": 4 + 4, "box_head": 2, "mask_head": 1}
    before = {name: layer.weight.detach().clone() for name, layer in norms.items()}
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(task.model, build_optimizer(task.model, config.optimizer))
    assert training_step(fabric, model, optimizer, task.loss, [next(iter(task.loader(rank=0, world=1)))]).finite
    assert [name for name, layer in norms.items() if torch.equal(layer.weight, before[name])] == []


def test_fewer_bits_do_not_round_the_boxes_that_are_learned(data: Path) -> None:
    class Heard(nn.Linear):
        def forward(self, image: Tensor, targets: InstanceTargets) -> tuple[Tensor, Tensor]:
            return super().forward(image), targets.boxes

    fabric, network = make_fabric(make_config(data, precision="bf16")), Heard(4, 4)
    model = fabric.setup_module(network)
    boxes, rows = torch.tensor([[[1001.3, 2.7, 1203.1, 99.9]]]), torch.ones(1, 1, dtype=torch.bool)
    targets, image = InstanceTargets(boxes, rows.long(), rows, rows), torch.rand(1, 4)
    product, heard = model(image, targets)
    assert torch.equal(heard, boxes)
    assert not torch.equal(product, network(image, targets)[0])  # these were fewer bits


def _pictures(task: Any, dataset: Dataset, **changes: Any) -> InstanceSet:
    config = task.config.model_copy(update=changes)
    return InstanceSet(dataset, dataset.splits["train"], config, task.conventions, masks=task.model.has_masks)


# --- validation ---------------------------------------------------------------------------------------------------------


class Oracle(InstanceModel):
    """A detector that finds one box in every picture, always the same."""

    def __init__(self, points: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.has_masks, self.num_keypoints = True, points
        self.detector_conventions = create_model("mask_rcnn_resnet50_fpn", 1, **TINY).detector_conventions  # pyright: ignore
        self.architecture = {"name": "mask_rcnn_resnet50_fpn", "num_classes": 1, "options": TINY}

    def forward(self, images: Tensor, sizes: Tensor | None = None, targets: Any = None) -> Any:
        from delineate.ops.instances import Detections

        count = len(images)
        boxes = torch.tensor([[[8.0, 8, 30, 30], [40, 10, 60, 40]]]).expand(count, 2, 4)
        scores, labels = torch.tensor([[0.9, 0.6]]).expand(count, 2), torch.zeros(count, 2, dtype=torch.int64)
        return Detections(boxes, scores, labels, torch.ones(count, 2, dtype=torch.bool), torch.ones(count, 2, 28, 28))


def test_validation_gives_cocos_numbers(data: Path, tmp_path: Path) -> None:
    """The same as pycocotools with the results and the truth written as COCO's JSON."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    dataset = prepare_dataset(make_config(data).data)
    config = make_config(data, input={"resize": {"shortest": 48, "longest": 999}})
    task = make_task(config, dataset, model=Oracle(), fresh=True)
    numbers = task.measure(Fabric(accelerator="cpu", devices=1))(task.model)
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}], "info": {}}
    found: list[dict[str, Any]] = []
    predictor = Predictor(task.model, "cpu", "fp32", 0.0)
    for number, record in enumerate(dataset.splits["val"], start=1):
        truth["images"].append({"id": number, "height": 48, "width": 64})
        objects = true_objects(dataset, record)
        for code in objects.masks:
            code = {**code, "counts": code["counts"].decode() if isinstance(code["counts"], bytes) else code["counts"]}
            entry = {"id": len(truth["annotations"]) + 1, "image_id": number, "category_id": 1, "segmentation": code}
            area = float(np.array(objects.areas).ravel()[0]) if objects.areas is not None else 1.0
            truth["annotations"].append(entry | {"area": area, "iscrowd": 0, "bbox": [0, 0, 1, 1]})
        results = predictor.predict(record.image)
        assert results.masks is not None
        for code, score in zip(results.masks.rle(), results.scores.tolist(), strict=True):
            found.append({"image_id": number, "category_id": 1, "segmentation": code, "score": score})
    coco = COCO()
    coco.dataset = truth  # pyright: ignore[reportAttributeAccessIssue]
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(found), "segm")  # pyright: ignore[reportArgumentType]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert numbers["mask_AP"] == pytest.approx(evaluation.stats[0], abs=1e-9)
    assert numbers["mask_AP50"] == pytest.approx(evaluation.stats[1], abs=1e-9)
    assert numbers["mask_AR100"] == pytest.approx(evaluation.stats[8], abs=1e-9)
    assert numbers["mask_AP/object"] == numbers["mask_AP"]
    assert numbers.keys() <= set(task.measure(Fabric(accelerator="cpu", devices=1)).names())


def test_columns_of_results() -> None:
    row = {"event": "epoch", "epoch": 1, "val/mask_AP": 0.25, "val/box_AP75": math.nan, "val/mask_APs": 0.1}
    header, values = results_csv([row]).splitlines()
    assert header == "epoch,step,lr,train/loss,val/mask_AP,val/box_AP75,images_per_second,memory_mb,seconds"
    assert values == "1,,,,0.25,,,,"


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"augment": {"rotate": 10}}, r"augment\.rotate is 10.0, but pictures for 'mask_rcnn_resnet50_fpn' are resized"),
        ({"model": {"name": "mask_rcnn_resnet50_fpn", "outputs": "border"}}, "model.outputs is 'border'"),
        ({"sampling": "class_uniform"}, "has repeat_factor"),
        ({"model": {"name": "unet"}}, r"input\.resize is .*but 'unet' is no detector"),
        ({"model": {"name": "unet"}, "input": {}, "augment": {"copy_paste": 0.5}}, r"augment\.copy_paste is 0.5, but 'unet'"),
        ({"model": {"name": "unet", "outputs": "instances"}}, "'unet' is none"),
    ],
)
def test_settings_of_the_other_kind_are_refused(data: Path, changes: dict[str, Any], message: str) -> None:
    config = make_config(data, **changes)
    with pytest.raises(ConfigError, match=message):
        make_task(config, prepare_dataset(config.data), fresh=True)


def test_data_that_lack_what_is_learned(data: Path, worst: Dataset, tmp_path: Path) -> None:
    config = make_config(data, model={"name": "keypoint_rcnn_resnet50_fpn", "options": {"encoder": "resnet18", "width": 8}})
    with pytest.raises(DataError, match="has no keypoints, 'keypoint_rcnn_resnet50_fpn' finds 17"):
        make_task(config, prepare_dataset(config.data), fresh=True)
    boxes = replace(worst.records[0], instances=tuple(replace(i, segmentation=None) for i in worst.records[3].instances or ()))
    without = replace(worst, splits={"train": (boxes,), "val": ()})
    with pytest.raises(DataError, match=r"cannot learn masks; add outlines, or set model\.options\.masks=false"):
        make_task(make_config(data), without, fresh=True)
    semantic = open_dataset(make_blobs_dataset(tmp_path, 2, 16))
    with pytest.raises(DataError, match="has classes of pixels and no objects"):
        make_task(make_config(data), replace(semantic, splits={"train": semantic.records, "val": ()}), fresh=True)


def test_a_detector_gets_the_points_of_the_data(worst: Dataset) -> None:
    options = {"encoder": "resnet18", "width": 8, "keypoint_convs": 1, "keypoint_width": 8}
    config = make_config(worst.root, model={"name": "keypoint_rcnn_resnet50_fpn", "options": options})
    task = make_task(config, worst, fresh=True)
    assert task.monitor == "keypoint_AP"
    assert task.model.num_keypoints == 3
    assert task.conventions.keypoints == worst.keypoints

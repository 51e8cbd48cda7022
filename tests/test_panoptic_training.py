"""Panoptic networks from COCO's panoptic files to PQ: reading, targets, a short training, and its evaluation."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image

from _configs import QUICK
from _fake_detector import ScriptedDetector
from delineate.config import TrainConfig, build_config
from delineate.data import Dataset, check_dataset, conversion_losses, dataset_statistics, open_dataset, write_dataset
from delineate.data.instance_loader import InstanceSet, make_instance_loader
from delineate.data.instance_targets import load_objects
from delineate.data.load import load_panoptic
from delineate.data.objects import record_objects
from delineate.data.panoptic import PanopticMap, stuff_map
from delineate.data.preview import draw_truth
from delineate.data.samplers import Draw
from delineate.errors import DataError
from delineate.metrics.panoptic import PanopticQuality, score_panoptic_files
from delineate.models import create_model
from delineate.models.instance import InstanceModel
from delineate.ops.instances import Detections
from delineate.predict import Predictor
from delineate.predict.evaluate import evaluate
from delineate.predict.panoptic_scores import relabelled
from delineate.report.overlay import draw_instances, draw_stuff, to_display
from delineate.train import train
from delineate.train.build import prepare_dataset
from delineate.train.instance_rules import choose_sampling
from delineate.train.instance_task import InstanceTask
from delineate.train.optim import build_optimizer
from delineate.train.planner import format_of
from delineate.train.probe import InstanceProbe
from delineate.train.step import training_step
from delineate.weights import load_model, read_info
from delineate.weights.coco import COCO_CLASSES, COCO_STUFF

SIDE = 128
CATEGORIES = [  # ids are sparse, and stuff lies between things
    {"id": 90, "name": "grass", "isthing": 0},
    {"id": 7, "name": "dog", "isthing": 1},
    {"id": 20, "name": "sky", "isthing": 0},
    {"id": 3, "name": "cat", "isthing": 1},
]
VOID, CAT, DOG, SKY, GRASS = 0, 3, 7, 20, 90
COLOR = {VOID: 0, CAT: 100, DOG: 160, SKY: 220, GRASS: 40}  # of the pixels of a picture
KIND = {VOID: 255, CAT: 0, DOG: 0, SKY: 1, GRASS: 2}  # what the semantic head learns: stuff by id, from 1
Scene = list[tuple[int, tuple[int, int, int, int], int]]  # category, box x0 y0 x1 y1, crowd; later ones lie over earlier ones

SKY_AND_GRASS: Scene = [(SKY, (0, 0, 128, 64), 0), (GRASS, (0, 64, 128, 128), 0)]
SCENES: dict[str, Scene] = {
    "all": [*SKY_AND_GRASS, (CAT, (16, 40, 56, 90), 0), (DOG, (70, 50, 118, 100), 0), (CAT, (40, 40, 80, 70), 0)],
    "crowd": [(SKY, (0, 0, 128, 70), 0), (CAT, (8, 70, 60, 120), 0), (DOG, (64, 70, 120, 110), 1)],  # void at the bottom
    "no stuff": [(DOG, (10, 10, 60, 70), 0)],
    "no things": SKY_AND_GRASS,
}


def write_panoptic(folder: Path, split: str, scenes: dict[str, Scene], *, numbered: bool = False) -> Path:
    """`annotations/panoptic_SPLIT.json`, the PNGs beside it, and the pictures in `SPLIT/`, `numbered` in their first pixel."""
    masks = folder / "annotations" / f"panoptic_{split}"
    masks.mkdir(parents=True)
    (folder / split).mkdir()
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": CATEGORIES}
    for number, (name, scene) in enumerate(scenes.items()):
        colours, ids = np.zeros((SIDE, SIDE), np.uint8), np.zeros((SIDE, SIDE), np.int64)
        for n, (category, (x0, y0, x1, y1), _) in enumerate(scene):
            colours[y0:y1, x0:x1], ids[y0:y1, x0:x1] = COLOR[category], 1000 * (n + 1)
        colours[0, 0] = number if numbered else colours[0, 0]
        Image.fromarray(np.stack([colours] * 3, -1)).save(folder / split / f"{name}.png")
        Image.fromarray(np.stack([ids % 256, ids // 256, ids * 0], -1).astype(np.uint8)).save(masks / f"{name}.png")
        segments = [{"id": 1000 * (n + 1), "category_id": row[0], "iscrowd": row[2]} for n, row in enumerate(scene)]
        content["images"].append({"id": number, "file_name": f"{name}.png", "height": SIDE, "width": SIDE})
        content["annotations"].append({"image_id": number, "file_name": f"{name}.png", "segments_info": segments})
    path = masks.with_suffix(".json")
    path.write_text(json.dumps(content))
    return path


def kinds_in(image: np.ndarray) -> np.ndarray:
    """The class of stuff of each pixel, from its colour."""
    table = np.full(256, 99)
    for category, color in COLOR.items():
        table[color] = KIND[category]
    return table[image]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("panoptic")
    write_panoptic(folder, "train", SCENES)
    write_panoptic(folder, "val", SCENES | {"no things": [(SKY, (0, 0, 128, 80), 0), (GRASS, (0, 80, 128, 128), 0)]})
    return folder


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return open_dataset(folder, "coco:panoptic")


TINY = {"encoder": "resnet18", "norm": "group", "width": 16, "box_width": 32, "mask_convs": 1, "samples": 32, "stuff_width": 32}


def make_config(folder: Path, **changes: Any) -> TrainConfig:
    content: dict[str, Any] = {
        "data": {"path": str(folder), "format": "coco:panoptic"},
        "input": {"resize": {"shortest": 64, "longest": 64}},
        "model": {"name": "panoptic_fpn_resnet50", "options": TINY},
        "optimizer": {"name": "adamw", "lr": 2e-3, "schedule": "constant"},
        "epochs": 2,
        "steps_per_epoch": 10,
    }
    return build_config(QUICK | content | changes)


def make_set(dataset: Dataset, **augment: Any) -> InstanceSet:
    still = {"brightness": 0.0, "contrast": 0.0, "gamma": (1.0, 1.0), "flip_horizontal": 0.0}
    resize = {"resize": {"shortest": SIDE, "longest": SIDE}}
    config = make_config(dataset.root, augment=still | augment, batch=4, steps_per_epoch=None, input=resize)
    task = InstanceTask(config, dataset, model=None, fresh=False)
    # Pictures stay as they are stored, so that their colours tell the classes.
    plain = replace(task.conventions, value_range=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    return InstanceSet(dataset, dataset.splits["train"], config, plain, stuff=True)


class TestReading:
    def test_things_come_before_stuff_both_by_id(self, dataset: Dataset) -> None:
        assert (dataset.kind, dataset.classes, dataset.stuff) == ("panoptic", ("cat", "dog"), ("sky", "grass"))
        assert {split: len(records) for split, records in dataset.splits.items()} == {"train": 4, "val": 4}
        assert format_of(dataset) == "coco:panoptic"

    def test_one_file_is_recognised(self, folder: Path) -> None:
        path = folder / "annotations" / "panoptic_val.json"
        assert open_dataset(path).splits.keys() == {"val"}
        with pytest.raises(DataError, match="is a panoptic file"):
            open_dataset(path, "coco:instance")

    def test_objects_with_outlines_and_crowds(self, dataset: Dataset) -> None:
        whole, crowd, *_ = (record_objects(dataset, record) or () for record in dataset.splits["train"])
        boxes = [(o.label, o.box, o.area, o.crowd) for o in (*whole, *crowd)]
        assert boxes == [
            (0, (16, 40, 56, 90), 40 * 50 - 16 * 30, False),  # covered in part by the other cat
            (1, (70, 50, 118, 100), 48 * 50 - 10 * 20, False),
            (0, (40, 40, 80, 70), 40 * 30, False),
            (0, (8, 70, 60, 120), 52 * 50, False),
            (1, (64, 70, 120, 110), 56 * 40, True),
        ]

    def test_every_verb_of_data_reads_it(self, dataset: Dataset, tmp_path: Path) -> None:
        statistics = dataset_statistics(dataset)
        assert statistics.objects is not None
        assert (statistics.objects.count, statistics.objects.crowds) == (10, 2)
        report = check_dataset(dataset.root, "coco:panoptic")
        assert {finding.kind for finding in report.findings} <= {"same picture in two splits", "near-duplicate across splits"}
        assert conversion_losses(dataset, "coco") == ["2 kinds of stuff: only objects are written"]
        write_dataset(dataset, tmp_path / "out", "coco")
        assert sum(len(r.instances or ()) for r in open_dataset(tmp_path / "out").records) == 12

    def test_pictures_without_segments_are_left_out(self, folder: Path, tmp_path: Path) -> None:
        copied = Path(shutil.copytree(folder, tmp_path / "copy")) / "annotations" / "panoptic_train.json"
        content = json.loads(copied.read_text())
        copied.write_text(json.dumps(content | {"annotations": content["annotations"][1:]}))
        dataset = open_dataset(copied)
        assert [record.name for record in dataset.records] == ["crowd", "no stuff", "no things"]
        assert dataset.notes == ("panoptic_train.json: 1 pictures have no segments and are left out",)

    def test_cocos_own(self, real_data: Path) -> None:
        dataset = open_dataset(real_data / "coco2017_mini", "coco:panoptic")
        assert (dataset.classes, dataset.stuff) == (COCO_CLASSES, COCO_STUFF)
        assert [len(records) for records in dataset.splits.values()] == [20, 33]
        seen = hashlib.sha256()
        for record in dataset.splits["val"]:
            assert record.label_map is not None
            assert record.size is not None
            seen.update(stuff_map(load_panoptic(record.label_map, record.image, record.size), len(COCO_CLASSES)).tobytes())
        # What datasets/prepare_panoptic_fpn.py of facebookresearch/detectron2 (02b5c4e2) makes of the same 33 pictures.
        assert seen.hexdigest()[:16] == "a7b3b38956a5bf13"

    def test_drawings_show_stuff(self, dataset: Dataset) -> None:
        for record in dataset.splits["train"]:
            sample, drawn = draw_truth(dataset, record)
            below = draw_stuff(sample.image, kinds_in(sample.image[0].numpy()), dataset.stuff)
            masks, labels = sample.masks, sample.labels
            assert torch.equal(
                drawn, draw_instances(below, masks=masks, boxes=sample.boxes, labels=labels, names=dataset.classes)
            )
            assert not torch.equal(below, to_display(sample.image))


class TestTargets:
    @pytest.mark.parametrize("name", SCENES)
    def test_classes_of_pixels(self, dataset: Dataset, name: str) -> None:
        record = next(r for r in dataset.splits["train"] if r.name.endswith(name))
        sample = load_objects(dataset, record, stuff=True)
        assert sample.semantic is not None
        np.testing.assert_array_equal(sample.semantic.numpy(), kinds_in(sample.image[0].numpy()))

    def test_a_flip_moves_them_with_the_picture(self, dataset: Dataset) -> None:
        _, flipped = make_set(dataset, flip_horizontal=1.0)[Draw(0, 0)]
        straight = load_objects(dataset, dataset.splits["train"][0], stuff=True).semantic
        assert flipped.semantic is not None
        assert straight is not None
        assert not torch.equal(flipped.semantic, straight)
        assert torch.equal(flipped.semantic, straight.flip(-1))

    def test_jitter_turns_and_padding(self, dataset: Dataset) -> None:
        """Whatever is drawn, the colour of a pixel tells its class, save where colours mix between two classes."""
        pictures = make_set(dataset, patch=(96, 96), jitter=(0.4, 1.6), flip_horizontal=0.5, rotate90=True)
        (batch,) = make_instance_loader(pictures)
        semantic = batch.targets.semantic
        assert semantic.dtype == torch.int64
        assert semantic.shape == batch.images[:, 0].shape
        told = torch.from_numpy(kinds_in(batch.images[:, 0].round().numpy().astype(int)))
        assert (told != 99).float().mean() > 0.9
        assert ((told == semantic) | (told == 99)).float().mean() > 0.97
        for kinds, (height, width) in zip(semantic, batch.sizes.tolist(), strict=True):
            assert (kinds[height:] == 255).all()
            assert (kinds[:, width:] == 255).all()

    def test_a_crowd_does_not_make_a_class_present(self, dataset: Dataset) -> None:
        assert make_set(dataset).presence().tolist() == [[True, True], [True, False], [False, True], [False, False]]
        reason = choose_sampling(dataset.splits["train"], dataset.classes)[2]["data.sampling"]
        assert reason == "no class is in far fewer pictures than the others"

    def test_what_is_pasted_is_a_thing(self, dataset: Dataset) -> None:
        pictures = make_set(dataset, copy_paste=1.0)
        drawn = [pictures[Draw(3, ticket)][1] for ticket in range(6)]  # the picture without things
        assert any(len(sample.labels) for sample in drawn if sample.labels is not None)
        for sample in drawn:
            assert sample.semantic is not None
            assert sample.masks is not None
            assert torch.equal(sample.semantic == 0, sample.masks.any(0))


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    train(make_config(folder), out, quiet=True)
    return out


class TestTraining:
    def test_the_loss_of_classes_falls_and_quality_is_measured(self, run: Path) -> None:
        with (run / "results.csv").open() as file:
            first, *_, last = list(csv.DictReader(file))
        assert float(last["train/semantic"]) < 0.5 * float(first["train/semantic"])
        assert float(last["val/pq_stuff"]) > 0.3
        assert {"val/pq", "val/sq_things", "val/rq", "val/rq_stuff", "val/mask_AP"} <= last.keys()

    def test_weights_know_their_stuff(self, run: Path) -> None:
        info = read_info(run / "weights" / "best.safetensors")
        assert (info.classes, info.conventions.stuff) == (("cat", "dog"), ("sky", "grass"))

    def test_evaluation_is_the_measure_of_what_is_predicted(
        self, run: Path, folder: Path, dataset: Dataset, tmp_path: Path
    ) -> None:
        predictor = Predictor(run / "weights" / "last.safetensors", "cpu", "fp32")
        evaluation = evaluate(
            predictor, dataset, dataset.splits["val"], split="val", intervals=None, previews=tmp_path / "seen"
        )
        ids, found = [CAT, DOG, SKY, GRASS], tmp_path / "found"
        found.mkdir()
        quality = PanopticQuality(4, things=(0, 1))
        content = []
        for number, record in enumerate(dataset.splits["val"]):
            picture = predictor.predict(record.image).panoptic
            truth = np.asarray(Image.open(folder / "annotations" / "panoptic_val" / record.image.name)).astype(int)
            scene = SCENES[record.image.stem]  # that of the training, but for the place of a border
            labels = np.array([ids.index(category) for category, _, _ in scene])
            crowd = np.array([bool(row[2]) for row in scene])
            assert picture is not None
            quality.update(picture, PanopticMap((truth[..., 0] + 256 * truth[..., 1]) // 1000, labels, crowd))
            Image.fromarray(np.stack([picture.segments, *[picture.segments * 0] * 2], -1).astype(np.uint8)).save(
                found / f"{number}.png"
            )
            segments = [{"id": n + 1, "category_id": ids[label]} for n, label in enumerate(picture.labels)]
            content.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
        expected = quality.summary()
        assert expected["pq_stuff"] > 0.3
        for name, value in expected.items():
            assert evaluation.summary[name] == pytest.approx(value, nan_ok=True), name
        (tmp_path / "found.json").write_text(json.dumps({"annotations": content}))
        scored = score_panoptic_files(
            tmp_path / "found.json", folder / "annotations" / "panoptic_val.json", prediction_folder=found
        )
        assert float(scored.quality.mean_pq()) == pytest.approx(expected["pq"])
        with (run / "results.csv").open() as file:
            *_, last = list(csv.DictReader(file))
        assert float(last["val/pq"]) == pytest.approx(expected["pq"], abs=1e-6)
        assert {row["name"] for row in evaluation.per_class if "pq" in row} == {"cat", "dog", "sky", "grass"}
        evaluation.print()

    def test_stuff_that_is_too_small_is_left_out(self, run: Path, dataset: Dataset) -> None:
        """Of the halves of the last picture, 10240 and 6144 pixels, one is large enough."""
        model: Any = load_model(run / "weights" / "last.safetensors")
        model.min_stuff_area = 8000
        panoptic = Predictor(model, "cpu", "fp32").predict(dataset.splits["val"][3].image).panoptic
        assert panoptic is not None
        assert panoptic.labels.tolist() == [2]
        small = create_model("panoptic_fpn_resnet50", 2, **TINY, num_stuff=2, min_stuff_area=10)
        assert isinstance(small, InstanceModel)
        assert small.min_stuff_area == 10

    def test_probe_of_the_planner(self, dataset: Dataset) -> None:
        task = InstanceTask(make_config(dataset.root), dataset, model=None, fresh=False)
        assert InstanceProbe(task, (64, 64), 2, torch.device("cpu"), "fp32").memory().total(1) > 0


WORST: dict[str, Scene] = {
    "nothing": [],
    "only a crowd": [(DOG, (10, 10, 90, 90), 1)],
    "objects of a pixel": [*SKY_AND_GRASS, (CAT, (5, 5, 6, 6), 0), (DOG, (127, 127, 128, 128), 0)],
    "stuff of a pixel": [(SKY, (64, 64, 65, 65), 0)],
    "one object that fills the picture": [(CAT, (0, 0, 128, 128), 0)],
    "all but a column covered": [(CAT, (8, 8, 60, 60), 0), (DOG, (9, 8, 60, 60), 0)],
}


def test_no_loss_or_gradient_of_the_worst_data_is_nan(tmp_path: Path) -> None:
    dataset = open_dataset(write_panoptic(tmp_path, "train", WORST))
    dataset = replace(dataset, splits={"train": dataset.records, "val": dataset.records})
    config = make_config(tmp_path, batch=1, steps_per_epoch=None)
    task = InstanceTask(config, dataset, model=None, fresh=False)
    fabric = Fabric(accelerator="cpu", devices=1)
    model, optimizer = fabric.setup(task.model, build_optimizer(task.model, config.optimizer))
    batches = list(task.loader(rank=0, world=1))
    assert len(batches) == len(WORST)
    usual = batches[0].targets
    outside = torch.tensor([[[200.0, 200, 300, 300], [-9, -9, 0, 0], [60, 60, 900, 900]]])
    rows = torch.ones(1, 3, dtype=torch.bool)
    void = torch.full_like(usual.semantic, 255)
    masks = torch.zeros(1, 3, *void.shape[1:], dtype=torch.bool)
    beyond = usual._replace(boxes=outside, labels=rows.long(), valid=rows, crowd=~rows, masks=masks, semantic=void)
    for batch in (*batches, replace(batches[0], names=("boxes outside, all void",), targets=beyond)):
        result = training_step(fabric, model, optimizer, task.loss, [batch])
        assert result.finite, (batch.names, result)
        assert result.values.keys() >= {"semantic", "mask", "box"}
        assert all(map(math.isfinite, result.values.values())), (batch.names, result)
    assert all(p.isfinite().all() for p in task.model.parameters())
    assert math.isfinite(task.measure(fabric)(task.model)["pq"])


class Oracle(ScriptedDetector):
    """Finds the objects of `SCENES`, and of stuff what the colours tell, both with classes in another order than the data."""

    def __init__(self) -> None:
        answers = {n: self._answer(scene) for n, scene in enumerate(SCENES.values())}
        super().__init__(answers, classes=("dog", "cat", "horse"), stuff=("sea", "grass", "sky"))
        self.num_stuff = 3

    @staticmethod
    def _answer(scene: Scene) -> tuple[list, list, list]:
        things = [
            (box, int(category == CAT)) for category, box, crowd in reversed(scene) if category in (CAT, DOG) and not crowd
        ]
        return [box for box, _ in things], [1 - 0.1 * n for n in range(len(things))], [label for _, label in things]

    def forward(self, images: torch.Tensor, sizes: torch.Tensor | None = None, targets: object = None) -> Detections:
        kinds = torch.from_numpy(kinds_in(images[:, 0, 1::4, 1::4].round().numpy().astype(int)))
        logits = torch.stack([(kinds == 0) | (kinds == 255), kinds == 99, kinds == 2, kinds == 1], 1)
        return super().forward(images, sizes)._replace(semantic=logits.float())


def test_classes_in_another_order_and_crowds(tmp_path: Path) -> None:
    dataset = open_dataset(write_panoptic(tmp_path, "val", SCENES, numbered=True))
    predictor = Predictor(Oracle(), "cpu", "fp32")
    evaluation = evaluate(predictor, dataset, dataset.records, split="val", intervals=None)
    assert evaluation.summary["pq_things"] == 1  # each found exactly; the crowd, which is not found, is not missed
    assert evaluation.summary["rq_stuff"] == 1
    assert evaluation.summary["sq_stuff"] > 0.95  # around objects the coarse map is not exact
    assert {"the network's stuff also finds sea, which the truth has not: left out"} <= set(evaluation.notes)
    assert evaluation.images[2].numbers["pq"] == 1  # one object and void
    assert np.isnan(evaluation.images[2].numbers["pq_stuff"])
    assert np.isnan(evaluation.images[3].numbers["pq_things"])


def test_data_without_stuff_or_with_other_stuff_are_refused(folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    write_dataset(dataset, tmp_path / "out", "coco")
    config = make_config(tmp_path / "out", data={"path": str(tmp_path / "out")})
    with pytest.raises(DataError, match="has no stuff beside its objects"):
        InstanceTask(config, prepare_dataset(config.data), model=None, fresh=False)
    config = make_config(folder, model={"name": "panoptic_fpn_resnet50", "options": TINY | {"num_stuff": 3}})
    with pytest.raises(DataError, match="has 2 kinds of stuff, 'panoptic_fpn_resnet50' finds 3"):
        InstanceTask(config, dataset, model=None, fresh=False)


def test_what_the_data_do_not_know_becomes_void() -> None:
    picture = PanopticMap(np.array([[0, 1, 2, 3]]), np.array([0, 1, 2]), np.zeros(3, bool))
    changed = relabelled(picture, np.array([4, -1, 0]))
    assert changed.segments.tolist() == [[0, 1, 0, 2]]
    assert changed.labels.tolist() == [4, 0]

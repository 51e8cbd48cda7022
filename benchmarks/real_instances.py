"""Detectors trained from scratch on real pictures: ours against torchvision's, from the same weights, through the same loop.

    python benchmarks/real_instances.py --data ../shared/data

Four sets: people of Penn-Fudan (masks), sportsmen of LSPET (14 keypoints, a skeleton of its own), and two that are learned by
heart, since there are too few pictures to learn from: COCO's objects (masks) and COCO's people (17 keypoints). Both networks
are a Mask or Keypoint R-CNN on a ResNet-18 with a thin pyramid and thin heads, so that a CPU can train them; they begin with
the same weights, see the same pictures in the same order with the same changes, and follow the same schedule. `--networks`
may add ours with torchvision's conventions. COCO's numbers of the last weights, with 95 % bootstrap intervals over pictures,
the paired differences, and the CPU time of a step on one thread go to benchmarks/results/real_instances.json, where those of
other sets stay. A run that was stopped goes on where it was; what has been measured is not run again.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import pickle
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import KeypointRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

import delineate as dl
from _environment import environment
from delineate.config import TrainConfig, build_config
from delineate.data import Dataset, Instance, KeypointSchema, Record, open_dataset
from delineate.files import atomic_path, write_json
from delineate.metrics.average_precision import ApSettings
from delineate.metrics.bootstrap import Draws, compare_scores, score_intervals
from delineate.metrics.detection import DetectionScores, FoundObjects
from delineate.metrics.matches import Matches
from delineate.models.detector_conventions import DETECTOR_CONVENTIONS
from delineate.models.instance import InstanceModel
from delineate.ops.instances import Detections, InstanceTargets
from delineate.predict.detections import true_objects
from delineate.train import train
from delineate.train.optim import build_optimizer
from delineate.train.step import training_step
from delineate.train.task import make_task
from delineate.train.validate_instances import NAMES
from delineate.weights.torchvision import from_torchvision

RESULTS = Path(__file__).parent / "results" / "real_instances.json"
WIDTH, BOX_WIDTH, MASK_CONVS, KEYPOINT_CONVS, KEYPOINT_WIDTH, SAMPLES = 64, 256, 2, 4, 128, 64
NETWORKS = {"ours": "detectron2", "torchvision": None, "ours, torchvision's conventions": "torchvision"}
LOSSES = {"loss_objectness": "rpn_objectness", "loss_rpn_box_reg": "rpn_box", "loss_classifier": "classifier"}
LOSSES |= {"loss_box_reg": "box", "loss_mask": "mask", "loss_keypoint": "keypoint"}

LSPET = KeypointSchema(
    names=(
        *("r_ankle", "r_knee", "r_hip", "l_hip", "l_knee", "l_ankle"),
        *("r_wrist", "r_elbow", "r_shoulder", "l_shoulder", "l_elbow", "l_wrist"),
        *("neck", "head_top"),
    ),
    edges=((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (9, 10), (10, 11), (8, 12), (9, 12), (12, 13)),
    flip_pairs=((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9)),
    # COCO's of the joints that it has; neck and head as CrowdPose has them
    sigmas=(0.089, 0.087, 0.107, 0.107, 0.087, 0.089, 0.062, 0.072, 0.079, 0.079, 0.072, 0.062, 0.079, 0.079),
)


@dataclass(frozen=True)
class Experiment:
    """A set of pictures and how it is trained on."""

    steps: int
    shortest: int
    batch: int
    augment: dict[str, Any] = field(default_factory=lambda: {"brightness": 0.2, "contrast": 0.2})
    rate: float = 1e-3
    monitor: str = "mask_AP"
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512)
    precision: str = "fp32"


SMALL_ANCHORS = (8, 16, 32, 64, 128)  # COCO's small objects are a few pixels wide in pictures this small

EXPERIMENTS = {
    "pennfudan": Experiment(steps=500, shortest=192, batch=4),
    "coco by heart": Experiment(
        steps=3000, shortest=256, batch=4, augment={"flip_horizontal": 0.0}, anchors=SMALL_ANCHORS, precision="bf16"
    ),
    "lspet": Experiment(steps=600, shortest=128, batch=4, monitor="keypoint_AP"),
    "coco people": Experiment(
        steps=1500,
        shortest=192,
        batch=4,
        augment={"flip_horizontal": 0.0},
        monitor="keypoint_AP",
        anchors=SMALL_ANCHORS,
        precision="bf16",
    ),
}


# --- data ---------------------------------------------------------------------------------------------------------------


def load_data(name: str, data: Path, pictures: int) -> Dataset:
    """Return the set `name`, with pictures to train on and others to measure by; those learned by heart are both."""
    if name == "pennfudan":
        dataset = open_dataset(data / "pennfudan")
        held = [record for record in dataset.records if _held_back(record.name)]
        return _split(dataset, [record for record in dataset.records if record not in held], held)
    if name == "lspet":
        records = read_lspet(data / "lspet")
        dataset = Dataset(data / "lspet", "coco", "keypoint", ("person",), {"all": tuple(records)}, LSPET)
        return _split(dataset, records[:-90], records[-90:])
    kind = "instances" if name == "coco by heart" else "person_keypoints"
    dataset = open_dataset(data / "coco2017_mini" / "annotations" / f"{kind}_train2017.json")
    if name == "coco by heart":
        chosen = dataset.records[:pictures]
    else:
        chosen = tuple(record for record in dataset.records if _has_points(record))
    return _split(dataset, chosen, chosen)


def _split(dataset: Dataset, training: Any, validation: Any) -> Dataset:
    return replace(dataset, splits={"train": tuple(training), "val": tuple(validation)})


def _held_back(name: str) -> bool:
    """The pictures that the copy of Penn-Fudan suggests for validation."""
    number = int(name[-5:])
    return number >= 46 if name.startswith("Fudan") else number >= 60


def _has_points(record: Record) -> bool:
    return any(v for i in record.instances or () if i.keypoints and not i.crowd for _, _, v in i.keypoints)


def read_lspet(folder: Path) -> list[Record]:
    """Read joints.csv: one person a picture, its box that of its joints and a tenth around, its area that of the box."""
    from delineate.data import image_size

    records = []
    with (folder / "joints.csv").open() as file:
        for row in csv.DictReader(file):
            path = folder / "images" / row["image"]
            height, width = image_size(path)
            points = [(float(row[f"{n}_x"]), float(row[f"{n}_y"]), 2 * int(row[f"{n}_v"])) for n in LSPET.names]
            points = [(x, y, v if 0 <= x < width and 0 <= y < height else 0) for x, y, v in points]
            seen = np.array([(x, y) for x, y, v in points if v])
            (x0, y0), (x1, y1) = seen.min(0), seen.max(0)
            edge = 0.1 * max(x1 - x0, y1 - y0)
            box = (max(0.0, x0 - edge), max(0.0, y0 - edge), min(float(width), x1 + edge), min(float(height), y1 + edge))
            area = (box[2] - box[0]) * (box[3] - box[1])
            person = Instance(0, box=box, keypoints=tuple(points), area=area)
            records.append(Record(path.stem, path, size=(height, width), instances=(person,)))
    return records


# --- networks -----------------------------------------------------------------------------------------------------------


class ContiguousPredictor(KeypointRCNNPredictor):
    """torchvision's loss takes views of the heatmaps, which channels-last memory, as we train in on a CPU, does not allow."""

    def forward(self, x: Tensor) -> Tensor:
        """Return heatmaps (R, K, 56, 56)."""
        return super().forward(x).contiguous()


class TorchvisionDetector(InstanceModel):
    """torchvision's detector with the face of ours: its own network and losses, without its resizing, which is done before."""

    def __init__(self, network: MaskRCNN | KeypointRCNN, classes: int, points: int) -> None:
        super().__init__()
        self.network = network
        self.has_masks, self.num_keypoints = not points, points
        self.detector_conventions = DETECTOR_CONVENTIONS["torchvision"]
        self.architecture = {"name": "torchvision", "num_classes": classes, "options": {}}

    def forward(
        self, images: Tensor, sizes: Tensor | None = None, targets: InstanceTargets | None = None
    ) -> Detections | dict[str, Tensor]:
        """Return detections, or losses if there are `targets`."""
        height, width = images.shape[-2:]
        shapes = [(height, width)] * len(images) if sizes is None else [(int(h), int(w)) for h, w in sizes]
        truth = None if targets is None else [self._truth(targets, b) for b in range(len(images))]
        maps = self.network.backbone(images)
        proposals, losses = self.network.rpn(ImageList(images, shapes), maps, truth)
        found, more = self.network.roi_heads(maps, proposals, shapes, truth)
        if targets is not None:
            return {LOSSES[name]: value for name, value in (losses | more).items()}
        return self._detections(found)

    def _truth(self, targets: InstanceTargets, index: int) -> dict[str, Tensor]:
        rows = targets.valid[index] & ~targets.crowd[index]
        truth = {"boxes": targets.boxes[index][rows], "labels": targets.labels[index][rows] + 1}
        if targets.masks is not None:
            truth["masks"] = targets.masks[index][rows].to(torch.uint8)
        if targets.keypoints is not None:
            truth["keypoints"] = targets.keypoints[index][rows]
        return truth

    def _detections(self, found: list[dict[str, Tensor]]) -> Detections:
        counts = torch.tensor([len(one["scores"]) for one in found], device=found[0]["scores"].device)
        capacity = max(1, int(counts.max()))

        def fill(name: str, *shape: int) -> Tensor:
            rows = found[0][name].new_zeros(len(found), capacity, *shape)
            for row, one in zip(rows, found, strict=True):
                row[: len(one[name])] = one[name]
            return rows

        valid = torch.arange(capacity, device=counts.device) < counts[:, None]
        masks = fill("masks", 1, 28, 28)[:, :, 0] if self.has_masks else None
        points = fill("keypoints", self.num_keypoints, 3)[..., :2] if self.num_keypoints else None
        logits = fill("keypoints_scores", self.num_keypoints) if self.num_keypoints else None
        labels = (fill("labels") - 1).clamp(min=0)
        return Detections(fill("boxes", 4), fill("scores"), labels, valid, masks, points, logits, logits)


def build_torchvision(classes: int, points: int, anchors: tuple[int, ...]) -> TorchvisionDetector:
    """Build torchvision's detector with a ResNet-18 and thin parts."""
    stages = {f"layer{n}": str(n - 1) for n in range(1, 5)}
    backbone = BackboneWithFPN(resnet18(), stages, [64, 128, 256, 512], WIDTH)
    assert isinstance(backbone.body, IntermediateLayerGetter)
    common = {
        "rpn_anchor_generator": AnchorGenerator(tuple((size,) for size in anchors), ((0.5, 1.0, 2.0),) * 5),
        "box_head": TwoMLPHead(WIDTH * 49, BOX_WIDTH),
        "box_predictor": FastRCNNPredictor(BOX_WIDTH, classes + 1),
        "box_batch_size_per_image": SAMPLES,
    }
    if points:
        head = KeypointRCNNHeads(WIDTH, (KEYPOINT_WIDTH,) * KEYPOINT_CONVS)
        predictor = ContiguousPredictor(KEYPOINT_WIDTH, points)
        network = KeypointRCNN(backbone, keypoint_head=head, keypoint_predictor=predictor, **common)
    else:
        head = MaskRCNNHeads(WIDTH, (WIDTH,) * MASK_CONVS, 1)
        network = MaskRCNN(backbone, mask_head=head, mask_predictor=MaskRCNNPredictor(WIDTH, WIDTH, classes + 1), **common)
    return TorchvisionDetector(network, classes, points)


def build(convention: str | None, dataset: Dataset, points: int, anchors: tuple[int, ...], seed: int) -> InstanceModel:
    """Return torchvision's detector, or ours with the same weights and the given conventions."""
    torch.manual_seed(seed)
    theirs = build_torchvision(len(dataset.classes), points, anchors)
    if convention is None:
        return theirs
    options: dict[str, Any] = {"encoder": "resnet18", "width": WIDTH, "box_width": BOX_WIDTH, "samples": SAMPLES}
    options |= {"mask_convs": MASK_CONVS, "keypoint_convs": KEYPOINT_CONVS, "keypoint_width": KEYPOINT_WIDTH}
    options |= {"anchors": list(anchors), "convention": convention, "masks": not points, "num_keypoints": points}
    ours = dl.create_model("mask_rcnn_resnet50_fpn", len(dataset.classes), **options)
    assert isinstance(ours, InstanceModel)
    ours.load_state_dict(from_torchvision(theirs.network.state_dict()))
    return ours


# --- training and measuring ---------------------------------------------------------------------------------------------


def config_of(dataset: Dataset, experiment: Experiment, steps: int, seed: int, device: str) -> TrainConfig:
    """Return the config of both networks."""
    content = {
        "data": {"path": str(dataset.root)},
        "input": {"resize": {"shortest": experiment.shortest, "longest": 2 * experiment.shortest}},
        "augment": experiment.augment,
        "optimizer": {
            "name": "adamw",
            "lr": experiment.rate,
            "clip_norm": 5.0,
            "warmup_steps": steps // 20,
            "schedule": "cosine",
        },
        "epochs": 1,
        "steps_per_epoch": steps,
        "batch": experiment.batch,
        "workers": 0,
        "precision": experiment.precision,
        "tensorboard": False,
        "seed": seed,
        "device": device,
    }
    return build_config(content, source="real_instances")


def run(model: nn.Module, dataset: Dataset, config: TrainConfig, out: Path) -> dict[str, Any]:
    """Train and measure a network, or go on with it, or read what came of it before."""
    done = out / "outcome.pkl"
    if done.exists():
        return pickle.loads(done.read_bytes())
    result = train(config, out, model=model, dataset=dataset, resume=out.exists())
    model.load_state_dict(load_file(result.last))
    outcome = {"matches": measure(model, dataset, config.device)}
    with atomic_path(done) as temporary:
        temporary.write_bytes(pickle.dumps(outcome))
    return outcome


def step_seconds(model: InstanceModel, dataset: Dataset, config: TrainConfig) -> float:
    """CPU seconds of a training step on one thread, reading included: the median of five, after one that warms up."""
    config = config.model_copy(update={"steps_per_epoch": 6, "device": "cpu"})
    task = make_task(config, dataset, model=copy.deepcopy(model), fresh=False)
    fabric = Fabric(accelerator="cpu", devices=1)
    network, optimizer = fabric.setup(task.model, build_optimizer(task.model, config.optimizer))
    network.train()
    times, start = [], time.process_time()
    for batch in task.loader(rank=0, world=1):
        training_step(fabric, network, optimizer, task.loss, [batch])
        times.append(time.process_time() - start)
        start = time.process_time()
    return float(np.median(times[1:]))


def measure(model: Any, dataset: Dataset, device: str) -> dict[str, Matches]:
    """What each validation picture adds to COCO's numbers."""
    predictor = dl.Predictor(model, device, "fp32", 0.0)
    scores = {"bbox": DetectionScores(dataset.classes, "bbox")}
    if model.has_masks:
        scores["segm"] = DetectionScores(dataset.classes, "segm")
    if model.num_keypoints:
        assert dataset.keypoints is not None
        scores["keypoints"] = DetectionScores(dataset.classes, ApSettings.coco("keypoints", sigmas=dataset.keypoints.sigmas))
    for record in dataset.splits["val"]:
        results = predictor.predict(record.image)
        found = FoundObjects(results.scores, results.labels, results.boxes, results.masks, results.keypoints)
        for one in scores.values():
            one.update(record.name, found, true_objects(dataset, record))
    return {kind: one.matches() for kind, one in scores.items()}


def numbers(matches: dict[str, Matches], draws: Draws) -> dict[str, Any]:
    """AP, AP50 and AP75, in percent, of each kind for resampled pictures."""
    found: dict[str, Any] = {}
    for kind, part in matches.items():
        scores = part.scores(draws)
        found |= {f"{NAMES[kind]}_{name}": 100 * scores[name] for name in ("AP", "AP50", "AP75")}  # pyright: ignore
    return found


def summarise(outcomes: dict[str, dict[str, Any]], pictures: int) -> dict[str, Any]:
    """Numbers of each network, and the paired differences of ours and torchvision's."""
    report: dict[str, Any] = {"validation_pictures": pictures, "networks": {}, "differences": {}}
    for name, outcome in outcomes.items():
        score = partial(numbers, outcome["matches"])
        report["networks"][name] = {
            "scores": {key: float(value[0]) for key, value in score(np.ones((1, pictures))).items()},
            "intervals": {key: list(interval) for key, interval in score_intervals(score, pictures).items()},
            "cpu_seconds_a_step": outcome["cpu_seconds_a_step"],
        }
        if name != "torchvision" and "torchvision" in outcomes:
            theirs = partial(numbers, outcomes["torchvision"]["matches"])
            compared = compare_scores(score, theirs, pictures)
            report["differences"][f"{name} - torchvision"] = {key: value._asdict() for key, value in compared.items()}
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds pennfudan, lspet and coco2017_mini")
    parser.add_argument("--sets", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=["ours", "torchvision"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longer", type=float, default=1.0, help="factor on the number of steps (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=128, help="learned by heart, of 128 (default: %(default)s)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=Path, default=Path("runs/real_instances"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    report: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"sets": {}}
    for name in arguments.sets:
        experiment = EXPERIMENTS[name]
        dataset = load_data(name, arguments.data, arguments.pictures)
        points = len(dataset.keypoints.names) if experiment.monitor == "keypoint_AP" and dataset.keypoints is not None else 0
        steps = round(experiment.steps * arguments.longer)
        config = config_of(dataset, experiment, steps, arguments.seed, arguments.device)
        outcomes: dict[str, dict[str, Any]] = {}
        for network in arguments.networks:
            model = build(NETWORKS[network], dataset, points, experiment.anchors, arguments.seed)
            out = arguments.runs / f"{name}-{network}-{len(dataset.splits['train'])}-{steps}-{arguments.seed}".replace(
                ", ", "-"
            ).replace(" ", "_").replace("'", "")
            seconds = step_seconds(model, dataset, config)
            outcomes[network] = run(model, dataset, config, out) | {"cpu_seconds_a_step": seconds}
            setting: dict[str, Any] = {"environment": environment(), "seed": arguments.seed}
            setting |= {"training_pictures": len(dataset.splits["train"]), "steps": steps, "batch": config.batch}
            setting |= {"anchors": experiment.anchors, "precision": config.precision}
            setting |= {"shortest": experiment.shortest, "parameters": sum(p.numel() for p in model.parameters())}
            report["sets"][name] = setting | summarise(outcomes, len(dataset.splits["val"]))
            print(f"{name}, {network}: {report['sets'][name]['networks'][network]['scores']}", flush=True)
            write_json(arguments.out, report)


if __name__ == "__main__":
    main()

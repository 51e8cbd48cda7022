"""Semantic networks trained from scratch on CamVid and ISBI-2012: the zoo's, smp's and torchvision's, through the same loop.

    python benchmarks/semantic.py --data ../shared/data
    python benchmarks/semantic.py --data ../shared/data --sets camvid --networks hrnet_w18 "smp FPN, resnet50" --no-report

Every network sees the same pictures, crops, changes, loss and schedule, from random weights; the weights after the last step
are measured on pictures kept aside (CamVid's official test split; slices 24 to 29 of ISBI). A network that was trained with
attention over scales is measured in five ways on one set of weights: its attention, average and maximum over three scales,
its attention over two, and one scale alone; one that was trained plainly, also averaged over three scales. mean IoU over the
pixels of all pictures with 95 % bootstrap intervals over pictures, paired differences, parameters, FLOPs and pictures a second
(one thread, all networks in turn) go to benchmarks/results/semantic.json. Runs that are done are not repeated, so that several
processes may share `--runs`.
"""

from __future__ import annotations

import argparse
import pickle
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import segmentation_models_pytorch as smp
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_resnet50

import delineate as dl
from _environment import environment
from delineate.config import TrainConfig, build_config
from delineate.data import Dataset, open_dataset
from delineate.files import atomic_path, write_json, write_text
from delineate.metrics.bootstrap import Draws, compare_scores, score_intervals
from delineate.metrics.confusion import ConfusionMatrix
from delineate.models.complexity import count_flops, count_parameters
from delineate.models.multiscale_attention import HierarchicalMultiScaleAttention
from delineate.models.semantic import SemanticModel
from delineate.ops.outputs import WithAuxiliary
from delineate.predict.reading import read_labelling, truth_size
from delineate.train import train

RESULTS = Path(__file__).parent / "results" / "semantic.json"
CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign"),
    *("fence", "car", "pedestrian", "bicyclist", "unlabelled"),
)
SCALES = (0.5, 1.0, 2.0)

# How the weights of a network that was trained with attention over scales, or plainly, are measured beside its own way.
TRAINED_ON_SCALES = {
    "one scale": ("attention", (1.0,)),
    "attention, scales 0.5 and 1": ("attention", (0.5, 1.0)),
    "attention, scales 0.5, 1 and 2": ("attention", SCALES),
    "average, scales 0.5, 1 and 2": ("average", SCALES),
    "maximum, scales 0.5, 1 and 2": ("maximum", SCALES),
}
TRAINED_PLAINLY = {"one scale": ("average", (1.0,)), "average, scales 0.5, 1 and 2": ("average", SCALES)}


@dataclass(frozen=True)
class Experiment:
    """A set of pictures, how long it is trained on, and what is special to it."""

    networks: tuple[str, ...]
    steps: int
    patch: int
    content: dict[str, Any] = field(default_factory=dict)
    plainly: tuple[str, ...] = ()  # networks trained without scales that are measured on several too


EXPERIMENTS = {
    "camvid": Experiment(
        networks=(
            *("unet", "unet_resnet34", "hrnet_w18", "hrnet_w48_ocr", "hmsa_hrnet_w18", "hmsa_hrnet_w48_ocr"),
            *("deeplabv3_resnest50", "semantic_fpn_resnet50"),
            *("smp Unet, resnet34", "smp FPN, resnet50", "smp DeepLabV3, resnest50", "torchvision deeplabv3_resnet50"),
        ),
        steps=250,
        patch=160,
        content={"augment": {"scale": [0.5, 1.25], "brightness": 0.2, "contrast": 0.2}},
        plainly=("hrnet_w18",),
    ),
    "isbi2012_em": Experiment(
        networks=("unet", "hmsa_unet"),
        steps=250,
        patch=192,
        content={
            "input": {"color": "gray", "mean": [0.5], "std": [0.17]},
            "augment": {"scale": [0.8, 1.25], "elastic": 10.0, "flip_vertical": 0.5, "rotate90": True},
        },
        plainly=("unet",),
    ),
}


# --- data ---------------------------------------------------------------------------------------------------------------


def load_data(name: str, data: Path, work: Path) -> Dataset:
    """Return the set `name` with the pictures to train on as "train" and those to measure by as "val"."""
    if name == "isbi2012_em":
        dataset = open_dataset(data / name)
        records = sorted(dataset.splits["train"], key=lambda record: record.name)
        return replace(dataset, splits={"train": tuple(records[:24]), "val": tuple(records[24:])})
    shutil.copytree(data / name, work, dirs_exist_ok=True)  # a copy, beside which the names of the classes can be written
    write_text(work / "classes.txt", "".join(f"{name}\n" for name in CAMVID_CLASSES))
    dataset = open_dataset(work)
    return replace(dataset, splits={"train": dataset.splits["train"], "val": dataset.splits["test"]})


# --- networks -----------------------------------------------------------------------------------------------------------


class Peer(SemanticModel):
    """A network of another library with the face of ours."""

    def __init__(self, network: nn.Module, name: str, classes: int, stride: int) -> None:
        super().__init__()
        self.network, self.stride = network, stride
        self.architecture = {"name": name, "num_classes": classes, "options": {"in_channels": 3}}

    def forward(self, x: Tensor) -> Tensor | WithAuxiliary:
        """Return logits (B, K, H, W), and in training those of an auxiliary branch, if there is one."""
        height, width = x.shape[-2:]
        padded = nn.functional.pad(x, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        found = self.network(padded)
        logits = (found["out"] if isinstance(found, dict) else found)[..., :height, :width]
        if not self.training or not isinstance(found, dict):
            return logits
        return WithAuxiliary(logits, (found["aux"][..., :height, :width],), (0.4,))


def build(name: str, classes: int, channels: int) -> nn.Module:
    """Build a network with random weights."""
    if name == "smp Unet, resnet34":
        return Peer(smp.Unet("resnet34", encoder_weights=None, classes=classes), name, classes, 32)
    if name == "smp FPN, resnet50":
        return Peer(smp.FPN("resnet50", encoder_weights=None, classes=classes), name, classes, 32)
    if name == "smp DeepLabV3, resnest50":
        return Peer(smp.DeepLabV3("tu-resnest50d", encoder_weights=None, classes=classes), name, classes, 32)
    if name == "torchvision deeplabv3_resnet50":
        network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=classes, aux_loss=True)
        return Peer(network, name, classes, 8)
    if name == "unet_resnet34":
        return dl.create_model("unet", classes, in_channels=channels, encoder="resnet34")
    if name in ("hmsa_hrnet_w18", "hmsa_unet"):
        return dl.create_model("hmsa", classes, in_channels=channels, model=name.removeprefix("hmsa_"))
    return dl.create_model(name, classes, in_channels=channels)


# --- training and measuring ---------------------------------------------------------------------------------------------


def config_of(name: str, data: Path, experiment: Experiment, steps: int, seed: int, device: str) -> TrainConfig:
    """Return the config of every network."""
    content: dict[str, Any] = {
        "data": {"path": str(data / name)},
        "loss": [{"name": "cross_entropy"}, {"name": "dice"}],
        "optimizer": {"name": "adamw", "lr": 1e-3, "clip_norm": 1.0, "ema": 0.98, "warmup_steps": 20, "schedule": "poly"},
        "epochs": 1,
        "steps_per_epoch": steps,
        "batch": 4,
        "workers": 0,
        "tensorboard": False,
        "seed": seed,
        "device": device,
    } | experiment.content
    content["augment"] = {"patch": [experiment.patch, experiment.patch]} | content.get("augment", {})
    return build_config(content, source="semantic")


def ways_of(model: nn.Module, plainly: bool) -> dict[str, nn.Module]:
    """The networks to measure that `model` gives: itself, or what is made of it with several scales."""
    if isinstance(model, HierarchicalMultiScaleAttention):
        return {way: _with_scales(model, fusion, scales) for way, (fusion, scales) in TRAINED_ON_SCALES.items()}
    if plainly:
        assert isinstance(model, SemanticModel)
        return {
            way: HierarchicalMultiScaleAttention(model, fusion=fusion, scales=scales)
            for way, (fusion, scales) in TRAINED_PLAINLY.items()
        }
    return {"one scale": model}


def _with_scales(
    model: HierarchicalMultiScaleAttention, fusion: str, scales: Sequence[float]
) -> HierarchicalMultiScaleAttention:
    model.fusion, model.scales = fusion, tuple(scales)
    return pickle.loads(pickle.dumps(model))  # a snapshot, as `scales` and `fusion` belong to the network


def measure(model: nn.Module, dataset: Dataset, device: str) -> NDArray[np.int64]:
    """The confusion matrix of every validation picture, (N, K, K)."""
    predictor = dl.Predictor(model, device, objects="none")
    matrices = []
    for record in dataset.splits["val"]:
        found = predictor.predict(record.image, frame=record.frame, name=record.name).semantic
        assert found is not None
        truth = read_labelling(dataset, record, record.image, truth_size(record)).semantic
        matrix = ConfusionMatrix(len(dataset.semantic_classes))
        matrix.update(found.numpy(), truth)
        matrices.append(matrix.counts)
    return np.stack(matrices)


def mean_iou(counts: NDArray[np.int64], draws: Draws) -> dict[str, NDArray[Any]]:
    """Mean IoU and pixel accuracy, in percent, for resampled pictures."""
    summed = ConfusionMatrix.from_counts(np.tensordot(draws, counts, 1))
    return {"mean_iou": 100 * summed.mean_iou(), "pixel_accuracy": 100 * summed.pixel_accuracy()}


def run(name: str, dataset: Dataset, config: TrainConfig, plainly: bool, out: Path) -> dict[str, NDArray[np.int64]]:
    """Train a network and measure it in all its ways, or read what came of it before."""
    done = out / "outcome.pkl"
    if done.exists():
        return pickle.loads(done.read_bytes())
    torch.manual_seed(config.seed)
    channels = 1 if config.input.color == "gray" else 3
    model = build(name, len(dataset.semantic_classes), channels)
    result = train(config, out, model=model, dataset=dataset, resume=out.exists())
    model.load_state_dict(load_file(result.last))
    outcome = {way: measure(one, dataset, config.device) for way, one in ways_of(model, plainly).items()}
    with atomic_path(done) as temporary:
        temporary.write_bytes(pickle.dumps(outcome))
    return outcome


def pictures_per_second(models: dict[str, nn.Module], size: tuple[int, int, int], repeats: int = 5) -> dict[str, float]:
    """Forward passes a second on one thread in float32, a picture at a time; the networks take turns; medians."""
    x = torch.rand(1, *size)
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(repeats + 1):
            for name, model in models.items():
                start = time.perf_counter()
                model.eval()(x)
                times[name].append(time.perf_counter() - start)
    return {name: 1 / statistics.median(taken[1:]) for name, taken in times.items()}


def summarise(
    outcomes: dict[str, dict[str, NDArray[np.int64]]], models: dict[str, nn.Module], size: tuple[int, int, int]
) -> dict[str, Any]:
    """The table of a set, and the paired differences that the issue of scales and that of peers ask for."""
    rows: dict[str, Any] = {}
    speeds = pictures_per_second(models, size)
    for name, ways in outcomes.items():
        rows[name] = {"parameters": count_parameters(models[name]), "gflops": count_flops(models[name], size) / 1e9}
        rows[name] |= {"pictures_per_second": speeds[name], "ways": {}}
        for way, counts in ways.items():
            score = partial(mean_iou, counts)
            values = {key: float(value[0]) for key, value in score(np.ones((1, len(counts)))).items()}
            intervals = {key: list(interval) for key, interval in score_intervals(score, len(counts)).items()}
            rows[name]["ways"][way] = {"scores": values, "intervals": intervals}
    differences: dict[str, Any] = {}

    def compare(a: tuple[str, str], b: tuple[str, str]) -> None:
        if all(one[0] in outcomes and one[1] in outcomes[one[0]] for one in (a, b)):
            first, second = (outcomes[network][way] for network, way in (a, b))
            scores: list[Callable[[Draws], Any]] = [partial(mean_iou, counts) for counts in (first, second)]
            found = compare_scores(scores[0], scores[1], len(first))
            differences[f"{a[0]} ({a[1]}) - {b[0]} ({b[1]})"] = {key: value._asdict() for key, value in found.items()}

    attention = "attention, scales 0.5, 1 and 2"
    for name, ways in outcomes.items():
        for way in ways:
            if attention in ways and way != attention:
                compare((name, attention), (name, way))
        compare((name, attention), (name.removeprefix("hmsa_"), "one scale"))
        compare((name, "attention, scales 0.5 and 1"), (name.removeprefix("hmsa_"), "one scale"))
        compare((name, attention), (name.removeprefix("hmsa_"), "average, scales 0.5, 1 and 2"))
    for ours, theirs in (
        ("unet_resnet34", "smp Unet, resnet34"),
        ("semantic_fpn_resnet50", "smp FPN, resnet50"),
        ("deeplabv3_resnest50", "smp DeepLabV3, resnest50"),
        ("deeplabv3_resnest50", "torchvision deeplabv3_resnet50"),
    ):
        compare((ours, "one scale"), (theirs, "one scale"))
    return {"networks": rows, "differences": differences}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds camvid and isbi2012_em")
    parser.add_argument("--sets", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--networks", nargs="+", help="only these")
    parser.add_argument("--steps", type=int, help="another length than that of the experiment")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-report", action="store_true", help="train and measure only, for several processes at once")
    parser.add_argument("--runs", type=Path, default=Path("runs/semantic"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    report: dict[str, Any] = {"environment": environment(), "seed": arguments.seed, "sets": {}}
    for name in arguments.sets:
        experiment = EXPERIMENTS[name]
        dataset = load_data(name, arguments.data, arguments.runs / name)
        steps = arguments.steps or experiment.steps
        config = config_of(name, arguments.data, experiment, steps, arguments.seed, arguments.device)
        outcomes = {}
        for network in arguments.networks or experiment.networks:
            folder = f"{name}-{network}-{steps}-{arguments.seed}".replace(", ", "-").replace(" ", "_")
            outcomes[network] = run(network, dataset, config, network in experiment.plainly, arguments.runs / folder)
            one_draw = {way: mean_iou(c, np.ones((1, len(c))))["mean_iou"] for way, c in outcomes[network].items()}
            print(f"{name}, {network}: { ({way: round(float(v[0]), 2) for way, v in one_draw.items()}) }", flush=True)
        if arguments.no_report:
            continue
        channels = 1 if config.input.color == "gray" else 3
        models = {network: build(network, len(dataset.semantic_classes), channels) for network in outcomes}
        size = (channels, *truth_size(dataset.splits["val"][0]))
        report["sets"][name] = {
            "training_pictures": len(dataset.splits["train"]),
            "test_pictures": len(dataset.splits["val"]),
            "config": config.model_dump(mode="json", exclude={"data"}),
            "input": list(size),
            **summarise(outcomes, models, size),
        }
        write_json(arguments.out, report)


if __name__ == "__main__":
    main()

"""The findings of Mask R-CNN's tables 2a to 2e, repeated small: what do RoIAlign, sigmoid masks, pyramid and FCN head give?

    python benchmarks/ablations.py --data ../shared/data

Each network is a thin ResNet-18 with heads to match, trained from scratch by `delineate.train` for a few hundred steps. All
variants of one seed see the same pictures in the same order. The data are scenes of figures that hide one another
(`delineate.data.make_shapes_dataset`) and the people of Penn-Fudan. Validation pictures are measured once, after the last step,
so that nothing is chosen by them. Mask AP, the mean over seeds, with 95 % bootstrap intervals over pictures, and paired
differences go to benchmarks/results/ablations.json, the figure to docs/figures/ablations.png. What has run before, as --runs
holds it, is not run again.
"""

from __future__ import annotations

import argparse
import pickle
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

import delineate as dl
from _environment import environment
from delineate.config import TrainConfig, build_config
from delineate.data import Dataset, make_shapes_dataset, open_dataset
from delineate.files import atomic_path, write_json
from delineate.metrics.average_precision import IouType
from delineate.metrics.bootstrap import Draws, compare_scores, score_intervals
from delineate.metrics.detection import DetectionScores, FoundObjects
from delineate.models.backbones.resnet import BasicBlock, ResNet, initialize_residual
from delineate.models.box_head import BoxHead, BoxLayers, MeanLayers
from delineate.models.detector_conventions import DetectorConventions
from delineate.models.fpn import FPN, LastMap
from delineate.models.mask_head import Activation, FCNMasks, MaskHead, MLPMasks
from delineate.models.mask_rcnn import MaskRCNN
from delineate.models.regions import Pooler, RegionFeatures
from delineate.models.rpn import RPN, RPNHead, Selection
from delineate.predict.detections import true_objects
from delineate.train import train

RESULTS = Path(__file__).parent / "results" / "ablations.json"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "ablations.png"


@dataclass(frozen=True)
class Variant:
    """A network of the experiment; what is not said is as in the first one of its form."""

    name: str
    form: str  # "fpn" or "c4"
    pooler: Pooler = "roi_align"
    mask_head: str = "fcn"
    activation: Activation = "sigmoid"
    agnostic: bool = False


VARIANTS = (
    Variant("fpn", "fpn"),
    Variant("fpn, RoIPool", "fpn", pooler="roi_pool"),
    Variant("fpn, MLP masks", "fpn", mask_head="mlp"),
    Variant("fpn, softmax masks", "fpn", activation="softmax"),
    Variant("fpn, class-agnostic masks", "fpn", agnostic=True),
    Variant("c4", "c4"),
    Variant("c4, RoIWarp", "c4", pooler="roi_warp"),
    Variant("c4, RoIPool", "c4", pooler="roi_pool"),
)
COMPARISONS = (
    # better according to the paper, against what, table, and the paper's difference in mask AP
    ("c4", "c4, RoIPool", "2c", 3.4),
    ("c4", "c4, RoIWarp", "2c", 3.2),
    ("c4, RoIWarp", "c4, RoIPool", "2c", 0.2),
    ("fpn", "fpn, RoIPool", "section 4.2", 1.5),
    ("fpn", "fpn, softmax masks", "2b", 5.5),
    ("fpn", "fpn, class-agnostic masks", "section 4.2", 0.6),
    ("fpn", "fpn, MLP masks", "2e", 2.1),
    ("fpn", "c4", "2a", 3.3),
)
ON_PEOPLE = ("fpn", "fpn, RoIPool", "fpn, MLP masks", "c4", "c4, RoIWarp", "c4, RoIPool")  # one class: nothing else can differ
SIDES = {"shapes": 192, "people": 192}  # pixels of the shorter side


def thin_resnet18(width: int) -> ResNet:
    """ResNet-18 with `width` channels where the published one has 64."""
    stages, channels = [], [width]
    for number in range(4):
        wide, stride = width * 2**number, 1 if number == 0 else 2
        first = BasicBlock(channels[-1], wide, stride, (1, 1), norm=nn.BatchNorm2d)
        stages.append(nn.Sequential(first, BasicBlock(wide, wide, 1, (1, 1), norm=nn.BatchNorm2d)))
        channels.append(wide)
    conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    model = ResNet(conv1, nn.BatchNorm2d(width), stages, channels, (2, 4, 8, 16, 32))
    initialize_residual(model, zero_init=False)
    return model


def build(variant: Variant, classes: int, width: int) -> MaskRCNN:
    """Build a network of the experiment; anchors and levels are for boxes half as large as usual."""
    conventions = DetectorConventions(canonical_size=112.0, sampling_ratio=2)
    body, thin = thin_resnet18(width), 3 * width
    mode = "max" if variant.pooler == "roi_pool" else "mean"
    read = partial(RegionFeatures, conventions=conventions, pooler=variant.pooler, mode=mode)
    make_rpn = partial(
        RPN,
        conventions=conventions,
        samples=64,
        training=Selection(before=300, after=150),
        inference=Selection(before=300, after=100),
    )
    outputs = MaskHead.outputs(classes, activation=variant.activation, agnostic=variant.agnostic)
    make_head = partial(MaskHead, activation=variant.activation, agnostic=variant.agnostic)
    if variant.form == "fpn":
        neck = FPN(body.channels[-4:], body.reductions[-4:], thin)
        sizes = [[16], [32], [64], [128], [256]]
        rpn = make_rpn(RPNHead(thin, 3), neck.reductions, anchor_sizes=sizes)
        layers = FCNMasks(thin, outputs, width=thin) if variant.mask_head == "fcn" else MLPMasks(thin, 14, outputs, width=256)
        model = MaskRCNN(
            body,
            neck,
            rpn,
            read(7, neck.reductions[:-1]),
            BoxHead(BoxLayers(thin, 7, fc_width=256), classes),
            mask_regions=read(14, neck.reductions[:-1]),
            mask_head=make_head(layers),
            samples=32,
            conventions=conventions,
        )
    else:
        trunk = body.take_last()
        neck = LastMap(body.channels[-1], body.reductions[-1])
        sizes = [[16, 32, 64, 128, 256]]
        rpn = make_rpn(RPNHead(neck.channels, 15), neck.reductions, anchor_sizes=sizes)
        model = MaskRCNN(
            body,
            neck,
            rpn,
            read(14, neck.reductions, trunk=trunk),
            BoxHead(MeanLayers(8 * width), classes),
            mask_head=make_head(FCNMasks(8 * width, outputs, convs=0, width=4 * width)),
            samples=32,
            conventions=conventions,
        )
    model.architecture = {"name": variant.name, "num_classes": classes, "options": {"width": width}}
    return model


def load_data(name: str, data: Path, work: Path) -> Dataset:
    """The scenes, drawn where they are not yet there; or people, every fifth picture of which validates."""
    if name == "shapes":
        folder = work / "scenes"
        if not folder.exists():
            make_shapes_dataset(folder, 600, SIDES[name], 0, val=100, objects=8, classes=6)
        return open_dataset(folder)
    dataset = open_dataset(data / "pennfudan")
    records = sorted(dataset.records, key=lambda record: record.name)
    train_records = tuple(record for i, record in enumerate(records) if i % 5 != 4)
    return replace(dataset, splits={"train": train_records, "val": tuple(records[4::5])})


def config_of(dataset: Dataset, side: int, seed: int, steps: int) -> TrainConfig:
    """Return the config of all variants."""
    content = {
        "data": {"path": str(dataset.root)},
        "input": {"resize": {"shortest": side, "longest": 2 * side}},
        "augment": {"flip_horizontal": 0.5},
        "optimizer": {"name": "adamw", "lr": 2e-3, "clip_norm": 5.0, "warmup_steps": 30, "schedule": "cosine"},
        "epochs": 1,
        "steps_per_epoch": steps,
        "batch": 8,
        "workers": 0,
        "precision": "fp32",
        "tensorboard": False,
        "seed": seed,
    }
    return build_config(content, source="ablations")


def measure(model: MaskRCNN, dataset: Dataset) -> dict[str, Any]:
    """Mask and box scores of the validation pictures, and the CPU time of a picture on one thread."""
    predictor = dl.Predictor(model, device="cpu", precision="fp32", score_threshold=0.05)
    kinds: tuple[IouType, ...] = ("segm", "bbox")
    scores = {kind: DetectionScores(dataset.classes, kind) for kind in kinds}
    seconds = 0.0
    for record in dataset.splits["val"]:
        start = time.process_time()
        results = predictor(record.image)
        assert results.masks is not None
        results.masks.rle()
        seconds += time.process_time() - start
        found = FoundObjects(results.scores, results.labels, results.boxes, results.masks)
        truth = true_objects(dataset, record)
        for one in scores.values():
            one.update(record.name, found, truth)
    matches = {kind: one.matches() for kind, one in scores.items()}
    return {"matches": matches, "cpu_seconds_a_picture": seconds / len(dataset.splits["val"])}


OUTCOME = "outcome.pkl"
Outcome = dict[str, Any]  # what `measure` returns, and the seconds of the training


def run(variant: Variant, dataset: Dataset, config: TrainConfig, width: int, out: Path) -> Outcome:
    """Train and measure one variant, or read what came of it before."""
    done = out / OUTCOME
    if done.exists():
        return pickle.loads(done.read_bytes())
    torch.manual_seed(config.seed)
    model = build(variant, len(dataset.classes), width)
    start = time.process_time()
    # One picture is validated in the loop, so that all are measured only once, below.
    short = replace(dataset, splits=dataset.splits | {"val": dataset.splits["val"][:1]})
    result = train(config, out, model=model, dataset=short, quiet=True)
    model.load_state_dict(load_file(result.last))
    outcome = measure(model, dataset) | {
        "training_cpu_seconds": time.process_time() - start,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    with atomic_path(done) as temporary:
        temporary.write_bytes(pickle.dumps(outcome))
    return outcome


def mean_scores(outcomes: list[Outcome], draws: Draws) -> Mapping[str, np.ndarray]:
    """The mean over seeds of each number, for resampled pictures."""
    found: dict[str, np.ndarray] = {}
    for kind, title in (("segm", "mask"), ("bbox", "box")):
        parts = [outcome["matches"][kind].scores(draws) for outcome in outcomes]
        found |= {f"{title}_{name}": 100 * np.mean([part[name] for part in parts], axis=0) for name in ("AP", "AP50", "AP75")}
    return found


def summarise(outcomes: dict[str, list[Outcome]], pictures: int) -> dict[str, Any]:
    """Numbers of each variant, and the differences that the paper speaks of."""
    variants, whole = {}, np.ones((1, pictures))
    for name, parts in outcomes.items():
        scores = partial(mean_scores, parts)
        variants[name] = {
            "scores": {key: float(value[0]) for key, value in scores(whole).items()},
            "intervals": {key: list(interval) for key, interval in score_intervals(scores, pictures).items()},
            "mask_AP_of_seeds": [float(mean_scores([part], whole)["mask_AP"][0]) for part in parts],
            "parameters": parts[0]["parameters"],
            "cpu_seconds_a_picture": float(np.median([part["cpu_seconds_a_picture"] for part in parts])),
            "training_cpu_seconds": [part["training_cpu_seconds"] for part in parts],
        }
    comparisons = []
    for a, b, table, paper in COMPARISONS:
        if a in outcomes and b in outcomes:
            seeds = min(len(outcomes[a]), len(outcomes[b]))
            of_a, of_b = (partial(mean_scores, outcomes[name][:seeds]) for name in (a, b))
            compared = compare_scores(of_a, of_b, pictures)
            row = {"a": a, "b": b, "seeds": seeds, "where": table, "difference_in_the_paper": paper}
            comparisons.append(row | {key: compared[key]._asdict() for key in ("mask_AP", "mask_AP75", "box_AP")})
    return {"pictures": pictures, "variants": variants, "comparisons": comparisons}


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the mask AP of each variant with its interval and its seeds."""
    sets = report["sets"]
    figure, axes = plt.subplots(1, len(sets), figsize=(5.2 * len(sets), 3.6), squeeze=False)
    for axis, (name, content) in zip(axes[0], sets.items(), strict=True):
        titles = list(content["variants"])[::-1]
        for row, title in enumerate(titles):
            entry = content["variants"][title]
            value, (low, high) = entry["scores"]["mask_AP"], entry["intervals"]["mask_AP"]
            color = "#0b6e99" if title.startswith("fpn") else "#b5541c"
            axis.barh(row, value, color=color, alpha=0.35, height=0.65)
            axis.errorbar(value, row, xerr=[[value - low], [high - value]], color=color, capsize=3)
            axis.plot(entry["mask_AP_of_seeds"], [row] * len(entry["mask_AP_of_seeds"]), "k.", ms=4)
        axis.set_yticks(range(len(titles)), titles, fontsize=8)
        axis.set(xlabel="mask AP", title=f"{name}, {content['pictures']} validation pictures")
        axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds pennfudan")
    parser.add_argument("--sets", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--variants", nargs="+", default=[variant.name for variant in VARIANTS])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=16, help="channels of the stem, 64 in ResNet-18 (default: %(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--finished", action="store_true", help="train nothing: report what has run before")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    report: dict[str, Any] = {"environment": environment(), "steps": arguments.steps, "width": arguments.width, "sets": {}}
    report["variants"] = {variant.name: asdict(variant) for variant in VARIANTS}
    outcomes: dict[str, dict[str, list[Outcome]]] = {}
    for seed in range(arguments.seeds):  # all variants of a seed first, so that a run that is cut short still compares
        for name in arguments.sets:
            dataset = load_data(name, arguments.data, arguments.runs)
            for variant in VARIANTS:
                if variant.name not in arguments.variants or (name == "people" and variant.name not in ON_PEOPLE):
                    continue
                config = config_of(dataset, SIDES[name], seed, arguments.steps)
                out = arguments.runs / f"{name}-{variant.name.replace(', ', '-').replace(' ', '-')}-{seed}"
                if arguments.finished and not (out / OUTCOME).exists():
                    continue
                outcome = run(variant, dataset, config, arguments.width, out)
                outcomes.setdefault(name, {}).setdefault(variant.name, []).append(outcome)
                score = mean_scores([outcome], np.ones((1, len(dataset.splits["val"]))))["mask_AP"][0]
                print(f"{name} {variant.name} seed {seed}: mask AP {score:.1f}", flush=True)
            report["sets"][name] = summarise(outcomes[name], len(dataset.splits["val"]))
            write_json(RESULTS, report)
    draw(report, FIGURE)


if __name__ == "__main__":
    main()

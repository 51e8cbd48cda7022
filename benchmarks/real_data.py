"""Train our U-Net and segmentation_models.pytorch's on the same real data, and compare.

    python benchmarks/real_data.py --data ../shared/data --set isbi2012_em --steps 400

Both networks go through `delineate.train` with one config (split, steps, augmentation, loss, optimiser); only they differ.
The weights after the last step are measured, so that nothing is chosen by the validation pictures. The numbers, with 95 %
bootstrap intervals over these pictures and the paired difference, go to benchmarks/results/real_data_SET.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file

import delineate as dl
from _environment import environment
from delineate.config import TrainConfig, build_config
from delineate.data import Dataset, open_dataset
from delineate.files import write_json
from delineate.metrics import paired_bootstrap
from delineate.predict.evaluate import Evaluation, evaluate
from delineate.train import train
from delineate.weights import Conventions

RESULTS = Path(__file__).parent / "results"
EPOCHS = 5  # validated once, at the end


def isbi_split(dataset: Dataset) -> Dataset:
    """Slices 00-23 train, 24-29 validate."""
    records = sorted(dataset.splits["train"], key=lambda r: r.name)
    return replace(dataset, splits={"train": tuple(records[:24]), "val": tuple(records[24:])})


def every_fifth(dataset: Dataset) -> Dataset:
    """Sorted by name, every fifth picture validates."""
    records = sorted(dataset.records, key=lambda r: r.name)
    train_records = tuple(r for i, r in enumerate(records) if i % 5 != 4)
    return replace(dataset, splits={"train": train_records, "val": tuple(records[4::5])})


def chase_split(dataset: Dataset) -> Dataset:
    """The usual split: the first 20 pictures train, the last 8 test."""
    records = sorted(dataset.records, key=lambda r: r.name)
    return replace(dataset, splits={"train": tuple(records[:20]), "val": tuple(records[20:])})


# What the data sets ask for; everything else is the same for all.
SETS = {
    "isbi2012_em": (isbi_split, {"input": {"color": "gray", "mean": [0.5], "std": [0.17]}, "augment": {"elastic": 10.0}}),
    "dsb2018_nuclei": (every_fifth, {"input": {"normalization": "image"}, "model": {"outputs": "border"}}),
    "chase_db1": (chase_split, {"input": {"normalization": "image"}}),
}


def config_of(name: str, data: Path, *, steps: int, width: int, encoder: str, seed: int, patch: int, batch: int) -> TrainConfig:
    """Return the one config that both networks are trained with."""
    special = SETS[name][1]
    ours = {"width": width, "norm": "instance"} if encoder == "plain" else {"encoder": encoder}
    content = {
        "data": {"path": str(data / name)},
        "input": special.get("input", {}),
        "model": {"name": "unet", "options": ours} | special.get("model", {}),
        "augment": {
            "patch": [patch, patch],
            "flip_vertical": 0.5,
            "rotate90": True,
            "rotate": 15.0,
            "scale": [0.8, 1.25],
            "brightness": 0.15,
            "contrast": 0.25,
            "noise": 0.03,
        }
        | special.get("augment", {}),
        "loss": [{"name": "cross_entropy"}, {"name": "dice"}],
        "optimizer": {"name": "adamw", "lr": 2e-3, "clip_norm": 1.0, "ema": 0.99, "warmup_steps": 20},
        "epochs": EPOCHS,
        "steps_per_epoch": steps // EPOCHS,
        "validate_every": EPOCHS,
        "batch": batch,
        "seed": seed,
    }
    return build_config(content, source=name)


def build(which: str, config: TrainConfig, classes: int) -> torch.nn.Module:
    """Build the network `which` with random weights from the config's seed."""
    conventions = Conventions(outputs=config.model.outputs, **config.input.model_dump())
    outputs = conventions.output_channels(classes)
    torch.manual_seed(config.seed)
    if which == "delineate":
        return dl.create_model("unet", num_classes=outputs, in_channels=conventions.channels, **config.model.options)
    model = smp.Unet("resnet34", encoder_weights=None, in_channels=conventions.channels, classes=outputs)
    model.stride, model.margin = 32, 0
    model.architecture = {
        "name": "smp.Unet",
        "num_classes": outputs,
        "options": {"encoder_name": "resnet34", "in_channels": conventions.channels},
    }
    return model


def run(which: str, config: TrainConfig, dataset: Dataset, out: Path, em: bool) -> tuple[Evaluation, dict[str, float]]:
    """Train one network and measure it on the validation pictures."""
    model = build(which, config, len(dataset.semantic_classes))
    start = time.perf_counter()
    result = train(config, out, model=model, dataset=dataset)
    seconds = time.perf_counter() - start
    model.load_state_dict(load_file(result.last))
    predictor = dl.Predictor(model, device=config.device, precision="fp32")
    evaluation = evaluate(predictor, dataset, dataset.splits["val"], split="val", previews=out / "previews", em=em)
    facts = {"training_seconds": seconds, "parameters": sum(p.numel() for p in model.parameters())}
    return evaluation, facts


def per_image(evaluation: Evaluation, key: str) -> np.ndarray:
    """Return the number `key` of every validation picture."""
    return np.array([getattr(image, key) for image in evaluation.images], dtype=np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", choices=list(SETS), required=True, dest="name")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--width", type=int, default=24, help="of our network (default: %(default)s)")
    parser.add_argument("--encoder", default="plain", help="of our network: plain, with instance normalisation, or one of timm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patch", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--runs", type=Path, default=Path("runs/real_data"))
    arguments = parser.parse_args()

    asked = {key: getattr(arguments, key) for key in ("steps", "width", "encoder", "seed", "patch", "batch")}
    config = config_of(arguments.name, arguments.data, **asked)
    dataset: Dataset = SETS[arguments.name][0](open_dataset(config.data.path))
    report: dict = {
        "environment": environment(),
        "steps": arguments.steps,
        "config": config.model_dump(mode="json") | {"data": arguments.name},
        "pictures": {split: len(records) for split, records in dataset.splits.items()},
    }
    evaluations = {}
    for which in ("delineate", "smp"):
        out = arguments.runs / f"{arguments.name}-{which}-{arguments.seed}"
        evaluations[which], facts = run(which, config, dataset, out, em=arguments.name == "isbi2012_em")
        e = evaluations[which]
        report[which] = {"summary": e.summary, "intervals": e.intervals, "objects": e.objects, "per_class": e.per_class} | facts
    ours, theirs = (per_image(evaluations[w], "mean_dice") for w in ("delineate", "smp"))
    report["paired_difference_of_mean_dice"] = paired_bootstrap(ours, theirs)._asdict()
    suffix = "" if arguments.encoder == "plain" else f"_{arguments.encoder}"
    suffix += f"_seed{arguments.seed}" if arguments.seed else ""
    write_json(RESULTS / f"real_data_{arguments.name}{suffix}.json", report)
    print(json.dumps({w: report[w]["summary"] for w in ("delineate", "smp")}, indent=2))


if __name__ == "__main__":
    main()

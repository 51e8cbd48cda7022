"""What does it cost to keep the maps of a network in planes, where `Predictor` keeps them channels last?

    python benchmarks/memory_format.py --repeats 5

Random weights, one picture, one thread, batch normalisation folded, float32 and bfloat16 as `Predictor` computes. Both forms
take turns in one process. Wall-clock time and the processor's time are both measured, since others may be at work; medians, and
the median of the ratios of neighbours. The numbers go to benchmarks/results/memory_format.json.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import delineate as dl
from _environment import environment
from delineate.devices import DTYPES, Precision
from delineate.files import write_json
from delineate.models import fuse_for_inference
from delineate.models.narrow import allow_narrow_maps

RESULTS = Path(__file__).parent / "results" / "memory_format.json"
FORMS = {"channels last": torch.channels_last, "planes": torch.contiguous_format}
CASES: dict[str, tuple[int, tuple[int, int]]] = {  # classes, height and width of the picture
    "mask_rcnn_resnet50_fpn": (80, (800, 1088)),
    "mask_rcnn_resnet50_fpn_v2": (80, (800, 1088)),
    "unet": (2, (512, 512)),
    "hrnet_w18": (19, (512, 512)),
}


class Contestant:
    """A network in one form and precision: a detector computes under autocast, others have weights of fewer bits."""

    def __init__(self, model: Any, image: Tensor, form: torch.memory_format, precision: Precision) -> None:
        network, dtype = fuse_for_inference(model), DTYPES[precision]
        self.autocast = hasattr(network, "score_threshold")
        if self.autocast:
            network.score_threshold = 0.0  # random weights are sure of nothing: so all slots are filled
        if dtype != torch.float32:
            allow_narrow_maps(network)
        kept = torch.float32 if self.autocast else dtype
        self.network: nn.Module = network.to(dtype=kept, memory_format=form)
        self.image, self.dtype = image.to(dtype=kept, memory_format=form), dtype

    def __call__(self) -> Any:
        enabled = self.autocast and self.dtype != torch.float32
        with torch.inference_mode(), torch.autocast("cpu", self.dtype if enabled else torch.bfloat16, enabled=enabled):
            return self.network(self.image)


def measure(contestants: dict[str, Contestant], repeats: int) -> dict[str, Any]:
    """Let the two take turns; return the medians of their seconds, and of the ratios planes / channels last."""
    for contestant in contestants.values():
        contestant()
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    cpu = copy.deepcopy(wall)
    for turn in range(repeats):
        for name in sorted(contestants, reverse=bool(turn % 2)):
            start, used = time.perf_counter(), time.process_time()
            contestants[name]()
            cpu[name].append(time.process_time() - used)
            wall[name].append(time.perf_counter() - start)
    row: dict[str, Any] = {"cpu_seconds": cpu, "wall_seconds": wall}
    row["median_cpu_seconds"] = {name: statistics.median(values) for name, values in cpu.items()}
    for name, values in (("cpu", cpu), ("wall", wall)):
        ratios = [planes / last for planes, last in zip(values["planes"], values["channels last"], strict=True)]
        row[f"planes_over_channels_last_{name}"] = {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"environment": environment(), "repeats": arguments.repeats, "times": {}}
    for name in arguments.models:
        torch.manual_seed(0)
        classes, size = CASES[name]
        model, image = dl.create_model(name, classes).eval(), torch.randn(1, 3, *size)
        for precision in arguments.precisions:
            contestants = {form: Contestant(model, image, layout, precision) for form, layout in FORMS.items()}
            row = measure(contestants, arguments.repeats)
            report["times"][f"{name}, {size[0]} x {size[1]}, {precision}"] = row
            ratio = row["planes_over_channels_last_cpu"]
            seconds = ", ".join(f"{form} {value:.2f} s" for form, value in row["median_cpu_seconds"].items())
            low, high = (f"{value:.3f}" for value in ratio["range"])
            print(f"{name} {precision}: {seconds}; planes / channels last {ratio['median']:.3f} ({low} to {high})", flush=True)
            write_json(arguments.out, report)


if __name__ == "__main__":
    main()

"""Memory of 300 detections with masks on a picture of 12 megapixels, above the model, and what it takes to write them.

    python benchmarks/instance_memory.py

Mask R-CNN (ResNet-50, FPN) with random weights finds as many objects as it may in a generated picture of 4000 x 3000 pixels;
beside it, 300 drawn objects from small to most of the picture, whose boxes and 28 x 28 masks are known. Of both: the peak of
resident memory above what the loaded model takes, for the results, for COCO's run-length codes, for polygons, for the map of
objects and for the drawing. The same masks are pasted by torchvision, as its Mask R-CNN does for every picture, for as many
objects as fit; from these the memory of 300 is extrapolated, and said to be. Numbers go to
benchmarks/results/instance_memory.json.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

import delineate as dl
from _environment import environment
from _memory import MEGABYTE, PeakMemory
from delineate.files import write_json
from delineate.predict.masks import BoxMasks
from delineate.predict.results import Results
from delineate.weights import Conventions
from delineate.weights.conventions import Resize

RESULTS = Path(__file__).parent / "results"
COUNT, SIZE = 300, (3000, 4000)
PEER_COUNT = 20  # masks that torchvision pastes here


def build() -> dl.Predictor:
    """A detector with random weights that finds as many objects as it may."""
    torch.manual_seed(0)
    model: Any = dl.create_model("mask_rcnn_resnet50_fpn", num_classes=80)
    model.classes = tuple(f"class {n}" for n in range(80))
    model.conventions = Conventions(outputs="instances", resize=Resize(800, 1333, "pillow"))
    model.detections_per_image = COUNT
    return dl.Predictor(model, "cpu", "fp32", score_threshold=-1.0)


def drawn_objects() -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) from small to most of the picture, and discs as their masks (N, 28, 28)."""
    generator = torch.Generator().manual_seed(0)
    extent = torch.tensor([SIZE[1], SIZE[0]]) * torch.logspace(-1.7, -0.05, COUNT)[:, None]
    corner = (torch.tensor([SIZE[1], SIZE[0]]) - extent) * torch.rand(COUNT, 2, generator=generator)
    place = torch.linspace(-1, 1, 28)
    disc = (4 * (1 - (place**2 + place[:, None] ** 2).sqrt())).sigmoid()
    return torch.cat([corner, corner + extent], 1), disc.expand(COUNT, 28, 28).contiguous()


def measured(work: Callable[[], Any], baseline: int) -> dict[str, float]:
    """Peak memory above the baseline, and the time, of some work whose result is forgotten."""
    gc.collect()
    start = time.perf_counter()
    with PeakMemory(baseline) as memory:
        work()
    return {"mebibytes": round(memory.above / MEGABYTE, 1), "seconds": round(time.perf_counter() - start, 3)}


def ways_out(results: Results, picture: Tensor, baseline: int) -> dict[str, dict[str, float]]:
    """What each form of the masks takes."""
    masks = results.masks
    assert masks is not None
    work: dict[str, Callable[[], Any]] = {
        "run-length codes": results.to_coco,
        "polygons": masks.polygons,
        "map of objects": lambda: results.instance_map,
        "drawing": lambda: results.draw(picture),
    }
    return {name: measured(one, baseline) for name, one in work.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULTS / "instance_memory.json")
    arguments = parser.parse_args()
    predictor = build()
    picture = torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    predictor(picture[:, :64, :64])  # what torch allocates once
    baseline = psutil.Process().memory_info().rss
    with PeakMemory(baseline) as memory:
        found = predictor(picture)
    network = {
        "detections": len(found),
        "prediction": {"mebibytes": round(memory.above / MEGABYTE, 1), "seconds": round(found.seconds, 2)},
        **ways_out(found, picture, baseline),
    }
    boxes, probabilities = drawn_objects()
    labels, scores = torch.zeros(COUNT, dtype=torch.int64), torch.linspace(0.99, 0.5, COUNT)
    masks = BoxMasks(probabilities, boxes, SIZE)
    drawn = Results(SIZE, ("object",), background=None, boxes=boxes, scores=scores, labels=labels, masks=masks)
    some = slice(COUNT - PEER_COUNT, COUNT)
    peer = measured(
        lambda: paste_masks_in_image(probabilities[some, None], boxes[some], SIZE), psutil.Process().memory_info().rss
    )
    report = {
        "environment": environment(),
        "picture": {"height": SIZE[0], "width": SIZE[1]},
        "mask_rcnn_resnet50_fpn": network,
        "drawn": {"detections": COUNT, **ways_out(drawn, picture, baseline)},
        "torchvision": {
            "detections": PEER_COUNT,
            "pasting": peer,
            "extrapolated_mebibytes_of_300": round(peer["mebibytes"] * COUNT / PEER_COUNT),
        },
    }
    write_json(arguments.out, report)
    print({name: part for name, part in report.items() if name != "environment"})


if __name__ == "__main__":
    main()

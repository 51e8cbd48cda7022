"""Time suppression, pasting, run-length codes and keypoints against torchvision and pycocotools, in one run.

    python benchmarks/ops_speed.py --repeats 15

The contestants of a contest take turns, so that a busy moment of the machine hits all, and results are compared before they
are timed; medians count. Memory is the highest resident memory of the process above what it was before (Linux). The numbers go
to benchmarks/results/ops_speed.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision.ops as tv
from pycocotools import mask as coco
from torch import Tensor
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints, paste_masks_in_image

from _environment import environment
from delineate.files import write_json
from delineate.ops import native
from delineate.ops.keypoints import decode_keypoints
from delineate.ops.masks import paste_masks
from delineate.ops.nms import nms
from delineate.ops.rle import decode_rle, encode_rle, paste_rle

RESULTS = Path(__file__).parent / "results" / "ops_speed.json"
PICTURE = 800, 1216
Step = Callable[[], object]


def scattered_boxes(count: int, size: tuple[int, int], smallest: float, largest: float) -> Tensor:
    """Boxes (N, 4) within a picture, the logarithm of their sides uniform."""
    height, width = size
    side = smallest * (largest / smallest) ** torch.rand(count, 2)
    center = torch.rand(count, 2) * torch.tensor([width, height])
    boxes = torch.cat([center - side / 2, center + side / 2], 1)
    return torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], -1).flatten(1)


def proposals(count: int, around: int) -> Tensor:
    """Boxes as a proposal network gives them: `around` variants of each place."""
    places = scattered_boxes(count // around, PICTURE, 20, 400).repeat_interleave(around, 0)
    side = places[:, 2:] - places[:, :2]
    return places + 0.15 * torch.randn(count, 4) * side.repeat(1, 2)


def blobs(count: int) -> Tensor:
    """Probabilities (N, 28, 28) with one large object each and uneven edges."""
    axis = torch.linspace(-1, 1, 28)
    distance = axis[:, None] ** 2 + axis**2
    return torch.sigmoid(8 * (0.8 - distance) + 0.8 * torch.randn(count, 28, 28))


def coco_encode(masks: Tensor) -> list[dict[str, Any]]:
    return [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks.numpy()]


def texts(codes: list[dict[str, Any]]) -> list[str]:
    return [code["counts"] if isinstance(code["counts"], str) else code["counts"].decode() for code in codes]


def torchvision_paste(masks: Tensor, boxes: Tensor) -> Tensor:
    return paste_masks_in_image(masks[:, None], boxes, PICTURE)[:, 0] >= 0.5


def suppression(boxes: Tensor, repeats: int) -> dict[str, Any]:
    scores = torch.rand(len(boxes))
    kept = nms(boxes, scores, 0.7)
    assert torch.equal(kept, tv.nms(boxes, scores, 0.7))
    steps: dict[str, Step] = {
        "delineate": lambda: nms(boxes, scores, 0.7),
        "torchvision": lambda: tv.nms(boxes, scores, 0.7),
    }
    return compared(steps, repeats) | {"boxes": len(boxes), "kept": len(kept)}


def pasting(masks: Tensor, boxes: Tensor, repeats: int) -> dict[str, Any]:
    theirs = torchvision_paste(masks, boxes)
    differ = int((paste_masks(masks, boxes, PICTURE, convention="torchvision") != theirs).sum())
    steps: dict[str, Step] = {
        "delineate": lambda: paste_masks(masks, boxes, PICTURE),
        "delineate, torchvision's convention": lambda: paste_masks(masks, boxes, PICTURE, convention="torchvision"),
        "torchvision": lambda: torchvision_paste(masks, boxes),
    }
    return compared(steps, repeats) | {"masks": len(masks), "pixels_that_differ": differ, "pixels": theirs.numel()}


def encoding(masks: Tensor, boxes: Tensor, repeats: int) -> dict[str, Any]:
    """Straight from the small masks, against pasting and encoding, by each library."""
    straight = paste_rle(masks, boxes, PICTURE)
    assert texts(straight) == texts(coco_encode(paste_masks(masks, boxes, PICTURE)))
    steps: dict[str, Step] = {
        "delineate": lambda: paste_rle(masks, boxes, PICTURE),
        "delineate, pasted and encoded": lambda: encode_rle(paste_masks(masks, boxes, PICTURE)),
        "torchvision and pycocotools": lambda: coco_encode(torchvision_paste(masks, boxes)),
    }
    return compared(steps, repeats) | {"masks": len(masks)}


def dense_codes(masks: Tensor, boxes: Tensor, repeats: int) -> dict[str, Any]:
    dense = paste_masks(masks, boxes, PICTURE)
    codes = encode_rle(dense)
    theirs: Any = coco_encode(dense)
    assert texts(codes) == texts(theirs)
    assert torch.equal(decode_rle(codes), dense)
    return {
        "encode": compared({"delineate": lambda: encode_rle(dense), "pycocotools": lambda: coco_encode(dense)}, repeats),
        "decode": compared({"delineate": lambda: decode_rle(codes), "pycocotools": lambda: coco.decode(theirs)}, repeats),
    }


def keypoints(count: int, repeats: int) -> dict[str, Any]:
    heatmaps, boxes = 3 * torch.randn(count, 17, 56, 56), scattered_boxes(count, PICTURE, 20, 660)
    assert torch.equal(decode_keypoints(heatmaps, boxes).points, heatmaps_to_keypoints(heatmaps, boxes)[0][..., :2])
    steps: dict[str, Step] = {
        "delineate, bicubic": lambda: decode_keypoints(heatmaps, boxes),
        "delineate, taylor": lambda: decode_keypoints(heatmaps, boxes, "taylor"),
        "torchvision": lambda: heatmaps_to_keypoints(heatmaps, boxes),
    }
    return compared(steps, repeats) | {"boxes": count}


def memory_of_codes(count: int, size: tuple[int, int]) -> dict[str, Any]:
    """Megabytes above what the process holds, while `count` masks of a large picture become codes."""
    masks, boxes = blobs(count), scattered_boxes(count, size, 50, 2000)
    paste_rle(masks[:1], boxes[:1], (64, 64))
    Path("/proc/self/clear_refs").write_text("5")  # from here on the highest resident memory counts anew
    before = memory_line("VmRSS")
    start = time.perf_counter()
    codes = paste_rle(masks, boxes, size)
    seconds = time.perf_counter() - start
    return {
        "masks": count,
        "height": size[0],
        "width": size[1],
        "seconds": round(seconds, 4),
        "megabytes_above": round(memory_line("VmHWM") - before, 1),
        "megabytes_of_text": round(sum(len(text) for text in texts(codes)) / 2**20, 2),
        "megabytes_of_float_masks": round(count * size[0] * size[1] * 4 / 2**20),  # computed: what pasting first would hold
    }


def memory_line(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def compared(steps: dict[str, Step], repeats: int) -> dict[str, Any]:
    """Median milliseconds of each step, and how many times as fast as each other the first is."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first, *others = medians
    return {
        "milliseconds": {name: round(1000 * median, 3) for name, median in medians.items()},
        "times_as_fast": {name: round(medians[name] / medians[first], 1) for name in others},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    masks, boxes = blobs(100), scattered_boxes(100, PICTURE, 20, 660)
    repeats = arguments.repeats
    report = {
        "environment": environment(),
        "native": native.available,
        "repeats": repeats,
        "memory_300_masks_12_megapixels": memory_of_codes(300, (3000, 4000)),
        "nms_4000_proposals": suppression(proposals(4000, 20), repeats),
        "nms_4000_scattered": suppression(scattered_boxes(4000, PICTURE, 20, 400), repeats),
        "paste_100_masks": pasting(masks, boxes, repeats),
        "rle_100_masks": encoding(masks, boxes, repeats),
        "dense_100_masks": dense_codes(masks, boxes, repeats),
        "keypoints_100_boxes": keypoints(100, max(3, repeats // 3)),
    }
    for name, result in report.items():
        print(name, result)
    write_json(RESULTS, report)


if __name__ == "__main__":
    main()

"""Time the operations on a GPU against torchvision's, RoIAlign forward and backward and against what the card's memory can do.

    python benchmarks/gpu_ops.py --repeats 50

Ours takes bfloat16 maps, channels last. torchvision's kernels know no bfloat16: they get such maps under autocast, which
computes in float32, and, at their best, float32 maps in their own layout. Before each timing the cache is overwritten; the
contestants take turns, results are compared before they are timed, and medians count. Suppression, pasting, run-length codes
and keypoints have the boxes and masks of `ops_speed.py`; what they compare with there runs on the GPU here, except pycocotools.

The floor is the time in which the card's own copy moves the least that must be moved: forward the cells that points touch and
the result, backward the result's gradient and that of all maps. The numbers go to benchmarks/results/gpu_ops.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops import nms as torchvision_nms

from _environment import environment
from delineate.files import write_json
from delineate.ops import decode_keypoints, encode_rle, multilevel_roi_align, nms_fixed, paste_masks, paste_rle
from delineate.ops.triton_jit import available
from ops_speed import PICTURE, blobs, coco_encode, scattered_boxes, texts, torchvision_paste
from ops_speed import proposals as clustered

RESULTS = Path(__file__).parent / "results" / "gpu_ops.json"
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
GOAL = 3  # times as fast as torchvision, forward and backward together
Step = Callable[[], object]
Pooling = Callable[[Sequence[Tensor]], Tensor]


class Contestant(NamedTuple):
    maps: list[Tensor]  # that want gradients
    pool: Pooling
    grad: Tensor


def pyramid(images: int, channels: int, device: torch.device) -> list[Tensor]:
    sizes = [(int(PICTURE[0] * s), int(PICTURE[1] * s)) for s in SCALES]
    return [torch.randn(images, channels, *size, device=device).bfloat16() for size in sizes]


def proposals(count: int, images: int, device: torch.device) -> list[Tensor]:
    """Boxes (count, 4) xyxy of each image, the logarithm of their sides uniform from 16 to 640 pixels."""
    height, width = PICTURE
    side = 16 * 40 ** torch.rand(images, count, 2, device=device)
    center = torch.rand(images, count, 2, device=device) * torch.tensor([width, height], device=device)
    boxes = torch.cat([center - side / 2, center + side / 2], -1)
    limit = torch.tensor([width, height, width, height], device=device)
    return list(boxes.clamp(min=0).minimum(limit))


def contestants(maps: list[Tensor], boxes: list[Tensor], size: int) -> dict[str, Contestant]:
    device = maps[0].device
    poolers = {name: MultiScaleRoIAlign([str(i) for i in range(len(maps))], size, 2) for name in ("mixed", "float")}

    def ours(maps: Sequence[Tensor]) -> Tensor:
        return multilevel_roi_align(maps, boxes, size, SCALES)

    def float32(maps: Sequence[Tensor]) -> Tensor:
        return poolers["float"]({str(i): m for i, m in enumerate(maps)}, boxes, [PICTURE] * len(boxes))

    def mixed(maps: Sequence[Tensor]) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return poolers["mixed"]({str(i): m for i, m in enumerate(maps)}, boxes, [PICTURE] * len(boxes))

    last = torch.channels_last
    of_ours = [m.contiguous(memory_format=last).requires_grad_() for m in maps]
    result = ours(of_ours)
    grad = torch.randn_like(result)
    return {
        "delineate, bf16, channels last": Contestant(of_ours, ours, grad),
        "torchvision, bf16 under autocast": Contestant([m.clone().requires_grad_() for m in maps], mixed, grad.contiguous()),
        "torchvision, fp32": Contestant([m.float().requires_grad_() for m in maps], float32, grad.float().contiguous()),
    }


def outcome(contestant: Contestant) -> list[Tensor]:
    result = contestant.pool(contestant.maps)
    return [result.detach(), *torch.autograd.grad(result, contestant.maps, contestant.grad.to(result.dtype))]


def check(entries: dict[str, Contestant]) -> dict[str, float]:
    """The largest differences from torchvision in float32, as parts of the largest number; ours must repeat bit for bit."""
    first, *_, exact = entries
    ours, theirs = outcome(entries[first]), outcome(entries[exact])
    difference = {}
    for name, mine, other in zip(["result", *(f"gradient {i}" for i in range(4))], ours, theirs, strict=True):
        largest = max(float(other.abs().max()), 1e-9)  # no box may be of a level
        difference[name] = float((mine.float() - other).abs().max()) / largest
        assert difference[name] < 0.01, (name, difference[name])
    assert all(torch.equal(a, b) for a, b in zip(ours, outcome(entries[first]), strict=True))
    return difference


def milliseconds(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Median of each step, with nothing of use in the cache."""
    cache = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in list(steps.values()) * 3:
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            cache.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            step()
            end.record()
            end.synchronize()
            times[name].append(begin.elapsed_time(end))
    return {name: statistics.median(values) for name, values in times.items()}


def forward_step(contestant: Contestant) -> Step:
    def step() -> None:
        with torch.no_grad():
            contestant.pool(contestant.maps)

    return step


def backward_step(contestant: Contestant) -> Step:
    result = contestant.pool(contestant.maps)
    grad = contestant.grad.to(result.dtype)
    return lambda: torch.autograd.grad(result, contestant.maps, grad, retain_graph=True)


def copy_bandwidth(repeats: int) -> float:
    """Bytes a second, read and written, of the card's copy of half a gigabyte."""
    source = torch.zeros(2**29, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = milliseconds({"copy": lambda: target.copy_(source)}, repeats)["copy"] / 1000
    return 2 * source.numel() / seconds


def bytes_moved(contestant: Contestant) -> dict[str, int]:
    """The least that forward and backward must move."""
    result = contestant.pool(contestant.maps)
    touched = torch.autograd.grad(result, contestant.maps, torch.ones_like(result))
    cells = sum(int((t != 0).sum()) for t in touched)
    pooled, maps = result.numel() * result.element_size(), sum(m.numel() * m.element_size() for m in contestant.maps)
    return {"forward": cells * result.element_size() + pooled, "backward": pooled + maps}


def contest(maps: list[Tensor], count: int, size: int, bandwidth: float, repeats: int) -> dict[str, Any]:
    entries = contestants(maps, proposals(count, len(maps[0]), maps[0].device), size)
    first, *others = entries
    report: dict[str, Any] = {"boxes_an_image": count, "size": size, "difference": check(entries), "milliseconds": {}}
    moved = bytes_moved(entries[first])
    passes = {"forward": forward_step, "backward": backward_step}
    for name, make in passes.items():
        times = milliseconds({entry: make(contestant) for entry, contestant in entries.items()}, repeats)
        floor = 1000 * moved[name] / bandwidth
        report["milliseconds"][name] = times | {"floor of the memory": floor}
        report[f"share_of_floor_{name}"] = round(floor / times[first], 3)
    both = {entry: sum(report["milliseconds"][name][entry] for name in passes) for entry in entries}
    report["times_as_fast"] = {entry: round(both[entry] / both[first], 2) for entry in others} | {"goal": GOAL}
    return report


def suppression(repeats: int) -> dict[str, Any]:
    boxes = clustered(4000, 20).cuda()
    scores = torch.rand(4000, device="cuda")
    kept = nms_fixed(boxes, scores, 0.7, 4000)
    assert torch.equal(kept.indices[kept.valid], torchvision_nms(boxes, scores, 0.7))
    four = boxes.expand(4, -1, -1).contiguous(), scores.expand(4, -1).contiguous()
    steps: dict[str, Step] = {
        "delineate": lambda: nms_fixed(boxes, scores, 0.7, 1000),
        "delineate, four pictures at once": lambda: nms_fixed(*four, 0.7, 1000),
        "torchvision": lambda: torchvision_nms(boxes, scores, 0.7),
    }
    return milliseconds(steps, repeats)


def masks_over_boxes(repeats: int) -> dict[str, Any]:
    """Pasting, and codes straight from the small masks: these end on the CPU, and so does what they are compared with."""
    masks, boxes = blobs(100).cuda(), scattered_boxes(100, PICTURE, 30, 600).cuda()
    pasted = paste_masks(masks, boxes, PICTURE)
    assert texts(paste_rle(masks, boxes, PICTURE)) == texts(encode_rle(pasted)) == texts(coco_encode(pasted.cpu()))
    pasting: dict[str, Step] = {
        "delineate": lambda: paste_masks(masks, boxes, PICTURE),
        "torchvision": lambda: torchvision_paste(masks, boxes),
    }
    codes: dict[str, Step] = {
        "delineate": lambda: paste_rle(masks, boxes, PICTURE),
        "delineate, pasted and encoded": lambda: encode_rle(paste_masks(masks, boxes, PICTURE)),
        "torchvision and pycocotools": lambda: coco_encode(torchvision_paste(masks, boxes).cpu()),
    }
    return {"pasting": milliseconds(pasting, repeats), "codes": milliseconds(codes, min(repeats, 10))}


def keypoints(repeats: int) -> dict[str, Any]:
    heatmaps, boxes = 3 * torch.randn(100, 17, 56, 56, device="cuda"), scattered_boxes(100, PICTURE, 20, 660).cuda()
    ours, theirs = decode_keypoints(heatmaps, boxes), heatmaps_to_keypoints(heatmaps, boxes)
    torch.testing.assert_close(ours.logits, theirs[1], rtol=1e-4, atol=1e-4)
    steps: dict[str, Step] = {
        "delineate, bicubic": lambda: decode_keypoints(heatmaps, boxes),
        "delineate, taylor": lambda: decode_keypoints(heatmaps, boxes, "taylor"),
        "torchvision": lambda: heatmaps_to_keypoints(heatmaps, boxes),
    }
    return milliseconds(steps, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if not torch.cuda.is_available() or not available:
        sys.exit("gpu_ops.py needs a CUDA GPU and Triton, and this machine has not both: run it on one that has")
    torch.manual_seed(0)
    maps = pyramid(arguments.images, arguments.channels, torch.device("cuda"))
    bandwidth = copy_bandwidth(arguments.repeats)
    report = {
        "environment": environment(),
        "settings": {key: value for key, value in vars(arguments).items() if key != "out"},
        "gigabytes_a_second": round(bandwidth / 1e9),
        "box_head": contest(maps, 1000, 7, bandwidth, arguments.repeats),
        "mask_head": contest(maps, 128, 14, bandwidth, arguments.repeats),
        "suppression": suppression(arguments.repeats),
        "masks_over_boxes": masks_over_boxes(arguments.repeats),
        "keypoints": keypoints(arguments.repeats),
    }
    for name in ("box_head", "mask_head", "suppression", "masks_over_boxes", "keypoints"):
        print(name, report[name])
    write_json(arguments.out, report)
    print(arguments.out)


if __name__ == "__main__":
    main()
